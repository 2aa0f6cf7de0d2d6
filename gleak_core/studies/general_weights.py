"""Figure 5 of general leakage: pictures out of the weights after local training.

The average update is matched by its angle, as printed. Or the server takes the client's steps
itself, with its dummies, and matches where they end.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from gleak_core import clients
from gleak_core.distances import cosine
from gleak_core.simulation import redo_training
from gleak_core.studies.general_attacks import (
    AVERAGE,
    BLOCK,
    EIGHT,
    EVALUATIONS,
    GRANTED,
    HISTORY,
    RATE,
    Victims,
    begun,
    general,
    measures,
)
from gleak_core.studies.study import Cell, Row
from gleak_core.studies.trials import groups, side_by_side

__all__ = ["TV", "from_weights"]

TV = 0.05  # beside an angle: on two batches 0.5 costs one or two decibels
_SET = "CIFAR-10"


def from_weights(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Batches of eight out of the weights after local epochs of one step each."""
    victims = Victims(_SET, (1,) * EIGHT)
    epochs, average = int(cell["epochs"]), cell["surrogate"] == AVERAGE
    weigh = {"tv_mean": TV}
    for number, some in groups(seeds, BLOCK):
        own = victims.batches(some)
        net = victims.network(number, own, device)
        how: dict[str, Any] = {"epochs": epochs, "rate": float(cell["rate"])}
        seen = side_by_side([clients.fedavg(net, batch.to(device), **how) for batch in own])
        granted = torch.stack([batch.labels for batch in own]).to(device)
        labels: dict[str, Any] = {"labels": granted} if cell["labels"] == GRANTED else {}
        if average:
            found = general(seen, some, _SET, penalties=weigh, **labels)
        else:
            found = redo_training(
                seen,
                start=begun(seen, some),
                weigh=weigh,
                steps=EVALUATIONS[_SET],
                rate=RATE,
                history=HISTORY[_SET],
                **labels,
            )
        true = side_by_side([clients.fedsgd(net, batch.to(device)) for batch in own])
        alike = (1 - cosine(seen.gradient(), true.gradient())).tolist()
        each = 1 if average else epochs  # every local step is redone
        for row, angle in zip(measures(found, own, "psnr", "ssim", "accuracy"), alike, strict=True):
            yield {**row, "cosine": angle, "evaluations": each * row["evaluations"]}
