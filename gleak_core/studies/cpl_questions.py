"""What the comparison of CPL and DLG leaves open: which α, and how often the label is right."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from gleak_core import clients, data, defences, labels, metrics, models, training
from gleak_core.data import Batch
from gleak_core.defences import Defence
from gleak_core.studies.cpl_attacks import (
    ALPHA,
    METHODS,
    SHOWN,
    Clients,
    attack,
    of_one_class,
    one_dummy,
    rows,
)
from gleak_core.studies.study import Cell, Row
from gleak_core.studies.trials import SIDE, groups, side_by_side

__all__ = ["DEFENCES", "TRIED", "chosen", "label", "weighted"]

TRIED = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""The values of α that an attacker tries on pictures of people he knows."""
OWN_PICTURES = 10  # pictures that he tries each on
WEIGHTS = {"published": ALPHA, "zero": 0.0, "a tenth": ALPHA / 10, "tenfold": 10 * ALPHA}
DEFENCES: Mapping[str, Callable[[], Defence]] = {
    "none": defences.none,
    "noise 1e-3": lambda: defences.gaussian(std=1e-3),
    "half precision": defences.half,
    "pruning 70 %": lambda: defences.prune(0.7),
}
SET, HELD_OUT = "lfw", 200  # the pictures of which tell whether the network has learnt
EPOCHS, RATE_OF_TRAINING = 15, 0.05
LEARNS: dict[str, Any] = {"activation": "relu", "init": "kaiming", "width": 16}


def weighted(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """CPL with another weight of its loss term, as the client iterates more."""
    steps, term = int(cell["client_iterations"]), str(cell["term"])
    named = str(cell["alpha"])
    alpha = chosen(steps, term, device) if named == "tuned" else WEIGHTS[named]
    yield from _weighted(alpha, steps, term, seeds, device, half=0)


@functools.cache
def chosen(steps: int, term: str, device: str) -> float:
    """Return the α with the highest mean SSIM, on pictures of other people and another network."""
    away = range(2**20, 2**20 + OWN_PICTURES)

    def quality(alpha: float) -> float:
        tried = _weighted(alpha, steps, term, away, device, half=1)
        return sum(row["ssim"] for row in tried)

    return max(TRIED, key=quality)


def _weighted(
    alpha: float, steps: int, term: str, seeds: Sequence[int], device: str, *, half: int
) -> Iterator[Row]:
    for number, some in groups(seeds):
        own, seen = Clients(iterations=steps, half=half).share(number, some, device)
        found = attack(
            one_dummy(seen),
            METHODS["CPL"],
            some,
            number=number,
            steps=SHOWN,
            alpha=alpha,
            term=term,
            every=0,
        )
        yield from rows(found, own, "ssim", "mse")


def label(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """How many labels of a batch CPL's rule reads: one class for all of it."""
    size, guard = int(cell["batch"]), DEFENCES[str(cell["defence"])]()
    for number, some in groups(seeds):
        own = [_batch(seed, size, mixed=cell["classes"] == "several") for seed in some]
        net = _network(str(cell["network"]), len(own[0].classes), number, device)
        seen = side_by_side(
            [
                clients.fedsgd(net, batch.to(device), defence=guard, seed=seed)
                for seed, batch in zip(some, own, strict=True)
            ]
        )
        true = torch.stack([batch.labels for batch in own])  # (T, B)
        for right in metrics.label_accuracy(labels.cpl(seen).cpu(), true).tolist():
            yield {"accuracy": 100 * right, "status": "solved", "evaluations": 1}


def _batch(seed: int, size: int, *, mixed: bool) -> Batch:
    if mixed:  # as they come: two of a batch may be of the same person
        return data.sample(SET, size, size=SIDE, seed=seed, balanced=False)
    return of_one_class("LFW", size, seed)


def _network(kind: str, classes: int, number: int, device: str) -> models.Network:
    """Return CPL's network, or one that learns: with sigmoids and such weights it does not."""
    if kind == "untrained":
        return models.cpl_lenet(classes, seed=number).to(device)
    net = models.cpl_lenet(classes, seed=number, **LEARNS).to(device)
    if kind == "trained":
        net.load_state_dict(_trained(number, device).weights)
    return net


@functools.lru_cache(maxsize=2)
def _trained(number: int, device: str) -> training.Stage:
    """Return that network after its training, the private pictures among those it was fed."""
    everything = data.sample(SET, len(data.load(SET).labels), size=SIDE)
    train, test = training.split(everything, HELD_OUT)
    net = models.cpl_lenet(len(train.classes), seed=number, **LEARNS).to(device)
    [last] = training.train(net, train, test, epochs=EPOCHS, rate=RATE_OF_TRAINING, seed=number)
    return last
