"""Shared by test modules."""

import torch

from gleak_core.data import Batch


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
