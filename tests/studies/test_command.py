"""`gleak study` and `gleak scoreboard`: what they print, refuse, and leave behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from studies import toy
from studies.test_runner import lines, wait_until
from typer.testing import CliRunner, Result

from gleak_core import papers, studies
from gleak_core.cli import app
from gleak_core.studies import store


def gleak(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Three studies of two papers, recorded in a folder of this test."""
    made = [toy.toy(), toy.toy(id="toy.table2", block=3), toy.toy(None, id="other.fig1")]
    monkeypatch.setattr(studies, "STUDIES", {study.id: study for study in made})
    monkeypatch.setattr(store, "RESULTS", tmp_path / "book")
    monkeypatch.setattr(store, "BUILD", tmp_path / "build")
    return tmp_path


def test_the_plan_names_cells_and_cost_and_measures_nothing(toys: Path) -> None:
    found = gleak("study", "--plan")
    assert found.exit_code == 0, found.output
    first, second, third, total = found.stdout.splitlines()
    assert first.split()[0] == "toy.table1" and "3 cells" in first
    assert "0 trials there,     18 missing" in first and "guessed  never measured" in first
    assert second.split()[0] == "toy.table2"
    assert third.endswith("declared, not written yet")
    assert total.startswith("in all 0.54 s on one process, 0.27 s on two; of that 0.36 s for")
    assert not list(toys.rglob("*.csv"))
    cells = gleak("study", "toy.table1", "--plan", "--cells").stdout.splitlines()
    assert cells[1] == "    a 1: 0 there, 6 missing, 0.06 s: never measured"


def test_a_gpu_can_be_planned_for_without_one(toys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = gleak("study", "--plan", "--device", "cuda")
    assert found.exit_code == 0, found.output
    total = found.stdout.splitlines()[-1]
    assert total.startswith("in all 0.013 s on one GPU, guessed at 40 times a core")
    assert "PyTorch sees no GPU" in gleak("study", "toy.table1", "--device", "cuda").stderr


def test_a_study_runs_and_then_is_complete(toys: Path) -> None:
    found = gleak("study", "toy", "--jobs", "1")
    assert found.exit_code == 0, found.output
    assert found.stdout.splitlines() == ["toy.table1: 18 new rows", "toy.table2: 18 new rows"]
    assert "toy.table1: 9 of 9 blocks" in found.stderr
    assert (toys / "book" / "toy" / "table1.csv").exists()
    assert "    18 trials there,      0 missing" in gleak("study", "toy", "--plan").stdout
    assert gleak("study", "toy", "-j", "1").stdout.splitlines()[0] == "toy.table1: 0 new rows"


def test_a_paper_means_those_of_its_studies_that_are_written(
    toys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [toy.toy(), toy.toy(None, id="toy.fig9")]
    monkeypatch.setattr(studies, "STUDIES", {study.id: study for study in both})
    for words in (["toy"], []):
        found = gleak("study", *words, "--jobs", "1")
        assert found.exit_code == 0, found.output
        assert found.stdout.startswith("toy.table1: ")
    assert "not written yet" in gleak("study", "toy.fig9").stderr


def test_a_reduced_run_does_not_touch_the_books_results(toys: Path) -> None:
    found = gleak("study", "toy.table1", "--profile", "smoke", "--jobs", "1")
    assert found.stdout == "toy.table1: 6 new rows\n"
    assert not (toys / "book").exists()
    assert (toys / "build" / "results" / "toy" / "table1.csv").exists()


def test_failures_are_named_and_the_rest_is_kept(
    toys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = toy.toy(toy.break_at_two, block=6)
    monkeypatch.setattr(studies, "STUDIES", {broken.id: broken})
    found = gleak("study", "--jobs", "1")
    assert found.exit_code == 1
    assert found.stdout == "toy.table1: 12 new rows\n"
    sentence = "two is not to be had: take another number"
    assert f"gleak: toy.table1 (a 2; seeds 0–5): {sentence}\n" in found.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["toy.tabel1"], "unknown study 'toy.tabel1': did you mean 'toy.table1'"),
        (["other"], "not written yet, they come with their chapters: other.fig1"),
        (["toy", "other.fig1"], "not written yet, they come with their chapters: other.fig1"),
        (["toy", "--profile", "huge"], "unknown profile 'huge'"),
        (["toy", "--device", "tpu"], "unknown device 'tpu'"),
        (["toy", "--jobs", "2", "--scheduler", "tcp://x:1"], "exclude each other"),
    ],
)
def test_what_makes_no_sense_is_refused_first(words: list[str], sentence: str, toys: Path) -> None:
    found = gleak("study", *words)
    assert found.exit_code == 2, found.output
    assert sentence in found.stderr
    assert "Traceback" not in found.output
    assert not list(toys.rglob("*.csv"))


def test_the_scoreboard_lists_every_result() -> None:
    found = gleak("scoreboard")
    assert found.exit_code == 0, found.output
    assert [line.split()[0] for line in found.stdout.splitlines()] == list(papers.ids())
    record: list[dict[str, Any]] = json.loads(gleak("scoreboard", "gen", "--json").stdout)
    assert {line["id"] for line in record} == {n for n in papers.ids() if n.startswith("gen.")}
    assert "unknown result" in gleak("scoreboard", "gen.table99").stderr


RUN = """
import sys
from pathlib import Path
from studies import toy
from gleak_core import studies
from gleak_core.studies import store
studies.STUDIES = {"toy.table1": toy.toy()}
store.RESULTS = Path(sys.argv.pop(1))
from gleak_core.cli import main
main()
"""


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    paths = os.pathsep.join(path for path in sys.path if path)
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path), "study", "toy.table1", "--jobs", "1"],
        env={**os.environ, "PYTHONPATH": paths, toy.PAUSE: "0.2"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    path = tmp_path / "toy" / "table1.csv"
    wait_until(lambda: lines(path) >= 3)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "what was finished is kept; run the same command again to go on" in said
    assert "Traceback" not in said
    assert lines(path) % 2 == 1  # the header, and whole blocks
