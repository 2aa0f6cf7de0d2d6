"""Chapters as files: found by name, read whole, written so that nothing varies by accident."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gleak_core.errors import GleakError, choose
from gleak_core.files import ROOT, sha256_bytes

__all__ = ["clean", "code_cells", "find", "head", "read", "select", "source_hash", "tagged", "text"]

# What papermill, nbclient and editors leave behind, different on every run.
_NOTEBOOK_NOISE = ("papermill", "widgets", "toc", "vscode")
_CELL_NOISE = ("papermill", "execution", "collapsed", "scrolled", "jupyter", "vscode")


def find(root: Path = ROOT) -> dict[str, Path]:
    """Return the chapters of a project by name, in reading order."""
    return {path.stem: path for path in sorted((root / "chapters").glob("[!.]*.ipynb"))}


def select(names: Sequence[str] | None, root: Path = ROOT) -> dict[str, Path]:
    """Return the named chapters (by name, its beginning, or path), or all of them."""
    known = find(root)
    if not known:
        raise GleakError(
            f"there is no chapter in {root / 'chapters'}: run this inside the project's checkout"
        )
    if not names:
        return known
    chosen: dict[str, Path] = {}
    for name in names:
        stem = Path(name).stem
        starting = [known_name for known_name in known if known_name.startswith(stem)]
        match = starting[0] if len(starting) == 1 else choose("chapter", stem, known)
        chosen[match] = known[match]
    return dict(sorted(chosen.items()))


def read(path: Path) -> Any:
    """Read a notebook, or say in a sentence why it is none."""
    import nbformat
    from nbformat.v4.rwbase import rejoin_lines

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        notebook: Any = rejoin_lines(nbformat.from_dict(content))
        nbformat.validate(notebook)
    except FileNotFoundError as error:
        raise GleakError(f"there is no notebook {path}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, AttributeError, KeyError) as error:
        raise GleakError(
            f"{path.name} is not a whole notebook: restore it with git, or run it again"
        ) from error
    except nbformat.ValidationError as error:
        raise GleakError(
            f"{path.name} is not a valid notebook ({str(error).splitlines()[0]}): "
            "open it in Jupyter and save it again"
        ) from error
    return notebook


def text(notebook: Any) -> str:
    """Write a notebook in the committed form: one-space indent, sorted keys, a final newline."""
    import nbformat

    return nbformat.writes(notebook).rstrip("\n") + "\n"


def clean(notebook: Any) -> Any:
    """Drop, in place, everything that changes from run to run, and return the notebook."""
    for name in _NOTEBOOK_NOISE:
        notebook["metadata"].pop(name, None)
    if language := notebook["metadata"].get("language_info"):
        notebook["metadata"]["language_info"] = {"name": language["name"]}
    for cell in notebook["cells"]:
        for name in _CELL_NOISE:
            cell["metadata"].pop(name, None)
        if cell["metadata"].get("tags") == []:  # papermill gives every cell a list
            del cell["metadata"]["tags"]
        if cell["cell_type"] == "code":
            cell["outputs"] = _joined(cell["outputs"])
    return notebook


def _joined(outputs: Sequence[Any]) -> list[Any]:
    """Join neighbouring pieces of one stream: where a kernel cuts them is chance."""
    joined: list[Any] = []
    for output in outputs:
        output.get("metadata", {}).pop("execution", None)
        if joined and _stream(output) and _stream(output) == _stream(joined[-1]):
            joined[-1]["text"] += output["text"]
        else:
            joined.append(output)
    return joined


def _stream(output: Any) -> str | None:
    return output["name"] if output["output_type"] == "stream" else None


def code_cells(notebook: Any) -> list[Any]:
    """Return the code cells in order."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def tagged(notebook: Any, tag: str) -> list[Any]:
    """Return the code cells that carry a tag."""
    return [cell for cell in code_cells(notebook) if tag in cell["metadata"].get("tags", [])]


def head(cell: Any, lines: int = 1) -> str:
    """Return the first lines of a cell that are not blank, to say which cell is meant."""
    found = [line for line in cell["source"].splitlines() if line.strip()]
    return "\n".join(found[:lines])


def source_hash(notebook: Any) -> str:
    """Hash what a reader or the kernel sees before execution: never the outputs."""
    source = [
        (cell["cell_type"], cell["source"], cell["metadata"].get("tags", []))
        for cell in notebook["cells"]
    ]
    return sha256_bytes(json.dumps(source).encode())
