"""Building a book in small: whole or not at all, and only when something changed.

No kernel starts: executed pages are put where `gleak run` would have left them.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from publish.conftest import Write

from gleak_core.files import ROOT
from gleak_core.publish import book, execute, notebooks

TOC = "format: jb-book\nroot: book/index\nchapters:\n- file: chapters/01_a\n- file: book/ledger\n"


def finish(root: Path, spoil: Callable[[Any], Any] = lambda page: None) -> Path:
    """Put an executed page of the chapter in its place, spoilt in some way."""
    [plan] = execute.plan(["01_a"], root=root, device="cpu")
    page = notebooks.read(plan.source)
    for number, cell in enumerate(notebooks.code_cells(page), 1):
        cell["execution_count"] = number
        cell["source"] = cell["source"].replace('"auto"', '"cpu"')
        cell["outputs"] = [nbformat.v4.new_output("stream", name="stdout", text=f"out {number}\n")]
    page.metadata.setdefault("gleak", {})["run"] = {
        "profile": "smoke", "device": "cpu", "hardware": "CPU <b>", "seconds": 1.5,
        "date": "2026-01-02 03:04:05", "commit": None, "modified": None, "key": plan.key,
        "versions": {"python": "3.11"}, "parameters": dict(plan.values), "inputs": {},
    }  # fmt: skip
    spoil(page)
    plan.target.parent.mkdir(parents=True, exist_ok=True)
    plan.target.write_text(notebooks.text(page))
    return plan.target


@pytest.fixture
def little(project: Path, write: Write) -> Path:
    """A project with one executed chapter and a book of three pages."""
    shutil.copy(ROOT / "_config.yml", project)
    shutil.copytree(
        ROOT / "book" / "_ext", project / "book" / "_ext", ignore=shutil.ignore_patterns("__*")
    )
    (project / "book" / "_static").mkdir()
    for name in ("logo.svg", "favicon.svg"):
        (project / "book" / "_static" / name).write_text(
            '<svg xmlns="http://www.w3.org/2000/svg"/>'
        )
    for name in ("custom.css", "scrubber.css", "scrubber.js"):
        (project / "book" / "_static" / name).write_text("")
    (project / "book" / "references.bib").write_text("")
    (project / "book" / "_toc.yml").write_text(TOC)
    (project / "book" / "index.md").write_text(
        "# Little\n\n```{literalinclude} ../gleak_core/models.py\n```\n\n[ledger](ledger.md)\n"
    )
    (project / "book" / "ledger.md").write_text("# Ledger\n\n<!-- ledger -->\n")
    write("01_a", "print(1)")
    finish(project)
    return project


def build(root: Path, **options: Any) -> book.Book:
    return book.build(root=root, device="cpu", **options)


def add(output: Any) -> Callable[[Any], None]:
    return lambda page: notebooks.code_cells(page)[1]["outputs"].append(output)


def strip(page: Any) -> None:
    for cell in notebooks.code_cells(page):
        cell["outputs"] = []


BAD: dict[str, tuple[Callable[[Any], Any], str]] = {
    "an injected script": (
        add(nbformat.v4.new_output("display_data", data={"text/html": "<script>1</script>"})),
        "<script> is not among the allowed tags",
    ),
    "a stored error": (
        add(nbformat.v4.new_output("error", ename="E", evalue="x", traceback=[])),
        "ended in E: x",
    ),
    "stripped": (strip, "it has no outputs at all"),
    "untruthful": (
        lambda page: page.metadata["gleak"]["run"]["parameters"].update(seed=9),
        "the page shows seed = 0, but the record says 9",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_page_stops_the_book(
    little: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(book, "_sphinx", lambda *a, **k: pytest.fail("Sphinx must not start"))
    spoil, said = BAD[case]
    finish(little, spoil)
    (little / "_build" / "html").mkdir()
    (little / "_build" / "html" / "index.html").write_text("the old book")
    with pytest.raises(book.BookError) as refusal:
        build(little)
    assert said in str(refusal.value)
    assert "01_a cannot be published" in str(refusal.value)
    assert (little / "_build" / "html" / "index.html").read_text() == "the old book"


def test_a_chapter_that_failed_stops_the_book(
    little: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = execute.Outcome("01_a", "failed", Path("x"), message="01_a, code cell 2: no")
    monkeypatch.setattr(execute, "run", lambda **options: [outcome])
    with pytest.raises(book.BookError, match="01_a, code cell 2: no"):
        build(little)


@pytest.mark.parametrize("gone", ["_config.yml", "book/_toc.yml"])
def test_a_missing_file_is_a_sentence(little: Path, gone: str) -> None:
    (little / gone).unlink()
    with pytest.raises(book.BookError, match=f"the project has no {gone}: restore it with git"):
        build(little)


@pytest.mark.slow
def test_a_book_is_built_once_and_again_only_when_something_changed(
    little: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build(little)
    html = little / "_build" / "html"
    assert (made.rebuilt, made.index) == (True, html / "index.html")
    assert set(made.seconds) == {"execute", "compare", "gate", "stage", "sphinx", "look"}
    chapter = (html / "chapters" / "01_a.html").read_text()
    assert "CPU &lt;b&gt;" in chapter
    assert "Reduced run: not a reproduction." in chapter
    assert "out 2" in chapter
    assert "width" in (html / "book" / "index.html").read_text()
    assert (html / "_static" / "mathjax" / "tex-chtml.js").exists()
    assert not list(html.rglob(".doctrees"))
    assert not build(little).rebuilt

    # A dead link, or anything Sphinx warns of, leaves the old book in place.
    (little / "book" / "index.md").write_text('# Little\n\n<a href="gone.html">x</a>\n')
    with pytest.raises(book.BookError, match=r"book/index.html links to gone.html, which is not"):
        build(little)
    (little / "book" / "index.md").write_text("# Little\n\n{ref}`nowhere`\n")
    with pytest.raises(book.BookError) as refusal:
        build(little)
    assert "book/index.md:3: WARNING: undefined label: 'nowhere'" in str(refusal.value)
    assert str(little) not in str(refusal.value)
    (little / "book" / "index.md").write_text("# Little\n")
    finish(little, lambda page: page["cells"][0].update(source="# Chapter\n\n{ref}`nowhere`"))
    with pytest.raises(book.BookError, match=r"01_a.ipynb, cell 1, line \d+: WARNING: undefined"):
        build(little)
    assert (html / "chapters" / "01_a.html").read_text() == chapter

    finish(little)

    # A crash between the two moves of the swap is mended before anything else.
    html.rename(html.with_name("html.old"))
    (little / "book" / "_toc.yml").unlink()
    with pytest.raises(book.BookError, match=r"the project has no book/_toc\.yml"):
        build(little)
    assert (html / "chapters" / "01_a.html").read_text() == chapter
