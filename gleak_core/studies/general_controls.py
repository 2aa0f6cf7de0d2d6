"""What else may part the average update from the training redone? Controls of Figure 5.

No paper has this table. Each row changes one thing of a row of `gen.fig5`: the weight of total
variation, the evaluations, the labels; or it redoes a single step, which is then matched by its
length as well as by its angle.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from gleak_core import clients, metrics
from gleak_core.papers import Metric
from gleak_core.simulation import redo_training
from gleak_core.studies.general_attacks import (
    AVERAGE,
    BLOCK,
    EIGHT,
    EVALUATIONS,
    GRANTED,
    HISTORY,
    INFERRED,
    RATE,
    SIMULATED,
    Victims,
    begun,
    general,
    measures,
)
from gleak_core.studies.study import Cell, Row, Study, grid
from gleak_core.studies.trials import groups, side_by_side

__all__ = ["STUDIES", "from_weights"]

_SET = "CIFAR-10"
_STEPS = EVALUATIONS[_SET]
_TV = 0.05  # of gen.fig5
_FAR = 0.1  # the source's rate
_JUDGED = ("psnr", "ssim", "accuracy")
_ASKS = {
    "psnr": Metric("psnr", "dB", "higher", "mean"),
    "ssim": Metric("ssim", "", "higher", "mean"),
    "accuracy": Metric("accuracy", "%", "higher", "mean"),
    # What a flat grey picture has, of which nobody would say that it leaks.
    "grey": Metric("grey", "dB", "higher", "mean"),
}


def from_weights(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Batches of eight out of the weights after some local steps."""
    victims = Victims(_SET, (1,) * EIGHT)
    epochs, steps, rate = int(cell["epochs"]), int(cell["steps"]), float(cell["rate"])
    for number, some in groups(seeds, BLOCK):
        own = victims.batches(some)
        net = victims.network(number, own, device)
        seen = side_by_side(
            [clients.fedavg(net, batch.to(device), epochs=epochs, rate=rate) for batch in own]
        )
        weigh = {"tv_mean": float(cell["tv"])}
        known: dict[str, Any] = {}
        if cell["labels"] == GRANTED:
            known["labels"] = torch.stack([batch.labels for batch in own]).to(device)
        if cell["surrogate"] == AVERAGE:
            found = general(seen, some, _SET, penalties=weigh, steps=steps, **known)
        else:
            found = redo_training(
                seen,
                start=begun(seen, some),
                weigh=weigh,
                steps=steps,
                rate=RATE,
                history=HISTORY[_SET],
                **known,
            )
        each = 1 if cell["surrogate"] == AVERAGE else epochs
        for row, batch in zip(measures(found, own, *_JUDGED), own, strict=True):
            grey = metrics.psnr(torch.full_like(batch.images, 0.5), batch.images).mean()
            yield {**row, "grey": float(grey), "evaluations": each * row["evaluations"]}


def _cells(surrogate: str, *, epochs: int = 4, labels: str = GRANTED, **other: Any) -> list[Cell]:
    fixed = {"rate": (_FAR,), "tv": (_TV,), "steps": (_STEPS,)} | other
    return list(grid(surrogate=(surrogate,), labels=(labels,), epochs=(epochs,), **fixed))


def _seconds(cell: Cell) -> float:
    each = 1 if cell["surrogate"] == AVERAGE else 0.7 * int(cell["epochs"])
    return 9.0 * each * int(cell["steps"]) / _STEPS


STUDIES: tuple[Study, ...] = (
    Study(
        id="weights.controls",
        title="Out of weights: what parts the average update from the training redone",
        metrics=tuple(_ASKS),
        cells=(
            *_cells(AVERAGE, epochs=1),
            *_cells(SIMULATED, epochs=1),
            *_cells(AVERAGE, tv=(_TV / 10, 10 * _TV)),
            *_cells(AVERAGE, steps=(4 * _STEPS,)),
            *_cells(SIMULATED, labels=INFERRED),
            *_cells(SIMULATED, steps=(_STEPS // 4,)),
        ),
        measure=from_weights,
        seconds=_seconds,
        reads=lambda _: ("cifar10",),
        trials={"smoke": 2, "quick": 5, "paper": 20},
        block=BLOCK,
        deviations=(
            "Batches, networks and starts are those of gen.fig5; a row changes one thing of a row "
            f"there: of four local steps at {_FAR:g}, or of one.",
            f"{BLOCK} batches share a network; the interval treats them as if each had its own.",
        ),
        asks=_ASKS,
        chapter="03_general",
    ),
)
