"""Why large pictures fail: the size, the network's weights, the prior and the evaluations.

No paper has these tables. Between Table 1 at 32×32, which succeeds, and Figure 1 at 224×224, which
fails, lies all that grows with a picture; these studies change it one thing at a time. The network
of a LeNet's head sums over all places of a picture, so that its answers grow with the side unless
its weights shrink: `LIKE_32` is the rule that keeps them as they are at 32×32.
"""

from collections.abc import Iterator, Sequence

from gleak_core import clients, models
from gleak_core.papers import Metric
from gleak_core.studies import general_attacks
from gleak_core.studies.general_attacks import (
    EVALUATIONS,
    LARGE,
    TV,
    Victims,
    general,
    measures,
)
from gleak_core.studies.study import Cell, Row, Study, grid
from gleak_core.studies.trials import SIDE, side_by_side

__all__ = ["PRINTED", "STUDIES", "WEIGHTS", "sized"]

_SET = "ImageNet"
_STEPS = EVALUATIONS[_SET]
_JUDGED = ("psnr", "ssim", "accuracy")
DLG_LIKE, LIKE_32 = "±1/4", "±8/side"
WEIGHTS = {DLG_LIKE: lambda _: 0.25, LIKE_32: lambda side: 0.25 * SIDE / side}
"""A rule → the bound of the network's uniform weights, by the side of a picture."""
HEAVIER = 8 * TV
PRINTED = 200.0
"""The weight of total variation that the source states for ImageNet."""


def sized(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """A batch of sixteen at some size, whose network has weights by some rule."""
    side = int(cell["side"])
    victims = Victims(_SET, (1,) * general_attacks.BATCH, side)
    bound = WEIGHTS[str(cell["weights"])](side)
    for seed in seeds:  # one of the largest fills the memory
        own = victims.batches([seed])
        net = models.lenet(
            len(own[0].classes), size=side, width=general_attacks.WIDE, scale=bound, seed=seed
        )
        seen = side_by_side([clients.fedsgd(net.to(device), own[0].to(device))])
        weigh, steps = {"tv_mean": float(cell["tv"])}, int(cell["steps"])
        found = general(seen, [seed], _SET, penalties=weigh, steps=steps)
        yield from measures(found, own, *_JUDGED)


def _seconds(cell: Cell) -> float:
    """60 s at 64×64, measured; as the number of pixels."""
    return 60.0 * (int(cell["side"]) / 64) ** 2 * int(cell["steps"]) / _STEPS


_ASKS = {
    "psnr": Metric("psnr", "dB", "higher", "mean"),
    "ssim": Metric("ssim", "", "higher", "mean"),
    "accuracy": Metric("accuracy", "%", "higher", "mean"),
}
_LIKE = (
    "Batches, starts and the attack are those of gen.fig1, but for the size, the bound of the "
    "network's uniform weights, the weight of total variation and the evaluations. Every batch has "
    "a network of its own."
)

STUDIES: tuple[Study, ...] = (
    Study(
        id="large.sizes",
        title="Sixteen pictures of 64×64 and 112×112: weights, prior and evaluations",
        metrics=_JUDGED,
        cells=grid(side=(64,), weights=tuple(WEIGHTS), tv=(TV, HEAVIER), steps=(_STEPS, 4 * _STEPS))
        + grid(side=(112,), weights=tuple(WEIGHTS), tv=(TV, HEAVIER), steps=(_STEPS,)),
        measure=sized,
        seconds=_seconds,
        reads=lambda _: ("imagenet",),
        trials={"smoke": 1, "quick": 2, "paper": 5},
        block=1,
        deviations=(_LIKE, "5 trials instead of 20: one takes from one minute to four on a core."),
        asks=_ASKS,
        chapter="03_general",
    ),
    Study(
        id="large.full",
        title="Sixteen pictures of 224×224: smaller weights, and the printed prior",
        metrics=_JUDGED,
        cells=grid(side=(LARGE,), weights=(LIKE_32,), tv=(TV, HEAVIER), steps=(_STEPS,))
        + grid(side=(LARGE,), weights=(DLG_LIKE,), tv=(PRINTED,), steps=(_STEPS,)),
        measure=sized,
        seconds=_seconds,
        reads=lambda _: ("imagenet",),
        trials={"smoke": 1, "quick": 2, "paper": 3},
        block=1,
        deviations=(_LIKE, "3 trials instead of 20: one takes a quarter of an hour on a core."),
        asks=_ASKS,
        chapter="03_general",
    ),
)
