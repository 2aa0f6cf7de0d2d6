"""Batches of large pictures: Figure 1 of Geng et al. 2021, and what decides whether they come back.

Table 1's network and solver restore sixteen pictures of 32×32 and fail at 224×224. Two things grow
with the picture: the answers of a network whose last layer sums over all places, and the number of
unknowns that the solver has to find its way among. So its weights and its memory are varied, alone
and together; with smaller weights the gradients are smaller, and so must total variation's weight.
"""

from collections.abc import Iterator, Sequence

from gleak_core import clients, models
from gleak_core.papers import Metric
from gleak_core.studies import general_attacks
from gleak_core.studies.general_attacks import (
    EVALUATIONS,
    HISTORY,
    LARGE,
    TV,
    Victims,
    general,
    measures,
)
from gleak_core.studies.study import Cell, Row, Study, grid
from gleak_core.studies.trials import SIDE, side_by_side

__all__ = ["BOUND", "LIGHT", "LONG", "STUDIES", "restored", "seconds"]

_SET = "ImageNet"
_STEPS = EVALUATIONS[_SET]
_JUDGED = ("psnr", "ssim", "accuracy")
_TABLE, HALF, BOUND = 1 / 4, 1 / 8, 1 / 16
"""Of the network's uniform weights: as in Table 1, half of it, a quarter of it."""
SHORT, LONG = HISTORY[_SET], 100
"""Pairs that the solver remembers: as in Table 1; and torch's default."""
HEAVY, LIGHT = 40.0, 0.1
"""Total variation at 224×224, for the table's weights and for the small ones."""


def restored(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """The paper's attack on a batch of some size; every batch has a network of its own."""
    side = int(cell.get("side", LARGE))
    victims = Victims(_SET, (1,) * int(cell.get("batch", general_attacks.BATCH)), side)
    for seed in seeds:  # one of the largest fills the memory
        (own,) = victims.batches([seed])
        wide = {"width": general_attacks.WIDE, "scale": float(cell["bound"])}
        net = models.lenet(len(own.classes), size=side, seed=seed, **wide).to(device)
        found = general(
            side_by_side([clients.fedsgd(net, own.to(device))]),
            [seed],
            _SET,
            penalties={"tv_mean": float(cell["tv"])},
            history=int(cell["history"]),
            steps=int(cell.get("steps", EVALUATIONS[_SET])),
        )
        yield from measures(found, [own], *_JUDGED)


def seconds(cell: Cell) -> float:
    """Return what a trial takes: 1.4 s an evaluation at 224×224, measured; as the pixels."""
    side, steps = int(cell.get("side", LARGE)), int(cell.get("steps", _STEPS))
    return 1.4 * steps * (side / LARGE) ** 2 * (0.9 if cell["history"] == SHORT else 1)


_ASKS = {
    "psnr": Metric("psnr", "dB", "higher", "mean"),
    "ssim": Metric("ssim", "", "higher", "mean"),
    "accuracy": Metric("accuracy", "%", "higher", "mean"),
}
_LIKE = (
    "The attack is that of gen.fig1, and so are batches and starts at its size; every batch has a "
    "network of its own. What varies is in the table: the bound of the network's uniform weights, "
    "how many pairs the solver remembers, the weight of total variation and the evaluations."
)

STUDIES: tuple[Study, ...] = (
    Study(
        id="large.sizes",
        title="Sixteen pictures of 32×32 and 64×64: weights, memory, prior and evaluations",
        metrics=_JUDGED,
        cells=grid(side=(SIDE,), bound=(_TABLE,), tv=(TV,), history=(SHORT, LONG), steps=(_STEPS,))
        + grid(side=(64,), bound=(_TABLE,), tv=(8 * TV,), history=(SHORT, LONG), steps=(_STEPS,))
        + grid(side=(64,), bound=(HALF,), tv=(TV,), history=(SHORT, LONG), steps=(_STEPS,))
        + grid(
            side=(64,), bound=(_TABLE,), tv=(8 * TV,), history=(SHORT, LONG), steps=(4 * _STEPS,)
        )
        # The other prior for each of the two.
        + grid(side=(64,), bound=(_TABLE,), tv=(TV,), history=(LONG,), steps=(_STEPS,))
        + grid(side=(64,), bound=(HALF,), tv=(8 * TV,), history=(LONG,), steps=(_STEPS,)),
        measure=restored,
        seconds=seconds,
        reads=lambda _: (_SET.lower(),),
        trials={"smoke": 1, "quick": 2, "paper": 5},
        block=1,
        deviations=(_LIKE, "5 trials instead of 20."),
        asks=_ASKS,
        chapter="03_general",
    ),
    Study(
        id="large.full",
        title="Sixteen pictures of 224×224: larger weights, a shorter memory",
        metrics=_JUDGED,
        cells=grid(side=(LARGE,), bound=(_TABLE,), tv=(HEAVY,), history=(SHORT, LONG))
        + grid(side=(LARGE,), bound=(BOUND,), tv=(LIGHT,), history=(SHORT,)),
        measure=restored,
        seconds=seconds,
        reads=lambda _: (_SET.lower(),),
        trials={"smoke": 1, "quick": 2, "paper": 3},
        block=1,
        deviations=(_LIKE, "3 trials instead of 20: one takes a quarter of an hour on a core."),
        asks=_ASKS,
        chapter="03_general",
    ),
)
