"""Intervals against the equation that defines them, and against published values."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from gleak_core.statistics import (
    Estimate,
    bootstrap,
    few,
    paired,
    rank_correlation,
    rate,
    wilson,
)


@given(n=st.integers(1, 500), data=st.data())
def test_wilson_ends_solve_their_own_equation(n: int, data: st.DataObject) -> None:
    """The interval is the set of p with |p̂ − p| ≤ z √(p(1−p)/n): check its two ends."""
    k = data.draw(st.integers(0, n))
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            distance = abs(k / n - end) / math.sqrt(end * (1 - end) / n)
            assert distance == pytest.approx(1.959963984540054, rel=1e-6)


def test_wilson_against_published_values() -> None:
    # Newcombe 1998, Table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for k, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605),
                            (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)):  # fmt: skip
        assert wilson(k, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_is_never_empty_and_narrows_with_trials() -> None:
    assert wilson(0, 5)[1] > 0.4 and wilson(5, 5)[0] < 0.6
    assert wilson(50, 100)[1] - wilson(50, 100)[0] < wilson(5, 10)[1] - wilson(5, 10)[0]
    assert wilson(5, 10, level=0.99)[0] < wilson(5, 10, level=0.9)[0]


@pytest.mark.parametrize(
    ("k", "n", "level"), [(3, 2, 0.95), (-1, 2, 0.95), (0, 0, 0.95), (1, 2, 1)]
)
def test_impossible_counts_are_refused(k: int, n: int, level: float) -> None:
    with pytest.raises(ValueError):
        wilson(k, n, level=level)


def test_the_bootstrap_agrees_with_scipy() -> None:
    values = np.random.default_rng(1).gamma(2.0, size=40)
    for statistic, function in (("mean", np.mean), ("median", np.median)):
        ours = bootstrap(values.tolist(), statistic)
        theirs = scipy.stats.bootstrap(
            (values,), function, method="percentile", n_resamples=20_000, rng=2
        ).confidence_interval
        assert ours.value == pytest.approx(function(values))
        assert (ours.low, ours.high) == pytest.approx(tuple(theirs), abs=0.06)
        assert (ours.n, ours.failed) == (40, 0)


def test_the_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    found = [bootstrap(draw.normal(size=30).tolist(), "mean", seed=i) for i in range(200)]
    assert 176 <= sum(e.low <= 0 <= e.high for e in found) <= 199  # 190 of 200, ± 4 σ


def test_the_bootstrap_does_not_move_and_narrows_with_trials() -> None:
    values = np.random.default_rng(3).normal(size=400).tolist()
    assert bootstrap(values) == bootstrap(values)
    few, many = bootstrap(values[:20]), bootstrap(values)
    assert many.high - many.low < few.high - few.low
    assert bootstrap([2.0]) == Estimate(2.0, 2.0, 2.0, 1)


def test_a_trial_that_is_not_a_number_counts_as_the_worst() -> None:
    found = bootstrap([1.0, 2.0, math.nan], "median", worst=-math.inf)
    assert (found.value, found.low, found.failed) == (1.0, -math.inf, 1)
    assert bootstrap([math.nan] * 3, "median", worst=math.inf).value == math.inf
    mean = bootstrap([30.0] * 22 + [math.nan] * 3, "mean")
    assert math.isnan(mean.value) and math.isnan(mean.low) and math.isnan(mean.high)


def test_a_rate_is_a_wilson_interval() -> None:
    assert rate([True] * 3 + [False]) == Estimate(0.75, *wilson(3, 4), 4, 1)


@given(st.lists(st.floats(-100, 100), min_size=3, max_size=9))
def test_the_mean_of_a_few_is_students(values: list[float]) -> None:
    found = few(values)
    spread = float(np.std(values, ddof=1) / math.sqrt(len(values)))
    ends = scipy.stats.t.interval(0.95, len(values) - 1) if spread else (0.0, 0.0)
    wanted = [np.mean(values) + spread * end for end in ends]
    assert found.n == len(values)
    assert [found.low, found.high] == pytest.approx(wanted, abs=1e-9)


def test_two_values_have_no_interval_to_speak_of() -> None:
    assert few([1.0, 3.0]) == Estimate(2.0, -math.inf, math.inf, 2)
    assert math.isnan(few([1.0, math.nan, 2.0]).low) and few([1.0, math.nan, 2.0]).failed == 1
    with pytest.raises(ValueError, match="no estimate of no values"):
        few([])


def test_pairs_see_what_separate_intervals_do_not() -> None:
    """A constant lead on very different images."""
    base = np.random.default_rng(5).normal(0, 10, size=30)
    lead = paired((base + 1).tolist(), base.tolist())
    assert (lead.value, lead.low, lead.high) == pytest.approx((1, 1, 1))
    assert bootstrap((base + 1).tolist(), "mean").low < bootstrap(base.tolist(), "mean").high


def test_a_pair_with_a_failure_is_lost_and_not_left_out() -> None:
    lost = paired([math.nan] * 24 + [5.0], [1.0] * 25)
    assert (lost.value, lost.high, lost.n, lost.failed) == (-math.inf, -math.inf, 25, 24)
    won = paired([1.0] * 3, [math.nan] * 3)
    assert won.low == math.inf
    assert paired([math.nan] * 3, [math.nan] * 3) == Estimate(0.0, 0.0, 0.0, 3)
    few = paired([3.0] * 9 + [math.nan], [1.0] * 10)
    assert (few.value, few.failed) == (2.0, 1)
    with pytest.raises(ValueError, match="2 and 1 values cannot be paired"):
        paired([1.0, 2.0], [1.0])


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=30))
def test_rank_correlation_is_spearmans(pairs: list[tuple[int, int]]) -> None:
    first, second = zip(*pairs, strict=True)
    ours = rank_correlation(first, second)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert math.isnan(ours)
    else:
        theirs: Any = scipy.stats.spearmanr(first, second)
        assert ours == pytest.approx(theirs.statistic)


def test_bad_input_to_estimates_is_refused() -> None:
    with pytest.raises(ValueError, match="no estimate of no values"):
        bootstrap([])
    with pytest.raises(ValueError, match="unknown statistic 'mode'"):
        bootstrap([1.0], "mode")
    with pytest.raises(ValueError, match="trials must be at least 1"):
        rate([])
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        bootstrap([1.0], level=95)
