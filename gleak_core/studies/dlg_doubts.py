"""How the critique's doubts are measured: a batch in lock-step, the threat model, no prior.

All on CIFAR-10, and on networks that are not trained unless the cell says so.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gleak_core import attacks, clients, data, metrics, models, solvers, training
from gleak_core.data import Batch
from gleak_core.objectives import GradientMatch, some
from gleak_core.observation import Observation, Round, Weights
from gleak_core.pool import Objective
from gleak_core.studies.study import Cell, Row
from gleak_core.studies.trials import (
    BUDGET,
    INNER,
    SIDE,
    attempts,
    begin,
    groups,
    ours,
    pictures,
    side_by_side,
)

__all__ = ["lockstep", "prior_knowledge", "threat"]

CLASSES, SET = 10, "cifar10"
SMALL = 16  # pixels: two pictures at 32×32 are beyond this network in 3000 steps
SIMILAR = 1e-3  # what similar starts differ by, of a range of 1
SHADOWS = 500  # pictures of his own with which an attacker learns to infer a property
CLOSER = 1e-9  # of ‖∇W‖²: what smaller weights ask for
PER_STEP = 64  # pictures that the clients of a round use together
EPOCH = 3660
RATE = 0.02


# --- the threat model ---------------------------------------------------------------------------


def threat(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Our attack with other weights than those that the gradient was computed at."""
    for number, those in groups(seeds):
        batch = pictures("CIFAR-10", those, side=SIDE)
        seen, held = _overheard(str(cell["weights"]), batch, number, device)
        message = seen.rounds[0].update
        seen = replace(seen, rounds=(Round(message, held),))
        start = begin("uniform", those, batch.images.shape[1:])
        found = attacks.dlg(seen, **ours(start=start, seed=number))
        yield from attempts(found, batch, "success_rate", "psnr")


def _overheard(kind: str, batch: Batch, number: int, device: str) -> tuple[Observation, Weights]:
    """Return what the clients send, and the weights that the attacker has."""
    before = models.lenet(CLASSES, seed=number).to(device)
    victim = before
    held = before.state_dict()
    if steps := {"1 step old": 1, "10 steps old": 10, "stale": EPOCH // PER_STEP}.get(kind):
        victim = _trained(before, steps, number)
    elif kind == "wrong":
        other = models.lenet(CLASSES, seed=number + 2**20).to(device)
        held = _trained(other, EPOCH // PER_STEP, number + 1).state_dict()
    elif kind == "none":
        held = models.lenet(CLASSES, seed=number + 2**20).to(device).state_dict()
    seen = clients.fedsgd(victim, batch.to(device), each=True)
    return seen, {n: w.detach().clone() for n, w in held.items()}


def _trained(model: models.Network, steps: int, seed: int) -> models.Network:
    """Return the network after so many rounds of training."""
    images = data.sample(SET, steps * PER_STEP + 1, size=SIDE, seed=seed)
    train, test = images[: steps * PER_STEP], images[steps * PER_STEP :]
    [*_, last] = training.train(model, train, test, epochs=1, rate=RATE, seed=seed)
    after = models.lenet(CLASSES, seed=0).to(next(model.parameters()).device)
    after.load_state_dict(last.weights)
    return after


# --- a batch in lock-step -----------------------------------------------------------------------


def lockstep(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Two pictures from one gradient: together, in turns, or each as if it were alone."""
    for number, those in groups(seeds):
        net = models.lenet(CLASSES, size=SMALL, scale=0.25, seed=number).to(device)
        pairs = [_pair(seed, same=cell["labels"] == "same") for seed in those]
        seen = side_by_side([clients.fedsgd(net, pair.to(device)) for pair in pairs])
        known = torch.stack([pair.labels for pair in pairs]).to(device)  # (T, 2)
        first = _starts(str(cell["starts"]), those, pairs[0].images.shape[1:])
        found, evaluations, statuses = _attack(str(cell["update"]), seen, known, first, number)
        for t, pair in enumerate(pairs):
            score = metrics.score(found[t : t + 1], pair, labels=known[t : t + 1])
            apart = float(metrics.mse(*found[t].clamp(0, 1).cpu()))
            yield {
                "duplicates": float(apart < metrics.THRESHOLD),
                "success_rate": float(score.mse[0, 0] < metrics.THRESHOLD),
                "status": statuses[t],
                "evaluations": evaluations[t],
            }


def _attack(
    update: str, seen: Observation, known: Tensor, first: Tensor, number: int
) -> tuple[Tensor, list[int], list[str]]:
    """Return pictures (T, 2, C, H, W), evaluations and statuses."""
    options = functools.partial(ours, every=0, seed=number, stop=CLOSER)
    if update == "joint":
        found = attacks.dlg(seen, **options(start=first, labels=known))
        return found.images, found.evaluations.tolist(), list(found.status)
    if update == "independent":
        alone = replace(seen, given=replace(seen.given, batch_size=1))
        both = [
            attacks.dlg(alone, **options(start=first[:, [i]], labels=known[:, [i]]))
            for i in range(2)
        ]
        worst = ["solved" if set(two) == {"solved"} else "failed" for two in
                 zip(*(f.status for f in both), strict=True)]  # fmt: skip
        counts = (both[0].evaluations + both[1].evaluations).tolist()
        return torch.cat([f.images for f in both], 1), counts, worst
    return _in_turns(seen, known, first)


@dataclass(frozen=True)
class _Turn:
    """An objective in which only some of the unknowns may move."""

    inner: Objective
    moves: Tensor  # (n,), 1 or 0

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = self.inner.value_and_grad(z)
        return value, gradient * self.moves

    def compact(self, keep: Tensor) -> "_Turn":
        return replace(self, inner=some(self.inner, keep))


def _in_turns(
    seen: Observation, known: Tensor, first: Tensor
) -> tuple[Tensor, list[int], list[str]]:
    """Update picture i mod 2 for an iteration of DLG's, while the other stands still."""
    match = GradientMatch.of(seen, labels=known, by="round robin", abreast=seen.trials)
    z = match.dummies.pack(first.float().to(seen.device))
    half = z.shape[1] // 2
    enough = CLOSER * match.scale.cpu()
    spent, loss = torch.zeros(len(z), dtype=torch.long), torch.full((len(z),), torch.inf)
    for turn in range(2 * BUDGET // INNER):
        moves = torch.zeros(z.shape[1], device=z.device)
        moves[turn % 2 * half :][:half] = 1
        on = (~(loss < enough)).nonzero()[:, 0]  # who is solved stands still
        if not len(on):
            break
        here = on.to(z.device)
        method = solvers.method("lbfgs", steps=INNER - 1, rate=1.0)  # and one evaluation to begin
        step = solvers.minimise(
            _Turn(match.compact(on), moves),
            z[here],
            method,
            steps=INNER - 1,
            every=0,
            stop=enough[on],
            width=len(on),
        )
        z[here], loss[on] = step.z, step.loss.cpu().to(loss)
        spent[on] += step.evaluations.cpu()
    status = ["solved" if good else "failed" for good in (loss < enough).tolist()]
    return match.dummies.images(z), spent.tolist(), status


def _pair(seed: int, *, same: bool) -> Batch:
    label = seed % CLASSES
    labels = [label, label] if same else [label, (label + 1 + seed // CLASSES) % CLASSES]
    return data.sample(SET, labels=labels, size=SMALL, seed=seed)


def _starts(kind: str, seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Return two starts for each trial: independent, almost alike, or alike."""
    two = begin("uniform", seeds, shape, batch=2)
    if kind == "random":
        return two
    noise = begin("uniform_centred", [seed + 2**20 for seed in seeds], shape)[:, 0]
    other = two[:, 0] + (SIMILAR * noise if kind == "similar" else 0)
    return torch.stack([two[:, 0], other], 1)


# --- prior knowledge ----------------------------------------------------------------------------


def prior_knowledge(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Is a picture brighter than most? Seen on DLG's copy, or guessed from the gradient."""
    others = data.sample(SET, SHADOWS, size=SIDE, seed=2**20)
    level = float(_brightness(others.images).median())
    for number, those in groups(seeds):
        batch = pictures("CIFAR-10", those, side=SIDE)
        truth = _brightness(batch.images) > level
        net = models.lenet(CLASSES, seed=number).to(device)
        seen = clients.fedsgd(net, batch.to(device), each=True)
        if cell["method"] == "DLG":
            start = begin("uniform", those, batch.images.shape[1:])
            found = attacks.dlg(seen, **ours(start=start, seed=number))
            said = _brightness(found.images[:, 0].clamp(0, 1).cpu()) > level
            rows = attempts(found, batch, "success_rate")
        else:
            said = _inferred(net, others, level, seen, device)
            rows = [{"success_rate": 0.0, "status": "solved", "evaluations": 1} for _ in those]
        for row, right in zip(rows, (said == truth).tolist(), strict=True):
            yield {**row, "accuracy": 100.0 * right}


def _brightness(images: Tensor) -> Tensor:
    return images.flatten(1).mean(1)


def _inferred(
    net: models.Network, others: Batch, level: float, seen: Observation, device: str
) -> Tensor:
    """Learn the property from the gradients of the attacker's own pictures, and tell it."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    own = clients.fedsgd(net, others.to(device), each=True)
    learner = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    learner.fit(_flat(own), (_brightness(others.images) > level).numpy())
    return torch.as_tensor(learner.predict(_flat(seen)))


def _flat(seen: Observation) -> np.ndarray:
    parts = [g.flatten(1) for g in seen.rounds[0].update.values()]
    return torch.cat(parts, 1).double().cpu().numpy()  # (T, number of weights)
