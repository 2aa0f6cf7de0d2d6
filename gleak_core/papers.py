"""What the four papers print, and the rules of each verdict, fixed before any result was seen.

One TOML per source in `data/papers`; this is its typed and checked view. No published number is
typed into code or prose: it is asked for here.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import isnan
from pathlib import Path
from typing import Any

from gleak_core import files
from gleak_core.errors import GleakError, choose

__all__ = ["Cell", "Headline", "Metric", "Result", "Rule", "Source",
           "find", "ids", "load", "source"]  # fmt: skip

Scalar = str | int | float


@dataclass(frozen=True)
class Source:
    """One of the four documents; `key` is its entry in the bibliography."""

    key: str
    title: str
    text: str
    chapter: str


@dataclass(frozen=True)
class Metric:
    """What a column measures, which way is better, and how our trials are summarised."""

    name: str
    unit: str
    better: str
    statistic: str
    shared: int = 1  # trials of ours that count as one: those of a training, or of a network

    @property
    def words(self) -> str:
        """How a page calls it."""
        return _CALLED.get(self.name, self.name.replace("_", " "))


_CALLED = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "mse": "MSE",
    "lpips": "LPIPS",
    "success_rate": "share leaked",
    "test_accuracy": "test accuracy",
    "free_protection": "share safe for free",
    "token_accuracy": "tokens right",
    "accuracy_bias": "accuracy, bias gradient",
    "off": "p that is off",
}


@dataclass(frozen=True)
class Rule:
    """One condition of a verdict; which of the fields count depends on `kind`."""

    says: str
    kind: str
    metric: str
    where: Mapping[str, tuple[Scalar, ...]]
    within: float | None = None
    factor: float | None = None
    share: float = 1.0
    first: Mapping[str, Scalar] | None = None
    second: Mapping[str, Scalar] | None = None
    margin: float = 0.0
    at_least: float | None = None
    at_most: float | None = None
    along: str | None = None
    direction: str | None = None


@dataclass(frozen=True)
class Cell:
    """The printed values at one place of a table; a value that is not printed is absent."""

    at: Mapping[str, Scalar]
    values: Mapping[str, float]


@dataclass(frozen=True)
class Headline:
    """The one number of a result's row in the scoreboard; it need not be a printed one."""

    metric: str
    at: Mapping[str, Scalar]


@dataclass(frozen=True)
class Result:
    """A table, figure or claim; a rule that is silent on a key of `ours_keys` means its reading."""

    id: str
    title: str
    place: str
    claim: str
    keys: tuple[str, ...]
    stated: tuple[str, ...]
    open: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[Cell, ...]
    headline: Headline
    metrics: Mapping[str, Metric]
    rules: tuple[Rule, ...]
    ours_keys: Mapping[str, Scalar]
    not_testable: str = ""

    def published(self, metric: str, /, **at: Scalar) -> float | None:
        """Return the printed value of a cell, or None where the source prints none."""
        choose(f"metric of {self.id}", metric, self.metrics)
        for name in at:
            choose(f"key of {self.id}", name, [*self.keys, *self.ours_keys])
        if lacking := [key for key in self.keys if key not in at]:
            raise ValueError(f"a cell of {self.id} also needs {', '.join(lacking)}")
        here = {**self.ours_keys, **at}  # only the reading is compared with print
        same = (cell for cell in self.cells if {**self.ours_keys, **cell.at} == here)
        return next((cell.values.get(metric) for cell in same), None)


_HOME = files.FACTS / "papers"
_FILES = {"dlg": "dlg.toml", "cpl": "cpl.toml", "gen": "general.toml", "cafe": "cafe.toml"}
_BETTER, _WAYS = ("higher", "lower", "none"), ("rising", "falling", "flat")
_NUMBER = (int, float)
_WORDS = {str: "text", list: "a list", dict: "a table", _NUMBER: "a number"}
# A field is text unless it stands here: one name has one type, wherever it is used.
_TYPES: dict[str, Any] = dict.fromkeys(("keys", "stated", "open", "columns", "cells"), list)
_TYPES |= dict.fromkeys(("source", "headline", "metrics", "at", "where", "first", "second"), dict)
_TYPES |= dict.fromkeys(("within", "factor", "share", "margin", "at_least", "at_most"), _NUMBER)
_TYPES |= {"ours_keys": dict, "result": list, "rule": list, "shared": int}
_RESULT = "id title place claim keys stated open columns cells headline metrics"
# What a rule of each kind must say, what it may say, and of what it must say exactly one.
_KINDS = {
    "close": ("", "share", "within factor"),
    "order": ("first second", "share margin", ""),
    "rank": ("at_least", "", ""),
    "trend": ("along direction", "within", ""),
    "bound": ("", "share", "at_least at_most"),
}
_PRINTED = {"close": 1, "rank": 3}  # values in print: a correlation of two says nothing


def ids() -> tuple[str, ...]:
    """Return the identifiers of all results, in the order of the chapters."""
    return tuple(_all())


def find(name: str) -> Result:
    """Return the result called `name`."""
    try:
        return _all()[choose("result", name, _all())]
    except ValueError as error:
        raise GleakError(str(error)) from None


def source(name: str) -> Source:
    """Return the source of a result, or that of a prefix such as `gen`."""
    full = next((known for known in ids() if known.startswith(f"{name}.")), name)
    return load(_HOME / _FILES[find(full).id.partition(".")[0]])[0]


@cache
def load(path: Path) -> tuple[Source, tuple[Result, ...]]:
    """Return what a file says of its source and results, or one sentence on what is wrong."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        results = tuple(map(_result, _fields(table, "source result", "", "the file")["result"]))
        _unique("identifier", [r.id for r in results])
        return Source(**_fields(table["source"], "key title text chapter", "", "source")), results
    except (AttributeError, OSError, TypeError, ValueError) as error:
        raise GleakError(f"cannot use the published numbers in {path}: {error}") from error


@cache
def _all() -> dict[str, Result]:
    papers = [load(_HOME / name)[1] for name in _FILES.values()]
    return {result.id: result for results in papers for result in results}


def _fields(table: dict[str, Any], needed: str, optional: str, what: str) -> dict[str, Any]:
    for name, value in table.items():
        choose(f"field of {what}", name, f"{needed} {optional}".split())
        wanted = _TYPES.get(name, str)
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise ValueError(f"{name} of {what} must be {_WORDS[wanted]}, not {value!r}")
    if lacking := [name for name in needed.split() if name not in table]:
        raise ValueError(f"{what} needs {', '.join(lacking)}")
    return table


def _unique(kind: str, things: Sequence[Any]) -> None:
    if twice := [thing for k, thing in enumerate(things) if thing in things[:k]]:
        raise ValueError(f"{kind} {twice[0]!r} stands twice: keep one")


def _result(row: dict[str, Any]) -> Result:
    what = str(row.get("id", "a result"))
    _fields(row, _RESULT, "rule ours_keys not_testable", what)
    lists = {name: tuple(row[name]) for name in ("keys", "stated", "open", "columns")}
    keys, columns, ours = lists["keys"], lists["columns"], row.get("ours_keys", {})
    for name, facts in row["metrics"].items():
        _fields(facts, "unit better statistic", "shared", f"metric {name} of {what}")
        choose(f"better of {name} of {what}", facts["better"], _BETTER)
        choose(f"statistic of {name} of {what}", facts["statistic"], ("mean", "median", "rate"))
    metrics = {name: Metric(name, **facts) for name, facts in row["metrics"].items()}
    _unique(f"key of {what}", [*keys, *ours])
    if columns[: len(keys)] != keys:
        raise ValueError(f"columns of {what} must begin with its keys {', '.join(keys)}")
    head = Headline(**_fields(row["headline"], "metric at", "", f"headline of {what}"))
    for column in (*columns[len(keys) :], head.metric):
        choose(f"metric of {what}", column, metrics)
    cells = tuple(_cell(values, keys, columns, what) for values in row["cells"])
    _unique(f"cell of {what}", [dict(cell.at) for cell in cells])
    if not set(keys) <= set(head.at) <= {*keys, *ours}:
        raise ValueError(f"headline of {what} must name a cell by {', '.join([*keys, *ours])}")
    if bool(row.get("rule")) == bool(row.get("not_testable")):
        raise ValueError(f"{what} needs either a rule or the reason why it is not_testable")
    made: dict[str, Any] = {"cells": cells, "headline": head, "metrics": metrics, "rules": ()}
    plain = {name: value for name, value in row.items() if name != "rule"}
    result = Result(**{**plain, **lists, **made, "ours_keys": ours})
    rules = tuple(_rule(rule, result) for rule in row.get("rule", []))
    _unique(f"rule of {what}", [rule.says for rule in rules])
    return replace(result, rules=rules)


def _cell(row: list[Any], keys: tuple[str, ...], columns: tuple[str, ...], what: str) -> Cell:
    if len(row) != len(columns):
        raise ValueError(f"cell {row} of {what} has {len(row)} entries for {len(columns)} columns")
    if not all(isinstance(value, _NUMBER) for value in row[len(keys) :]):
        raise ValueError(f"cell {row} of {what} needs numbers behind its keys")
    # A nan keeps the place of a value that the source does not print.
    at, values = dict(zip(keys, row, strict=False)), zip(columns, row, strict=True)
    return Cell(at, {name: float(v) for name, v in values if name not in at and not isnan(v)})


def _rule(row: dict[str, Any], of: Result) -> Rule:
    kind = choose(f"kind of rule of {of.id}", str(row.get("kind")), _KINDS)
    (needed, allowed, either), what = _KINDS[kind], f"a rule of kind {kind} of {of.id}"
    _fields(row, f"says kind metric {needed}", f"where {allowed} {either}", what)
    metric = of.metrics[choose(f"metric of {of.id}", row["metric"], of.metrics)]
    if either and sum(name in row for name in either.split()) != 1:
        raise ValueError(f"{what} needs exactly one of {' and '.join(either.split())}")
    if not 0 < row.get("share", 1) <= 1:
        raise ValueError(f"share of {what} must lie in (0, 1], not {row['share']}")
    where = {k: tuple(v) if isinstance(v, list) else (v,) for k, v in row.get("where", {}).items()}
    first, second = row.get("first", {}), row.get("second", {})
    for key in (*where, *first, *second, *([row["along"]] if kind == "trend" else [])):
        choose(f"key of {of.id}", key, [*of.keys, *of.ours_keys])
    if kind == "order" and (first.keys() != second.keys() or first == second):
        raise ValueError(f"{what} needs first and second to give the same keys other values")
    if kind == "order" and metric.better == "none":
        raise ValueError(f"{what} needs a metric with a better end, and {metric.name} has none")
    way = choose(f"direction of {what}", row.get("direction", "flat"), _WAYS)
    if kind == "trend" and (way == "flat") != ("within" in row):
        raise ValueError(f"{what} needs within if it is flat, and only then")
    places = [{**of.ours_keys, **c.at} for c in of.cells if metric.name in c.values]
    there = sum(all(at[key] in values for key, values in where.items()) for at in places)
    if there < _PRINTED.get(kind, 0):
        raise ValueError(f"{what} selects {there} printed values, and needs {_PRINTED[kind]}")
    return Rule(**{**row, "where": where})
