"""Local training, redone: which pictures would have changed the weights as the client's did?

Geng et al. 2021 (Eq. 23) take the mean change of the weights for a gradient at the first ones. A
server that knows rate and number of steps can do better, and redo these steps with its dummies
(as Dimitrov et al. 2022 do). It pays for every step in every evaluation.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor
from torch.func import functional_call, grad, grad_and_value, vmap

from gleak_core import labels as rules
from gleak_core import penalties, solvers, starts
from gleak_core.distances import cosine_per_layer, squared_l2
from gleak_core.engine import SOLVED, _status
from gleak_core.errors import GleakError, choose
from gleak_core.objectives import GradientMatch, Total, soft_cross_entropy
from gleak_core.observation import History, Observation, Reconstruction, Update, Weights
from gleak_core.pool import Objective

__all__ = ["LocalTraining", "redo_training"]


@dataclass(frozen=True)
class LocalTraining:
    """The distance from the change of weights that was seen to that which the dummies cause."""

    match: GradientMatch  # its target: (W⁰ − Wᵀ)/(ηT)
    steps: int  # T, each on the whole batch
    rate: float  # η

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distance (T,) and its gradient (T, n)."""
        dummies, match = self.match.dummies, self.match
        slope, value = vmap(grad_and_value(self._apart), in_dims=(0, 0, 0))(
            dummies.images(z), dummies.soft_labels(z), match.target
        )
        return value, slope.flatten(1)

    def compact(self, keep: Tensor) -> "LocalTraining":
        """Return the same for some of the trials."""
        return replace(self, match=self.match.compact(keep))

    def change(self, images: Tensor, soft: Tensor) -> Update:
        """Return (W⁰ − Wᵀ)/(ηT), the mean gradient on the way, of one batch."""
        match = self.match
        first = {n: match.weights[n] for n in match.target}
        fixed = {n: w for n, w in match.weights.items() if n not in first}

        def loss(w: Weights) -> Tensor:
            logits = functional_call(match.architecture, {**w, **fixed}, (images,))
            return soft_cross_entropy(logits, soft)

        weights = first
        for _ in range(self.steps):
            step = grad(loss)(weights)
            weights = {n: w - self.rate * step[n] for n, w in weights.items()}
        return {n: (w - weights[n]) / (self.rate * self.steps) for n, w in first.items()}

    def _apart(self, images: Tensor, soft: Tensor, target: Update) -> Tensor:
        fake = self.change(images, soft)
        one, other = ({n: g[None] for n, g in update.items()} for update in (fake, target))
        return self.match.distance(one, other)[0]


def redo_training(
    seen: Observation,
    *,
    labels: str | Tensor = "general",
    start: str | Tensor = "uniform",
    weigh: Mapping[str, float] | None = None,
    solver: str = "plain_lbfgs",
    steps: int = 300,
    rate: float = 0.5,
    history: int = 40,
    seed: int = 0,
    every: int = 0,
) -> Reconstruction:
    """Attack the weights after local training by redoing the training with the dummies.

    Args:
        seen: Messages of `clients.fedavg`, each step of which was on the whole batch.
        labels: A rule of `labels.RULES`, or labels (T, B).
        start: A name of `starts`, or images (T, B, C, H, W).
        weigh: Penalties with their weights (default: total variation, 0.5 of the mean).
        solver: A method of `solvers`.
        steps: Its evaluations, each of which redoes the whole local training.
        rate: Its rate, not the client's.
        history: The pairs that L-BFGS keeps.
        seed: Draws the start.
        every: Keep a frame every so many evaluations; 0: the first and the last.
    """
    began = time.perf_counter()
    by = "an attack that redoes local training"
    if seen.kind != "weights":
        raise GleakError(f"{by} needs weights, and this message is a gradient: use attacks.general")
    taken, pace = seen.need("local_steps", "learning_rate", by=by)
    known = labels if isinstance(labels, Tensor) else rules.RULES[
        choose("label rule", labels, rules.RULES)
    ](seen)  # fmt: skip
    match = GradientMatch.of(seen, labels=known, by=by, distance=cosine_per_layer, evaluator="vmap")
    local = LocalTraining(match, int(taken), float(pace))
    terms: list[tuple[float, Objective]] = [
        (c, penalties.build(p, seen, match)) for p, c in (weigh or {"tv_mean": 0.5}).items() if c
    ]
    images = (
        start
        if isinstance(start, Tensor)
        else starts.make(start, (seen.trials, *match.dummies.image_shape), seed=seed)
    )
    like = next(iter(match.target.values()))
    solution = solvers.minimise(
        Total(((1.0, local), *terms)),
        match.dummies.pack(images.to(like)),
        solvers.method(solver, steps=steps, rate=rate, history=history),
        steps=steps,
        every=every,
    )
    judge = replace(local, match=replace(match, distance=squared_l2))
    loss, _ = judge.value_and_grad(solution.z)
    return Reconstruction(
        images=match.dummies.images(solution.z),
        labels=known,
        loss=solution.loss,
        status=_status(solution, (loss < SOLVED * judge.match.scale).cpu()),
        history=History(
            solution.steps,
            solution.curve,
            solution.frame_steps,
            match.dummies.images(solution.frames),
        ),
        evaluations=solution.evaluations,
        seconds=time.perf_counter() - began,
        attack="General deep leakage, local training redone",
    )
