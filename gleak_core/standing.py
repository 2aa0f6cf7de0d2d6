"""Many rounds of a model that stands still, at the price of one look at each item.

The message of a round is the mean of its items' own gradients, so ten thousand rounds need no more
than each item's gradient once. `clients` runs real rounds; here is what they would send.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gleak_core import clients
from gleak_core.data import Batch
from gleak_core.errors import choose
from gleak_core.observation import Given, Observation, Round, Update

__all__ = ["rounds"]

CHUNK = 32  # items whose gradients are held at once


def rounds(
    model: nn.Module,
    own: Batch,
    picks: Tensor,
    *,
    layers: Sequence[str],
    give: Sequence[str] = (*clients.HONEST, "batch_indices"),
) -> Observation:
    """Return what rounds with these picks (R, B) send of some layers (or parameters).

    Every item's gradient of these layers is held in memory: name few, as the biases that an
    alignment of many rounds is solved from.
    """
    known: dict[str, Any] = {
        "weights": True,
        "image_shape": tuple(own.images.shape[1:]),
        "batch_indices": picks,
        "batch_size": picks.shape[-1],
    }
    for name in give:
        choose("capability of standing rounds", name, known)
    if picks.dim() != 2:
        raise ValueError(f"picks must be (rounds, batch), got {tuple(picks.shape)}")
    clients._inside(picks, len(own), "the items")
    each: Update = {}
    seen: Observation | None = None
    for members in torch.arange(len(own)).split(CHUNK):
        seen = clients.fedsgd(model, own[members.tolist()], each=True).only(*layers)
        for name, update in seen.rounds[0].update.items():
            each[name] = torch.cat([each[name], update]) if name in each else update
    assert seen is not None
    weights = seen.rounds[0].weights if "weights" in give else None
    means = {name: [one[None] for one in _means(values, picks)] for name, values in each.items()}
    return replace(
        seen,
        rounds=tuple(
            Round({name: means[name][r] for name in means}, weights) for r in range(len(picks))
        ),
        given=Given(**{name: known[name] for name in give}),
        protocol=f"mean gradients of {len(picks)} rounds, layers {', '.join(layers)}",
    )


def _means(values: Tensor, picks: Tensor) -> Iterator[Tensor]:
    """Yield the mean of values (N, …) over the items of each round, a few rounds at a time."""
    for some in picks.split(256):
        yield from values[some.to(values.device)].mean(1)
