"""Minimisers by name. They see `value_and_grad(z[T, n])` and `compact(keep)`: nothing of images."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from gleak_core.descent import Descent
from gleak_core.errors import choose
from gleak_core.lbfgs import LBFGS
from gleak_core.pool import ON_INTERRUPT, Method, Objective, Progress, Solution, minimise

__all__ = [
    "LBFGS",
    "SOLVERS",
    "Descent",
    "Method",
    "Objective",
    "Progress",
    "Solution",
    "method",
    "minimise",
    "published_lbfgs",
]

SOLVERS: Mapping[str, str] = {
    "lbfgs": "L-BFGS that accepts a step only if the value falls enough (Armijo)",
    "plain_lbfgs": "L-BFGS that takes every step, the rule DLG was published with, batched",
    "adam": "Adam (Kingma & Ba 2015)",
    "signed_adam": "Adam on the signs of the gradient, the rate in drops (Geiping et al. 2020)",
    "sign_descent": "steps along the signs of the gradient",
    "normalised_descent": "steps of one length along the gradient",
    "descent": "plain gradient descent",
    "published_lbfgs": "DLG's own loop: torch.optim.LBFGS, 20 iterations a step, trial by trial",
}
_DROPS = (3 / 8, 5 / 8, 7 / 8)  # Geiping et al. 2020, appendix: a tenth each time


def method(name: str, *, steps: int, rate: float, history: int = 40, pixels: int = 0) -> Method:
    """Return a batched method by name; `pixels` > 0 keeps so many unknowns in [0, 1] (descent)."""
    choose("solver", name, [n for n in SOLVERS if n != "published_lbfgs"])
    if name in ("lbfgs", "plain_lbfgs"):
        return LBFGS(history, rate, "armijo" if name == "lbfgs" else "none")
    direction = {"sign_descent": "sign", "normalised_descent": "normalised", "descent": "plain"}
    signed = name == "signed_adam"
    return Descent(
        rate=rate,
        steps=steps,
        direction=direction.get(name, "adam"),
        signed=signed,
        drops=_DROPS if signed else (),
        box=pixels,
    )


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
    on_interrupt: str = "raise",
) -> Solution:
    """Run the loop that DLG was published with, one trial after the other.

    `torch.optim.LBFGS` with its defaults (rate 1, `inner` iterations a step, history 100, no line
    search) for `steps` steps. A trial ends early when its loss falls below `stop` (one number, or
    one for each trial) or is not finite any more. This is the baseline that the benchmark keeps
    for ever; it is not meant to be fast. `on_interrupt="keep"` is as in `minimise`.
    """
    choose("on_interrupt", on_interrupt, ON_INTERRUPT)
    if steps < 1 or every < 0:
        raise ValueError(f"steps must be at least 1 and every at least 0, got {steps}, {every}")
    marks = sorted({0, *(range(every, steps, every) if every else ()), steps})
    trials, n = z.shape
    enough = torch.as_tensor(stop).expand(trials).tolist()
    curve = torch.full((steps + 1, trials), torch.nan, dtype=z.dtype)
    frames = torch.empty((len(marks), trials, n), dtype=z.dtype)
    best, loss = z.clone(), torch.full((trials,), torch.inf, dtype=z.dtype)
    evaluations, reached = (torch.full((trials,), k, dtype=torch.long) for k in (0, -1))
    finite, over = torch.ones(trials, dtype=torch.bool), torch.zeros(trials, dtype=torch.bool)

    def attempt(t: int) -> None:
        one = objective.compact(torch.tensor([t], device=z.device))
        x = z[t : t + 1].clone().requires_grad_()
        optimiser = torch.optim.LBFGS([x], lr=rate, max_iter=inner)

        def closure() -> Tensor:
            value, gradient = one.value_and_grad(x.detach())
            evaluations[t] += 1
            x.grad = gradient
            return value[0]

        for step in range(steps + 1):
            value = closure().item()
            curve[step, t], reached[t] = value, step
            if step in marks:
                frames[marks.index(step), t] = x.detach()[0].cpu()
            if math.isfinite(value) and value < loss[t]:
                best[t], loss[t] = x.detach()[0], value
            finite[t] = math.isfinite(value)
            over[t] = step == steps or not finite[t] or value < enough[t]
            if progress is not None:
                progress(t * steps + step, trials * steps, float(loss[t]))
            if over[t]:
                break
            optimiser.step(closure)  # pyright: ignore[reportArgumentType]

    try:
        for t in range(trials):  # the published code attacks one image at a time, and so does this
            attempt(t)
    except KeyboardInterrupt:
        if on_interrupt == "raise":
            raise
    for index, mark in enumerate(marks):  # a trial that has ended stands still
        late = reached < mark
        frames[index, late] = best.cpu()[late]
    return Solution(
        z=best,
        loss=loss,
        first_loss=curve[0],
        steps=torch.arange(steps + 1),
        curve=curve,
        frame_steps=torch.tensor(marks),
        frames=frames,
        evaluations=evaluations,
        finite=finite,
        interrupted=~over,
    )
