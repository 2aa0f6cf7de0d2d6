"""How the pictures of "Towards general deep leakage" are measured: whole batches, side by side.

A trial is a batch. Neighbouring seeds share a network; whatever the method, a seed stands for the
same pictures, the same network and the same start, so that methods are compared in pairs.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from gleak_core import alignment, attacks, clients, data, metrics, models
from gleak_core.data import Batch
from gleak_core.datasets.sampling import shuffled
from gleak_core.distances import cosine
from gleak_core.observation import Observation, Reconstruction, Round
from gleak_core.simulation import redo_training
from gleak_core.studies.batches import DATASETS
from gleak_core.studies.runs import only
from gleak_core.studies.study import Cell, Row
from gleak_core.studies.trials import SIDE, begin, groups, side_by_side

__all__ = [
    "ALIGNED",
    "AVERAGE",
    "BATCH",
    "BLOCK",
    "CIFAR_BATCH",
    "CLASSES",
    "EIGHT",
    "EVALUATIONS",
    "GRANTED",
    "INFERRED",
    "LARGE",
    "LOCAL_RATE",
    "METHODS",
    "SIMULATED",
    "STARTS",
    "TARGETS",
    "TERMS",
    "WIDE",
    "Victims",
    "aligned",
    "at_equal_cost",
    "duplicates",
    "from_weights",
    "fused",
    "grouped",
    "large",
    "measures",
    "regularisers",
    "several",
    "started",
    "wrong",
]

BLOCK = 5  # trials that share a network and are attacked side by side
BATCH, EIGHT, CIFAR_BATCH = 16, 8, 4
LARGE = 224
WIDE = 48  # channels for a batch of 16: for twelve, four times the steps are too few (dlg.c3)
CLASSES, EACH = 200, 4  # of ImageNet: our 800 classes of one picture, in fours
EVALUATIONS = {"CIFAR-10": 1200, "ImageNet": 600}
HISTORY = {"CIFAR-10": 100, "ImageNet": 20}
RATE = 0.5  # of L-BFGS, as printed for CIFAR-10
TV = 0.5  # as printed for CIFAR-10, of the mean
TV_OF_ANGLE = {"average update": 0.5, "simulated steps": 0.05}
"""Beside angles: the better of two weights, on a batch of chapter 3."""
LOCAL_RATE = 0.1  # of a client, as stated
ADAM = 0.1  # the rate of GradInversion, as printed
SIZE = 1e-6  # the weight of its ℓ2 term, as printed

AVERAGE, SIMULATED = "average update", "simulated steps"
INFERRED, GRANTED = "inferred", "granted"
METHODS = ("GradInversion", "General leakage")
STARTS = {
    "U(0,1)": "uniform",
    "N(0.5,1)": "normal_half",
    "N(0,1)": "normal",
    "U(-0.5,0.5)": "uniform_centred",
}
ALIGNED: Mapping[str, bool | None] = {
    "none": None,
    "assignment": False,
    "assignment, labels pinned": True,
}
"""A way to put pictures in order → whether unique labels are pinned; None: as they come."""
TARGETS = ("own picture", "half own, half same label", "half own, half other label")
TERMS = {"tv": TV, "l2": 0.1, "clip": 100.0, "scale": 100.0}
"""A regulariser of Table 2 → its weight, as printed for CIFAR-10."""


# --- the client's side --------------------------------------------------------------------------


@dataclass(frozen=True)
class Victims:
    """What the clients of a group of trials have: batches by how often their labels stand."""

    dataset: str
    times: tuple[int, ...]  # of each label that is drawn
    side: int = SIDE

    def batches(self, seeds: Sequence[int]) -> list[Batch]:
        """Return a private batch for each seed."""
        if self.dataset == "ImageNet":
            return [grouped(self.times, seed, self.side) for seed in seeds]
        name = DATASETS[self.dataset]
        return [data.sample(name, sum(self.times), size=self.side, seed=seed) for seed in seeds]

    def network(self, number: int, own: Sequence[Batch], device: str) -> models.Network:
        """Return the network of a group: wider where the batch is large."""
        wide: dict[str, Any] = {"width": WIDE, "scale": 0.25} if len(own[0]) >= BATCH else {}
        net = models.lenet(len(own[0].classes), size=self.side, seed=number, **wide)
        return net.to(device)

    def share(
        self,
        number: int,
        seeds: Sequence[int],
        device: str,
        *,
        updates: int = 1,
        rate: float = LOCAL_RATE,
    ) -> tuple[list[Batch], Observation]:
        """Return the private batches of these seeds, and what is seen of them side by side."""
        own = self.batches(seeds)
        net = self.network(number, own, device)
        if updates == 1:
            return own, side_by_side([clients.fedsgd(net, batch.to(device)) for batch in own])
        each = [clients.several(net, batch.to(device), updates=updates, rate=rate) for batch in own]
        return own, abreast(each)


def grouped(times: Sequence[int], seed: int, side: int) -> Batch:
    """Return pictures of ImageNet in which the k-th label drawn stands `times[k]` times.

    Four neighbouring classes, of one picture each, are taken as one: 200 classes of four.
    """
    order = shuffled(CLASSES, seed)
    chosen = [EACH * int(order[k]) + j for k, n in enumerate(times) for j in range(n)]
    batch = data.sample("imagenet", labels=chosen, size=side, seed=seed)
    names = tuple(batch.classes[EACH * k] for k in range(CLASSES))
    return replace(batch, labels=batch.labels // EACH, classes=names)


def abreast(seen: Sequence[Observation]) -> Observation:
    """Put observations of several rounds, begun from the same weights, side by side as trials."""
    rounds = []
    for parts in zip(*(one.rounds for one in seen), strict=True):
        update = {n: torch.cat([part.update[n] for part in parts]) for n in parts[0].update}
        held = []
        for part in parts:
            assert part.weights is not None
            held.append(part.weights)
        # At first all hold the same weights, later each its own.
        weights = {
            n: (torch.cat([w[n] for w in held]) if rounds else held[0][n][0]) if n in update else w
            for n, w in held[0].items()
        }
        rounds.append(Round(update, weights))
    return replace(seen[0], rounds=tuple(rounds))


# --- the attacker's side ------------------------------------------------------------------------


def general(
    seen: Observation,
    seeds: Sequence[int],
    dataset: str,
    *,
    start: str | Tensor = "uniform",
    **more: Any,
) -> Reconstruction:
    """Run the paper's attack as it is printed for CIFAR-10, its trials side by side."""
    options = {
        "start": begun(seen, seeds, start) if isinstance(start, str) else start,
        "penalties": {"tv_mean": TV},
        "solver": "plain_lbfgs",
        "rate": RATE,
        "history": HISTORY[dataset],
        "steps": EVALUATIONS[dataset],
        "every": 0,
    }
    return attacks.general(seen, **(options | more))


def rival(seen: Observation, seeds: Sequence[int], dataset: str) -> Reconstruction:
    """Run GradInversion with one start for a batch, as many evaluations and the same prior."""
    return attacks.grad_inversion(
        seen,
        start=begun(seen, seeds),
        penalties={"tv_mean": TV, "l2": SIZE},
        rate=ADAM,
        steps=EVALUATIONS[dataset],
        every=0,
    )


def begun(seen: Observation, seeds: Sequence[int], start: str = "uniform") -> Tensor:
    """Return the first dummies (T, B, C, H, W) of these seeds."""
    size, shape = seen.need("batch_size", "image_shape", by="a start")
    return begin(start, seeds, shape, batch=size)


@lru_cache(maxsize=4)  # cells that look at the same runs in another way
def restored(
    victims: Victims,
    method: str,
    number: int,
    seeds: tuple[int, ...],
    device: str,
    *,
    updates: int = 1,
    wrong: int | None = None,
) -> tuple[list[Batch], Reconstruction]:
    """Return the private batches, and what a method makes of them from U(0, 1).

    Labels are inferred, unless `wrong` says how many are: then the others are given.
    """
    own, seen = victims.share(number, seeds, device, updates=updates)
    if method == "GradInversion":
        return own, rival(seen, seeds, victims.dataset)
    labels: dict[str, Any] = {}
    if wrong is not None:
        given = [mislabelled(b, wrong, seed) for b, seed in zip(own, seeds, strict=True)]
        labels = {"labels": torch.stack(given).to(device)}
    return own, general(seen, seeds, victims.dataset, **labels)


def mislabelled(batch: Batch, wrong: int, seed: int) -> Tensor:
    """Return the labels of a batch (B,), the first `wrong` of them replaced by absent classes."""
    absent = [k for k in shuffled(len(batch.classes), seed) if int(k) not in batch.labels.tolist()]
    given = torch.tensor([int(k) for k in absent[:wrong]], dtype=batch.labels.dtype)
    return torch.cat([given, batch.labels[wrong:]])


# --- the judge's side ---------------------------------------------------------------------------


def measures(found: Reconstruction, own: Sequence[Batch], *names: str) -> Iterator[Row]:
    """Yield a row for each trial: the mean over its pictures, once they are aligned.

    The measures are "mse", "ssim", "psnr", "lpips" (nan where its weights are not there) and
    "accuracy", of the labels.
    """
    for t, batch in enumerate(own):
        score = metrics.score(only(found, t), batch)
        row = {
            "mse": float(score.mse.mean()),
            "psnr": float(score.psnr.clamp(max=metrics.PSNR_CAP).mean()),
            "ssim": _mean(score.ssim),
            "lpips": _mean(score.lpips),
            "accuracy": 100 * _mean(score.label_accuracy),
        }
        yield {name: row[name] for name in names} | _known(found, t)


def _mean(values: Tensor | metrics.NotAvailable) -> float:
    return float(values.mean()) if isinstance(values, Tensor) else math.nan


def _known(found: Reconstruction, t: int) -> Row:
    return {"status": found.status[t], "evaluations": int(found.evaluations[t])}


def _psnr(found: Tensor, true: Tensor) -> float:
    """Return the mean PSNR of images (B, C, H, W), clipped; one with a hole counts as grey."""
    shown = found.cpu().clamp(0, 1).nan_to_num(0.5)
    return float(metrics.psnr(shown, true).clamp(max=metrics.PSNR_CAP).mean())


# --- the studies --------------------------------------------------------------------------------


def started(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """The paper's attack on CIFAR-10 from four starts."""
    size = int(cell["batch"])
    for number, some in groups(seeds, BLOCK):
        own, seen = Victims("CIFAR-10", (1,) * size).share(number, some, device)
        found = general(seen, some, "CIFAR-10", start=STARTS[str(cell["start"])])
        yield from measures(found, own, "mse")


def regularisers(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """The same with other regularisers, as printed or smooth."""
    for number, some in groups(seeds, BLOCK):
        own, seen = Victims("CIFAR-10", (1,) * CIFAR_BATCH).share(number, some, device)
        found = general(seen, some, "CIFAR-10", penalties=penalties(cell))
        yield from measures(found, own, "mse", "ssim", "psnr", "lpips")


def penalties(cell: Cell) -> dict[str, float]:
    """Return the penalties of a cell of Table 2."""
    smooth = "_squared" if cell["terms"] == "squared" else ""
    forms = {"tv": f"tv_{cell['tv']}", "clip": f"clip{smooth}", "scale": f"scale{smooth}"}
    terms = str(cell["regularisers"]).split("+")
    return {forms.get(term, term): TERMS[term] for term in terms}


def duplicates(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Two attacks, each with the labels that its own rule reads, where labels repeat."""
    count = int(cell["count"])
    times = (
        (count + 1, *[1] * (BATCH - count - 1))
        if cell["setting"] == "repetition"
        else (count,) * (BATCH // count)
    )
    for number, some in groups(seeds, BLOCK):
        victims = Victims("ImageNet", times)
        own, found = restored(victims, str(cell["method"]), number, tuple(some), device)
        yield from measures(found, own, "mse", "ssim", "psnr", "lpips")


def aligned(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Which picture is which: how often an order is right, and what is scored under it."""
    pinned = ALIGNED[str(cell["alignment"])]
    for number, some in groups(seeds, BLOCK):
        victims = Victims("ImageNet", (1,) * BATCH)
        own, found = restored(victims, "General leakage", number, tuple(some), device)
        assert found.labels is not None
        for t, batch in enumerate(own):
            pictures, labels = found.images[t].cpu().clamp(0, 1), found.labels[t].cpu()
            if pinned is None:
                order = torch.arange(BATCH)
            else:
                known = (labels, batch.labels) if pinned else (None, None)
                way = str(cell["similarity"]).lower()
                order = alignment.align(pictures, batch.images, *known, similarity=way)
            right = (labels[order] == batch.labels).double().mean()
            psnr = _psnr(pictures[order], batch.images)
            yield {"accuracy": 100 * float(right), "psnr": psnr, **_known(found, t)}


def fused(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Every label twice: is a restored picture nearer to its own, or to a blend of two?"""
    for number, some in groups(seeds, BLOCK):
        victims = Victims("ImageNet", (2,) * (BATCH // 2))
        own, found = restored(victims, str(cell["method"]), number, tuple(some), device)
        for t, batch in enumerate(own):
            order = metrics.score(only(found, t), batch).order[0]
            target = blend(batch.images, str(cell["target"]))
            yield {"psnr": _psnr(found.images[t].cpu()[order], target), **_known(found, t)}


def blend(images: Tensor, target: str) -> Tensor:
    """Return what pictures (B, C, H, W), in pairs of one label, are held against."""
    if target == TARGETS[0]:
        return images
    pairs = images.unflatten(0, (-1, 2))  # (B/2, 2, C, H, W)
    same = pairs.flip(1) if target == TARGETS[1] else pairs.roll(1, 0)
    return ((pairs + same) / 2).flatten(0, 1)


def wrong(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """The paper's attack, given labels of which some are wrong."""
    count = int(cell["wrong_labels"])
    first = count if cell["pictures"] == "right labels" else 0
    for number, some in groups(seeds, BLOCK):
        victims = Victims("ImageNet", (1,) * BATCH)
        own, found = restored(victims, "General leakage", number, tuple(some), device, wrong=count)
        for t, batch in enumerate(own):
            score = metrics.score(only(found, t), batch)
            psnr = score.psnr[0, first:].clamp(max=metrics.PSNR_CAP)
            row = {"mse": float(score.mse[0, first:].mean()), "psnr": float(psnr.mean())}
            yield row | _known(found, t)


def several(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """GradInversion, and the paper's attack with one update or several."""
    victims = Victims("ImageNet", (1,) * BATCH)
    for number, some in groups(seeds, BLOCK):
        own, found = restored(
            victims, str(cell["method"]), number, tuple(some), device, updates=int(cell["updates"])
        )
        yield from measures(found, own, "mse", "ssim", "psnr", "lpips")


# `general_weights` has the place of this one and of TV_OF_ANGLE, `general_large` that of `large`.
# They go when this file changes for another reason: five studies that were measured with it would
# have to be measured again.
def from_weights(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Batches of eight out of the weights after local epochs of one step each."""
    victims = Victims("CIFAR-10", (1,) * EIGHT)
    surrogate, epochs = str(cell["surrogate"]), int(cell["epochs"])
    weigh = {"tv_mean": TV_OF_ANGLE[surrogate]}
    for number, some in groups(seeds, BLOCK):
        own = victims.batches(some)
        net = victims.network(number, own, device)
        how: dict[str, Any] = {"epochs": epochs, "rate": float(cell["rate"])}
        seen = side_by_side([clients.fedavg(net, batch.to(device), **how) for batch in own])
        granted = torch.stack([batch.labels for batch in own]).to(device)
        labels: dict[str, Any] = {"labels": granted} if cell["labels"] == GRANTED else {}
        if surrogate == AVERAGE:
            found = general(seen, some, "CIFAR-10", penalties=weigh, **labels)
        else:
            found = redo_training(
                seen,
                start=begun(seen, some),
                weigh=weigh,
                steps=EVALUATIONS["CIFAR-10"],
                rate=RATE,
                history=HISTORY["CIFAR-10"],
                **labels,
            )
        true = side_by_side([clients.fedsgd(net, batch.to(device)) for batch in own])
        alike = (1 - cosine(seen.gradient(), true.gradient())).tolist()
        each = epochs if surrogate == SIMULATED else 1  # every local step is redone
        for row, angle in zip(measures(found, own, "psnr", "ssim", "accuracy"), alike, strict=True):
            yield {**row, "cosine": angle, "evaluations": each * row["evaluations"]}


def at_equal_cost(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Several updates of small batches: with as many steps as one, or as many evaluations."""
    updates, rate = int(cell["updates"]), float(cell["rate"])
    steps = EVALUATIONS["CIFAR-10"] // (updates if cell["equal"] == "evaluations" else 1)
    victims = Victims("CIFAR-10", (1,) * CIFAR_BATCH)
    for number, some in groups(seeds, BLOCK):
        own, seen = victims.share(number, some, device, updates=updates, rate=rate)
        found = general(seen, some, "CIFAR-10", steps=steps)
        for row in measures(found, own, "psnr", "ssim"):
            yield {**row, "evaluations": updates * row["evaluations"]}


def large(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """A batch of large pictures."""
    victims = Victims("ImageNet", (1,) * int(cell["batch"]), LARGE)
    for seed in seeds:  # one of them fills the memory
        own, found = restored(victims, "General leakage", seed // BLOCK, (seed,), device)
        yield from measures(found, own, "psnr", "ssim")
