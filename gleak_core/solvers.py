"""Minimisers. They see `value_and_grad(z[T, n])` and `compact(keep)`: nothing of images."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

__all__ = ["Objective", "Progress", "Solution", "published_lbfgs"]

Progress = Callable[[int, int, float], None]
"""Called with (steps done, steps in all, best loss so far)."""


class Objective(Protocol):
    """What a solver needs of a problem with T independent trials."""

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return values (T,) and gradients (T, n)."""
        ...

    def compact(self, keep: Tensor) -> Self:
        """Return the problem for the trials in `keep` only."""
        ...


@dataclass(frozen=True)
class Solution:
    """The best iterate of each trial, and the way there."""

    z: Tensor  # (T, n)
    loss: Tensor  # (T,)
    first_loss: Tensor  # (T,)
    steps: Tensor  # (S,)
    curve: Tensor  # (S, T); NaN after a trial has ended
    frame_steps: Tensor  # (F,)
    frames: Tensor  # (F, T, n)
    evaluations: Tensor  # (T,)
    finite: Tensor  # (T,) False where the iteration blew up


def published_lbfgs(
    objective: Objective,
    z: Tensor,
    *,
    steps: int,
    rate: float = 1.0,
    inner: int = 20,
    every: int = 10,
    stop: float | Tensor = 0.0,
    progress: Progress | None = None,
) -> Solution:
    """Run the loop that DLG was published with, one trial after the other.

    `torch.optim.LBFGS` with its defaults (rate 1, `inner` iterations a step, history 100, no line
    search) for `steps` steps. A trial ends early when its loss falls below `stop` (one number, or
    one for each trial) or is not finite any more. This is the baseline that the benchmark keeps
    for ever; it is not meant to be fast.
    """
    if steps < 1 or every < 1:
        raise ValueError(f"steps and every must be at least 1, got {steps} and {every}")
    marks = sorted({0, *range(every, steps, every), steps})
    trials, n = z.shape
    enough = torch.as_tensor(stop).expand(trials).tolist()
    curve = torch.full((steps + 1, trials), torch.nan, dtype=z.dtype)
    frames = torch.empty((len(marks), trials, n), dtype=z.dtype)
    best, loss, evaluations = z.clone(), torch.full((trials,), torch.inf, dtype=z.dtype), []
    finite = torch.ones(trials, dtype=torch.bool)
    for t in range(trials):  # the published code attacks one image at a time, and so does this
        one = objective.compact(torch.tensor([t], device=z.device))
        x = z[t : t + 1].clone().requires_grad_()
        optimiser = torch.optim.LBFGS([x], lr=rate, max_iter=inner)
        counted = step = 0

        def closure(one: Objective = one, x: Tensor = x) -> Tensor:
            nonlocal counted
            counted += 1
            value, gradient = one.value_and_grad(x.detach())
            x.grad = gradient
            return value[0]

        for step in range(steps + 1):
            value = closure().item()
            curve[step, t] = value
            if step in marks:
                frames[marks.index(step), t] = x.detach()[0].cpu()
            if math.isfinite(value) and value < loss[t]:
                best[t], loss[t] = x.detach()[0], value
            finite[t] = math.isfinite(value)
            if progress is not None:
                progress(t * steps + step, trials * steps, float(loss[t]))
            if step == steps or not finite[t] or value < enough[t]:
                break
            optimiser.step(closure)  # pyright: ignore[reportArgumentType]
        for index, mark in enumerate(marks):  # a trial that has ended stands still
            if mark > step:
                frames[index, t] = best[t].cpu()
        evaluations.append(counted)
    return Solution(
        z=best,
        loss=loss,
        first_loss=curve[0],
        steps=torch.arange(steps + 1),
        curve=curve,
        frame_steps=torch.tensor(marks),
        frames=frames,
        evaluations=torch.tensor(evaluations),
        finite=finite,
    )
