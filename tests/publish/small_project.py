"""Chapters that cost a second each, and what is left in a project after a run."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat

PARAMETERS = (
    'profile = "smoke"  # smoke | quick | paper\ndevice = "auto"\nseed = 0  # of the start\n'
)


def notebook(
    *cells: str, parameters: str = PARAMETERS, tags: Mapping[int, Sequence[str]] = {}, **about: Any
) -> Any:
    """Make a chapter: a title, the parameters, and code cells; ids are fixed."""
    made = nbformat.v4.new_notebook()
    made.metadata["kernelspec"] = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    made.metadata["language_info"] = {"name": "python"}
    if about:
        made.metadata["gleak"] = about
    made.cells = [nbformat.v4.new_markdown_cell("# A small chapter\n\nWith $x^2$.")]
    for number, source in enumerate([parameters, *cells]):
        cell = nbformat.v4.new_code_cell(source)
        cell.metadata["tags"] = (["parameters"] if number == 0 else []) + list(tags.get(number, []))
        if not cell.metadata["tags"]:
            del cell.metadata["tags"]
        made.cells.append(cell)
    for number, cell in enumerate(made.cells):
        cell["id"] = f"cell-{number}"
    return made


def pages(root: Path) -> list[Path]:
    """Return the finished pages of a project."""
    return sorted((root / "_build" / "executed").glob("*.ipynb"))


def leftovers(root: Path) -> list[str]:
    """Return what a run left in the scratch folder, its empty lock files apart."""
    scratch = root / "_build" / "executed" / ".scratch"
    return [path.name for path in scratch.iterdir() if path.suffix != ".lock"]


def outputs(path: Path) -> str:
    """Return all text that the cells of a page printed."""
    cells = json.loads(path.read_text())["cells"]
    return "".join(
        "".join(output.get("text", [])) for cell in cells for output in cell.get("outputs", [])
    )
