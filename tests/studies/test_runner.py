"""The runner: only what is missing, every row exactly once, whatever happens on the way."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from studies import toy

from gleak_core import data, locks
from gleak_core.errors import GleakError
from gleak_core.studies import runner, workers
from gleak_core.studies.store import Store
from gleak_core.studies.study import Study, grid

ALL = sorted((a, seed) for a in (1, 2, 3) for seed in range(6))


def run(study: Study, folder: Path, **options) -> runner.Outcome:
    [outcome] = runner.run([study], device="cpu", folder=folder, **options)
    return outcome


def read(path: Path, **options: Any) -> Any:
    return pd.read_csv(path, **options)


def rows(study: Study, folder: Path) -> list[tuple[int, int]]:
    """Return (a, seed) of every line of the file itself, so that none can hide."""
    frame = read(Store(study, folder).path)
    assert (frame["value"] == 100 * frame["a"] + frame["seed"]).all()
    return sorted(zip(frame["a"], frame["seed"], strict=True))


def wait_until(what: Callable[[], object], seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.02)


def lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


def test_every_row_is_there_once_with_its_provenance(tmp_path: Path) -> None:
    outcome = run(toy.toy(), tmp_path)
    assert (outcome.rows, outcome.failures) == (18, [])
    assert rows(toy.toy(), tmp_path) == ALL
    path = tmp_path / "toy" / "table1.csv"
    frame = read(path, dtype=str)
    assert set(frame["status"]) == {"solved"}
    assert set(frame["profile"]) == {"paper"}
    assert set(frame["device"]) == {"cpu"}
    for name in ("hardware", "torch", "python", "gleak", "commit", "date", "key"):
        assert (frame[name].str.len() > 3).all(), name
    assert (frame["seconds"].astype(float) >= 0).all()


def test_a_second_run_measures_nothing(tmp_path: Path) -> None:
    run(toy.toy(), tmp_path)
    before = (tmp_path / "toy" / "table1.csv").read_bytes()
    assert run(toy.toy(), tmp_path).rows == 0
    assert (tmp_path / "toy" / "table1.csv").read_bytes() == before
    assert all(not one.missing for one in runner.plan([toy.toy()], device="cpu", folder=tmp_path))


def test_an_interrupted_trial_is_measured_again(tmp_path: Path) -> None:
    run(toy.toy(toy.interrupted), tmp_path, trials=2)
    assert run(toy.toy(toy.interrupted), tmp_path, trials=2).rows == 6
    assert len(rows(toy.toy(), tmp_path)) == 6  # and stands there once


def test_an_error_without_words_is_an_error(tmp_path: Path) -> None:
    run(toy.toy(), tmp_path)
    outcome = run(toy.toy(toy.no_words), tmp_path)
    assert len(outcome.failures) == 9
    assert all("ValueError()" in words for words in outcome.failures)
    assert rows(toy.toy(), tmp_path) == ALL


def test_data_that_is_not_here_is_one_sentence_and_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLEAK_DATA", str(tmp_path / "none"))
    study = toy.toy(cells=[{"dataset": name, "a": 1} for name in ("faces", "imagenet", "svhn")])
    outcome = run(study, tmp_path)
    assert outcome.rows == 6
    assert [words.partition(" in ")[0] for words in outcome.failures] == [
        "toy.table1: there is no data set imagenet", "toy.table1: there is no data set svhn",
    ]  # fmt: skip
    other = toy.toy(cells=[{"dataset": "svhn", "a": 1}], id="toy.table2")
    assert run(other, tmp_path).rows == 0
    assert not (tmp_path / "toy" / "table2.csv").exists()


def test_an_optional_cell_without_its_data_is_left_out_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLEAK_DATA", str(tmp_path / "none"))
    cells = [{"dataset": name, "a": 1} for name in ("faces", "imagenet", "svhn")]
    study = toy.toy(cells=cells, optional={"dataset": ("svhn", "mnist")})
    outcome = run(study, tmp_path)
    assert outcome.rows == 6
    [failure], [left_out] = outcome.failures, outcome.left_out
    assert failure.startswith("toy.table1: there is no data set imagenet in ")
    assert left_out.startswith("toy.table1: there is no data set svhn in ")
    assert left_out.endswith("; its cells are left out")
    # A data set that another cell needs is lacking, whoever could do without it.
    both = [{"dataset": "svhn", "a": a} for a in (1, 2)]
    outcome = run(toy.toy(cells=both, id="toy.table2", optional={"a": (2,)}), tmp_path)
    assert (len(outcome.failures), outcome.left_out) == (1, [])


def test_a_cell_that_failed_keeps_its_old_rows(tmp_path: Path) -> None:
    run(toy.toy(), tmp_path)
    outcome = run(toy.toy(toy.break_at_two), tmp_path)
    assert len(outcome.failures) == 3
    frame = Store(toy.toy(), tmp_path).rows()
    assert sorted(zip(frame["a"], frame["seed"], strict=True)) == ALL


def test_a_smaller_profile_makes_nothing_stale(tmp_path: Path) -> None:
    run(toy.toy(), tmp_path, profile="smoke")
    [one, *_] = runner.plan([toy.toy()], device="cpu", folder=tmp_path, profile="paper")
    assert one.why == "never measured"


def test_the_plan_says_which_cells_need_not_be_measured(tmp_path: Path) -> None:
    study = toy.toy(optional={"a": (2,)})
    why = {p.cell["a"]: p.why for p in runner.plan([study], device="cpu", folder=tmp_path)}
    assert why == {1: "never measured", 2: "never measured: needs 2, or goes without", 3: why[1]}


def test_more_trials_only_append(tmp_path: Path) -> None:
    run(toy.toy(), tmp_path, trials=3)
    before = (tmp_path / "toy" / "table1.csv").read_text()
    [one, *_] = runner.plan([toy.toy()], device="cpu", folder=tmp_path)
    assert (one.missing, one.present, one.why) == ((3, 4, 5), 3, "3 of 6 trials are there")
    assert run(toy.toy(), tmp_path).rows == 9
    assert (tmp_path / "toy" / "table1.csv").read_text().startswith(before)
    assert rows(toy.toy(), tmp_path) == ALL


def test_profiles_do_not_mix(tmp_path: Path) -> None:
    assert run(toy.toy(), tmp_path, profile="smoke").rows == 6
    assert run(toy.toy(), tmp_path, profile="paper").rows == 18
    assert run(toy.toy(), tmp_path, profile="smoke").rows == 0


def test_other_code_makes_rows_stale_and_says_so(tmp_path: Path) -> None:
    run(toy.toy(), tmp_path)
    other = toy.toy(toy.not_finite)
    [one, *_] = runner.plan([other], device="cpu", folder=tmp_path)
    assert one.why.startswith("stale: studies.toy:count is gone; studies.toy:not_finite is new")
    run(replace(other, cells=other.cells[:1]), tmp_path)
    frame = Store(other, tmp_path).rows()
    # The new measurement of a whole cell replaces the old one; the other cells keep theirs.
    assert frame.groupby("a")["status"].unique().map(list).to_dict() == {
        1: ["diverged"],
        2: ["solved"],
        3: ["solved"],
    }
    assert len(frame) == 18
    assert set(Store(other, tmp_path).inputs()) == set(frame["key"])


def test_the_old_measurement_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    run(toy.toy(), tmp_path)
    stopped = toy.toy(toy.not_finite)

    def three(tasks):
        yield from runner.here(tasks[:2])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(stopped, tmp_path, execute=three)
    frame = Store(stopped, tmp_path).rows()
    assert (frame["status"] == "solved").sum() == 18
    assert (frame["status"] == "diverged").sum() == 4
    assert run(stopped, tmp_path).rows == 14
    assert set(Store(stopped, tmp_path).rows()["status"]) == {"diverged"}


def test_forcing_measures_again_and_leaves_one_row_each(tmp_path: Path) -> None:
    run(toy.toy(), tmp_path)
    assert run(toy.toy(), tmp_path, force=True).rows == 18
    assert rows(toy.toy(), tmp_path) == ALL


def test_a_failing_cell_stops_no_other(tmp_path: Path) -> None:
    outcome = run(toy.toy(toy.break_at_two), tmp_path)
    assert outcome.rows == 12
    assert outcome.failures == [
        f"toy.table1 (a 2; seeds {i}–{i + 1}): two is not to be had: take another number"
        for i in (0, 2, 4)
    ]
    frame = read(tmp_path / "toy" / "table1.csv")
    assert sorted(set(frame["a"])) == [1, 3]


@pytest.mark.parametrize(
    ("measure", "words"),
    [(toy.one_short, "measured 2 seeds and got 1 rows"), (toy.not_a_status, "status fine is none")],
)
def test_a_measurement_that_breaks_its_promise_is_refused(measure, words, tmp_path: Path) -> None:
    outcome = run(toy.toy(measure), tmp_path)
    assert outcome.rows == 0
    assert all(words in failure for failure in outcome.failures)


def test_values_that_are_not_finite_are_rows(tmp_path: Path) -> None:
    run(toy.toy(toy.not_finite), tmp_path)
    frame = Store(toy.toy(), tmp_path).rows()
    assert len(frame) == 18
    assert frame["value"].isna().all()


def test_a_study_that_is_only_declared_refuses_to_run(tmp_path: Path) -> None:
    declared = toy.toy(None)
    [one, *_] = runner.plan([declared], device="cpu", folder=tmp_path)
    assert one.why == "declared, not written yet"
    with pytest.raises(GleakError, match="declared and not written yet"):
        run(declared, tmp_path)
    with pytest.raises(GleakError, match="declared and not written yet"):
        runner.measure(declared)


def test_the_time_left_is_what_blocks_have_taken(tmp_path: Path) -> None:
    """A declaration ten times too low is found out by the first block."""
    events: list[runner.Event] = []

    def slowly(tasks):
        for number, done in runner.here(tasks):
            yield number, done._replace(seconds=0.2)  # declared: 2 trials at 0.01 s

    run(toy.toy(), tmp_path, execute=slowly, progress=events.append)
    assert [event.done for event in events] == list(range(1, 10))
    assert [round(event.left, 6) for event in events] == [
        pytest.approx(0.2 * n) for n in range(8, -1, -1)
    ]


def test_one_slow_block_does_not_rule_the_estimate(tmp_path: Path) -> None:
    events: list[runner.Event] = []

    def first_slowly(tasks):
        for number, done in runner.here(tasks):
            yield number, done._replace(seconds=0.02 if number else 60.0)

    run(toy.toy(), tmp_path, execute=first_slowly, progress=events.append)
    assert events[2].left == pytest.approx(6 * 0.02)


def test_a_block_that_was_free_beside_another_does_not_rule_it_either(tmp_path: Path) -> None:
    """Cells may look at one run: recorded as free, and a run of hours if measured first."""
    study = toy.toy(seconds=lambda cell: 0.01 if cell["a"] > 1 else 1e-9)
    events: list[runner.Event] = []

    def first_slowly(tasks):
        for number, done in runner.here(tasks):
            yield number, done._replace(seconds=0.02 if number > 2 else 60.0)

    run(study, tmp_path, execute=first_slowly, progress=events.append)
    assert events[0].left == pytest.approx(6 * 0.02, rel=1e-3)


def test_recorded_times_replace_guesses(tmp_path: Path) -> None:
    study = toy.toy(seconds=lambda cell: 1000.0)
    assert sum(p.cost for p in runner.plan([study], device="cpu", folder=tmp_path)) == 18000
    run(study, tmp_path, trials=1)
    plans = runner.plan([study], device="cpu", folder=tmp_path)
    assert all(one.timed for one in plans)
    assert sum(one.cost for one in plans) < 1


def test_rows_of_data_that_is_not_here_are_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = toy.toy(cells=[{"dataset": "faces", "a": a} for a in (1, 2, 3)])
    run(study, tmp_path)
    before = (tmp_path / "toy" / "table1.csv").read_bytes()
    monkeypatch.setattr(data, "fingerprint", lambda name: "absent")
    assert all(not one.missing for one in runner.plan([study], device="cpu", folder=tmp_path))
    assert run(study, tmp_path).rows == 0
    assert (tmp_path / "toy" / "table1.csv").read_bytes() == before
    monkeypatch.setattr(data, "fingerprint", lambda name: "another")
    [one, *_] = runner.plan([study], device="cpu", folder=tmp_path)
    assert one.why == "stale: data set faces changed"
    other = replace(study, measure=toy.not_finite)
    monkeypatch.setattr(data, "fingerprint", lambda name: "absent")
    [one, *_] = runner.plan([other], device="cpu", folder=tmp_path)
    assert one.missing  # other code is other code


def test_measuring_live_records_nothing(tmp_path: Path) -> None:
    frame = runner.measure(toy.toy(), profile="smoke", device="cpu")
    assert list(frame.columns) == ["a", "seed", "value", "status", "evaluations", "seconds"]
    assert len(frame) == 6
    with pytest.raises(GleakError, match="two is not to be had"):
        runner.measure(toy.toy(toy.break_at_two), device="cpu")


# --- deaths ----------------------------------------------------------------------------------

# A process begins at once when it is forked off one that has imported PyTorch and its compiler.
FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["torch._dynamo", "gleak_core.studies.runner"])
Start = Callable[..., BaseProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a function in a process of its own, which the test may kill."""
    with ExitStack() as stack:

        def begin(target: Callable[..., None], *given: object) -> BaseProcess:
            process = FORKS.Process(target=target, args=given)
            process.start()
            stack.callback(process.join)
            stack.callback(process.kill)
            return process

        yield begin


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_kill_loses_at_most_the_running_block(
    how: signal.Signals, start: Start, tmp_path: Path
) -> None:
    process = start(toy.run, tmp_path, 0.2)
    path = tmp_path / "toy" / "table1.csv"
    wait_until(lambda: lines(path) >= 5)
    assert process.pid
    os.kill(process.pid, how)
    process.join(30)
    assert process.exitcode
    there = rows(toy.toy(), tmp_path)
    assert 4 <= len(there) < 18
    assert len(there) % 2 == 0  # whole blocks
    assert there == sorted(set(there))
    outcome = run(toy.toy(), tmp_path)
    assert outcome.rows == 18 - len(there)
    assert rows(toy.toy(), tmp_path) == ALL


@pytest.mark.slow
def test_no_worker_outlives_a_run_that_was_killed(start: Start, tmp_path: Path) -> None:
    held = tmp_path / "held"
    process = start(toy.run_in_two, tmp_path, held)

    wait_until(lambda: held.exists() and not locks.is_free(held))  # somebody works
    process.kill()
    wait_until(lambda: locks.is_free(held))


@pytest.mark.slow
def test_two_runs_at_once_share_the_work(start: Start, tmp_path: Path) -> None:
    told = [tmp_path / "one", tmp_path / "other"]
    for process in [start(toy.run, tmp_path, 0.05, tells) for tells in told]:
        process.join(120)
        assert process.exitcode == 0
    assert rows(toy.toy(), tmp_path) == ALL
    assert sum(int(tells.read_text()) for tells in told) == 18  # nothing was measured twice


@pytest.mark.slow
def test_a_process_that_dies_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "get_context", lambda how: FORKS)
    fatal = tmp_path / "deadly"
    fatal.touch()
    cells = grid(a=(1, 2, 3), deadly=(str(fatal),))
    study = toy.toy(toy.die_once, cells, block=6)  # few processes to start
    assert run(study, tmp_path, execute=workers.processes(2)).rows == 18
    assert not fatal.exists()
    assert rows(study, tmp_path) == ALL


@pytest.mark.slow
def test_a_block_that_always_kills_ends_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other cells are measured; one block each, to have few processes to start."""
    monkeypatch.setattr(workers, "get_context", lambda how: FORKS)
    outcome = run(toy.toy(toy.die_at_two, block=6), tmp_path, execute=workers.processes(1))
    assert outcome.rows == 12
    [failure] = outcome.failures
    assert "(a 2; seeds 0–5): its process died twice" in failure


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is told")
def test_a_process_keeps_its_memory_for_the_next_evaluation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "get_context", lambda how: FORKS)
    with workers._pool(1) as pool:
        first, *rest = pool.submit(toy.faults).result()
    assert first > 10_000
    assert min(rest) < 100


def test_no_processes_are_refused() -> None:
    with pytest.raises(ValueError, match="jobs must be at least 1, got 0"):
        workers.processes(0)
