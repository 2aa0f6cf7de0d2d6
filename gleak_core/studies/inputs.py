"""What a result depends on, each by name and hash, so that a re-run can say what changed.

A cell's key stands for its parameters, the part of the library that its function can reach, the
data it reads, the profile and the kind of device. Comments, docstrings and blank lines do not
count: a better sentence costs no GPU hour.
"""

import ast
import functools
import importlib.util
import inspect
import io
import json
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gleak_core import data
from gleak_core.files import sha256_bytes
from gleak_core.studies.study import Cell, Study

__all__ = ["changes", "inputs", "key", "lacking", "recorded", "sources"]

_PACKAGE = "gleak_core"
_BESIDE = {  # what no number depends on
    f"{_PACKAGE}.studies",  # imports every study
    f"{_PACKAGE}.studies.kept",  # returns what was computed before
}


def inputs(study: Study, cell: Cell, *, profile: str, device: str) -> dict[str, Any]:
    """Hash, by name, everything that a cell's numbers depend on."""
    assert study.measure
    return {
        "cell": dict(cell),
        "source": sources(study.measure),
        "data": {name: data.fingerprint(name) for name in _data_sets(study, cell)},
        "profile": profile,
        "device": device,
    }


def key(parts: Mapping[str, Any]) -> str:
    """Return sixteen hexadecimal digits that stand for all inputs together."""
    return sha256_bytes(json.dumps(parts, sort_keys=True).encode())[:16]


def recorded(parts: Mapping[str, Any], known: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    """Return the last of some keys that differs only in data sets that are not on this machine.

    Who has no ImageNet cannot tell whether it changed, and loses no row for that.
    """
    absent = set(lacking(parts))

    def bare(some: Mapping[str, Any]) -> dict[str, Any]:
        return {**some, "data": {n: v for n, v in some["data"].items() if n not in absent}}

    here = json.loads(json.dumps(bare(parts)))
    same = [key for key in keys if absent and key in known and bare(known[key]) == here]
    return same[-1] if same else None


def lacking(parts: Mapping[str, Any]) -> list[str]:
    """Name the data sets of a cell that are not on this machine."""
    return [name for name, value in parts["data"].items() if value == "absent"]


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Say in words in what two cells' inputs differ."""
    found = []
    for group, words in (("source", "{}"), ("data", "data set {}")):
        before, after = old.get(group, {}), new.get(group, {})
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                what = "is new" if name not in before else "is gone" if name not in after else ""
                found.append(f"{words.format(name)} {what or 'changed'}")
    for part in ("cell", "profile", "device"):
        if old.get(part) != new.get(part):
            found.append(f"{part}: {old.get(part)} → {new.get(part)}")
    return "; ".join(found)


def sources(function: Callable[..., Any]) -> dict[str, str]:
    """Hash what a function can reach: what it uses of its own module, and the rooms below.

    Of the own module only what the function leads to counts, for a study's module holds many;
    of any other module of the library the whole file does, and all that it imports.
    """
    given = []
    while isinstance(function, functools.partial):
        given.append(repr((function.args, sorted(function.keywords.items()))))
        function = function.func
    home = inspect.getmodule(function)
    if home is None or not home.__file__:
        raise ValueError(f"{function} has no source file: define it in a module")
    own, reached = _part(Path(home.__file__), function.__qualname__.partition(".")[0])
    own = "\n".join([own, *given])
    found = {f"{home.__name__}:{function.__name__}": sha256_bytes(own.encode())[:16]}
    todo = set(reached)
    while todo:
        module = todo.pop()
        path = _file(module)
        if path is None or module in found:
            continue
        digest, below = _whole(path)
        found[module] = digest
        todo |= set(below)
    return dict(sorted(found.items()))


@functools.cache
def _whole(path: Path) -> tuple[str, tuple[str, ...]]:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    return sha256_bytes(_bare(text, tree).encode())[:16], tuple(_imports(tree))


@functools.cache
def _part(path: Path, start: str) -> tuple[str, tuple[str, ...]]:
    """Return the source of a top-level name with all it uses, and the modules these import."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    made: dict[str, list[ast.stmt]] = {}
    for node in tree.body:
        for name in _binds(node):
            made.setdefault(name, []).append(node)
    if start not in made:
        raise ValueError(f"{start} is not defined at the top of {path.name}: move it there")
    todo, seen, nodes = [start], {start}, []
    while todo:
        for node in made.get(todo.pop(), ()):
            nodes.append(node)
            used = set(_names(node)) & made.keys()
            todo += sorted(used - seen)
            seen |= used
    ordered = sorted(set(nodes), key=lambda node: node.lineno)
    reached = [m for node in ordered for m in _imports(node)]
    pieces = [ast.get_source_segment(text, node, padded=True) or "" for node in ordered]
    decorated = [ast.unparse(d) for n in ordered for d in getattr(n, "decorator_list", ())]
    code = [_bare(piece, ast.parse(piece)) for piece in pieces]
    return "\n".join(decorated + code), tuple(reached)


def _binds(node: ast.stmt) -> Iterator[str]:
    """Yield the names that a top-level statement binds."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        for alias in node.names:
            yield alias.asname or alias.name.partition(".")[0]
    else:
        for part in ast.walk(node):
            if part is not node and isinstance(part, ast.stmt):
                yield from _binds(part)  # within `if` or `try`
            elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                yield part.id
        for target in _targets(node):  # RULES["b"] = 2 changes RULES
            yield from (part.id for part in ast.walk(target) if isinstance(part, ast.Name))


def _targets(node: ast.stmt) -> list[ast.expr]:
    if isinstance(node, ast.Assign):
        return node.targets
    if isinstance(node, ast.AugAssign | ast.AnnAssign):
        return [node.target]
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):  # RULES.update(b=2)
        return [node.value.func]
    return []


def _names(node: ast.AST) -> Iterator[str]:
    """Yield the names that code uses when it runs, so not those of its annotations."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns"):
            continue
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, ast.Name):
                yield part.id
            elif isinstance(part, ast.AST):
                yield from _names(part)


def _imports(tree: ast.AST) -> Iterator[str]:
    """Yield the modules of the library that a piece of code imports, wherever it does so."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            if name.startswith(f"{_PACKAGE}.") and name not in _BESIDE:
                yield name


@functools.cache
def _file(module: str) -> Path | None:
    """Return the file of a module, or None for what is only a name within one."""
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    return Path(found.origin) if found and found.origin and found.has_location else None


def _bare(text: str, tree: ast.AST) -> str:
    """Return code without comments, docstrings and blank lines."""
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list) or not body or not isinstance(body[0], ast.Expr):
            continue
        first = body[0]
        alone = first.lineno > getattr(node, "lineno", 0)
        if alone and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            for row in range(first.lineno - 1, first.end_lineno or first.lineno):
                lines[row] = ""
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _data_sets(study: Study, cell: Cell) -> list[str]:
    """Name the data sets that a cell says it reads, or that its parameters name."""
    if study.reads:
        return sorted(study.reads(cell))
    return sorted({str(v) for v in cell.values() if v in data.names()})
