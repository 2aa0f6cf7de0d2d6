"""Is it our budget that large batches miss their decibels by? More steps, and shorter ones.

In 300 steps at 0.05 of a pixel's range, those of Table 3b here, batches of 160 end nine decibels
below batches of 40; in print they keep up, after 800 epochs.
"""

from collections.abc import Iterator, Sequence

from gleak_core.papers import Metric
from gleak_core.studies import cafe_pools
from gleak_core.studies.cafe_attacks import BATCHES, MANY, _matched, _named
from gleak_core.studies.cafe_pools import BATCH, RATE, VERTICAL, Loss, Pool, reads
from gleak_core.studies.cafe_rates import SLOW
from gleak_core.studies.study import Cell, Row, Study, grid
from gleak_core.studies.trials import groups

__all__ = ["LARGE", "STEPS", "STUDIES", "longer"]

LARGE = 160
STEPS = (cafe_pools.SHORT, 600, 1200)  # on every picture


def longer(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """What stands there after so many steps on every picture; one run shows them all."""
    batch, loss = int(cell["batch"]), Loss(rate=float(cell["rate"]))
    for number, some in groups(seeds, MANY):
        pool = Pool(VERTICAL, "CIFAR-10", BATCHES * batch, batch, number)
        scores, seconds = _matched(pool, loss, MANY, STEPS[-1], device)
        for seed in some:
            score = {**scores[seed % MANY], "seconds": seconds / MANY}
            yield _named(score, "psnr", at=int(cell["epoch"]))


STUDIES: tuple[Study, ...] = (
    Study(
        id="matching.longer",
        title="Batches of 40 and of 160, vertical: more steps, and shorter ones",
        metrics=("psnr",),
        cells=grid(batch=(BATCH, LARGE), rate=(RATE, SLOW), epoch=STEPS),
        measure=longer,
        seconds=lambda cell: 0.4 * int(cell["batch"]) / len(STEPS),
        reads=lambda _: reads({"dataset": "CIFAR-10"}),
        trials={"smoke": 1, "quick": 1, "paper": 20},
        block=MANY,
        reduced=dict.fromkeys(
            ("smoke", "quick"), grid(batch=(BATCH,), rate=(SLOW,), epoch=STEPS[:1])
        ),
        deviations=(
            "The runs of cafe.table3b on CIFAR-10, but for the steps' number and length; one run "
            f"shows all numbers of steps, of which {STEPS[0]} at {RATE:g} are the table's.",
            f"A trial is a picture, and {MANY} of them come out of one run, with one network: the "
            "interval treats them as if each had its own.",
        ),
        asks={"psnr": Metric("psnr", "dB", "higher", "mean")},
        chapter="04_cafe",
    ),
)
