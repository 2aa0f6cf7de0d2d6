"""Shared by test modules."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gleak_core import papers
from gleak_core.data import Batch
from gleak_core.observation import History, Reconstruction, Status
from gleak_core.studies import runner
from gleak_core.studies.study import Cell, Row, Study


def random_batch(n: int = 4, *, classes: int = 5, size: int = 8, seed: int = 0) -> Batch:
    """Return random pictures: no data set is needed to test a protocol."""
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        images=torch.rand((n, 3, size, size), generator=generator),
        labels=torch.arange(n) % classes,
        classes=tuple(f"class {k}" for k in range(classes)),
        name="random",
        indices=torch.arange(n),
    )


def made_up_run(
    private: Tensor,
    *,
    attack: str = "DLG",
    steps: int = 100,
    every: int = 10,
    far: float = 0.0,
    seed: int = 0,
) -> Reconstruction:
    """Return a run on images (N, C, H, W), a trial each: noise that clears up, all but `far`."""
    noise = torch.randn(private.shape, generator=torch.Generator().manual_seed(seed))
    marks = torch.tensor(sorted({*range(0, steps, every), steps}))
    share = far + (1 - far) * (1 - marks / steps) ** 3  # (F,)
    frames = private + share[:, None, None, None, None] * (noise - private)  # (F, N, C, H, W)
    along = torch.arange(steps + 1)
    loss = (far + (1 - far) * (1 - along / steps) ** 3).square()[:, None] + 1e-8
    trials = len(private)
    return Reconstruction(
        images=frames[-1][:, None],
        labels=None,
        loss=loss[-1].expand(trials),
        status=("failed" if far else "solved",) * trials,
        history=History(along, loss.expand(-1, trials), marks, frames[:, :, None]),
        evaluations=torch.full((trials,), steps + 1),
        seconds=0.0,
        attack=attack,
    )


def rebuilt(
    images: Tensor,
    frames: Tensor | None = None,
    at: Sequence[int] = (0,),
    status: Sequence[Status] | None = None,
) -> Reconstruction:
    """Return what an attack might have found: images (T, B, …), frames (F, T, B, …)."""
    count = len(images)
    said: list[Status] = ["solved"] * count
    frames = images[None] if frames is None else frames
    return Reconstruction(
        images=images,
        labels=None,
        loss=torch.zeros(count),
        status=tuple(status or said),
        history=History(torch.arange(1), torch.zeros(1, count), torch.tensor(at), frames),
        evaluations=torch.arange(count) + 7,
        seconds=0.0,
        attack="made up",
    )


@contextmanager
def forgotten(*remembered: Any) -> Iterator[None]:
    """Empty the caches of functions before a test and after it."""
    for one in remembered:
        one.cache_clear()
    yield
    for one in remembered:
        one.cache_clear()


def measures_what_it_names(study: Study, limits: Mapping[str, tuple[float, float]]) -> None:
    """Run two trials of a study's first and last cell: no column lacks, none is too many."""
    assert study.metrics == tuple(study.asks or papers.find(study.id).metrics)
    named = {*study.metrics} - {"seconds"}  # the runner's
    real = study.measure
    assert real is not None

    def measure(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
        for row in real(cell, seeds, device):
            assert {*row} - {"seconds"} == {*named, "status", "evaluations"}
            yield row

    ends = study.cells[:1] + study.cells[1:][-1:]
    some = replace(study, cells=ends, measure=measure, reduced={})
    frame = runner.measure(some, device="cpu", trials=2)
    assert len(frame) == 2 * len(ends)
    there = [name for name in study.metrics if name != "lpips"]  # its weights may be absent
    numbers = frame[there].astype(float)
    assert numbers.notna().all(axis=None)
    for name in there:
        assert numbers[name].between(*limits.get(name, (0, math.inf))).all(), name
