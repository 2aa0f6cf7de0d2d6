"""The named attacks: each a recipe of label rule, start, objective and solver.

An attack sees an `Observation` and nothing else. These two are the textbook form of DLG and
iDLG; the published loop they use is also the baseline of every later comparison.
"""

import time

import torch
from torch import Tensor

from gleak_core import labels, starts
from gleak_core.objectives import GradientMatch
from gleak_core.observation import History, Observation, Reconstruction, Status
from gleak_core.solvers import Progress, Solution, published_lbfgs

__all__ = ["SOLVED", "dlg", "idlg"]

SOLVED = 1e-7
"""A gradient distance below this share of ‖∇W‖² counts as solved: a stop the attacker can see.

Relative, or a clipped gradient would count as solved by any dummy without a gradient. It says
that the gradients agree, not that the pictures do.
"""


def dlg(
    seen: Observation,
    *,
    start: str = "normal",
    steps: int = 300,
    rate: float = 1.0,
    seed: int = 0,
    every: int = 10,
    stop: float = 0.0,
    progress: Progress | None = None,
) -> Reconstruction:
    """Deep Leakage from Gradients: optimise image and label together (Zhu et al. 2019, Alg. 1).

    As published: N(0, 1) dummies, squared distance, L-BFGS with rate 1, 300 steps. `stop` ends a
    trial early, at this share of ‖∇W‖².
    """
    return _match(seen, None, "DLG", start, steps, rate, seed, every, stop, progress)


def idlg(
    seen: Observation,
    *,
    start: str = "normal",
    steps: int = 300,
    rate: float = 1.0,
    seed: int = 0,
    every: int = 10,
    stop: float = 0.0,
    progress: Progress | None = None,
) -> Reconstruction:
    """Improved DLG: read the label off the gradient, then optimise the image (Zhao et al. 2020)."""
    return _match(seen, labels.idlg(seen), "iDLG", start, steps, rate, seed, every, stop, progress)


def _match(
    seen: Observation,
    known: Tensor | None,
    name: str,
    start: str,
    steps: int,
    rate: float,
    seed: int,
    every: int,
    stop: float,
    progress: Progress | None,
) -> Reconstruction:
    began = time.perf_counter()
    objective = GradientMatch.of(seen, labels=known, by=name)
    shape = (seen.trials, *objective.image_shape)
    stream = torch.Generator().manual_seed(seed)
    images = starts.make(start, shape, seed=stream)
    guess = starts.make("normal", (*shape[:2], objective.classes), seed=stream)
    squares = [g.double().flatten(1).square().sum(1) for g in objective.target.values()]
    scale = torch.stack(squares).sum(0).cpu()  # (T,) ‖∇W‖²
    solution = published_lbfgs(
        objective,
        objective.pack(images, guess),
        steps=steps,
        rate=rate,
        every=every,
        stop=stop * scale,
        progress=progress,
    )
    return Reconstruction(
        images=objective.images(solution.z),
        labels=objective.soft_labels(solution.z).argmax(-1),
        loss=solution.loss,
        status=_status(solution, scale),
        history=History(
            steps=solution.steps,
            loss=solution.curve,
            frame_steps=solution.frame_steps,
            frames=objective.images(solution.frames),
        ),
        evaluations=solution.evaluations,
        seconds=time.perf_counter() - began,
        attack=name,
        settings={"start": start, "steps": steps, "rate": rate, "seed": seed, "stop": stop},
    )


def _status(solution: Solution, scale: Tensor) -> tuple[Status, ...]:
    """Say what the attacker can tell from the loss: solved, not yet, or worse than it began."""
    ended = (~solution.curve.isnan()).sum(0).clamp(min=1) - 1  # (T,) each trial's last step
    last = solution.curve.gather(0, ended[None])[0]
    solved = solution.loss.cpu().double() < SOLVED * scale
    worse = ~solution.finite | (last > solution.first_loss)
    return tuple(
        "solved" if good else "diverged" if bad else "failed"
        for good, bad in zip(solved.tolist(), worse.tolist(), strict=True)
    )
