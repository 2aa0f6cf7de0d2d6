"""A study that takes no time, and one for each way of going wrong."""

import fcntl
import os
import resource
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from gleak_core.errors import GleakError
from gleak_core.studies import runner, workers
from gleak_core.studies.study import Cell, Row, Study, grid

PAUSE = "GLEAK_TOY_PAUSE"
HELD = "GLEAK_TOY_HELD"  # a file: held by each process that has begun a block


def value(cell: Cell, seed: int) -> float:
    return 100.0 * int(cell["a"]) + seed


def count(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    for seed in seeds:
        time.sleep(float(os.environ.get(PAUSE, 0)))
        yield {"value": value(cell, seed), "status": "solved", "evaluations": 1}


def break_at_two(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    if cell["a"] == 2:
        raise GleakError("two is not to be had: take another number")
    return count(cell, seeds, device)


def die_once(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    try:
        Path(str(cell["deadly"])).unlink()  # the first process to find the file
    except FileNotFoundError:
        return count(cell, seeds, device)
    os._exit(9)


def hold(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    _held.append(file := Path(os.environ[HELD]).open("a"))  # noqa: SIM115 (until the process ends)
    fcntl.flock(file, fcntl.LOCK_SH)
    return count(cell, seeds, device)


_held: list[IO[str]] = []


def always_die(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    os._exit(9)


def die_at_two(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    if cell["a"] == 2:
        os._exit(9)
    return count(cell, seeds, device)


def no_words(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    raise ValueError


def one_short(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    return count(cell, seeds[1:], device)


def not_a_status(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    for row in count(cell, seeds, device):
        yield {**row, "status": "fine"}


def interrupted(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    for row in count(cell, seeds, device):
        yield {**row, "status": "interrupted"}


def not_finite(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    for row in count(cell, seeds, device):
        yield {**row, "value": float("nan"), "status": "diverged"}


def toy(measure=count, cells: Sequence[Cell] = grid(a=(1, 2, 3)), **options) -> Study:
    about = {
        "id": "toy.table1",
        "title": "A table of numbers",
        "metrics": ("value",),
        "seconds": lambda cell: 0.01,
        "trials": {"smoke": 2, "quick": 3, "paper": 6},
        "block": 2,
    }
    return Study(measure=measure, cells=tuple(cells), **{**about, **options})


# What a test starts in a process of its own:


def run(folder: Path, pause: float, tells: Path | None = None) -> None:
    os.environ[PAUSE] = str(pause)
    [outcome] = runner.run([toy()], device="cpu", folder=folder)
    if tells:
        tells.write_text(str(outcome.rows))


def run_in_two(folder: Path, held: Path) -> None:
    os.environ |= {PAUSE: "60", HELD: str(held)}
    runner.run([toy(hold)], device="cpu", folder=folder, execute=workers.processes(2))


def faults() -> list[int]:
    """Return how many pages the kernel had to give, each time that 96 MB are taken and freed."""
    counts = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        held = [b"x" * 2**23 for _ in range(12)]
        del held
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return counts
