"""What a chapter shows of the records: a table or points of one study, with where they come from.

The words of a page are written once and its numbers are measured again: nothing here is typed in.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from gleak_core import figures
from gleak_core.studies import scoreboard
from gleak_core.studies.scoreboard import Line
from gleak_core.studies.store import Frame, word

__all__ = ["board", "cells", "one", "source", "table", "verdict"]


def cells(name: str, *metrics: str, **where: Any) -> Frame:
    """Return the recorded cells of a study: its keys, then metric, published, ours, low, high, n.

    `metrics` chooses some measures, and `where` cells by a value of a key, or by several. Empty if
    nothing is recorded.
    """
    frame = _choose(scoreboard.line(name), where)
    return frame[frame["metric"].isin(metrics)] if metrics and len(frame) else frame


def one(name: str, metric: str, **where: Any) -> Mapping[str, Any]:
    """Return the only recorded cell that `where` leaves: published, ours, low, high and n."""
    found = cells(name, metric, **where)
    if len(found) != 1:
        said = ", ".join(f"{key} {value}" for key, value in where.items())
        raise ValueError(f"{name} has {len(found)} cells of {metric} with {said}, not one")
    return found.iloc[0].to_dict()


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
    line = scoreboard.line(name)
    some = _choose(line, where)
    if some.empty or line.study is None:
        text = f"not yet run: `gleak study {name}` measures it"
        return figures.table(pd.DataFrame({name: [text]}), caption=caption)
    keys = [k for k in line.study.keys if k not in drop and some[k].map(word).nunique() > 1]
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


def source(name: str) -> str:
    """Say where recorded numbers come from, for a caption."""
    return _source(scoreboard.line(name))


def _source(line: Line) -> str:
    if line.rows.empty:
        return f"Not yet run: gleak study {line.id} measures it."
    older = "; the library has changed since" if line.older else ""
    return f"Medians, means or rates with 95 % intervals; {line.origin}{older}."


def verdict(name: str) -> str:
    """Return a result's verdict, and why."""
    line = scoreboard.line(name)
    said = [f"{line.id}: {line.verdict} ({line.why})"]
    for finding in line.findings:
        said.append(f"  {'✓' if finding.met else '✗'} {finding.rule.says}: {finding.detail}")
    return "\n".join(said)


def _choose(line: Line, where: Mapping[str, Any]) -> Frame:
    frame: Frame = pd.DataFrame(line.cells())
    if frame.empty:
        return frame
    for key, value in where.items():
        if line.study is None or key not in line.study.keys:
            keys = ", ".join(line.study.keys) if line.study else "none"
            raise ValueError(f"{line.id} has no key {key!r}: choose among {keys}")
        values = value if isinstance(value, tuple | list) else (value,)
        frame = frame[frame[key].map(word).isin([word(one) for one in values])]
    ends = frame["interval"].tolist()
    low, high = ([_number(end[i]) for end in ends] for i in range(2))
    return frame.assign(low=low, high=high).drop(columns="interval").reset_index(drop=True)


def _interval(cell: Mapping[str, Any]) -> str:
    ours = _number(cell["ours"])
    if math.isnan(ours):
        return "—"
    ends = [f"{_number(cell[name]):.3g}" for name in ("low", "high")]
    return f"{ours:.3g} [{', '.join(ends)}]"


def _number(value: Any) -> float:
    return math.nan if value is None or pd.isna(value) else float(value)
