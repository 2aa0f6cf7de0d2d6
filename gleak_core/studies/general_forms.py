"""Is it our optimiser that the clip term stops as it is printed, or any? And at which weight?

No paper has this table. In `gen.table2` the term costs fifteen decibels, in print it gains half a
one.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gleak_core.papers import Metric
from gleak_core.studies.general_attacks import (
    ADAM,
    BLOCK,
    CIFAR_BATCH,
    RATE,
    TERMS,
    TV,
    Victims,
    general,
    measures,
)
from gleak_core.studies.study import Cell, Row, Study, grid
from gleak_core.studies.trials import groups

__all__ = ["OPTIMISERS", "STUDIES", "formed"]

OPTIMISERS: Mapping[str, Mapping[str, Any]] = {
    "L-BFGS, fixed steps": {},
    "L-BFGS, line search": {"solver": "lbfgs", "rate": 1.0},
    "Adam": {"solver": "adam", "rate": ADAM},
}
WEIGHTS = (0.0, 0.01, TERMS["clip"])  # none; a ten-thousandth of what is printed; as printed
_SET = "CIFAR-10"


def formed(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """The batches and starts of Table 2, with the clip term's norm as it is printed."""
    weight = float(cell["clip"])
    terms = {"tv_mean": TV} | ({"clip": weight} if weight else {})
    for number, some in groups(seeds, BLOCK):
        own, seen = Victims(_SET, (1,) * CIFAR_BATCH).share(number, some, device)
        how = OPTIMISERS[str(cell["optimiser"])]
        yield from measures(general(seen, some, _SET, penalties=terms, **how), own, "psnr", "ssim")


STUDIES: tuple[Study, ...] = (
    Study(
        id="regularisers.form",
        title="The clip term as printed, by optimiser and weight",
        metrics=("psnr", "ssim"),
        cells=grid(optimiser=tuple(OPTIMISERS), clip=WEIGHTS),
        measure=formed,
        seconds=lambda _: 9.5,
        reads=lambda _: ("cifar10",),
        trials={"smoke": 2, "quick": 5, "paper": 20},
        block=BLOCK,
        deviations=(
            "The batches, networks, labels, starts, evaluations and the weight of total variation "
            f"are those of gen.table2, whose optimiser is L-BFGS with fixed steps of {RATE:g}.",
            f"{BLOCK} batches share a network; the interval treats them as if each had its own.",
        ),
        asks={
            "psnr": Metric("psnr", "dB", "higher", "mean"),
            "ssim": Metric("ssim", "", "higher", "mean"),
        },
        chapter="03_general",
    ),
)
