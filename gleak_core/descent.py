"""First-order methods on the trials axis: Adam, and steps of a fixed length along the gradient."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gleak_core.errors import choose
from gleak_core.pool import Evaluate, State

__all__ = ["DIRECTIONS", "Descent"]

DIRECTIONS = ("plain", "sign", "normalised", "adam")


@dataclass(frozen=True)
class Descent:
    """Gradient descent by a named direction; the best iterate is kept, as the loss may rise.

    `plain` is g itself; `sign` its signs; `normalised` g/‖g‖·√n, so that a step of rate 1 moves a
    pixel by 1 on average; `adam` is Kingma & Ba 2015. With `signed=True` Adam is fed the signs,
    as Geiping et al. 2020 do. `drops` are the shares of all steps after which the rate falls to a
    tenth; `box` keeps the first so many unknowns (the pixels) in [0, 1] after every step.
    """

    rate: float
    steps: int  # in all: the drops are shares of it
    direction: str = "adam"
    signed: bool = False
    drops: Sequence[float] = ()
    box: int = 0
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        choose("direction", self.direction, DIRECTIONS)
        if self.rate <= 0:
            raise ValueError(f"rate must be positive, got {self.rate}")

    def floats(self, n: int) -> int:
        """Return how many numbers of state one trial of n unknowns needs."""
        return 8 * n

    def begin(self, z: Tensor, f: Tensor, g: Tensor) -> State:
        """Return the state of fresh trials at z (T, n)."""
        count = torch.zeros_like(f)
        state = {
            "z": z,
            "f": f,
            "g": g,
            "best": z,
            "lowest": f,
            "count": count,
            "finite": f.isfinite(),
            "stalled": count.bool(),
        }
        moments = {"mean": torch.zeros_like(z), "spread": torch.zeros_like(z)}
        return state | (moments if self.direction == "adam" else {})

    def advance(self, state: State, evaluate: Evaluate) -> State:
        """Return the state after one evaluation per trial."""
        g, count = state["g"], state["count"] + 1
        d, moments = self._direction(state, g.sign() if self.signed else g, count)
        rate = torch.full_like(count, self.rate)
        for share in self.drops:
            rate = torch.where(count > share * self.steps, rate / 10, rate)
        z = state["z"] - rate[:, None] * d
        if self.box:
            z = torch.cat([z[:, : self.box].clamp(0, 1), z[:, self.box :]], 1)
        f, g = evaluate(z)
        finite = f.isfinite() & g.isfinite().all(1)
        lower = finite & (f < state["lowest"])
        return dict(
            state,
            **moments,
            z=z,
            f=f,
            g=g,
            count=count,
            best=torch.where(lower[:, None], z, state["best"]),
            lowest=torch.where(lower, f, state["lowest"]),
            finite=state["finite"] & finite,
        )

    def _direction(self, state: State, g: Tensor, count: Tensor) -> tuple[Tensor, State]:
        if self.direction == "sign":
            return g.sign(), {}
        if self.direction == "normalised":
            norm = g.square().mean(1, keepdim=True).sqrt()
            return torch.where(norm > 0, g / norm, 0), {}
        if self.direction == "plain":
            return g, {}
        one, two = self.betas
        mean = one * state["mean"] + (1 - one) * g
        spread = two * state["spread"] + (1 - two) * g * g
        fair = (1 - one**count)[:, None], (1 - two**count)[:, None]
        d = (mean / fair[0]) / ((spread / fair[1]).sqrt() + 1e-8)
        return d, {"mean": mean, "spread": spread}
