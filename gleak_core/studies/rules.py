"""Rules: what decides a verdict, as `data/papers` wrote it down before any result was seen.

A rule is met, or it is not; where results are missing it is not met, and says so.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from gleak_core import statistics
from gleak_core.errors import GleakError
from gleak_core.papers import Metric, Result, Rule
from gleak_core.statistics import Estimate
from gleak_core.studies.store import Frame, word

__all__ = ["Finding", "check", "estimate", "groups"]

_STRONG = 0.8  # the rank correlation from which on a trend is one


@dataclass(frozen=True)
class Finding:
    """Whether a rule is met, and by what; one that is not, for a gap, was not judged."""

    rule: Rule
    met: bool
    detail: str
    judged: bool = True


class _Gap(Exception):
    """Says what a rule lacks to be judged."""


def check(result: Result, rows: Frame) -> tuple[Finding, ...]:
    """Hold our rows against every rule of a result."""

    def one(rule: Rule) -> Finding:
        try:
            return Finding(rule, *_KINDS[rule.kind](result, rule, rows))
        except _Gap as gap:
            return Finding(rule, False, str(gap), judged=False)

    return tuple(map(one, result.rules))


def summary(metric: Metric, some: Frame) -> Estimate:
    """Summarise the trials of one cell as the result asks for.

    Where trials share what decides their value, the mean of those that do counts once: forty
    pictures with four trainings, or with four networks, are four.
    """
    values = some[metric.name].astype(float)
    if metric.shared > 1:
        return statistics.few(_means(values, some, metric))
    return estimate(metric, values.tolist())


def _means(values: pd.Series, some: Frame, metric: Metric) -> list[float]:
    """Return one value for the trials that share it; a failed one fails them all."""
    together = some["seed"].astype(int) // metric.shared
    return [float(group.mean(skipna=False)) for _, group in values.groupby(together)]


def estimate(metric: Metric, values: Sequence[float]) -> Estimate:
    """Summarise values that are each a trial of its own."""
    if metric.statistic == "rate":
        if shares := {v for v in values if v not in (0, 1) and not math.isnan(v)}:
            raise GleakError(
                f"{metric.name} is a rate, and a trial of it has {min(shares):g}: judge one "
                "picture in each row"
            )
        return statistics.rate([value == 1 for value in values])
    worst = {"higher": -math.inf, "lower": math.inf}.get(metric.better, math.nan)
    if metric.statistic == "mean":
        worst = math.nan
    return statistics.bootstrap(values, metric.statistic, worst=worst)


def groups(rows: Frame, keys: Sequence[str]) -> Iterator[tuple[dict[str, Any], Frame]]:
    """Yield each cell of the rows with its trials, in the order of the file."""
    if not keys:
        yield {}, rows
        return
    for at, some in rows.groupby(list(keys), sort=False, dropna=False):
        yield dict(zip(keys, at, strict=True)), some


def _select(result: Result, rows: Frame, where: Mapping[str, Sequence[Any]]) -> Frame:
    """Return the rows of some cells; where a rule is silent on a key of ours, of the reading."""
    asked = {name: (value,) for name, value in result.ours_keys.items()} | dict(where)
    for name, values in asked.items():
        if name in rows:
            rows = rows[rows[name].map(word).isin([word(value) for value in values])]
    return rows


def _keys(result: Result, rows: Frame) -> list[str]:
    return [name for name in (*result.keys, *result.ours_keys) if name in rows]


def _printed(result: Result, rule: Rule, rows: Frame) -> list[tuple[float, Estimate | None]]:
    """Return (published, ours) of every printed cell that a rule selects."""
    metric, pairs = result.metrics[rule.metric], []
    for cell in result.cells:
        wanted = {name: [word(v) for v in values] for name, values in rule.where.items()}
        chosen = all(word(cell.at.get(k)) in v for k, v in wanted.items() if k in result.keys)
        if not chosen or rule.metric not in cell.values:
            continue
        ours = {k: v for k, v in rule.where.items() if k not in result.keys}
        some = _select(result, rows, {**ours, **{k: (v,) for k, v in cell.at.items()}})
        pairs.append((cell.values[rule.metric], summary(metric, some) if len(some) else None))
    return pairs


def _close(result: Result, rule: Rule, rows: Frame) -> tuple[bool, str]:
    pairs = _printed(result, rule, rows)

    def near(printed: float, ours: Estimate | None) -> bool:
        if ours is None or not math.isfinite(ours.value):
            return False
        if rule.within is not None:
            return abs(ours.value - printed) <= rule.within
        assert rule.factor is not None
        return printed * ours.value > 0 and 1 / rule.factor <= ours.value / printed <= rule.factor

    good = sum(near(*pair) for pair in pairs)
    far = [abs(o.value - p) for p, o in pairs if o and math.isfinite(o.value)]
    unit = result.metrics[rule.metric].unit
    most = f"; the largest gap is {max(far):.3g} {unit}".rstrip() if far else ""
    met, lacking = _share(good, len(pairs), rule), sum(ours is None for _, ours in pairs)
    gap = f" ({lacking} not measured)" if lacking else ""
    detail = f"{good} of {len(pairs)} cells{gap}{most}"
    if lacking and not met:
        raise _Gap(detail)
    return met, detail


def _rank(result: Result, rule: Rule, rows: Frame) -> tuple[bool, str]:
    pairs = _printed(result, rule, rows)
    there = [(p, o.value) for p, o in pairs if o and not math.isnan(o.value)]
    if len(there) < len(pairs) or len(there) < 3:
        raise _Gap(f"{len(there)} of {len(pairs)} cells are measured")
    rho = statistics.rank_correlation(*zip(*there, strict=True))
    assert rule.at_least is not None
    return rho >= rule.at_least, f"rank correlation {rho:.2f} over {len(there)} cells"


def _order(result: Result, rule: Rule, rows: Frame) -> tuple[bool, str]:
    """Compare two settings on the same images: the pairs are cells and seeds."""
    assert rule.first and rule.second
    metric = result.metrics[rule.metric]
    sides = [
        _select(result, rows, {**rule.where, **{k: (v,) for k, v in side.items()}})
        for side in (rule.first, rule.second)
    ]
    differ = {*rule.first, *rule.second}
    rest = [name for name in _keys(result, rows) if name not in differ]
    both = sides[0].merge(sides[1], on=[*rest, "seed"], suffixes=("_1", "_2"))
    if both.empty:
        raise _Gap("nothing measured to compare")
    sign = -1 if metric.better == "lower" else 1
    good, cells, said, least, failed = 0, 0, [], math.inf, 0
    way = "median" if metric.statistic == "median" else "mean"
    for _, some in groups(both, rest):
        one, two = (sign * some[f"{rule.metric}_{k}"].astype(float) for k in (1, 2))
        if metric.shared > 1:
            apart = statistics.few(_means(one - two, some, metric))
        else:
            apart = statistics.paired(one.tolist(), two.tolist(), way)
        cells += 1
        good += apart.low > rule.margin
        said.append(sign * apart.value)
        least, failed = min(least, apart.n), failed + apart.failed
    unit = f" {metric.unit}".rstrip()
    span = f"{min(said):.3g}" + (f" to {max(said):.3g}" if cells > 1 else "")
    lost = f", {failed} of them with a failed trial" if failed else ""
    return _share(good, cells, rule), (
        f"{good} of {cells} cells; {way} paired difference {span}{unit}, {least:.0f} pairs{lost}"
    )


def _trend(result: Result, rule: Rule, rows: Frame) -> tuple[bool, str]:
    assert rule.along and rule.direction
    some = _select(result, rows, rule.where)
    metric = result.metrics[rule.metric]
    rest = [name for name in _keys(result, rows) if name != rule.along]
    said, good = [], []
    for _, line in groups(some, rest):
        points = {
            float(at[rule.along]): summary(metric, part) for at, part in groups(line, [rule.along])
        }
        found = [points[at] for at in sorted(points)]
        values = [one.value for one in found]
        if len(values) < 2:
            raise _Gap(f"only one value of {rule.along} is measured")
        if any(math.isnan(value) for value in values):
            return False, f"failed trials leave no value at some {rule.along}"
        if rule.direction == "flat":
            assert rule.within is not None
            width = max(values) - min(values)
            good.append(width <= rule.within)
            said.append(f"range {width:.3g} {metric.unit}".rstrip())
        elif len(found) == 2:  # a rank correlation of two is always ±1
            low, high = found if rule.direction == "rising" else reversed(found)
            good.append(low.high < high.low)
            said.append(f"{values[0]:.3g} to {values[1]:.3g} {metric.unit}".rstrip())
        else:
            rho = statistics.rank_correlation(range(len(values)), values)
            good.append(rho >= _STRONG if rule.direction == "rising" else rho <= -_STRONG)
            said.append(f"rank correlation {rho:.2f}")
    if not good:
        raise _Gap("nothing measured")
    return all(good), ", ".join(said)


def _bound(result: Result, rule: Rule, rows: Frame) -> tuple[bool, str]:
    some = _select(result, rows, rule.where)
    metric = result.metrics[rule.metric]
    found = [summary(metric, part) for _, part in groups(some, _keys(result, rows)) if len(part)]
    if not found or some.empty:
        raise _Gap("nothing measured")
    if rule.at_least is not None:
        good = sum(one.low >= rule.at_least for one in found)
        edge = min(one.low for one in found)
    else:
        assert rule.at_most is not None
        good = sum(one.high <= rule.at_most for one in found)
        edge = max(one.high for one in found)
    return _share(good, len(found), rule), (
        f"{good} of {len(found)} cells; the intervals reach to {edge:.3g} {metric.unit}".rstrip()
    )


_KINDS = {"close": _close, "order": _order, "rank": _rank, "trend": _trend, "bound": _bound}


def _share(good: int, cells: int, rule: Rule) -> bool:
    return cells > 0 and good >= rule.share * cells - 1e-9
