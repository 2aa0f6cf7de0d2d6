"""A study that takes no time, and one for each way of going wrong."""

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from gleak_core.errors import GleakError
from gleak_core.studies.study import Cell, Row, Study, grid

PAUSE = "GLEAK_TOY_PAUSE"
HELD = "GLEAK_TOY_HELD"  # a file: held by each process that has begun a block
DEADLY = "GLEAK_TOY_DEADLY"  # a file: the first process to find it removes it and dies


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
    if fatal := os.environ.get(DEADLY):
        try:
            Path(fatal).unlink()
        except FileNotFoundError:
            pass
        else:
            os._exit(9)
    return count(cell, seeds, device)


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
