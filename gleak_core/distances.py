"""How far a fake gradient lies from the one that was seen.

A distance takes two updates, (T, *shape) per parameter, and returns one number per trial (T,).
Each is a few lines and carries its paper's equation.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gleak_core.errors import GleakError
from gleak_core.observation import Update

__all__ = [
    "DISTANCES",
    "Distance",
    "Masked",
    "cosine",
    "cosine_per_layer",
    "l2_per_layer",
    "relative_l2",
    "slope",
    "squared_l2",
    "squares_of",
    "surviving",
]

Distance = Callable[[Update, Update], Tensor]
_TINY = 1e-30  # keeps a square root or a quotient finite at an exact zero; far below any gradient


def squared_l2(fake: Update, seen: Update) -> Tensor:
    """Return ‖∇W′ − ∇W‖² over all parameters that were seen (Zhu et al. 2019, Eq. 4)."""
    return _total([_square(fake[n] - g) for n, g in seen.items()])


def relative_l2(fake: Update, seen: Update) -> Tensor:
    """Return Σ_l ‖∇W′_l − ∇W_l‖² / ‖∇W_l‖²: every layer counts the same, whatever its scale."""
    return _total([_square(fake[n] - g) / (_square(g) + _TINY) for n, g in seen.items()])


def l2_per_layer(fake: Update, seen: Update) -> Tensor:
    """Return Σ_l ‖∇W′_l − ∇W_l‖₂, not squared (Geng et al. 2021, Eq. 10, as printed)."""
    return _total([(_square(fake[n] - g) + _TINY).sqrt() for n, g in seen.items()])


def cosine(fake: Update, seen: Update) -> Tensor:
    """Return 1 − ⟨∇W′, ∇W⟩ / (‖∇W′‖ ‖∇W‖) over all parameters (Geiping et al. 2020, Eq. 4)."""
    inner = _total([(fake[n] * g).flatten(1).sum(1) for n, g in seen.items()])
    squares = [_total([_square(u[n]) for n in seen]) for u in (fake, seen)]
    # A root of each: the product of both squares would drown in _TINY where gradients vanish.
    return 1 - inner / ((squares[0] + _TINY).sqrt() * (squares[1] + _TINY).sqrt())


def cosine_per_layer(fake: Update, seen: Update) -> Tensor:
    """Return Σ_l (1 − cos) with the angle of each layer on its own (Geng et al. 2021, Eq. 24).

    A layer of zeros has no angle, and counts nothing: dead units, or pruned away.
    """
    each = [torch.where(_square(g) > 0, cosine({n: fake[n]}, {n: g}), 0) for n, g in seen.items()]
    return _total(each)


@dataclass(frozen=True, eq=False)
class Masked:
    """A distance on the entries that survived a client's pruning; the others say nothing.

    `mask` holds True where an entry counts. An attacker reads it off the message (`surviving`).
    """

    distance: Distance
    mask: Update  # (T, *shape) bool

    def __call__(self, fake: Update, seen: Update) -> Tensor:
        """Return the distance of what is left of both."""
        left = {n: torch.where(self.mask[n], fake[n], 0) for n in seen}
        return self.distance(left, {n: torch.where(self.mask[n], g, 0) for n, g in seen.items()})

    def compact(self, keep: Tensor) -> "Masked":
        """Return the same distance for some of the trials."""
        return Masked(self.distance, {n: m[keep] for n, m in self.mask.items()})


def squares_of(distance: Distance) -> Distance:
    """Return ‖·‖² on the entries that a distance looks at; itself if that is what it is."""
    if not isinstance(distance, Masked):
        return squared_l2
    return distance if distance.distance is squared_l2 else Masked(squared_l2, distance.mask)


def surviving(seen: Update) -> Update:
    """Return the entries of a message that are not exactly zero: what pruning has left."""
    mask = {n: g != 0 for n, g in seen.items()}
    if not any(bool(m.any()) for m in mask.values()):
        raise GleakError("nothing of this gradient survived: every entry is zero; prune less")
    return mask


DISTANCES: Mapping[str, Distance] = {
    "squared_l2": squared_l2,
    "relative_l2": relative_l2,
    "l2_per_layer": l2_per_layer,
    "cosine": cosine,
    "cosine_per_layer": cosine_per_layer,
}


def slope(distance: Distance, fake: Update, seen: Update) -> tuple[Tensor, Update]:
    """Return D (T,) and ∂D/∂∇W′ in the shape of the update."""
    if distance is squared_l2:  # by hand: this one is in everybody's innermost loop
        residual = {n: fake[n] - g for n, g in seen.items()}
        return _total([_square(r) for r in residual.values()]), {
            n: r.mul_(2) for n, r in residual.items()
        }
    leaves = {n: g.detach().requires_grad_() for n, g in fake.items() if n in seen}
    with torch.enable_grad():
        value = distance(leaves, seen)
        # A distance may look at some layers only.
        slopes = torch.autograd.grad(value.sum(), list(leaves.values()), materialize_grads=True)
    return value.detach(), dict(zip(leaves, slopes, strict=True))


def _square(g: Tensor) -> Tensor:
    flat = g.flatten(1)
    return (flat * flat).sum(1)  # (T,)


def _total(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum(0)
