"""Does a further gradient help, or would a lighter total variation have done?

No paper has these tables. `updates.cost` and `gen.table1` have one weight of total variation for
any number of updates, the printed one, which need not be the best for each.
"""

from collections.abc import Iterator, Sequence

from gleak_core.papers import Metric
from gleak_core.studies import general_attacks
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

__all__ = ["STUDIES", "of_sixteen", "weighed"]

_SET = "CIFAR-10"
_LARGE = "ImageNet"
_JUDGED = ("psnr", "ssim")
_SHARE = f"{BLOCK} batches share a network; the interval treats them as if each had its own."
_BUDGET = EVALUATIONS[_SET]


def weighed(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """One update or several, with as many evaluations in all and some weight of total variation."""
    updates, penalties = int(cell["updates"]), {"tv_mean": float(cell["tv"])}
    steps = int(cell["budget"]) // updates
    victims = Victims(_SET, (1,) * CIFAR_BATCH)
    for number, some in groups(seeds, BLOCK):
        own, seen = victims.share(number, some, device, updates=updates, rate=LOCAL_RATE)
        found = general(seen, some, _SET, penalties=penalties, steps=steps)
        for row in measures(found, own, "psnr"):
            yield {**row, "evaluations": updates * row["evaluations"]}


def of_sixteen(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """The batches of Table 1, one update or several, at some weight of total variation."""
    updates, penalties = int(cell["updates"]), {"tv_mean": float(cell["tv"])}
    victims = Victims(_LARGE, (1,) * general_attacks.BATCH)
    for number, some in groups(seeds, BLOCK):
        own, seen = victims.share(number, some, device, updates=updates, rate=LOCAL_RATE)
        found = general(seen, some, _LARGE, penalties=penalties)
        for row in measures(found, own, *_JUDGED):
            yield {**row, "evaluations": updates * row["evaluations"]}


STUDIES: tuple[Study, ...] = (
    Study(
        id="updates.prior",
        title="Several updates, and the weight of total variation beside them",
        metrics=("psnr",),
        cells=grid(updates=(1, 2), tv=(TV, TV / 2, TV / 4), budget=(_BUDGET,))
        # What two updates cost with as many steps as one, spent on one.
        + grid(updates=(1,), tv=(TV,), budget=(2 * _BUDGET,)),
        measure=weighed,
        seconds=lambda cell: 9.0 * int(cell["budget"]) / _BUDGET,  # guessed, from updates.cost
        reads=lambda _: ("cifar10",),
        trials={"smoke": 2, "quick": 5, "paper": 20},
        block=BLOCK,
        deviations=(
            "The batches, networks and starts are those of updates.cost; the budget is of "
            "evaluations, of all updates together; the client's rate is "
            f"{LOCAL_RATE:g}.",
            "The weight of total variation stands beside the mean of the updates' distances, as in "
            "Algorithm 2.",
            _SHARE,
        ),
        asks={"psnr": Metric("psnr", "dB", "higher", "mean")},
        chapter="03_general",
    ),
    Study(
        id="updates.sixteen",
        title="Several updates of sixteen pictures, with a lighter total variation",
        metrics=_JUDGED,
        cells=grid(updates=(1, 2, 4), tv=(TV / 2, TV / 4)),
        measure=of_sixteen,
        seconds=lambda cell: 20.0 * int(cell["updates"]),
        reads=lambda _: ("imagenet",),
        trials={"smoke": 2, "quick": 5, "paper": 10},
        block=BLOCK,
        deviations=(
            f"All but the weight of total variation ({TV:g} there) is as in gen.table1: batches, "
            "networks, starts, steps and the client's rate.",
            "10 trials instead of 20, on two networks.",
            _SHARE,
        ),
        asks={
            "psnr": Metric("psnr", "dB", "higher", "mean"),
            "ssim": Metric("ssim", "", "higher", "mean"),
        },
        chapter="03_general",
    ),
)
