"""When do two pictures of one label come out as their blend? One thing is changed at a time.

No paper has this table. In `gen.fig4` they do, though the blend is no solution of what is matched.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor

from gleak_core import metrics
from gleak_core.papers import Metric
from gleak_core.studies.general_attacks import BATCH, BLOCK, TARGETS, Victims, blend, general
from gleak_core.studies.runs import only
from gleak_core.studies.study import Cell, Row, Study, grid
from gleak_core.studies.trials import groups

__all__ = ["STUDIES", "difference", "pairs"]

FEW, SHORT, LONG = 4, 600, 2400  # pictures; evaluations, as in the figure and four times as many
WEIGHTS = (0.0, 0.05, 0.5)  # of total variation; the last is the figure's


def pairs(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Every label twice, its pictures neighbours of the batch; labels are read, as there."""
    size, weight = int(cell["pictures"]), float(cell["tv"])
    for number, some in groups(seeds, BLOCK):
        own, seen = Victims("ImageNet", (2,) * (size // 2)).share(number, some, device)
        found = general(
            seen,
            some,
            "ImageNet",
            penalties={"tv_mean": weight} if weight else {},
            steps=int(cell["budget"]),
        )
        for t, batch in enumerate(own):
            order = metrics.score(only(found, t), batch).order[0]
            shown = found.images[t].cpu()[order].clamp(0, 1).nan_to_num(0.5).to(batch.images)
            near = {
                name: float(metrics.psnr(shown, blend(batch.images, target)).mean())
                for name, target in (("psnr", TARGETS[0]), ("to_the_blend", TARGETS[1]))
            }
            yield {
                **near,
                "difference": difference(shown, batch.images),
                "status": found.status[t],
                "evaluations": int(found.evaluations[t]),
            }


def difference(found: Tensor, true: Tensor) -> float:
    """Return how much of what tells neighbours apart is found: 1 for the pictures, 0 for blends."""
    ours, theirs = (images[::2] - images[1::2] for images in (found, true))  # (B/2, C, H, W)
    return float((ours * theirs).sum() / theirs.square().sum())


def _seconds(cell: Cell) -> float:
    """One CPU core, measured: 75 ms for an evaluation of sixteen pictures on the wide network."""
    return int(cell["budget"]) * (0.075 if int(cell["pictures"]) == BATCH else 0.007)


STUDIES: tuple[Study, ...] = (
    Study(
        id="duplicates.fused",
        title="Two pictures of each label: found, or fused",
        metrics=("psnr", "to_the_blend", "difference"),
        cells=grid(pictures=(FEW,), tv=WEIGHTS, budget=(SHORT, LONG))
        + grid(pictures=(BATCH,), tv=WEIGHTS, budget=(SHORT,)),
        measure=pairs,
        seconds=_seconds,
        reads=lambda _: ("imagenet",),
        trials={"smoke": 2, "quick": 5, "paper": 10},
        block=BLOCK,
        deviations=(
            f"{BATCH} pictures are the batches, networks, starts and labels read of gen.fig4. "
            f"{FEW} are the first two labels of the same seeds, on the network with 12 channels "
            "and weights from U(±½).",
            "The difference is the part of what tells two pictures of a label apart that is found: "
            "one for the pictures themselves, zero for their blend twice. The order within a pair "
            "is the better of two, so that a start of noise has some hundredths as well.",
            "Total variation is a mean, clip and scale are left out, and the pictures are 32×32, "
            "as there.",
            "10 trials instead of 20: one of sixteen pictures takes about a minute of a core.",
            f"{BLOCK} batches share a network; the interval treats them as if each had its own.",
        ),
        asks={
            "psnr": Metric("psnr", "dB", "higher", "mean"),
            "to_the_blend": Metric("to_the_blend", "dB", "lower", "mean"),
            "difference": Metric("difference", "", "higher", "mean"),
        },
        chapter="03_general",
    ),
)
