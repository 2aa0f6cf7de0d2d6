"""General leakage and GradInversion, each with the other's optimiser: what is left of the lead?

No paper has this table. `general_rivals` has both attacks with their own.
"""

from collections.abc import Iterator, Sequence

from gleak_core import attacks
from gleak_core.studies.general_attacks import (
    ADAM,
    BLOCK,
    CIFAR_BATCH,
    EVALUATIONS,
    HISTORY,
    RATE,
    SIZE,
    TV,
    Victims,
    begun,
    general,
    measures,
)
from gleak_core.studies.general_rivals import ASKS
from gleak_core.studies.study import Cell, Row, Study, grid
from gleak_core.studies.trials import groups

__all__ = ["STUDIES", "SWAPPED", "swapped"]

SWAPPED = ("General leakage, by Adam", "GradInversion, by L-BFGS")
_SET = "CIFAR-10"


def swapped(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """The batches and starts of `rivals.terms`."""
    victims = Victims(_SET, (1,) * CIFAR_BATCH)
    for number, some in groups(seeds, BLOCK):
        own, seen = victims.share(number, some, device)
        if cell["attack"] == SWAPPED[0]:
            found = general(seen, some, _SET, solver="adam", rate=ADAM)
        else:
            found = attacks.grad_inversion(
                seen,
                start=begun(seen, some),
                penalties={"tv_mean": TV, "l2": SIZE},
                solver="plain_lbfgs",
                rate=RATE,
                history=HISTORY[_SET],
                steps=EVALUATIONS[_SET],
                every=0,
            )
        yield from measures(found, own, "psnr", "ssim", "accuracy")


STUDIES: tuple[Study, ...] = (
    Study(
        id="rivals.solver",
        title="Two attacks, each with the other's optimiser",
        metrics=tuple(ASKS),
        cells=grid(attack=SWAPPED),
        measure=swapped,
        seconds=lambda _: 8.0,
        reads=lambda _: ("cifar10",),
        trials={"smoke": 2, "quick": 5, "paper": 20},
        block=BLOCK,
        deviations=(
            "The batches, networks, labels, starts and evaluations are those of rivals.terms, "
            "where either attack stands with its own optimiser: L-BFGS at a rate of "
            f"{RATE:g}, and Adam at {ADAM:g}.",
            f"{BLOCK} batches share a network; the interval treats them as if each had its own.",
        ),
        asks=ASKS,
        chapter="03_general",
    ),
)
