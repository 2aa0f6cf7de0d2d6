"""Is it our budget? What tables of 300 steps at 0.05 of a pixel's range show, run further.

Batches of 160 end nine decibels below batches of 40 in Table 3b; in print they keep up, after 800
epochs. And the squared distance does not lead the cosine in Table 2, where neither is at its end.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from gleak_core.papers import Metric
from gleak_core.studies import cafe_pools
from gleak_core.studies.cafe_attacks import BATCHES, LOSSES, MANY, VARIANTS, _matched, _named
from gleak_core.studies.cafe_pools import BATCH, HORIZONTAL, RATE, VERTICAL, Loss, Pool, reads
from gleak_core.studies.cafe_rates import SLOW, _to_the_end
from gleak_core.studies.study import Cell, Row, Study, grid
from gleak_core.studies.trials import groups

__all__ = ["LARGE", "STEPS", "STUDIES", "at_the_end", "longer"]

LARGE = 160
STEPS = (cafe_pools.SHORT, 600, 1200)  # on every picture
SETS = ("CIFAR-10", "CIFAR-100", "Linnaeus")


def longer(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """What stands there after so many steps on every picture; one run shows them all."""
    batch, loss = int(cell["batch"]), Loss(rate=float(cell["rate"]))
    for number, some in groups(seeds, MANY):
        pool = Pool(VERTICAL, "CIFAR-10", BATCHES * batch, batch, number)
        scores, seconds = _matched(pool, loss, MANY, STEPS[-1], device)
        for seed in some:
            score = {**scores[seed % MANY], "seconds": seconds / MANY}
            yield _named(score, "psnr", at=int(cell["epoch"]))


_HEAVY = ("ten times the TV", "ten times the TV, no threshold")  # of Figure 6
_SQUARED, _ANGLE = "CAFE", "CAFE with cosine similarity"  # of Table 2


def at_the_end(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Losses of Table 2 and Figure 6, with as many steps as any run has, at the rate chosen."""
    loss = replace({**LOSSES, **VARIANTS}[str(cell["loss"])], rate=SLOW)
    for score in _to_the_end(str(cell["protocol"]), str(cell["dataset"]), loss, seeds, device):
        yield _named(score, "psnr")


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
    Study(
        id="matching.ends",
        title="The squared distance and the cosine, and heavier total variation, to the end",
        metrics=("psnr",),
        cells=grid(protocol=(HORIZONTAL, VERTICAL), dataset=SETS, loss=(_SQUARED, _ANGLE))
        + grid(protocol=(HORIZONTAL,), dataset=("CIFAR-10", "Linnaeus"), loss=_HEAVY),
        measure=at_the_end,
        seconds=lambda _: 14.0,
        reads=reads,
        trials={"smoke": 1, "quick": 1, "paper": 20},
        block=MANY,
        reduced=dict.fromkeys(
            ("smoke", "quick"),
            grid(protocol=(HORIZONTAL,), dataset=("CIFAR-10",), loss=(_ANGLE,)),
        ),
        deviations=(
            f"Losses of cafe.table2a, cafe.table2b and cafe.fig6 with {cafe_pools.JOINT} steps on "
            f"every picture at {SLOW:g}, a rate that was chosen for the squared distance, on "
            "horizontal pictures. The embedded photographs stand in for Linnaeus 5 where its "
            "folder is missing.",
            f"A trial is a picture, and {MANY} of them come out of one run, with one network: the "
            "interval treats them as if each had its own.",
        ),
        asks={"psnr": Metric("psnr", "dB", "higher", "mean")},
        chapter="04_cafe",
    ),
)
