"""CAFE by linear algebra: each item's label and inputs out of the rounds, then its picture alone.

Chen et al. 2021 match all pictures of a pool together, for hundreds of epochs. With the inputs Z of
the first fully connected layer known item by item (`cafe.items`), no item needs the others any
more: its picture is the one that the network's first part maps to Z.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gleak_core import cafe, solvers, starts
from gleak_core.observation import History, Observation, Reconstruction, Status, Weights
from gleak_core.pool import Progress

__all__ = ["Behind", "recover"]

SOLVED = 1e-8  # of ‖Z‖²: some 37 dB
STOP = 1e-12  # and where no step is worth its cost
_BY = "CAFE by linear algebra"


class _Enough(Exception):
    """All that is asked for has been seen: the rest of the network need not run."""


@dataclass(frozen=True, eq=False)
class Behind:
    """‖f(x) − Z‖² of pictures x: f is the network up to its first fully connected layer."""

    architecture: nn.Module
    weights: Weights
    layers: tuple[str, ...]  # whose inputs f is, one for each party
    goal: Tensor  # (T, P)
    shape: tuple[int, int, int]

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distances (T,) and their slopes (T, n)."""
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            value = (self.inputs(z) - self.goal).square().sum(1)
            (slope,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), slope

    def compact(self, keep: Tensor) -> "Behind":
        """Return the same for some of the pictures."""
        return replace(self, goal=self.goal[keep])

    def inputs(self, z: Tensor) -> Tensor:
        """Return f(x) (T, P), all parties' side by side."""
        caught: list[Tensor] = []

        def catch(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            caught.append(args[0].flatten(1))
            if len(caught) == len(self.layers):
                raise _Enough

        hooks = [
            self.architecture.get_submodule(name).register_forward_pre_hook(catch)
            for name in self.layers
        ]
        try:
            functional_call(self.architecture, self.weights, (z.view(-1, *self.shape),))
        except _Enough:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat(caught, 1)


def recover(
    seen: Observation | cafe.Ledger,
    *,
    only: Sequence[int] | None = None,
    start: str | Tensor = "grey",
    solver: str = "lbfgs",
    steps: int = 300,
    rate: float = 1.0,
    history: int = 20,
    seed: int = 0,
    every: int = 0,
    progress: Progress | None = None,
) -> Reconstruction:
    """Rebuild the pictures of a pool, each a trial, from rounds of one model with known batches.

    Args:
        seen: Rounds of `clients.horizontal` with one worker, or of `clients.vertical`; or the
            ledger of more rounds than memory holds.
        only: The items to rebuild (default: all); labels and inputs are found for all.
        start: A name of `starts`, or images (T, 1, C, H, W).
        solver: A method of `solvers`.
        steps: Its evaluations.
        rate: Its rate.
        history: The pairs that L-BFGS keeps.
        seed: Draws the start.
        every: Keep a frame every so many evaluations; 0: the first and the last.
        progress: Called with the steps done, the steps in all, and the best loss.
    """
    began = time.perf_counter()
    known = seen.items() if isinstance(seen, cafe.Ledger) else cafe.items(seen)
    seen = seen.seen if isinstance(seen, cafe.Ledger) else seen
    (shape,) = seen.need("image_shape", by=_BY)
    chosen = list(range(len(known.labels))) if only is None else list(only)
    weights = seen.weights(by=_BY)
    like = next(iter(seen.rounds[0].update.values()))
    goal = known.inputs[chosen].to(like)
    behind = Behind(seen.architecture, weights, cafe.first_layers(seen), goal, tuple(shape))
    images = (
        start
        if isinstance(start, Tensor)
        else starts.make(start, (len(chosen), 1, *shape), seed=seed)
    )
    solution = solvers.minimise(
        behind,
        images.to(like).flatten(1),
        solvers.method(solver, steps=steps, rate=rate, history=history),
        steps=steps,
        every=every,
        stop=STOP * goal.square().sum(1),
        progress=progress,
    )
    size = goal.square().sum(1).cpu().double()
    solved = (solution.loss.cpu().double() <= SOLVED * size).tolist()
    status: tuple[Status, ...] = tuple(
        "solved" if good else "failed" if whole else "diverged"
        for good, whole in zip(solved, solution.finite.tolist(), strict=True)
    )
    return Reconstruction(
        images=solution.z.view(-1, 1, *shape),
        labels=known.labels[chosen][:, None],
        loss=solution.loss,
        status=status,
        history=History(
            solution.steps,
            solution.curve,
            solution.frame_steps,
            solution.frames.view(*solution.frames.shape[:2], 1, *shape),
        ),
        evaluations=solution.evaluations,
        seconds=time.perf_counter() - began,
        attack="CAFE, by linear algebra",
    )
