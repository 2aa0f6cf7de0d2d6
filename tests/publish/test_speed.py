"""The page about speed: what the rows of a benchmark are turned into."""

from pathlib import Path

import pandas as pd
import pytest

from gleak_core.errors import GleakError
from gleak_core.files import ROOT
from gleak_core.publish import speed

HOW = {"device": "a CPU", "torch": "2.0", "commit": 40 * "a" + " (modified)", "date": "2026-01-02"}
MEASURED = [
    ("evaluation", "textbook", 1, "ms", 8.0, 60),
    ("evaluation", "lanes", 32, "ms", 0.25, 60),
    ("leaks", "textbook", 8, "leaked", 4, 8),
    ("leaks", "textbook", 8, "solved", 3, 8),
    ("leaks", "textbook", 8, "s per picture", 20.0, 8),
    ("leaks", "textbook", 8, "leaks per s", 0.025, 8),
    ("leaks", "idlg", 64, "leaked", 64, 64),
    ("leaks", "idlg", 64, "solved", 64, 64),
    ("leaks", "idlg", 64, "s per picture", 1.0, 64),
    ("leaks", "idlg", 64, "leaks per s", 1.0, 64),
    ("trials", "idlg", 1, "ms", 3.0, 1),
    ("trials", "idlg", 1, "peak MB", 500.0, 1),
    ("trials", "idlg", 1, "results MB", 0.05, 1),
    ("trials", "idlg", 32, "ms", 0.5, 1),
    ("trials", "idlg", 32, "peak MB", 520.0, 1),
    ("trials", "idlg", 32, "results MB", 1.5, 1),
    ("size", "auto (lanes)", 32, "ms", 0.5, 5),
    ("size", "auto (lanes)", 32, "peak MB", 520.0, 1),
    ("size", "textbook", 32, "ms", 8.0, 5),
    ("labels", "idlg", 1, "batches per s", 9000.0, 20),
    *(
        ("robustness", way, at, measure, value, 8)
        for at in ("0", "1e-06", "half")
        for way, value in (("analytic", 5.0), ("idlg", 8.0))
        for measure in ("leaked", "median dB", "solved")
    ),
]


def rows(*measured: tuple[object, ...]) -> pd.DataFrame:
    names = ("part", "way", "at", "measure", "value", "runs")
    return pd.DataFrame([dict(zip(names, one, strict=True)) | HOW for one in measured])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "data" / "results").mkdir(parents=True)
    (tmp_path / "book").mkdir()
    rows(*MEASURED).to_csv(tmp_path / speed.ROWS, index=False)
    (tmp_path / speed.PAGE).write_text(
        "# Fast\n\n<!-- speed: leaks -->\n\n<!-- speed: figure -->\n"
    )
    return tmp_path


def test_ratios_are_against_the_textbook(home: Path) -> None:
    tables = speed.tables(speed.read(home / speed.ROWS))
    assert tables["evaluation"].rows == (
        ("textbook closure", "1", "8", "1"),
        ("lanes", "32", "0.25", "32"),
    )
    slow, fast = tables["leaks"].rows  # the slowest first
    assert slow[1:] == ("4/8 (22–78%)", "3", "—", "20", "0.025", "1.0")
    assert fast[1] == "64/64 (94–100%)" and fast[-1] == "40.0"
    assert [row[2] for row in tables["trials"].rows] == ["6", "1"]
    [shape] = tables["shapes"].rows
    assert shape == ("1", "32²", "lanes", "—", "—", "—", "—", "8", "520")
    assert [row[0] for row in tables["robustness"].rows] == ["none", "1e-06", "half precision"]
    assert tables["labels"].rows == (("idlg", "1", "9,000"),)


def test_a_part_that_was_not_measured_has_no_table(home: Path) -> None:
    rows(*MEASURED[:2]).to_csv(home / speed.ROWS, index=False)
    assert set(speed.tables(speed.read(home / speed.ROWS))) == {"evaluation"}


def test_without_the_textbook_there_is_no_ratio(home: Path) -> None:
    rows(MEASURED[1]).to_csv(home / speed.ROWS, index=False)
    [row] = speed.tables(speed.read(home / speed.ROWS))["evaluation"].rows
    assert row[-1] == "—"


def test_the_page_gets_its_tables_and_a_figure_with_words(home: Path) -> None:
    speed.fill(home)
    text = (home / speed.PAGE).read_text()
    assert "<!--" not in text
    assert r"| idlg | 64\/64 \(94–100\%\) |" in text
    assert (
        ":alt: Milliseconds per evaluation and trial: textbook 8, lanes, 32 at once 0.25." in text
    )
    assert (home / "book" / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_where_and_when() -> None:
    assert speed.provenance(rows(*MEASURED)) == (
        "a CPU · PyTorch 2.0 · 2026-01-02 · commit aaaaaaa (modified)"
    )


def test_a_table_that_nobody_made_is_refused(home: Path) -> None:
    (home / speed.PAGE).write_text("<!-- speed: leeks -->")
    with pytest.raises(ValueError, match="did you mean 'leaks'"):
        speed.fill(home)


@pytest.mark.parametrize("content", [None, "", "part,way\nleaks,idlg\n"])
def test_a_file_that_is_no_benchmark_is_refused(home: Path, content: str | None) -> None:
    path = home / speed.ROWS
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(GleakError, match="run make bench"):
        speed.read(path)


def test_nothing_to_draw_is_a_sentence() -> None:
    with pytest.raises(GleakError, match="nothing to draw"):
        speed.figure(rows(("labels", "idlg", 1, "batches per s", 9.0, 20)))


def test_the_committed_rows_have_all_that_the_page_shows() -> None:
    text = (ROOT / speed.PAGE).read_text()
    found = speed.read(ROOT / speed.ROWS)
    named = {*speed.tables(found), "figure", "provenance"}
    assert all(f"<!-- speed: {name} -->" in text for name in named)
    assert text.count("<!-- speed:") == len(named) == 8
    assert not any("modified" in commit for commit in found["commit"])
    assert all(value == value for value in found["value"])
