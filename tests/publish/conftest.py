"""A small project in a temporary folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from publish.small_project import notebook

Write = Callable[..., Path]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An empty project: a library of one file, a lock, no chapter yet."""
    root = tmp_path / "project"
    (root / "chapters").mkdir(parents=True)
    (root / "gleak_core").mkdir()
    (root / "gleak_core" / "models.py").write_text("width = 12\n")
    (root / "constraints.txt").write_text("numpy==2.0\n")
    return root


@pytest.fixture
def write(project: Path) -> Write:
    """Write a chapter into the project: `write("01_a", "print(1)")`."""

    def make(name: str, *cells: str, **options: Any) -> Path:
        path = project / "chapters" / f"{name}.ipynb"
        path.write_text(nbformat.writes(notebook(*cells, **options)) + "\n")
        return path

    return make
