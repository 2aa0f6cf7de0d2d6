"""Where CAFE's descent ends: the length of its steps, and the weight of total variation.

No paper has this table. The source says "normalised gradient descent" and gives no rate. At 0.05 of
a pixel's range, with which we began, the pictures of Figure 3 are best half way: is it the rate?
"""

from collections.abc import Iterator, Sequence

from gleak_core.papers import Metric
from gleak_core.studies import cafe_attacks, cafe_pools
from gleak_core.studies.cafe_attacks import BATCHES, MANY, _matched, _named
from gleak_core.studies.cafe_pools import HORIZONTAL, RATE, WORKERS, Loss, Pool, reads
from gleak_core.studies.study import Cell, Row, Study, grid
from gleak_core.studies.trials import groups

__all__ = ["STUDIES", "slower"]

SETS = ("CIFAR-10", "Linnaeus")
SLOW = (RATE, 0.02, 0.01)
TV, NONE = Loss().smooth, 0.0
_ASKS = {
    "psnr": Metric("psnr", "dB", "higher", "mean"),
    "success_rate": Metric("success_rate", "", "higher", "rate"),
}


def slower(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """The pictures of Figures 1 and 4, matched as there but for the rate and total variation."""
    loss = Loss(smooth=float(cell["tv"]), rate=float(cell["rate"]))
    own, block = cafe_attacks.BATCH // WORKERS, cafe_attacks.MANY
    for number, some in groups(seeds, block):
        pool = Pool(HORIZONTAL, str(cell["dataset"]), BATCHES * own, own, number)
        scores, seconds = _matched(pool, loss, block, cafe_pools.JOINT, device)
        for seed in some:
            yield _named({**scores[seed % block], "seconds": seconds / block}, *_ASKS)


STUDIES: tuple[Study, ...] = (
    Study(
        id="matching.rate",
        title="CAFE's descent: shorter steps, and no total variation",
        metrics=tuple(_ASKS),
        cells=grid(dataset=SETS, rate=SLOW, tv=(TV,)) + grid(dataset=SETS, rate=SLOW, tv=(NONE,)),
        measure=slower,
        seconds=lambda _: 20.0,
        reads=reads,
        trials={"smoke": 1, "quick": 2, "paper": 20},
        block=MANY,
        reduced={
            name: grid(dataset=SETS[:1], rate=SLOW[:1], tv=(TV,)) for name in ("smoke", "quick")
        },
        deviations=(
            "All but the rate and the weight of total variation is as in cafe.fig1, the steps "
            f"({cafe_pools.JOINT} on every picture) and the embedded photographs for Linnaeus 5 "
            "included; total variation's weight is its share of the distance at the start. The "
            "rate of cafe.fig1 was chosen by this table.",
            f"A trial is a picture, and {MANY} of them come out of one run, with one network: the "
            "interval treats them as if each had its own.",
        ),
        asks=_ASKS,
        chapter="04_cafe",
    ),
)
