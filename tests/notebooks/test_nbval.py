"""The committed outputs are held against a new run, and what nbval overlooks the guard sees.

nbval compares streams, text/plain, text/html, text/markdown and text/latex exactly; it compares no
pictures, no cell tagged `nbval-ignore-output`, and nothing at all where nothing is stored.
"""

import json
from pathlib import Path

import pytest
from notebooks.comparing import CHAPTERS, nbval
from publish.small_project import notebook

from gleak_core.publish import execute, gate, notebooks


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_still_says_what_it_said(path: Path, tmp_path: Path) -> None:
    results, report = nbval(path, tmp_path)
    assert set(results.values()) == {"PASSED"}, report
    assert len(results) == len(notebooks.code_cells(notebooks.read(path)))


CELLS = (
    "print('a stream')",
    "'a value'",
    "from IPython.display import HTML, Latex, Markdown, display\nHTML('<b>html</b>')",
    "Markdown('*markdown*')",
    "Latex('$latex$')",
    "from matplotlib.figure import Figure\nf = Figure()\nf.subplots().plot([1, 2])\n"
    "import base64, io\nb = io.BytesIO()\nf.savefig(b, format='png')\n"
    "png = base64.b64encode(b.getvalue()).decode()\n"
    "display({'image/png': png, 'text/plain': 'Figure: a'}, raw=True,"
    "\n  metadata={'image/png': {'alt': 'A line.'}})",
    "import time\nprint(time.time())",
    "print('the attack worked:', 0.1 + 0.2 < 0.31)",
)
CLOCK = 8  # the number of the cell whose output is another one in every run


@pytest.fixture(scope="module")
def chapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chapter with one output of each kind, as `make refresh` commits it."""
    root = tmp_path_factory.mktemp("project")
    (root / "chapters").mkdir()
    (root / "gleak_core").mkdir()
    path = root / "chapters" / "01_a.ipynb"
    path.write_text(notebooks.text(notebook(*CELLS, tags={CLOCK - 1: ["nbval-ignore-output"]})))
    [outcome] = execute.refresh(root=root)
    assert outcome.status == "executed", outcome.message
    return path


def rewrite(path: Path, folder: Path, old: str, new: str) -> Path:
    assert old in path.read_text()
    copy = folder / path.name
    copy.write_text(path.read_text().replace(old, new))
    return copy


@pytest.mark.slow
def test_an_honest_chapter_passes(chapter: Path, tmp_path: Path) -> None:
    results, report = nbval(chapter, tmp_path)
    assert results == dict.fromkeys(range(1, len(CELLS) + 2), "PASSED"), report


@pytest.mark.slow
def test_every_changed_text_is_caught(chapter: Path, tmp_path: Path) -> None:
    content = json.loads(chapter.read_text())
    for cell in notebooks.code_cells(content):
        for output in cell["outputs"]:
            if "text" in output:
                output["text"] = ["changed\n"]
            for mime in output.get("data", {}).keys() - {"image/png"}:
                output["data"][mime] = ["changed"]
    changed = tmp_path / chapter.name
    changed.write_text(json.dumps(content))
    results, report = nbval(changed, tmp_path)
    # All but the parameters cell, which says nothing, and the clock, which is told to be ignored.
    expected = {n: "PASSED" if n in (1, CLOCK) else "FAILED" for n in range(1, len(CELLS) + 2)}
    assert results == expected, report


@pytest.mark.slow
def test_a_changed_claim_fails_alone(chapter: Path, tmp_path: Path) -> None:
    changed = rewrite(chapter, tmp_path, "the attack worked: True", "the attack worked: False")
    results, _ = nbval(changed, tmp_path)
    assert [number for number, result in results.items() if result == "FAILED"] == [9]


@pytest.mark.slow
def test_what_nbval_overlooks_the_guard_sees(chapter: Path, tmp_path: Path) -> None:
    stripped = json.loads(chapter.read_text())
    for cell in notebooks.code_cells(stripped):
        cell.update(outputs=[], execution_count=None)
    path = tmp_path / chapter.name
    path.write_text(json.dumps(stripped))
    results, _ = nbval(path, tmp_path)
    assert set(results.values()) == {"PASSED"}  # nothing was compared
    with pytest.raises(gate.GateRefused) as refusal:
        gate.require(gate.COMMITTED, notebooks.read(path), name="01_a")
    assert "it has no outputs at all" in str(refusal.value)
    assert "has execution count None" in str(refusal.value)
