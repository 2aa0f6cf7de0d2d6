"""Run studies: only what is missing or stale, block by block, here or on other machines.

Workers only compute; this process alone writes. A block's rows are on disk before the next is
waited for, so a kill loses what was running and nothing else, and a re-run goes on from there.
"""

import functools
import statistics
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch.nn import functional as F

from gleak_core import data
from gleak_core import device as devices
from gleak_core.datasets import shelf
from gleak_core.errors import GleakError, choose
from gleak_core.files import data_home
from gleak_core.provenance import commit
from gleak_core.studies import inputs
from gleak_core.studies.cost import GPU
from gleak_core.studies.store import ABOUT, Frame, Store, Writer, home, word
from gleak_core.studies.study import PROFILES, STATUSES, Cell, Measure, Row, Study

__all__ = [
    "Done",
    "Event",
    "Executor",
    "Outcome",
    "Plan",
    "Task",
    "here",
    "measure",
    "perform",
    "plan",
    "run",
]


class Task(NamedTuple):
    """A block of one cell: all that a worker is told."""

    study: str
    measure: Measure
    cell: Cell
    seeds: tuple[int, ...]
    device: str


class Done(NamedTuple):
    """What a worker answers: rows, or the sentence that says why there are none."""

    rows: list[Row]
    error: str
    seconds: float = 0.0
    about: Row = {}  # noqa: RUF012 (never changed): the worker's hardware and versions


Executor = Callable[[Sequence[Task]], Generator[tuple[int, Done]]]
"""Tasks → (which one, its rows), in the order in which they are finished."""


@dataclass(frozen=True)
class Plan:
    """One cell: what is there of it, what is not, and what that will cost."""

    study: Study
    cell: Cell
    inputs: Mapping[str, Any]
    key: str
    missing: tuple[int, ...]
    present: int
    seconds: float  # per trial, on the device that was asked for
    timed: bool  # from recorded trials, not from the declaration
    why: str

    @property
    def cost(self) -> float:
        """Expected seconds of one process for what is missing."""
        return self.seconds * len(self.missing)


@dataclass(frozen=True)
class Event:
    """How far a run is: blocks done, and the seconds it is expected to take still."""

    study: str
    cell: Cell
    done: int
    total: int
    left: float
    message: str = ""


@dataclass
class Outcome:
    """What a run did for one study."""

    study: str
    rows: int = 0
    failures: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """What was not measured, and need not be: optional cells whose data set is not here."""


def plan(
    studies: Sequence[Study],
    *,
    profile: str = "paper",
    device: str = "auto",
    trials: int | None = None,
    force: bool = False,
    folder: Path | None = None,
) -> list[Plan]:
    """Say for every cell which seeds are missing, why, and what they will cost."""
    choose("profile", profile, PROFILES)
    kind = device if device == "cuda" else devices.pick(device).type  # planning needs no GPU
    made: list[Plan] = []
    for study in studies:
        store = Store(study, folder or home(profile))
        rows, known = store.rows(), store.inputs()
        rows = rows[rows["status"] != "interrupted"]
        wanted = range(trials or study.trials[profile])
        for cell in study.grid(profile):
            one = _plan(study, cell, rows, known, wanted, profile, kind)
            if force:
                one = replace(one, missing=tuple(wanted), present=0, why="forced")
            made.append(one)
    return made


def run(
    studies: Sequence[Study],
    *,
    profile: str = "paper",
    device: str = "auto",
    trials: int | None = None,
    force: bool = False,
    execute: Executor | None = None,
    workers: int = 1,
    folder: Path | None = None,
    progress: Callable[[Event], None] = lambda event: None,
) -> list[Outcome]:
    """Measure what is missing of some studies and record it; a failing cell stops no other.

    `execute` runs the blocks, here one after the other by default; `workers` is how many it runs
    at once, for the estimate of the time left.
    """
    kind = devices.pick(device).type

    def plans(study: Study) -> list[Plan]:
        return plan([study], profile=profile, device=device, trials=trials, force=force,
                    folder=folder)  # fmt: skip

    for study in studies:
        if study.measure is None:
            raise GleakError(_unwritten(study))
    # All costs first, so that the time left is that of the whole run.
    clock = _Clock(sum(one.cost for study in studies for one in plans(study)), workers)
    about = _about(profile, kind)
    outcomes = []
    for study in studies:
        waits = Event(study.id, {}, 0, 0, 0.0, "waiting for another run of it")
        with Store(study, folder or home(profile)).writing(
            waiting=partial(progress, waits)
        ) as writer:
            outcomes.append(
                _carry_out(study, plans(study), execute, writer, about, clock, progress)
            )
    return outcomes


def _carry_out(
    study: Study,
    plans: Sequence[Plan],
    execute: Executor | None,
    writer: Writer,
    about: Row,
    clock: "_Clock",
    progress: Callable[[Event], None],
) -> Outcome:
    """Have the missing blocks of one study measured, and write each down as it comes."""
    outcome, broken = Outcome(study.id), set[str]()
    assert study.measure is not None
    absent = {one.key: inputs.lacking(one.inputs) for one in plans if one.missing}
    needed = {one.key for one in plans if not study.spares(one.cell)}
    for name in sorted({name for names in absent.values() for name in names}):
        says = f"{study.id}: {shelf.missing(data.info(name), data_home())}"
        if any(name in names and key in needed for key, names in absent.items()):
            outcome.failures.append(says)
        else:
            outcome.left_out.append(f"{says}; its cells are left out")
    broken |= {key for key, names in absent.items() if names}
    owned = [
        (one, seeds)
        for one in plans
        if one.key not in broken
        for seeds in study.blocks(one.missing)
    ]
    tasks = [
        Task(study.id, study.measure, one.cell, seeds, about["device"]) for one, seeds in owned
    ]
    with closing((execute or here)(tasks)) as answers:
        for finished, (number, done) in enumerate(answers, 1):
            task, one = tasks[number], owned[number][0]
            clock.tell(one.seconds * len(task.seeds), done.seconds)
            if done.error:
                broken.add(one.key)
                outcome.failures.append(f"{_name(task)}: {done.error}")
            else:
                more = {**about, "key": one.key, **done.about}
                writer.describe(one.key, one.inputs)
                writer.append([{**more, **row} for row in done.rows])
                outcome.rows += len(done.rows)
            progress(Event(study.id, task.cell, finished, len(tasks), clock.left()))
    place = {name: about[name] for name in ("profile", "device")}
    writer.tidy({one.key: {**one.cell, **place} for one in plans if one.key not in broken})
    return outcome


def measure(
    study: Study, *, profile: str = "smoke", device: str = "auto", trials: int | None = None
) -> Frame:
    """Measure a whole study here and now, recording nothing: what a chapter shows live."""
    kind = devices.pick(device).type
    seeds = range(trials or study.trials[profile])
    if study.measure is None:
        raise GleakError(_unwritten(study))
    rows: list[Row] = []
    for cell in study.grid(profile):
        for block in study.blocks(seeds):
            done = perform(Task(study.id, study.measure, cell, block, kind), catch=False)
            rows += done.rows
    columns = [*study.keys, "seed", *study.metrics, "status", "evaluations", "seconds"]
    return pd.DataFrame(rows)[list(dict.fromkeys(columns))]


def perform(task: Task, *, catch: bool = True) -> Done:
    """Measure one block: what a worker does, wherever it is."""
    began = time.perf_counter()
    try:
        place = devices.pick(task.device)
        _ready(task.device)
        began = time.perf_counter()
        rows = [dict(row) for row in task.measure(task.cell, task.seeds, task.device)]
        seconds = time.perf_counter() - began
        _check(task, rows)
    except Exception as error:
        if not catch:
            raise
        plain = str(error) if isinstance(error, GleakError | ValueError) else ""
        words = plain or repr(error)
        return Done([], words, time.perf_counter() - began)
    share = seconds / len(rows)
    for seed, row in zip(task.seeds, rows, strict=True):
        row.update({**task.cell, "seed": seed, "seconds": row.get("seconds", share)})
    return Done(rows, "", seconds, _worker(place))


@functools.cache
def _ready(device: str) -> None:
    """Have what PyTorch sets up at the first gradient behind us: no trial takes these seconds."""
    torch.set_num_threads(1)  # the order of sums, and so a row, must not depend on the cores
    weight = torch.ones(2, 2, device=device)
    torch.func.vmap(torch.func.grad(lambda w: F.cross_entropy(w, w)))(weight[None])


def here(tasks: Sequence[Task]) -> Generator[tuple[int, Done]]:
    """Run blocks in this process, one after the other."""
    for number, task in enumerate(tasks):
        yield number, perform(task)


def _plan(
    study: Study,
    cell: Cell,
    rows: Frame,
    known: Mapping[str, Any],
    wanted: Sequence[int],
    profile: str,
    device: str,
) -> Plan:
    guess = study.seconds(cell) / (GPU if device == "cuda" else 1)
    if study.measure is None:
        return Plan(study, cell, {}, "", tuple(wanted), 0, guess, False,
                    "declared, not written yet")  # fmt: skip
    parts = inputs.inputs(study, cell, profile=profile, device=device)
    same = rows
    for name, value in cell.items():
        same = same[same[name].map(word) == word(value)]
    same = same[same["device"] == device]
    key = inputs.recorded(parts, known, same["key"].tolist()) or inputs.key(parts)
    there = set(same[same["key"] == key]["seed"].astype(int))
    missing = tuple(seed for seed in wanted if seed not in there)
    older = same[(same["key"] != key) & (same["profile"] == profile)]
    timed = same["seconds"].astype(float).dropna()
    why = ""
    if missing and there:
        why = f"{len(there)} of {len(wanted)} trials are there"
    elif missing and len(older):
        last = known.get(str(older["key"].iloc[-1]), {})
        why = f"stale: {inputs.changes(last, parts)}" if last else "stale: its record is gone"
    elif missing:
        spared = [str(cell[n]) for n, some in study.optional.items() if cell.get(n) in some]
        why = "never measured" + (f": needs {', '.join(spared)}, or goes without" if spared else "")
    return Plan(
        study,
        cell,
        parts,
        key,
        missing,
        len(wanted) - len(missing),
        float(timed.mean()) if len(timed) else guess,
        bool(len(timed)),
        why,
    )


def _unwritten(study: Study) -> str:
    return f"{study.id} is declared and not written yet"


def _check(task: Task, rows: Sequence[Row]) -> None:
    if len(rows) != len(task.seeds):
        raise ValueError(f"measured {len(task.seeds)} seeds and got {len(rows)} rows")
    if bad := {str(row.get("status")) for row in rows} - set(STATUSES):
        raise ValueError(f"status {', '.join(sorted(bad))} is none of {', '.join(STATUSES)}")


def _worker(place: torch.device) -> Row:
    """Say what this process measures with."""
    try:
        library = version("gleak")
    except PackageNotFoundError:
        library = "not installed"
    return {
        "hardware": devices.describe(place),
        "torch": str(torch.__version__),
        "python": ".".join(map(str, sys.version_info[:3])),
        "gleak": library,
    }


def _about(profile: str, device: str) -> Row:
    about = {
        "profile": profile,
        "device": device,
        "commit": commit(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }
    assert set(about) < set(ABOUT)
    return about


def _name(task: Task) -> str:
    cell = ", ".join(f"{name} {value}" for name, value in task.cell.items())
    return f"{task.study} ({cell}; seeds {task.seeds[0]}–{task.seeds[-1]})"


class _Clock:
    """The time left, from what was expected and how wrong that has been so far."""

    def __init__(self, expected: float, workers: int) -> None:
        self._expected, self._workers = expected, max(1, workers)
        self._done = 0.0
        self._ratios: list[float] = []

    def tell(self, expected: float, took: float) -> None:
        self._done += expected
        # Where the same work was done for a neighbour, before or after, it is no guide.
        if 0.01 < took / max(expected, 1e-9) < 100:
            self._ratios.append(took / expected)

    def left(self) -> float:
        wrong = statistics.median(self._ratios) if self._ratios else 1.0
        return max(0.0, self._expected - self._done) * wrong / self._workers
