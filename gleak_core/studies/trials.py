"""What studies of single pictures share: which picture, network and start a seed stands for.

Twenty neighbouring seeds share a network, so that they can be attacked side by side. A seed means
the same in every block; with fewer than four trials another evaluator adds in another order, and
an optimiser that diverges shows it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, Unpack

import torch
from torch import Tensor

from gleak_core import data, metrics, starts
from gleak_core.attacks import Options
from gleak_core.data import Batch
from gleak_core.observation import Observation, Reconstruction, Round
from gleak_core.studies.batches import DATASETS

__all__ = [
    "BUDGET",
    "CLOSE",
    "INNER",
    "ITERATIONS",
    "SHARED",
    "SIDE",
    "attempts",
    "begin",
    "groups",
    "leaked",
    "ours",
    "pictures",
    "published",
    "side_by_side",
]

SIDE = 32
SHARED = 20
"""Trials that share one network, trained or not: forty have two."""
CLOSE = 2e-8  # of ‖∇W‖²: where an attack on weights from U(±½) may end
BUDGET = 3000  # evaluations of our recipe
ITERATIONS, INNER = 300, 20  # DLG's code: 300 steps of L-BFGS with 20 evaluations each
_PUBLISHED: Options = {
    "solver": "plain_lbfgs",
    "history": 100,
    "steps": ITERATIONS * INNER,
    "every": INNER,
}
_OURS: Options = {"steps": BUDGET, "every": INNER, "stop": CLOSE}


def published(**more: Unpack[Options]) -> Options:
    """Return DLG's own rule, its trials side by side: every step of L-BFGS is taken."""
    return {**_PUBLISHED, **more}


def ours(**more: Unpack[Options]) -> Options:
    """Return our recipe, to be started from U(0, 1): a step that raises the loss is shortened."""
    return {**_OURS, **more}


def groups(seeds: Sequence[int], size: int = SHARED) -> Iterator[tuple[int, list[int]]]:
    """Yield the number of a group, which seeds its network, and those of its seeds given here."""
    for number, some in groupby(seeds, key=lambda seed: seed // size):
        yield number, list(some)


def pictures(dataset: str, seeds: Sequence[int], *, side: int) -> Batch:
    """Return a picture for each seed."""
    drawn = [data.sample(DATASETS[dataset], 1, size=side, seed=seed) for seed in seeds]
    return replace(
        drawn[0],
        images=torch.cat([one.images for one in drawn]),
        labels=torch.cat([one.labels for one in drawn]),
        indices=torch.cat([one.indices for one in drawn]),
    )


def begin(start: str, seeds: Sequence[int], shape: Sequence[int], *, batch: int = 1) -> Tensor:
    """Return the first dummies (T, B, C, H, W) of an attack, a trial for each seed."""
    return torch.cat([starts.make(start, (1, batch, *shape), seed=seed) for seed in seeds])


def side_by_side(seen: Sequence[Observation]) -> Observation:
    """Put observations on the same network side by side, as trials."""
    first = seen[0]
    update = {n: torch.cat([s.rounds[0].update[n] for s in seen]) for n in first.rounds[0].update}
    return replace(first, rounds=(Round(update, first.rounds[0].weights),))


def attempts(
    found: Reconstruction, batch: Batch, *measures: str, budget: int = 1, per: int = 1
) -> Iterator[dict[str, Any]]:
    """Yield a row for each trial of one picture: how close it came, or how soon it leaked.

    The measures are "mse", "psnr", "success_rate" and "iterations". An iteration is `per`
    evaluations; a picture that never leaked counts as `budget` + 1.
    """
    score = metrics.score(found, batch)
    soon = leaked(found, batch)
    for t, status in enumerate(found.status):
        never = soon[t] < 0 or soon[t] > budget * per
        row = {
            "mse": float(score.mse[t, 0]),
            "psnr": float(score.psnr[t, 0].clamp(max=metrics.PSNR_CAP)),
            "success_rate": float(score.mse[t, 0] < metrics.THRESHOLD),
            "iterations": budget + 1 if never else -(-soon[t] // per),
        }
        known = {"status": status, "evaluations": int(found.evaluations[t])}
        yield {measure: row[measure] for measure in measures} | known


def leaked(found: Reconstruction, batch: Batch) -> list[int]:
    """Return the first recorded step at which the picture of each trial had leaked; -1 if none."""
    frames = found.history.frames[:, :, 0].clamp(0, 1)  # (F, T, C, H, W)
    error = metrics.mse(frames, batch.images.to(frames))
    there = error < metrics.THRESHOLD  # (F, T)
    steps = found.history.frame_steps[there.int().argmax(0).cpu()]
    return torch.where(there.any(0).cpu(), steps, -1).tolist()
