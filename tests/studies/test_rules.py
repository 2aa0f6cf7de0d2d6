"""Rules: each kind met and not met, on numbers one can check by hand."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gleak_core.errors import GleakError
from gleak_core.papers import Cell, Headline, Metric, Result, Rule
from gleak_core.studies import rules

METRICS = {
    "psnr": Metric("psnr", "dB", "higher", "mean"),
    "mse": Metric("mse", "", "lower", "median"),
    "success_rate": Metric("success_rate", "", "higher", "rate"),
}


def rule(kind: str, metric: str = "psnr", **about: Any) -> Rule:
    where = {k: v if isinstance(v, tuple) else (v,) for k, v in about.pop("where", {}).items()}
    return Rule("It holds", kind, metric, where, **about)


def result(
    *given: Rule,
    printed: Mapping[tuple[Any, ...], float] = {},
    metric: str = "psnr",
    ours: Mapping[str, Any] = {},
) -> Result:
    cells = tuple(
        Cell(dict(zip(("method", "batch"), at, strict=True)), {metric: value})
        for at, value in printed.items()
    )
    head = Headline(metric, {})
    return Result("x.y", "X", "Table 0", "It holds.", ("method", "batch"), (), (), (), cells, head,
                  METRICS, given, ours)  # fmt: skip


def frame(metric: str, cells: Mapping[tuple[Any, ...], list[float]], **more: Any) -> Any:
    return pd.DataFrame(
        [
            {"method": method, "batch": batch, "seed": seed, metric: value, **more}
            for (method, batch), values in cells.items()
            for seed, value in enumerate(values)
        ]
    )


def met(one: Rule, rows: Any, **about: Any) -> tuple[bool, str]:
    [found] = rules.check(result(one, **about), rows)
    return found.met, found.detail


PRINTED = {("a", 1): 30.0, ("a", 2): 20.0, ("a", 4): 10.0, ("b", 1): 5.0}
ROWS: Any = frame(
    "psnr", {("a", 1): [31, 31], ("a", 2): [22, 22], ("a", 4): [9, 9], ("b", 1): [5, 5]}
)


@pytest.mark.parametrize(
    ("about", "holds"),
    [
        ({"within": 2.0}, True),
        ({"within": 1.9}, False),
        ({"within": 1.9, "share": 0.75}, True),
        ({"within": 1.0, "where": {"batch": (1, 4)}}, True),
        ({"factor": 1.12}, True),
        ({"factor": 1.09}, False),
    ],
)
def test_close(about: dict[str, Any], holds: bool) -> None:
    assert met(rule("close", **about), ROWS, printed=PRINTED)[0] is holds


def test_a_cell_that_is_missing_or_not_finite_is_not_close() -> None:
    fewer = ROWS[ROWS["batch"] != 4]
    good, said = met(rule("close", within=5.0), fewer, printed=PRINTED)
    assert not good
    assert said == "3 of 4 cells (1 not measured); the largest gap is 2 dB"
    bad = ROWS.assign(psnr=ROWS["psnr"].where(ROWS["batch"] != 4, math.nan))
    assert not met(rule("close", within=5.0), bad, printed=PRINTED)[0]
    assert not met(rule("close", within=5.0), ROWS, printed={})[0]  # of nothing, nothing holds


def test_rank() -> None:
    where = {"method": "a"}
    assert met(rule("rank", at_least=0.8, where=where), ROWS, printed=PRINTED)[0]
    upside = ROWS.assign(psnr=-ROWS["psnr"])
    good, said = met(rule("rank", at_least=0.8, where=where), upside, printed=PRINTED)
    assert (good, said) == (False, "rank correlation -1.00 over 3 cells")
    fewer = ROWS[ROWS["batch"] != 4]
    assert met(rule("rank", at_least=0.8, where=where), fewer, printed=PRINTED) == (
        False, "2 of 3 cells are measured",
    )  # fmt: skip


def order(**about: Any) -> Rule:
    return rule("order", first={"method": "a"}, second={"method": "b"}, **about)


def test_order_pairs_the_same_images() -> None:
    """A lead of one on images that differ by ten: only pairs can see it."""
    base = np.random.default_rng(0).normal(0, 10, size=20)
    rows = frame("psnr", {("a", 1): list(base + 1), ("b", 1): list(base)})
    assert met(order(), rows) == (
        True,
        "1 of 1 cells; mean paired difference 1 dB, 20 pairs",
    )
    assert not met(order(margin=1.5), rows)[0]
    shuffled = frame("psnr", {("a", 1): list(base[::-1] + 1), ("b", 1): list(base)})
    assert not met(order(), shuffled)[0]


def test_order_knows_which_way_is_better() -> None:
    rows = frame("mse", {("a", 1): [0.1, 0.1, 0.1], ("b", 1): [0.2, 0.2, 0.2]})
    assert met(order(metric="mse"), rows)[0]
    assert not met(rule("order", "mse", first={"method": "b"}, second={"method": "a"}), rows)[0]


def test_order_counts_cells_and_says_when_there_are_none() -> None:
    rows = frame("psnr", {("a", 1): [2, 2], ("b", 1): [1, 1], ("a", 2): [1, 1], ("b", 2): [1, 1]})
    assert met(order(), rows)[0] is False
    assert met(order(share=0.5), rows)[0] is True
    only = rows[rows["method"] == "a"]
    assert met(order(), only) == (False, "nothing measured to compare")


@pytest.mark.parametrize(
    ("values", "about", "holds"),
    [
        ([1, 2, 3, 4], {"direction": "rising"}, True),
        ([1, 3, 2, 4], {"direction": "rising"}, True),  # ρ = 0.8, exactly the border
        ([2, 1, 4, 3], {"direction": "rising"}, False),
        ([4, 3, 2, 1], {"direction": "rising"}, False),
        ([4, 3, 2, 1], {"direction": "falling"}, True),
        ([1, 1.5, 1, 1.2], {"direction": "flat", "within": 0.5}, True),
        ([1, 1.6, 1, 1.2], {"direction": "flat", "within": 0.5}, False),
        ([1, 1, 1, 1], {"direction": "rising"}, False),
    ],
)
def test_trend(values: list[float], about: dict[str, Any], holds: bool) -> None:
    # Batches out of order, as rows may come: the trend is along their values.
    rows = frame("psnr", {("a", b): [v, v] for b, v in zip((1, 2, 10, 20), values, strict=True)})
    for mixed in (rows, rows[::-1]):
        assert met(rule("trend", along="batch", **about), mixed)[0] is holds


def test_failed_trials_carry_no_rule() -> None:
    """Three ways in which a divergence once helped: dropped from a mean, a pair, a trend."""
    bad = math.nan
    rows = frame("psnr", {("a", 1): [21.0] * 22 + [bad] * 3})
    assert not met(rule("bound", at_least=18), rows)[0]
    pairs = frame("psnr", {("a", 1): [bad] * 24 + [9.0], ("b", 1): [1.0] * 25})
    good, said = met(order(), pairs)
    assert not good
    assert said.endswith("25 pairs, 24 of them with a failed trial")
    for values in ([1.0, bad, 1.0], [1.0, 2.0, bad]):
        line = frame("psnr", {("a", b): [v, v] for b, v in zip((1, 2, 3), values, strict=True)})
        assert not met(rule("trend", along="batch", direction="flat", within=1), line)[0]
        assert not met(rule("trend", along="batch", direction="rising"), line)[0]


def test_a_trend_of_two_asks_for_intervals_apart() -> None:
    rising = rule("trend", along="batch", direction="rising")
    sure = frame("psnr", {("a", 1): [1, 2, 1, 2], ("a", 2): [5, 6, 5, 6]})
    assert met(rising, sure)[0]
    unsure = frame("psnr", {("a", 1): [1, 9, 1, 9], ("a", 2): [5, 6, 5, 6]})
    assert not met(rising, unsure)[0]


def test_a_share_is_no_trial_of_a_rate() -> None:
    with pytest.raises(GleakError, match=r"a trial of it has 0\.875: judge one picture"):
        rules.estimate(METRICS["success_rate"], [1.0, 0.875])


def test_a_trend_needs_every_group_and_two_points() -> None:
    rows = frame("psnr", {("a", 1): [1], ("a", 2): [2], ("b", 1): [2], ("b", 2): [1]})
    rising = rule("trend", along="batch", direction="rising")
    assert not met(rising, rows)[0]
    assert met(rule("trend", along="batch", direction="rising", where={"method": "a"}), rows)[0]
    assert met(rising, rows[rows["batch"] == 1]) == (False, "only one value of batch is measured")


def test_bound_asks_for_the_whole_interval() -> None:
    rows = frame("psnr", {("a", 1): [29, 31, 33, 35], ("a", 2): [40] * 4})
    assert met(rule("bound", at_least=28), rows)[0]
    assert not met(rule("bound", at_least=31), rows)[0]  # the mean is 32, the interval reaches 30
    assert met(rule("bound", at_least=31, share=0.5), rows)[0]
    assert met(rule("bound", at_most=41), rows)[0]
    assert not met(rule("bound", at_most=31.5), rows)[0]
    assert met(rule("bound", at_least=1, where={"batch": 9}), rows) == (False, "nothing measured")


def test_a_rate_needs_enough_trials_to_be_sure() -> None:
    few, many = (frame("success_rate", {("a", 1): [1.0] * n}) for n in (5, 20))
    sure = rule("bound", "success_rate", at_least=0.8)
    assert not met(sure, few)[0]
    assert met(sure, many)[0]


def test_silence_on_a_key_of_ours_means_its_reading() -> None:
    good = frame("psnr", {("a", 1): [30, 30]}, network="untrained")
    bad = frame("psnr", {("a", 1): [1, 1]}, network="trained")
    rows, ours = pd.concat([good, bad]), {"network": "untrained"}
    assert met(rule("bound", at_least=20), rows, ours=ours)[0]
    assert not met(rule("bound", at_least=20, where={"network": "trained"}), rows, ours=ours)[0]
    both = {"network": ("trained", "untrained")}
    assert not met(rule("bound", at_least=20, where=both), rows, ours=ours)[0]


def test_a_failed_trial_counts_as_the_worst() -> None:
    found = rules.estimate(METRICS["mse"], [0.1, math.nan, math.nan])
    assert (found.value, found.failed) == (math.inf, 2)
    assert math.isnan(rules.estimate(METRICS["psnr"], [30.0, math.nan]).value)
    assert rules.estimate(METRICS["success_rate"], [1.0, 0.0]).value == 0.5


def test_what_trials_share_counts_once() -> None:
    """Four trainings told with ten pictures each are four values, in whatever order they come."""
    metric = Metric("accuracy", "%", "higher", "mean", shared=10)
    seeds = [10 * network + k for k in range(10) for network in range(4)]
    some = pd.DataFrame({"accuracy": [45.0, 47.0, 47.0, 41.0] * 10, "seed": map(str, seeds)})
    found = rules.summary(metric, some)
    assert (found.value, found.n) == (45.0, 4)
    assert found.low < 42 < 48 < found.high
    assert rules.summary(replace(metric, shared=1), some).low > 44


def test_pictures_of_one_network_count_as_their_mean() -> None:
    metric = Metric("psnr", "dB", "higher", "mean", shared=2)
    some = pd.DataFrame({"psnr": [10.0, 30.0, 11.0, 29.0, 12.0, 31.0], "seed": range(6)})
    found = rules.summary(metric, some)
    assert (found.n, found.low > 18, found.high < 23) == (3, True, True)
    some.loc[3, "psnr"] = math.nan
    assert math.isnan(rules.summary(metric, some).value)


def test_numbers_are_the_same_key_however_they_are_written() -> None:
    rows = frame("psnr", {("a", 1.0): [30, 30]})  # pandas makes floats of a column with a gap
    assert met(rule("close", within=1.0), rows, printed={("a", 1): 30.0})[0]


def test_pairs_that_share_a_value_count_once() -> None:
    shared = Metric("seconds", "s", "lower", "mean", shared=10)
    order = rule("order", "seconds", first={"method": "a"}, second={"method": "b"})
    both = {("a", 1): [1.0] * 10 + [2.0] * 10 + [1.5] * 10, ("b", 1): [5.0] * 30}
    one = replace(result(order), metrics={"seconds": shared})
    [found] = rules.check(one, frame("seconds", both))
    assert found.met and "3 pairs" in found.detail
    # One group of ten is far off: of thirty pairs that is little, of three much.
    both["a", 1][:10] = [14.0] * 10
    [found] = rules.check(one, frame("seconds", both))
    assert not found.met and found.judged
    both["a", 1] = [1.0, 14.0] * 5 + [2.0] * 10 + [1.5] * 10  # their mean speaks for a group
    [found] = rules.check(one, frame("seconds", both))
    assert not found.met
    [found] = rules.check(replace(one, metrics={"seconds": replace(shared, shared=1)}),
                          frame("seconds", {**both, ("a", 1): [7.0] * 3 + [2.0] * 27}))  # fmt: skip
    assert found.met


@pytest.mark.parametrize(
    ("rows", "judged"),
    [
        ({}, False),
        ({("a", 1): [40.0], ("a", 2): [22.0]}, False),
        ({("a", 1): [40.0], ("a", 2): [22.0], ("a", 4): [9.0], ("b", 1): [5.0]}, True),
    ],
)
def test_a_rule_that_lacks_cells_is_not_judged(rows, judged: bool) -> None:
    close = rule("close", within=5.0)
    [found] = rules.check(
        result(close, printed=PRINTED), frame("psnr", rows) if rows else pd.DataFrame()
    )
    assert (found.met, found.judged) == (False, judged)
