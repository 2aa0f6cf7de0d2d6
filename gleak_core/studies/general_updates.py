"""Is it a further gradient that helps, or that total variation weighs less beside several?

No paper has this table. The attack adds up the distances of all updates, so beside T of them the
same weight of total variation is a T-th; `updates.cost` changes both. Here they are told apart.
"""

from collections.abc import Iterator, Sequence

from gleak_core.papers import Metric
from gleak_core.studies.general_attacks import (
    BLOCK,
    CIFAR_BATCH,
    EVALUATIONS,
    LOCAL_RATE,
    TV,
    Victims,
    general,
    measures,
)
from gleak_core.studies.study import Cell, Row, Study, grid
from gleak_core.studies.trials import groups

__all__ = ["STUDIES", "weighed"]

_SET = "CIFAR-10"


def weighed(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Several updates at as many evaluations as one; `tv` weighs beside their mean distance."""
    updates, tv = int(cell["updates"]), float(cell["tv"])
    victims = Victims(_SET, (1,) * CIFAR_BATCH)
    for number, some in groups(seeds, BLOCK):
        own, seen = victims.share(number, some, device, updates=updates, rate=LOCAL_RATE)
        found = general(
            seen,
            some,
            _SET,
            penalties={"tv_mean": tv * updates},  # beside their sum
            steps=EVALUATIONS[_SET] // updates,
        )
        for row in measures(found, own, "psnr"):
            yield {**row, "evaluations": updates * row["evaluations"]}


STUDIES: tuple[Study, ...] = (
    Study(
        id="updates.prior",
        title="Several updates, and the weight of total variation beside them",
        metrics=("psnr",),
        cells=grid(updates=(1,), tv=(TV, TV / 2, TV / 4))
        + grid(updates=(2,), tv=(TV, TV / 2))
        + grid(updates=(4,), tv=(TV, TV / 4)),
        measure=weighed,
        seconds=lambda _: 9.0,  # guessed, from updates.cost
        reads=lambda _: ("cifar10",),
        trials={"smoke": 2, "quick": 5, "paper": 20},
        block=BLOCK,
        deviations=(
            "The batches, networks, starts and evaluations (as many in all as for one update) are "
            "those of updates.cost; the client's rate is "
            f"{LOCAL_RATE:g}.",
            "The weight of total variation is that beside the mean of the updates' distances: in "
            f"updates.cost it is {TV:g} for one update, {TV / 2:g} for two, {TV / 4:g} for four.",
            f"{BLOCK} batches share a network; the interval treats them as if each had its own.",
        ),
        asks={"psnr": Metric("psnr", "dB", "higher", "mean")},
        chapter="03_general",
    ),
)
