"""How defences are measured: what still leaks through them, and the accuracy that they cost."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gleak_core import attacks, clients, data, defences, models, training
from gleak_core.data import Batch
from gleak_core.defences import Defence
from gleak_core.errors import GleakError
from gleak_core.studies.study import Cell, Row
from gleak_core.studies.trials import SIDE, attempts, begin, groups, ours, pictures

__all__ = ["STAGES", "TOLD", "defended", "pruned", "while_training"]

CLASSES, SET = 10, "cifar10"
TEST = 1000  # pictures that tell the accuracy
EPOCHS, RATE = 15, 0.02
TOLD = 10  # trials that share a training: forty have four
WIDTH = 16  # of the network that is trained: one that learns, unlike the one that is attacked
FREE = 2.0  # points of accuracy that a defence may cost and be called free
STAGES = (0, 1, 2, 5, 10, 30)

PRECISIONS: dict[str, Callable[[], Defence]] = {
    "single": defences.none,
    "half": defences.half,
    "bfloat16": defences.bfloat16,
    "int8": defences.int8,
}


def defended(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Our attack on defended gradients, and a training under the same defence."""
    guard = _guard(cell)
    for number, those in groups(seeds):
        batch = pictures("CIFAR-10", those, side=SIDE)
        net = models.lenet(CLASSES, seed=number).to(device)
        seen = clients.fedsgd(net, batch.to(device), each=True, defence=guard, seed=number)
        found = attacks.dlg(
            seen,
            **ours(
                start=begin("uniform", those, batch.images.shape[1:]),
                masked=cell.get("attacker") == "mask-aware",
                seed=number,
            ),
        )
        rows = attempts(found, batch, "success_rate")
        for seed, row in zip(those, rows, strict=True):
            accuracy = _accuracy(_training(cell), seed // TOLD, device)
            cost = _accuracy((), seed // TOLD, device) - accuracy
            safe = 1 - row["success_rate"] if cost <= FREE else 0.0
            yield {**row, "test_accuracy": accuracy, "free_protection": safe}


def pruned(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """The same for pruning, whose claim is on leakage and accuracy apart."""
    for row in defended(cell, seeds, device):
        yield {name: value for name, value in row.items() if name != "free_protection"}


def while_training(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Our attack on the network it was made for, after so many epochs of training."""
    for number, those in groups(seeds):
        net = models.lenet(CLASSES, seed=number)
        stage = _life(number, device)[int(cell["epochs"])]
        net.load_state_dict(stage.weights)
        batch = pictures("CIFAR-10", those, side=SIDE)
        seen = clients.fedsgd(net.to(device), batch.to(device), each=True)
        start = begin("uniform", those, batch.images.shape[1:])
        found = attacks.dlg(seen, **ours(start=start, seed=number))
        for row in attempts(found, batch, "success_rate", "mse"):
            yield {**row, "test_accuracy": stage.accuracy}


def _guard(cell: Cell) -> Defence:
    if "noise" in cell:
        scale, length = float(cell["scale"]), float(cell.get("clip", 0))
        if length:
            return defences.dp(length, scale / length)
        kinds = {"Gaussian": defences.gaussian, "Laplacian": defences.laplacian}
        return kinds[str(cell["noise"])](std=scale)
    if "precision" in cell:
        return PRECISIONS[str(cell["precision"])]()
    return defences.prune(int(cell["pruned"]) / 100) if cell.get("pruned") else defences.none()


def _training(cell: Cell) -> tuple[tuple[str, str | int | float | bool], ...]:
    """Return what a training depends on: no attack, and nothing at all without a defence."""
    idle = cell.get("pruned") == 0 or cell.get("precision") == "single"
    return () if idle else tuple((k, v) for k, v in cell.items() if k != "attacker")


@functools.cache  # the trials of a group, two attackers and all baselines share their trainings
def _accuracy(
    items: tuple[tuple[str, str | int | float | bool], ...], number: int, device: str
) -> float:
    """Return the test accuracy of a small CNN that was trained to the end under a defence."""
    cell = dict(items)
    guard = _guard(cell)
    feedback = cell.get("feedback") == "on"
    made = functools.partial(defences.ErrorFeedback, guard) if feedback else lambda: guard
    options: dict[str, Any] = {"activation": "relu", "init": "kaiming", "width": WIDTH}
    net = models.lenet(CLASSES, seed=number, **options).to(device)
    try:
        [end] = training.train(net, *_split(), epochs=EPOCHS, rate=RATE, defence=made, seed=number)
    except GleakError:  # so much noise that nothing is left: no better than a guess
        return 100 / CLASSES
    return end.accuracy


@functools.lru_cache(maxsize=2)
def _life(number: int, device: str) -> dict[int, training.Stage]:
    """Return the stages of a network's training."""
    net = models.lenet(CLASSES, seed=number).to(device)
    stages = training.train(
        net, *_split(), epochs=max(STAGES), rate=RATE / 2, keep=STAGES, seed=number
    )
    return {stage.epoch: stage for stage in stages}


@functools.cache
def _split() -> tuple[Batch, Batch]:
    """Return the pictures to train on and those to test with, the same for every defence."""
    count = len(data.load(SET).labels)
    return training.split(data.sample(SET, count, size=SIDE), TEST)
