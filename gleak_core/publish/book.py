"""Build the book: execute what is stale, let it through the gate, stage it, hand it to Sphinx.

`_build/html` is always a whole book: Sphinx writes elsewhere, and the result is moved there only
when it is complete and has been looked at. When nothing changed, Sphinx does not start.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import webbrowser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from gleak_core.errors import GleakError
from gleak_core.files import ROOT, sha256, sha256_bytes
from gleak_core.locks import held
from gleak_core.publish import execute, gate, notebooks, pages, stage

__all__ = ["Book", "BookError", "build"]

_KEY = ".gleak-key"
_EPOCH = "1767225600"  # 2026-01-01
_PACKAGES = ("sphinx", "jupyter-book", "myst-nb", "sphinx-book-theme", "sphinx-mathjax-offline")


class BookError(GleakError):
    """The book could not be built; the old one, if any, is still in place."""


@dataclass(frozen=True)
class Book(os.PathLike[str]):
    """A finished book: its entry page, and how long each step took."""

    index: Path
    rebuilt: bool
    outcomes: Sequence[execute.Outcome] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __fspath__(self) -> str:
        return str(self.index)


def build(
    *,
    profile: str = "smoke",
    device: str = "auto",
    jobs: int | None = None,
    timeout: float | None = None,
    root: Path = ROOT,
    strict: bool = True,
    open: bool = False,
    progress: execute.Progress = lambda event: None,
) -> Book:
    """Return the book of all chapters in one profile, doing only what is missing for it."""
    seconds: dict[str, float] = {}
    with _timed(seconds, "execute"):
        outcomes = execute.run(
            profile=profile, device=device, jobs=jobs, timeout=timeout, root=root, progress=progress
        )
    if failed := [outcome for outcome in outcomes if outcome.status == "failed"]:
        raise BookError("\n\n".join(outcome.message for outcome in failed))
    executed = {outcome.chapter: outcome.path for outcome in outcomes}
    html = root / "_build" / "html"
    with held(root / "_build" / "book.lock"):
        _recover(html)
        with _timed(seconds, "compare"):
            key = _key(executed, root, profile=profile, strict=strict)
            fresh = (html / "index.html").exists() and _built_key(html) == key
        if not fresh:
            _make(executed, html, root, profile=profile, strict=strict, key=key, seconds=seconds)
    book = Book(html / "index.html", not fresh, outcomes, seconds)
    if open:
        webbrowser.open(book.index.resolve().as_uri())
    return book


def _make(
    executed: Mapping[str, Path],
    html: Path,
    root: Path,
    *,
    profile: str,
    strict: bool,
    key: str,
    seconds: dict[str, float],
) -> None:
    with _timed(seconds, "gate"):
        refused = []
        for name, path in executed.items():
            try:
                gate.check(notebooks.read(path), profile=profile, name=name, root=root)
            except gate.GateRefused as error:
                refused.append(str(error))
        if refused:
            raise BookError("\n".join(refused))
    source = root / "_build" / "src"
    with _timed(seconds, "stage"):
        stage.mirror(source, executed, root)
    with _timed(seconds, "sphinx"):
        made = _sphinx(source, root, strict=strict)
    with _timed(seconds, "look"):
        if strict and (problems := _look(made, root)):
            raise BookError("the built pages are not fit to publish:\n" + _listed(problems))
    (made / _KEY).write_text(key)
    _swap(made, html)


def _sphinx(source: Path, root: Path, *, strict: bool) -> Path:
    """Run Sphinx into a folder of its own, and return that folder."""
    work = root / "_build" / "sphinx"
    shutil.rmtree(work, ignore_errors=True)
    toc, config = source / "book" / "_toc.yml", source / "_config.yml"
    for needed in (toc, config):
        if not needed.exists():
            raise BookError(f"the project has no {needed.relative_to(source)}: restore it with git")
    command = [
        *(sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build"),
        *(str(source), "--path-output", str(work), "--toc", str(toc.resolve())),
        *("--config", str(config), "-n", "--keep-going", "-q"),
        *(["-W"] if strict else []),
    ]
    # Without these two the page of a chapter could differ from one build to the next. The date
    # is not 0, for Sphinx puts its year into the copyright line.
    environment = {**os.environ, "PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": _EPOCH}
    environment["PYTHONWARNINGS"] = "ignore"
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    if done.returncode:
        raise BookError("the pages could not be built:\n" + _listed(_sphinx_words(done, source)))
    return work / "_build" / "html"


def _sphinx_words(done: subprocess.CompletedProcess[str], source: Path) -> list[str]:
    """Return Sphinx's complaints with the names of our files, or its last words."""
    plain = re.sub("\x1b\\[[0-9;]*[A-Za-z]", "", done.stderr).replace(f"{source.resolve()}/", "")
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    found = [line for line in lines if re.search(r"\b(WARNING|ERROR|CRITICAL|Error)\b", line)]
    return list(dict.fromkeys(_CELL.sub(_in_words, line) for line in found or lines[-8:]))


# myst-nb counts the lines of the k-th cell from k * 10000.
_CELL = re.compile(r"\.ipynb:(\d+)(\d{4}):")


def _in_words(found: re.Match[str]) -> str:
    return f".ipynb, cell {found[1]}, line {int(found[2])}:"


def _look(made: Path, root: Path) -> list[str]:
    read = pages.read(made)
    return [
        *pages.fetched(read, made),
        *pages.dead_links(read, made),
        *pages.unnamed_images(read, made),
        *pages.machine_paths(made, root),
    ]


def _listed(problems: Sequence[str]) -> str:
    shown = [f"  - {problem}" for problem in problems[:20]]
    return "\n".join([*shown, *([f"  … and {len(problems) - 20} more"] if problems[20:] else [])])


def _key(executed: Mapping[str, Path], root: Path, **options: object) -> str:
    """Hash everything the pages are made of, and the tools that make them."""
    parts = {
        "sources": {str(place): sha256(path) for place, path in stage.sources(root).items()},
        "pages": {name: sha256(path) for name, path in sorted(executed.items())},
        "maker": [sha256(path) for path in sorted(Path(__file__).parent.glob("*.py"))],
        "tools": {package: version(package) for package in _PACKAGES},
        "options": options,
    }
    return sha256_bytes(json.dumps(parts, sort_keys=True).encode())


def _built_key(html: Path) -> str | None:
    try:
        return (html / _KEY).read_text()
    except OSError:
        return None


def _swap(made: Path, html: Path) -> None:
    """Put a whole book in the place of another; `_recover` mends a crash between the two moves."""
    old = html.with_name("html.old")
    try:
        shutil.rmtree(old, ignore_errors=True)
        if html.exists():
            html.rename(old)
        made.rename(html)
    except OSError as error:
        raise BookError(
            f"the book could not be moved to {html} ({error.strerror}): make the folder writable"
        ) from error
    shutil.rmtree(old, ignore_errors=True)


def _recover(html: Path) -> None:
    old = html.with_name("html.old")
    if old.exists() and not html.exists():
        old.rename(html)


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - started
