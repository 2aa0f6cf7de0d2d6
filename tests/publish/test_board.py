"""The pages made of results: what stands in them is what is recorded."""

import re
from pathlib import Path
from typing import Any

import pytest

from gleak_core import papers
from gleak_core.publish import board
from gleak_core.studies import errata, runner, scoreboard
from gleak_core.studies.general import STUDIES

TABLE3 = STUDIES[0]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A staged book with a reduced run of one table, recorded as if it were the book's own."""
    root = tmp_path_factory.mktemp("stage")
    runner.run([TABLE3], profile="smoke", device="cpu", folder=root / "data" / "results")
    (root / "book").mkdir()
    names = ("summary", "table", "details")
    (root / board.PAGE).write_text("\n\n".join(f"<!-- scoreboard: {name} -->" for name in names))
    (root / board.ERRATA_PAGE).write_text("# Errata\n\n<!-- scoreboard: errata -->\n")
    board.fill(root)
    return root


@pytest.fixture(scope="module")
def text(home: Path) -> str:
    return (home / board.PAGE).read_text()


def plain(markdown: str) -> str:
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", markdown)


def test_every_result_has_a_row_a_label_and_its_rules(text: str) -> None:
    for name in papers.ids():
        assert text.count(f"{{ref}}`{name} <{board.anchor(name)}>`") == 1
        assert text.count(f"\n({board.anchor(name)})=\n### {name}: ") == 1
        for rule in papers.find(name).rules:
            assert rule.says in plain(text)
    count = len(papers.ids())
    assert f"{count} results: " in text
    assert f"{board.badge('not yet run')} {count}" in text  # a smoke run supports no verdict


def test_printed_and_measured_values_stand_side_by_side(home: Path, text: str) -> None:
    line = scoreboard.line("gen.table3", folder=home / "data" / "results")
    [row] = [r for r in text.splitlines() if r.startswith("| {ref}`gen.table3 ")]
    cells = [plain(cell.strip()) for cell in row.strip("|").split(" | ")]
    assert line.ours is not None
    assert cells[1] == "99.6 %"
    assert cells[2].startswith(f"{line.ours.value:.4g} [{line.ours.low:.4g}, ")
    assert cells[3] == "2"
    assert "Only a smoke run is there (2 trials a cell), which supports no verdict" in plain(text)


def test_all_cells_and_the_cost_are_there(text: str) -> None:
    section = text.split("(gen-table3)=")[1].split("\n(gen-")[0]
    body = [r for r in section.splitlines() if re.match(r"\| (GradInversion|General|bias)", r)]
    assert len(body) == len(TABLE3.grid("smoke"))
    assert "18 trials" in section
    assert plain(section).count("Our ImageNet holds one picture of each of 800 classes") == 1


def test_the_errata_are_computed(home: Path) -> None:
    text = plain((home / board.ERRATA_PAGE).read_text())
    for one in errata.ERRATA:
        assert f"({one.id})=" in text
        assert " ".join(one.shows().split()) in text
    assert "9.08 dB, the PSNR 21.97 dB" in text


@pytest.mark.parametrize("one", errata.ERRATA, ids=lambda one: one.id)
def test_an_erratum_shows_numbers_of_its_own_paper(one: errata.Erratum) -> None:
    assert one.result in papers.ids()
    assert one.id.partition("-")[0] == one.result.partition(".")[0]
    assert re.search(r"\d", one.shows())


def test_an_erratum_would_see_a_mended_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the MSE printed right, the sentence about it would say so."""
    real: Any = errata._column

    def mended(result: str, metric: str, **where: object) -> Any:
        found = real(result, metric, **where)
        if (result, metric) == ("gen.table2", "mse"):
            found[("tv+l2",)] /= 10
        return found

    [one] = [e for e in errata.ERRATA if e.id == "gen-tv-l2"]
    assert "12.9 dB apart" in one.shows()
    monkeypatch.setattr(errata, "_column", mended)
    assert "2.9 dB apart" in one.shows()


def test_an_unknown_part_is_named(tmp_path: Path) -> None:
    (tmp_path / "book").mkdir()
    (tmp_path / board.PAGE).write_text("<!-- scoreboard: tabel -->")
    with pytest.raises(ValueError, match=r"unknown part of the scoreboard 'tabel': did you mean"):
        board.fill(tmp_path)


def test_pages_that_are_not_there_are_not_made(tmp_path: Path) -> None:
    board.fill(tmp_path)
    assert not (tmp_path / "book").exists()
