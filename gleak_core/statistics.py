"""How sure a number is: intervals for what few trials can tell."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.special import stdtrit

__all__ = ["Estimate", "bootstrap", "few", "paired", "rank_correlation", "rate", "wilson"]

_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A value with its interval, the number of trials behind it, and how many of them failed."""

    value: float
    low: float
    high: float
    n: int
    failed: int = 0

    def __format__(self, spec: str) -> str:
        spec = spec or ".4g"
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def wilson(successes: int, trials: int, *, level: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a success rate (Wilson 1927).

    Unlike the textbook's p ± z·s it is right for few trials, and never empty at 0 % or 100 %.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes of {trials} trials: trials must be at least 1")
    _check(level)
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * (share * (1 - share) / trials + z * z / (4 * trials * trials)) ** 0.5
    scale = 1 + z * z / trials
    # At the ends the formula is exact, and rounding must not say otherwise.
    low = 0.0 if successes == 0 else (centre - spread) / scale
    high = 1.0 if successes == trials else (centre + spread) / scale
    return low, high


def rate(successes: Sequence[bool], *, level: float = 0.95) -> Estimate:
    """Return the share of successes with its Wilson interval."""
    trials = len(successes)
    good = sum(map(bool, successes))
    ends = wilson(good, trials, level=level)
    return Estimate(good / trials, *ends, trials, trials - good)


def bootstrap(
    values: Sequence[float],
    statistic: str = "median",
    *,
    worst: float = math.nan,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Return a median or mean with its percentile bootstrap interval (Efron 1979).

    A value that is not a number counts as `worst`, which may be infinite: a median bears that. If
    it is nan, so is the estimate with both its ends: a mean of what failed is not a mean. Where
    all trials agree the interval has no width, which says more about the number of trials than
    about the truth.
    """
    _check(level)
    if not len(values):
        raise ValueError("there is no estimate of no values: pass at least one")
    sample = np.asarray(values, float)
    bad = np.isnan(sample)
    sample = np.where(bad, worst, sample)
    take = _STATISTICS.get(statistic)
    if take is None:
        raise ValueError(f"unknown statistic {statistic!r}: known: {', '.join(_STATISTICS)}")
    draw = np.random.default_rng(seed)
    again = sample[draw.integers(len(sample), size=(_RESAMPLES, len(sample)))]
    with np.errstate(invalid="ignore"):  # a mean with an infinite value in it
        value, spread = take(sample[None])[0], np.sort(take(again))
    tail = math.floor((1 - level) / 2 * _RESAMPLES)
    low, high = float(spread[tail]), float(spread[-1 - tail])
    if np.isnan(value):
        low = high = math.nan
    return Estimate(float(value), low, high, len(sample), int(bad.sum()))


def few(values: Sequence[float], *, level: float = 0.95) -> Estimate:
    """Return the mean of a handful of values with Student's interval.

    Drawing again from four values, as the bootstrap does, says too little of a fifth. One or two
    tell next to nothing of another: their interval is everything.
    """
    _check(level)
    sample = np.asarray(values, float)
    if not len(sample):
        raise ValueError("there is no estimate of no values: pass at least one")
    n, mean = len(sample), float(sample.mean())
    if math.isnan(mean):
        return Estimate(mean, math.nan, math.nan, n, int(np.isnan(sample).sum()))
    if n < 3:
        return Estimate(mean, -math.inf, math.inf, n)
    off = float(stdtrit(n - 1, (1 + level) / 2) * sample.std(ddof=1) / math.sqrt(n))
    return Estimate(mean, mean - off, mean + off, n)


def paired(
    first: Sequence[float],
    second: Sequence[float],
    statistic: str = "mean",
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Return how much larger the first of each pair is: the same images, so the same noise.

    Larger is better. A value that is not a number is the worst there is, so its pair is won or
    lost by infinity, and the median is taken, which bears that; two of them are even.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} values cannot be paired: give as many")
    one, two = (np.nan_to_num(np.asarray(s, float), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
                for s in (first, second))  # fmt: skip
    with np.errstate(invalid="ignore"):
        apart = np.where(one == two, 0.0, one - two)
    failed = int((~np.isfinite(apart)).sum())
    found = bootstrap(apart.tolist(), "median" if failed else statistic, level=level, seed=seed)
    return Estimate(found.value, found.low, found.high, len(apart), failed)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's ρ, ties at their mean rank; nan where one side is constant."""
    one, two = (_ranks(np.asarray(side, float)) for side in (first, second))
    if one.std() == 0 or two.std() == 0:
        return math.nan
    return round(float(np.corrcoef(one, two)[0, 1]), 12)  # 0.8 of four ranks is 0.8


_STATISTICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    # The lower of the two in the middle would be biased; their mean is not, and ±∞ survives it.
    "median": lambda rows: np.median(rows, -1),
    "mean": lambda rows: rows.mean(-1),
}


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    upto = count.cumsum()
    return (upto - (count - 1) / 2)[place]


def _check(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
