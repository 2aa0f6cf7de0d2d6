"""Who is in which batch: three ways in which clients draw their batches, round by round.

Each returns picks (R, B), indices of items. That the server is told them is a capability of its
own, and so is that they repeat or not.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ["SAMPLERS", "epochs", "fixed", "independent"]


def independent(items: int, batch: int, rounds: int, *, seed: int = 0) -> Tensor:
    """Draw every batch anew, without an item twice in it."""
    _check(items, batch, rounds)
    stream = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(items, generator=stream)[:batch] for _ in range(rounds)])


def epochs(items: int, batch: int, rounds: int, *, seed: int = 0) -> Tensor:
    """Shuffle all items before each epoch and deal them out; what is left over sits it out."""
    _check(items, batch, rounds)
    stream = torch.Generator().manual_seed(seed)
    each = items // batch
    dealt = [
        torch.randperm(items, generator=stream)[: each * batch].view(each, batch)
        for _ in range(-(-rounds // each))
    ]
    return torch.cat(dealt)[:rounds]


def fixed(items: int, batch: int, rounds: int, *, seed: int = 0) -> Tensor:
    """Deal the items out once and for all: the same batches come back in every epoch."""
    _check(items, batch, rounds)
    each = items // batch
    once = epochs(items, batch, each, seed=seed)
    return once.repeat(-(-rounds // each), 1)[:rounds]


SAMPLERS: Mapping[str, Callable[..., Tensor]] = {
    "independent": independent,
    "epochs": epochs,
    "fixed": fixed,
}
"""A name → a sampler: `sampler(items, batch, rounds, seed=0)`."""


def _check(items: int, batch: int, rounds: int) -> None:
    if not 1 <= batch <= items or rounds < 1:
        raise ValueError(
            f"{rounds} rounds of batches of {batch} out of {items} items cannot be drawn: "
            "pass a batch from 1 to the number of items, and at least one round"
        )
