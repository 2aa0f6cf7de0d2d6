"""The named attacks: each a recipe of label rule, start, objective and solver.

An attack sees an `Observation` and nothing else. These two are the textbook form of DLG and
iDLG; the published loop they use is also the baseline of every later comparison.
"""

import time

from torch import Tensor

from gleak_core import labels, starts
from gleak_core.objectives import GradientMatch
from gleak_core.observation import History, Observation, Reconstruction, Status
from gleak_core.solvers import Progress, Solution, published_lbfgs

__all__ = ["SOLVED", "dlg", "idlg"]

SOLVED = 1e-5
"""A gradient distance below this counts as solved: a stop the attacker can see (he has no PSNR)."""


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

    As published: N(0, 1) dummies, squared distance, L-BFGS with rate 1, 300 steps.
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
    images = starts.make(start, shape, seed=seed)
    guess = starts.make("normal", (*shape[:2], objective.classes), seed=seed + 1)
    solution = published_lbfgs(
        objective,
        objective.pack(images, guess),
        steps=steps,
        rate=rate,
        every=every,
        stop=stop,
        progress=progress,
    )
    return Reconstruction(
        images=objective.images(solution.z),
        labels=objective.soft_labels(solution.z).argmax(-1),
        loss=solution.loss,
        status=_status(solution),
        history=History(
            steps=solution.steps,
            loss=solution.curve,
            frame_steps=solution.frame_steps,
            frames=objective.images(solution.frames),
        ),
        evaluations=solution.evaluations,
        seconds=time.perf_counter() - began,
        attack=name,
        settings={"start": start, "steps": steps, "rate": rate, "seed": seed},
    )


def _status(solution: Solution) -> tuple[Status, ...]:
    """Say what the attacker can tell from the loss: solved, not yet, or worse than it began."""
    ended = (~solution.curve.isnan()).sum(0).clamp(min=1) - 1  # (T,) each trial's last step
    last = solution.curve.gather(0, ended[None])[0]
    worse = ~solution.finite | (last > solution.first_loss)
    return tuple(
        "solved" if loss < SOLVED else "diverged" if bad else "failed"
        for loss, bad in zip(solution.loss.tolist(), worse.tolist(), strict=True)
    )
