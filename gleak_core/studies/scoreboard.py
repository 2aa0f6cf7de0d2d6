"""The scoreboard: for every published table, figure and claim, what we found and the verdict.

Only a complete run of the paper profile supports a verdict. What is missing, or measured in a
reduced profile, says so instead.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from gleak_core import papers, studies
from gleak_core.papers import Headline, Metric, Result
from gleak_core.statistics import Estimate
from gleak_core.studies import inputs, rules
from gleak_core.studies.store import Frame, Store, home, word
from gleak_core.studies.study import PROFILES, Study

__all__ = ["ENOUGH", "VERDICTS", "Line", "chosen", "line", "lines"]

VERDICTS = ("reproduced", "partly", "not reproduced", "not testable here", "not yet run")
ENOUGH = 20
"""Trials in every cell without which nothing is called reproduced."""


@dataclass(frozen=True)
class Line:
    """One row of the scoreboard."""

    result: Result
    verdict: str
    why: str
    findings: tuple[rules.Finding, ...]
    rows: Frame
    study: Study | None
    older: str = ""
    """In what the library differs from the one that measured; empty if in nothing."""

    @property
    def id(self) -> str:
        """The identifier in `data/papers`."""
        return self.result.id

    @property
    def published(self) -> float | None:
        """The printed value of the headline."""
        head = self.result.headline
        return self.result.published(head.metric, **head.at)

    @property
    def ours(self) -> Estimate | None:
        """Our value of the headline, with its interval."""
        head, result = self.result.headline, self.result
        rows = _reading(self.study, self.rows)
        for name, value in {**result.ours_keys, **head.at}.items():
            if name in rows:
                rows = rows[rows[name].map(word) == word(value)]
        if rows.empty or head.metric not in rows:
            return None
        return rules.summary(result.metrics[head.metric], rows)

    @property
    def profile(self) -> str:
        """The profile of the rows."""
        return str(self.rows["profile"].iloc[0]) if len(self.rows) else ""

    @property
    def device(self) -> str:
        """The hardware that measured."""
        return ", ".join(sorted(set(self.rows["hardware"]))) if len(self.rows) else ""

    @property
    def seconds(self) -> float:
        """What all trials took together."""
        return float(self.rows["seconds"].astype(float).sum()) if len(self.rows) else 0.0

    @property
    def origin(self) -> str:
        """How many trials there are, what they took, and when and by which code."""
        commits = ", ".join(sorted({f"{c[:7]}{c[12:]}" for c in map(str, self.rows["commit"])}))
        dates = sorted(set(map(str, self.rows["date"])))
        span = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        return (
            f"{len(self.rows)} trials, {studies.human(self.seconds)} on {self.device}; "
            f"profile {self.profile}, {span}, commit {commits}"
        )

    @property
    def summary(self) -> str:
        """What happened in half a line."""
        unit = self.result.metrics[self.result.headline.metric].unit
        ours, printed = self.ours, self.published
        parts = [] if printed is None else [f"published {printed:g} {unit}".rstrip()]
        if ours:
            parts.append(f"ours {ours.value:.4g} [{ours.low:.4g}, {ours.high:.4g}] (n = {ours.n})")
        return "; ".join([*parts, self.why])

    def metric(self, name: str) -> Metric:
        """Return what a column measures; one of our own, `accuracy_bias`, is like `accuracy`."""
        known = self.result.metrics
        if name in known:
            return known[name]
        like = known.get(name.partition("_")[0])
        return replace(like, name=name) if like else Metric(name, "", "none", "median")

    def cells(self) -> list[dict[str, Any]]:
        """Return every cell: where, the metric, published, ours, the interval and n."""
        result, study, found = self.result, self.study, []
        if study is None or self.rows.empty:
            return []
        for at, some in rules.groups(self.rows, study.keys):
            known = {k: v for k, v in at.items() if k in (*result.keys, *result.ours_keys)}
            read = all(word(at[k]) == word(v) for k, v in study.reading.items())
            for name in study.metrics:
                ours = rules.summary(self.metric(name), some)
                printed = read and name in result.metrics
                found.append({
                    **{k: _plain(v) for k, v in at.items()},
                    "metric": name,
                    "published": result.published(name, **known) if printed else None,
                    **_estimate(ours),
                    "failed": int((some["status"] != "solved").sum()),
                })  # fmt: skip
        return found

    def record(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON: what is not finite is null."""
        result, ours = self.result, self.ours
        numbers = _estimate(ours) if ours else {"ours": None, "interval": None, "n": 0}
        return {
            "id": self.id,
            "title": result.title,
            "place": result.place,
            "claim": result.claim,
            "metric": result.headline.metric,
            "unit": result.metrics[result.headline.metric].unit,
            "at": dict(result.headline.at),
            "published": self.published,
            **numbers,
            "verdict": self.verdict,
            "why": self.why,
            "profile": self.profile or None,
            "device": self.device or None,
            "seconds": round(self.seconds, 1),
            "rules": [{"says": f.rule.says, "met": f.met, "detail": f.detail}
                      for f in self.findings],
            "deviations": list(self.study.deviations) if self.study else [],
            "older": self.older,
            "cells": self.cells(),
        }  # fmt: skip


def lines(names: Sequence[str] = (), *, folder: Path | None = None) -> list[Line]:
    """Return the scoreboard, or the lines of some results or papers of it."""
    return [line(name, folder=folder) for name in studies.named(names, papers.ids(), "result")]


def line(name: str, *, folder: Path | None = None) -> Line:
    """Judge one result by what is recorded of it."""
    study = studies.STUDIES.get(name)
    result = _question(study) if study and study.asks else papers.find(name)
    folder, rows = _where(study, folder)
    if result.not_testable:
        return Line(result, "not testable here", result.not_testable, (), rows, study)
    if study is None or rows.empty:
        why = "not yet run" if study and study.measure else "its study is not written yet"
        return Line(result, "not yet run", why, (), rows, study)
    findings = rules.check(result, _reading(study, rows))
    older = _older(study, rows, folder)
    profile = rows["profile"].iloc[0]
    if profile != "paper":
        n = int(rows.groupby("key").size().min())
        why = f"only a {profile} run is there ({n} trials a cell), which supports no verdict"
        return Line(result, "not yet run", why, findings, rows, study, older)
    if mixed := _mixed(study, rows, folder):
        return Line(result, "not yet run", mixed, findings, rows, study, older)
    verdict, why = _verdict(study, findings, rows, _instead(study, rows, folder))
    if older:
        why = f"{why}; the library has changed since"
    return Line(result, verdict, why, findings, rows, study, older)


def _question(study: Study) -> Result:
    """Return what a study of our own asks, as a result of which nothing is printed."""
    head = Headline(study.metrics[0], study.cells[0])
    return Result(
        study.id, study.title, "ours", study.title, study.keys, (), (), study.keys, (), head,
        study.asks, (), {},
    )  # fmt: skip


def _where(study: Study | None, folder: Path | None) -> tuple[Path, Frame]:
    """Return the rows that stand for a study and their folder: the book's, else one's own."""
    places = [folder] if folder else [home("paper"), home("smoke")]
    for place in places:
        rows = chosen(study, place) if study else pd.DataFrame()
        if len(rows):
            return place, rows
    return places[0], pd.DataFrame()


def _reading(study: Study | None, rows: Frame) -> Frame:
    """Return the rows that stand for the source; a reduced grid may have another value only."""
    if study is None or rows.empty:
        return rows
    for name, value in study.reading.items():
        same = rows[name].map(word) == word(value)
        if same.any() or rows[name].nunique() > 1:
            rows = rows[same]
    return rows


def chosen(study: Study, folder: Path) -> Frame:
    """Return the rows of a folder that stand for a study.

    The largest profile there is, on the device with more trials; of each cell one measurement,
    the fullest, and of equals the newest. An interrupted trial is none.
    """
    rows = Store(study, folder).rows()
    rows = rows[rows["status"] != "interrupted"]
    if rows.empty:
        return rows
    best = max(rows["profile"], key=PROFILES.index)
    rows = rows[rows["profile"] == best]
    wanted = {tuple(word(cell[k]) for k in study.keys) for cell in study.grid(best)}
    at = [tuple(word(row[k]) for k in study.keys) for row in rows.to_dict("records")]
    rows = rows[[name in wanted for name in at]]  # the grid may have been another one
    if rows.empty:
        return rows
    rows = rows[rows["device"] == rows["device"].value_counts().idxmax()]
    parts = []
    for _, some in rules.groups(rows, study.keys):
        sizes = some.groupby("key", sort=False).size()  # in the order of the file: newest last
        parts.append(some[some["key"] == sizes.index[sizes.to_numpy() == sizes.max()][-1]])
    return pd.concat(parts).reset_index(drop=True)


def _instead(study: Study, rows: Frame, folder: Path) -> str:
    """Say what stood in for the source's attack, or for a data set of its."""
    known = Store(study, folder).inputs()
    read = {name for key in set(rows["key"]) for name in known.get(key, {}).get("data", {})}
    said = [studies.INSTEAD[study.id]] if study.id in studies.INSTEAD else []
    others = studies.STAND_INS.get(study.id, {})
    return ", ".join([*said, *(words for name, words in others.items() if name in read)])


def _verdict(
    study: Study, findings: Sequence[rules.Finding], rows: Frame, instead: str
) -> tuple[str, str]:
    met = sum(finding.met for finding in findings)
    why = f"{met} of {len(findings)} rules are met"
    sizes = rows.groupby("key").size()
    there = {tuple(word(row[k]) for k in study.keys) for row in rows.to_dict("records")}
    gaps = [c for c in study.cells if tuple(word(c[k]) for k in study.keys) not in there]
    if any(not study.spares(cell) for cell in gaps):
        return "not yet run", f"only {len(sizes)} of {len(study.cells)} cells are measured"
    if study.asks:
        return "measured", "a question of ours: nothing is printed to hold it against"
    absent = sorted({
        str(cell[name]) for cell in gaps for name, values in study.optional.items()
        if cell[name] in values
    })  # fmt: skip
    if absent:
        were = "was" if len(absent) == 1 else "were"
        why = f"{why}, without {' and '.join(absent)}, which {were} not at hand"
    if instead:
        why = f"{why}, {instead}"
    if sizes.min() < ENOUGH:
        few = f"{why}, with {sizes.min()} trials in a cell: {ENOUGH} are asked for"
        return "partly" if met else "not yet run", few
    if met == 0 and any(finding.judged for finding in findings):
        return "not reproduced", why
    whole = met == len(findings) and not absent and not instead
    return "reproduced" if whole else "partly", why


def _mixed(study: Study, rows: Frame, folder: Path) -> str:
    """Say if cells were measured by different code or on different data: they do not compare."""
    known = Store(study, folder).inputs()
    found = [known[key] for key in set(rows["key"]) if key in known]
    sources = {json.dumps(then["source"], sort_keys=True) for then in found}
    data: dict[str, set[str]] = {}
    for then in found:
        for name, value in then["data"].items():
            data.setdefault(name, set()).add(value)
    if len(sources) > 1:
        return f"its cells were measured with {len(sources)} states of the code: run it again"
    if several := sorted(name for name, values in data.items() if len(values) > 1):
        return f"its cells were measured on different states of {', '.join(several)}: run it again"
    return ""


def _older(study: Study, rows: Frame, folder: Path) -> str:
    if study.measure is None:
        return ""
    known, now = Store(study, folder).inputs(), inputs.sources(study.measure)
    said = set()
    for key in set(rows["key"]):
        then = known.get(key)
        said.add(inputs.changes({"source": then["source"]}, {"source": now}) if then else "unknown")
    return "; ".join(sorted(said - {""}))


def _estimate(found: Estimate) -> dict[str, Any]:
    ends = [_finite(found.low), _finite(found.high)]
    return {"ours": _finite(found.value), "interval": ends, "n": found.n}


def _finite(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None  # an error of 6e-8 is not 0


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
