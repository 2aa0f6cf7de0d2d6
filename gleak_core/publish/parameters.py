"""Truthful parameters: the values a page shows are the values that ran.

papermill runs a misspelt parameter's default and records the wrong value. Here a name or a type
that does not fit is refused before any kernel starts, and the values are written into the
chapter's own `parameters` cell instead of a hidden one behind it.
"""

import ast
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gleak_core.errors import GleakError, choose
from gleak_core.publish import notebooks

__all__ = ["PROFILES", "Declared", "ParameterError", "Typed", "declared", "parse", "resolve"]

PROFILES = ("smoke", "quick", "paper")


class ParameterError(GleakError, ValueError):
    """A parameter that no chapter knows, or a value that does not fit it."""


class Typed(str):
    """A value as typed on the command line: what it means depends on the parameter's default."""


@dataclass(frozen=True)
class Declared:
    """The parameters cell of one chapter: its values, and where in the source each stands."""

    chapter: str
    source: str
    values: Mapping[str, Any]
    spans: Mapping[str, tuple[int, int]]  # byte offsets of each value in the source

    def rewrite(self, values: Mapping[str, Any]) -> str:
        """Return the cell's source with other values; comments and layout stay."""
        source = self.source.encode()
        for name in sorted(values, key=lambda n: self.spans[n], reverse=True):
            if values[name] != self.values[name] or type(values[name]) is not type(
                self.values[name]
            ):
                start, end = self.spans[name]
                source = source[:start] + _literal(values[name]).encode() + source[end:]
        return source.decode()


def declared(chapter: str, notebook: Any) -> Declared:
    """Read the one cell tagged `parameters`: literal assignments and nothing else."""
    cells = notebooks.tagged(notebook, "parameters")
    if len(cells) != 1:
        raise ParameterError(
            f"{chapter} has {len(cells)} cells tagged 'parameters': give it exactly one"
        )
    source = cells[0]["source"]
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise ParameterError(
            f"the parameters cell of {chapter} is not Python (line {error.lineno}): {error.msg}"
        ) from error
    starts = _line_starts(source)
    values: dict[str, Any] = {}
    spans: dict[str, tuple[int, int]] = {}
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=node):
                pass
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as node):
                pass
            case _:
                raise _not_literal(chapter, source, statement)
        if name in values:
            raise ParameterError(f"the parameters cell of {chapter} sets {name!r} twice")
        try:
            values[name] = ast.literal_eval(node)
        except ValueError as error:
            raise _not_literal(chapter, source, statement) from error
        assert node.end_lineno and node.end_col_offset is not None
        spans[name] = (
            starts[node.lineno - 1] + node.col_offset,
            starts[node.end_lineno - 1] + node.end_col_offset,
        )
    if "profile" not in values:
        raise ParameterError(
            f"{chapter} has no parameter 'profile': "
            'add `profile = "smoke"` to its parameters cell'
        )
    return Declared(chapter, source, values, spans)


def parse(assignments: Iterable[str]) -> dict[str, Typed]:
    """Split `name=value` as given with -p.

    >>> parse(["seed=3"])
    {'seed': '3'}
    """
    given: dict[str, Typed] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name.strip().isidentifier():
            raise ParameterError(
                f"-p {assignment!r} is not name=value: write for example -p seed=3"
            )
        given[name.strip()] = Typed(value.strip())
    return given


def resolve(
    chapters: Iterable[Declared], given: Mapping[str, Any], *, profile: str, device: str
) -> dict[str, dict[str, Any]]:
    """Return each chapter's full parameters, or refuse with every problem in one error.

    A name that only some of the chapters know is applied where it is known.
    """
    choose("profile", profile, PROFILES)
    chapters = list(chapters)
    problems: list[str] = []
    for name, option in (("profile", "--profile"), ("device", "--device")):
        if name in given:
            problems.append(f"parameter {name!r} has an option of its own: use {option}")
    known = {name for chapter in chapters for name in chapter.values}
    for name in given.keys() - known:
        try:
            choose("parameter", name, known)
        except ValueError as error:
            problems.append(str(error))
    values: dict[str, dict[str, Any]] = {}
    for chapter in chapters:
        mine = {"profile": profile, "device": device, **given}
        values[chapter.chapter] = dict(chapter.values)
        for name in mine.keys() & chapter.values.keys():
            try:
                fitted = _fit(name, mine[name], chapter.values[name], chapter.chapter)
            except ParameterError as error:
                problems.append(str(error))
            else:
                values[chapter.chapter][name] = fitted
    if problems:
        raise ParameterError("\n".join(sorted(set(problems))))
    return values


def _fit(name: str, value: Any, default: Any, chapter: str) -> Any:
    """Return `value` in the type of `default`; the one silent change is from int to float."""
    if isinstance(value, Typed):
        value = _meaning(value, default)
    wanted = type(default)
    if wanted is float and type(value) is int:
        value = float(value)
    if wanted in (list, tuple) and isinstance(value, list | tuple):
        value = wanted(value)
    if default is not None and type(value) is not wanted:
        raise ParameterError(
            f"parameter {name!r} of {chapter} is {_named(wanted)} (default {default!r}), "
            f"got {value!r}: give it {_named(wanted)}"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ParameterError(f"parameter {name!r} of {chapter} must be finite, got {value!r}")
    try:
        ast.literal_eval(_literal(value))
    except (ValueError, SyntaxError) as error:
        raise ParameterError(
            f"parameter {name!r} of {chapter} must be a plain literal, got {value!r}"
        ) from error
    return value


def _meaning(typed: str, default: Any) -> Any:
    try:
        value = ast.literal_eval(typed)
    except (ValueError, SyntaxError):
        return str(typed)
    # With a text default, `-p start=1` means the text "1".
    return str(typed) if isinstance(default, str) and not isinstance(value, str) else value


def _literal(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _named(kind: type) -> str:
    words = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}
    return words.get(kind, f"a {kind.__name__}")


def _not_literal(chapter: str, source: str, statement: ast.stmt) -> ParameterError:
    line = source.splitlines()[statement.lineno - 1]
    return ParameterError(
        f"the parameters cell of {chapter} may only hold `name = literal` lines, "
        f"and this is none: {line.strip()}"
    )


def _line_starts(source: str) -> list[int]:
    starts = [0]
    for line in source.encode().split(b"\n"):
        starts.append(starts[-1] + len(line) + 1)
    return starts
