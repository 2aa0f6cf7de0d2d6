"""The stage: words of pictures, lines under titles, the ledger; no kernel, no Sphinx."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from publish.small_project import notebook

from gleak_core.errors import GleakError
from gleak_core.publish import notebooks, stage

RUN = {
    "profile": "smoke", "device": "cpu", "hardware": "CPU (x86_64, 2 threads)", "seconds": 12.34,
    "date": "2026-01-02 03:04:05", "commit": "0123456789abcdef", "modified": True,
    "versions": {"python": "3.11.7", "torch": "2.14.1"},
    "parameters": {"profile": "smoke", "device": "cpu", "seed": 0, "name": "a|b <script>*"},
}  # fmt: skip


def drawn(*words: dict[str, str], **mystnb: Any) -> Any:
    page = notebook("plot()")
    cell = page.cells[2]
    cell.outputs = [
        nbformat.v4.new_output(
            "display_data", data={"image/png": "x"}, metadata={"image/png": said}
        )
        for said in words
    ]
    if mystnb:
        cell.metadata["mystnb"] = mystnb
    return stage.with_figures(page).cells[2].metadata


def test_alt_and_caption_move_from_the_output_to_the_cell() -> None:
    found = drawn({"alt": "A line\nthat rises.", "caption": "With $x$."})
    assert found["mystnb"] == {
        "image": {"alt": "A line that rises."}, "figure": {"caption": "With $x$."},
    }  # fmt: skip


def test_what_the_author_wrote_wins() -> None:
    found = drawn(
        {"alt": "A", "caption": "B"},
        image={"alt": "mine"},
        figure={"name": "fig-x", "align": "left"},
    )
    assert found["mystnb"] == {
        "image": {"alt": "mine"},
        "figure": {"name": "fig-x", "align": "left", "caption": "B"},
    }


def test_no_caption_no_figure() -> None:
    assert drawn({"alt": "A"})["mystnb"] == {"image": {"alt": "A"}}
    assert "mystnb" not in drawn({})


def test_a_reduced_run_says_so_under_the_title() -> None:
    page = stage.with_run_line(notebook(), stage.run_line(RUN))
    assert page.cells[0].source == (
        "# A small chapter\n\n:::{div} gleak-run\n"
        "Profile **smoke** · CPU \\(x86\\_64\\, 2 threads\\) · 12.34 s · 2026\\-01\\-02 · "
        "commit 0123456 (modified) · [run ledger](../book/ledger.md)\n\n"
        "Reduced run: not a reproduction.\n:::\n\nWith $x^2$."
    )


def test_a_paper_run_does_not() -> None:
    line = stage.run_line({**RUN, "profile": "paper", "commit": None}, linked=False)
    assert "Reduced" not in line
    assert line.endswith("no commit")
    assert "ledger" not in line


def test_the_ledger_has_a_row_per_page_and_escapes_everything() -> None:
    table = stage.ledger({"02_b": RUN, "01_a": RUN}, {"01_a": "A [x](y)", "02_b": "B"}).splitlines()
    assert len(table) == 4
    assert table[2].startswith("| [A \\[x\\]\\(y\\)](../chapters/01_a.ipynb) | smoke |")
    assert "name = \\'a\\|b \\<script\\>\\*\\'" in table[2]
    assert "seed = 0" in table[2]
    assert "device" not in table[2]


def test_the_mirror_holds_what_pages_include_and_nothing_else(tmp_path: Path) -> None:
    root, built = tmp_path / "project", tmp_path / "src"
    for place in (
        "book/_toc.yml", "book/ledger.md", "book/_static/x.css", "chapters/note.md", "README.md",
        "chapters/01_a.ipynb", "gleak_core/models.py", "gleak_core/__pycache__/x.py", ".env",
        "data/papers/dlg.toml", "data/big.npz", "_build/x.md", ".git/config",
    ):  # fmt: skip
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_text("book/ledger <!-- ledger -->")
    page = notebook("print(1)", run=RUN)
    executed = tmp_path / "01_a.key.ipynb"
    executed.write_text(notebooks.text(page))
    (built / "old").mkdir(parents=True)
    stage.mirror(built, {"01_a": executed}, root)
    assert sorted(str(p.relative_to(built)) for p in built.rglob("*") if p.is_file()) == [
        "README.md", "book/_static/x.css", "book/_toc.yml", "book/ledger.md",
        "chapters/01_a.ipynb", "chapters/note.md", "data/papers/dlg.toml", "gleak_core/models.py",
    ]  # fmt: skip
    assert "| smoke |" in (built / "book/ledger.md").read_text()
    staged = notebooks.read(built / "chapters" / "01_a.ipynb")
    assert "gleak" not in staged.metadata
    assert "gleak-run" in staged.cells[0].source
    (root / "book/ledger.md").write_text("# Ledger")
    with pytest.raises(GleakError, match="has no line <!-- ledger -->"):
        stage.mirror(built, {"01_a": executed}, root)
