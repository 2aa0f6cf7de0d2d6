"""What a chapter shows of the records: a table or points of one study, with where they come from.

The words of a page are written once and its numbers are measured again: nothing here is typed in.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from gleak_core import figures, statistics, studies
from gleak_core.errors import choose
from gleak_core.statistics import Estimate
from gleak_core.studies import scoreboard
from gleak_core.studies.scoreboard import Line
from gleak_core.studies.store import Frame, Store, home, word

__all__ = [
    "ahead",
    "board",
    "by_network",
    "cells",
    "heat_map",
    "intervals",
    "one",
    "source",
    "spread",
    "table",
    "trials",
    "verdict",
]


_LINES: dict[str, tuple[object, Line]] = {}


def _line(name: str) -> Line:
    """Judge a result once, and again when its records change: a page asks for one many times."""
    study, stamp = studies.STUDIES.get(name), list[object]()
    for profile in ("paper", "smoke"):
        path = Store(study, home(profile)).path if study else None
        for file in (path, path and path.with_suffix(".inputs.json")):
            there = file.stat() if file and file.exists() else None
            stamp.append((file, there and (there.st_mtime_ns, there.st_size)))
    if name not in _LINES or _LINES[name][0] != stamp:
        _LINES[name] = (stamp, scoreboard.line(name))
    return _LINES[name][1]


def cells(name: str, *metrics: str, **where: Any) -> Frame:
    """Return the recorded cells of a study: its keys, then metric, published, ours, low, high, n.

    `metrics` chooses some measures, and `where` cells by a value of a key, or by several. Empty if
    nothing is recorded.
    """
    frame = _choose(_line(name), where)
    return frame[frame["metric"].isin(metrics)] if metrics else frame


def one(name: str, metric: str, **where: Any) -> Mapping[str, Any]:
    """Return the only recorded cell that `where` leaves: published, ours, low, high and n."""
    found = cells(name, metric, **where)
    if len(found) != 1:
        said = ", ".join(f"{key} {value}" for key, value in where.items())
        raise ValueError(f"{name} has {len(found)} cells of {metric} with {said}, not one")
    return found.iloc[0].to_dict()


def trials(name: str, metric: str, **where: Any) -> pd.DataFrame:
    """Return a measure of every recorded trial: the study's keys, the seed and `metric`."""
    line = _line(name)
    if line.study is None or line.rows.empty:
        return pd.DataFrame()
    rows = _in_order(line.study, _where(line, line.rows, where))
    return rows[[*line.study.keys, "seed", metric]].astype({metric: float}).reset_index(drop=True)


def by_network(name: str, metric: str, each: int, **where: Any) -> pd.DataFrame:
    """Return a row for each setting, and a column for each network: the mean of its `each` trials.

    The index has the keys that tell the settings apart. A failed trial fails its network's mean.
    """
    found: Any = trials(name, metric, **where)
    if found.empty:
        return found
    study = studies.STUDIES[name]
    keys = _told(study, found, ()) or [*study.keys][:1]
    network = (found["seed"].astype(int) // each).rename("network")
    groups = found.groupby([*keys, network])[metric]
    return groups.agg(lambda some: some.mean(skipna=False)).unstack("network")


def ahead(
    name: str,
    metric: str,
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    *,
    decades: bool = False,
    against: str = "",
    **where: Any,
) -> Estimate | None:
    """Return how far one setting is ahead of another: the median over pairs of the same seed.

    It is positive if the first is the better one. With `decades` it counts powers of ten. The
    second may be of another study, `against`, of the same batches. None if nothing is recorded.
    """
    one = trials(name, metric, **{**where, **first})
    two = trials(against or name, metric, **{**where, **second})
    if one.empty or two.empty:
        return None
    same = [k for k in one.columns if k in two.columns and k not in {*first, *second, metric}]
    both: Any = one.merge(two, on=same, suffixes=("_1", "_2"), validate="one_to_one")
    sign = -1 if _line(name).metric(metric).better == "lower" else 1
    ours, theirs = (both[f"{metric}_{k}"] for k in (1, 2))
    if decades:
        ours, theirs = np.log10(ours), np.log10(theirs)
    return statistics.paired((sign * ours).tolist(), (sign * theirs).tolist(), "median")


def board(*names: str, caption: str) -> figures.Table:
    """Return the verdicts on some results, or on all of a paper: `board("dlg", caption=…)`."""
    rows = []
    for line in scoreboard.lines(names):
        ours, unit = line.ours, line.metric(line.result.headline.metric).unit
        numbers = f"{ours.value:.3g} [{ours.low:.3g}, {ours.high:.3g}] {unit}" if ours else "—"
        printed = "—" if line.published is None else f"{line.published:g} {unit}"
        rows.append({
            "id": line.id,
            "what": f"{line.result.title}: {line.metric(line.result.headline.metric).words}",
            "published": printed.rstrip(),
            "ours": numbers.rstrip(),
            "n": ours.n if ours else 0,
            "verdict": line.verdict,
            "why": line.why,
        })  # fmt: skip
    return figures.table(pd.DataFrame(rows), caption=caption)


def table(name: str, *metrics: str, caption: str, drop: Sequence[str] = (), **where: Any) -> (
    figures.Table
):  # fmt: skip
    """Return a table of some metrics of a study (default: all), a row for each cell.

    The caption says beside yours how many trials there are, what they cost and in which code;
    keys with one value only, and those in `drop`, have no column.
    """
    line = _line(name)
    some = _choose(line, where)
    if some.empty or line.study is None:
        return _absent(name, caption)
    keys = _told(line.study, some, drop)
    wanted = metrics or line.study.metrics
    rows = []
    found: Any = some.groupby(list(line.study.keys), sort=False, dropna=False)
    for at, group in found:
        row: dict[str, Any] = {
            k.replace("_", " "): v for k, v in zip(line.study.keys, at, strict=True) if k in keys
        }
        by = {one["metric"]: one for one in group.to_dict("records")}
        for metric in wanted:
            measure = line.metric(metric)
            head = f"{measure.words} ({measure.unit})" if measure.unit else measure.words
            printed = by[metric]["published"]
            if any(pd.notna(some[some["metric"] == metric]["published"])):
                row[f"published {head}"] = "—" if pd.isna(printed) else f"{printed:g}"
            row[head] = _interval(by[metric])
        rows.append({**row, "n": by[wanted[0]]["n"], "not solved": by[wanted[0]]["failed"]})
    return figures.table(pd.DataFrame(rows), caption=f"{caption} {_source(line)}")


def spread(
    name: str, metric: str, across: str, *, caption: str, drop: Sequence[str] = (), **where: Any
) -> figures.Table:
    """Return a table of one metric, with a column for each value of the key `across`.

    Otherwise as `table`; `n` is the least number of trials in a row.
    """
    line = _line(name)
    some = _choose(line, where)
    if some.empty or line.study is None:
        return _absent(name, caption)
    choose("metric", metric, line.study.metrics)
    choose("key", across, line.study.keys)
    keys = _told(line.study, some, (across, *drop))
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for cell in some[some["metric"] == metric].to_dict("records"):
        at = {k.replace("_", " "): cell[k] for k in keys}
        row = rows.setdefault(tuple(at.values()), {**at, "n": cell["n"]})
        row[str(cell[across])] = _interval(cell)
        row["n"] = min(row["n"], cell["n"])
    shown = pd.DataFrame([*rows.values()]).fillna("—")
    shown["n"] = shown.pop("n")  # to the end
    return figures.table(shown, caption=f"{caption} {_source(line)}")


def intervals(
    name: str, metric: str, x: str, *, caption: str, alt: str, xlabel: str, ylabel: str,
    by: str = "", log: bool = False, joined: bool = True, **where: Any,
) -> figures.Figure | figures.Table:  # fmt: skip
    """Draw recorded cells over a key, as `figures.intervals` does."""
    frame = cells(name, metric, **where)
    if frame.empty:
        return _absent(name, caption)
    return figures.intervals(
        frame, x, by=by, log=log, joined=joined, alt=alt, xlabel=xlabel, ylabel=ylabel,
        caption=f"{caption} {source(name)}",
    )  # fmt: skip


def heat_map(
    name: str, metric: str, *rows: str, of: Callable[[pd.DataFrame], pd.DataFrame] | None = None,
    caption: str, alt: str, label: str, xlabel: str, limits: tuple[float, float] | None = None,
    **where: Any,
) -> figures.Figure | figures.Table:  # fmt: skip
    """Draw every recorded trial: a row for each value of some keys, a field for each seed.

    `of` turns the measure into what is drawn.
    """
    found = trials(name, metric, **where)
    if found.empty:
        return _absent(name, caption)
    seeds = found.assign(seed=found["seed"].astype(int))
    wide = seeds.pivot_table(index=list(rows), columns="seed", values=metric, sort=False)
    wide.index = [", ".join(map(str, at if isinstance(at, tuple) else (at,))) for at in wide.index]
    return figures.heat_map(
        of(wide) if of else wide, alt=alt, label=label, xlabel=xlabel, limits=limits,
        caption=f"{caption} {source(name)}",
    )  # fmt: skip


def _told(study: studies.Study, some: Frame, drop: Sequence[str]) -> list[str]:
    """Return the keys that tell the rows of a table apart."""
    return [k for k in study.keys if k not in drop and some[k].map(word).nunique() > 1]


def _absent(name: str, caption: str) -> figures.Table:
    text = f"not yet run: `gleak study {name}` measures it"
    return figures.table(pd.DataFrame({name: [text]}), caption=caption)


def source(name: str) -> str:
    """Say where recorded numbers come from, for a caption."""
    return _source(_line(name))


def _source(line: Line) -> str:
    if line.rows.empty:
        return f"Not yet run: gleak study {line.id} measures it."
    older = "; the library has changed since" if line.older else ""
    return f"Medians, means or rates with 95 % intervals; {line.origin}{older}."


def verdict(name: str) -> str:
    """Return a result's verdict, and why."""
    line = _line(name)
    said = [f"{line.id}: {line.verdict} ({line.why})"]
    for finding in line.findings:
        said.append(f"  {'✓' if finding.met else '✗'} {finding.rule.says}: {finding.detail}")
    return "\n".join(said)


_COLUMNS = ("metric", "published", "ours", "n", "failed", "low", "high")


def _choose(line: Line, where: Mapping[str, Any]) -> Frame:
    frame: Frame = pd.DataFrame(line.cells())
    if frame.empty:
        keys = line.study.keys if line.study else ()
        return pd.DataFrame(columns=[*keys, *_COLUMNS])
    frame = _in_order(line.study, _where(line, frame, where))
    ends = frame["interval"].tolist()
    low, high = ([_number(end[i]) for end in ends] for i in range(2))
    return frame.assign(low=low, high=high).drop(columns="interval").reset_index(drop=True)


def _where(line: Line, frame: Frame, where: Mapping[str, Any]) -> Frame:
    for key, value in where.items():
        if line.study is None or key not in line.study.keys:
            keys = ", ".join(line.study.keys) if line.study else "none"
            raise ValueError(f"{line.id} has no key {key!r}: choose among {keys}")
        values = value if isinstance(value, tuple | list) else (value,)
        frame = frame[frame[key].map(word).isin([word(one) for one in values])]
    return frame


def _in_order(study: studies.Study | None, frame: Frame) -> Frame:
    """Sort rows as the study's grid has its cells: they are recorded as they come to an end."""
    if study is None or frame.empty:
        return frame
    keys = list(study.keys)
    place = {tuple(word(cell[k]) for k in keys): at for at, cell in enumerate(study.cells)}
    names = frame[keys].map(word).itertuples(index=False, name=None)
    order = [place.get(name, len(place)) for name in names]
    return frame.iloc[np.argsort(order, kind="stable")]


def _interval(cell: Mapping[str, Any]) -> str:
    ours = _number(cell["ours"])
    if math.isnan(ours):
        return "—"
    ends = [_number(cell[name]) for name in ("low", "high")]
    if not any(map(math.isfinite, ends)):
        return f"{ours:.3g} (of {cell['n']})"  # too few for an interval
    return f"{ours:.3g} [{ends[0]:.3g},\N{NO-BREAK SPACE}{ends[1]:.3g}]"  # an interval on one line


def _number(value: Any) -> float:
    return math.nan if value is None or pd.isna(value) else float(value)
