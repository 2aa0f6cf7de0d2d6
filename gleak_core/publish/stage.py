"""The stage: a mirror of the sources with executed chapters, from which Sphinx builds.

Five things are added on the way: the words of each picture move to where myst-nb looks for them,
each chapter says under its title how it was run, the run ledger gets its table, the page about
speed its tables and figure, and the scoreboard and the errata what is recorded.
"""

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gleak_core.errors import GleakError
from gleak_core.figures import escape
from gleak_core.files import ROOT
from gleak_core.publish import board, notebooks, speed

__all__ = ["ledger", "mirror", "run_line", "sources", "with_figures", "with_run_line"]

LEDGER = Path("book/ledger.md")
_MARK = "<!-- ledger -->"
_COLUMNS = (
    "Chapter",
    "Profile",
    "Device",
    "Seconds",
    "Date (UTC)",
    "Commit",
    "Versions",
    "Parameters",
)


def sources(root: Path = ROOT) -> dict[Path, Path]:
    """Return everything a page may include, by its place in the mirror; notebooks come later."""
    kept = [path for path in root.iterdir() if path.is_file()]
    for folder, pattern in (
        ("book", "*"),
        ("chapters", "*"),
        ("gleak_core", "*.py"),
        ("data", "*"),
    ):
        kept += (root / folder).rglob(pattern)
    found = {path.relative_to(root): path for path in kept if path.is_file()}
    return {
        place: path
        for place, path in sorted(found.items())
        if path.suffix not in {".ipynb", ".npz", ".pyc"}
        and not any(part.startswith(".") or part == "__pycache__" for part in place.parts)
    }


def mirror(stage: Path, executed: Mapping[str, Path], root: Path = ROOT) -> None:
    """Write the stage anew."""
    shutil.rmtree(stage, ignore_errors=True)
    for place, path in sources(root).items():
        (stage / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, stage / place)
    pages = {name: notebooks.read(path) for name, path in executed.items()}
    runs = {name: page["metadata"]["gleak"]["run"] for name, page in pages.items()}
    toc = stage / "book" / "_toc.yml"
    linked = toc.exists() and "book/ledger" in toc.read_text(encoding="utf-8")
    (stage / "chapters").mkdir(exist_ok=True)
    for name, page in pages.items():
        line = run_line(runs[name], linked=linked)
        staged = without_record(with_run_line(with_figures(page), line))
        (stage / "chapters" / f"{name}.ipynb").write_text(notebooks.text(staged), encoding="utf-8")
    titles = {name: title(page) for name, page in pages.items()}
    prose = stage / LEDGER
    text = prose.read_text(encoding="utf-8") if prose.exists() else f"# Run ledger\n\n{_MARK}\n"
    if _MARK not in text:
        raise GleakError(f"{LEDGER} has no line {_MARK}: put it where the table shall stand")
    prose.parent.mkdir(parents=True, exist_ok=True)
    prose.write_text(text.replace(_MARK, ledger(runs, titles)), encoding="utf-8")
    if (stage / speed.PAGE).exists():
        speed.fill(stage)
    board.fill(stage)


def with_figures(page: Any) -> Any:
    """Copy alt text and caption from a picture's metadata to its cell's, in place.

    `figures` says them in the output (`{"image/png": {"alt": …, "caption": …}}`), myst-nb reads
    the cell (`mystnb.image.alt`, `mystnb.figure.caption`). What the author wrote there wins.
    """
    for cell in notebooks.code_cells(page):
        words: dict[str, Any] = {}
        for output in cell["outputs"]:
            words |= output.get("metadata", {}).get("image/png", {})
        for option, kind in (("alt", "image"), ("caption", "figure")):
            if said := " ".join(str(words.get(option, "")).split()):
                place = cell["metadata"].setdefault("mystnb", {}).setdefault(kind, {})
                place.setdefault(option, said)
    return page


def with_run_line(page: Any, line: str) -> Any:
    """Put a line under the chapter's title, in place."""
    first = page["cells"][0]
    heading, _, rest = first["source"].lstrip().partition("\n")
    first["source"] = f"{heading}\n\n:::{{div}} gleak-run\n{line}\n:::\n{rest}"
    return page


def without_record(page: Any) -> Any:
    """Drop the record of the run, which the page now says in words, in place."""
    page["metadata"].pop("gleak", None)
    return page


def title(page: Any) -> str:
    """Return the chapter's title without its markup."""
    heading = page["cells"][0]["source"].lstrip().partition("\n")[0]
    return re.sub(r"[*_`$#{}]", "", heading).strip()


def run_line(run: Mapping[str, Any], *, linked: bool = True) -> str:
    """Say in one line how a page came about, and that a reduced run is no reproduction."""
    facts = [
        f"Profile **{escape(run['profile'])}**",
        escape(run["hardware"]),
        f"{run['seconds']:g} s",
        escape(run["date"][:10]),
        _commit(run),
    ]
    if linked:
        facts.append("[run ledger](../book/ledger.md)")
    line = " · ".join(facts)
    return line if run["profile"] == "paper" else f"{line}\n\nReduced run: not a reproduction."


def ledger(runs: Mapping[str, Mapping[str, Any]], titles: Mapping[str, str]) -> str:
    """Return the table of all executed pages, every value escaped."""
    rows = [_COLUMNS, tuple("---" for _ in _COLUMNS)]
    rows += [
        (f"[{escape(titles[name])}](../chapters/{name}.ipynb)", *_row(run))
        for name, run in sorted(runs.items())
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(run: Mapping[str, Any]) -> Iterator[str]:
    yield escape(run["profile"])
    yield escape(run["hardware"])
    yield f"{run['seconds']:.1f}"
    yield escape(run["date"])
    yield _commit(run)
    yield ", ".join(f"{escape(name)} {escape(v)}" for name, v in sorted(run["versions"].items()))
    shown = {n: v for n, v in sorted(run["parameters"].items()) if n not in ("profile", "device")}
    yield ", ".join(f"{escape(name)} = {escape(repr(v))}" for name, v in shown.items()) or "—"


def _commit(run: Mapping[str, Any]) -> str:
    if not run.get("commit"):
        return "no commit"
    return f"commit {escape(run['commit'][:7])}" + (" (modified)" if run["modified"] else "")
