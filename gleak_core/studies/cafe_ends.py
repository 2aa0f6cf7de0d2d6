"""Losses of Table 2 and of Figure 6, run to the end.

After 300 steps at 0.05 of a pixel's range the squared distance does not lead the cosine, and
neither is at its end.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from gleak_core.papers import Metric
from gleak_core.studies import cafe_pools
from gleak_core.studies.cafe import DATASETS
from gleak_core.studies.cafe_attacks import LOSSES, MANY, VARIANTS, _named
from gleak_core.studies.cafe_pools import HORIZONTAL, VERTICAL, reads
from gleak_core.studies.cafe_rates import SLOW, _to_the_end
from gleak_core.studies.study import Cell, Row, Study, grid

__all__ = ["STUDIES", "at_the_end"]

_HEAVY = ("ten times the TV", "ten times the TV, no threshold")  # of Figure 6
_SQUARED, _ANGLE = "CAFE", "CAFE with cosine similarity"  # of Table 2


def at_the_end(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Losses of Table 2 and Figure 6, with as many steps as any run has, at the rate chosen."""
    loss = replace({**LOSSES, **VARIANTS}[str(cell["loss"])], rate=SLOW)
    for score in _to_the_end(str(cell["protocol"]), str(cell["dataset"]), loss, seeds, device):
        yield _named(score, "psnr")


STUDIES: tuple[Study, ...] = (
    Study(
        id="matching.ends",
        title="The squared distance and the cosine, and heavier total variation, to the end",
        metrics=("psnr",),
        cells=grid(protocol=(HORIZONTAL, VERTICAL), dataset=DATASETS, loss=(_SQUARED, _ANGLE))
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
