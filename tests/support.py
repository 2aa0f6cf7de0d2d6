"""Shared by test modules."""

import torch
from torch import Tensor

from gleak_core.data import Batch
from gleak_core.observation import History, Reconstruction


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
