"""The committed chapters: ran once from top to bottom, tidy, and worth comparing with."""

from pathlib import Path

import pytest
from notebooks.comparing import CHAPTERS

from gleak_core.files import ROOT
from gleak_core.publish import gate, notebooks


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_committed_chapter_is_fit_to_publish(path: Path) -> None:
    gate.require(gate.COMMITTED, notebooks.read(path), name=path.stem, root=ROOT)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_committed_chapter_is_written_in_the_one_form(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == notebooks.text(notebooks.read(path)), (
        "its formatting differs from what `make refresh` writes"
    )


def test_every_chapter_has_a_place_in_the_book() -> None:
    toc = ROOT / "book" / "_toc.yml"
    missing = [path.stem for path in CHAPTERS if f"chapters/{path.stem}" not in toc.read_text()]
    assert not missing, f"name them in {toc.name}: {missing}"
