"""Intervals against the equation that defines them, and against published values."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gleak_core.statistics import wilson


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
