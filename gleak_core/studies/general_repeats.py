"""What loses GradInversion's pictures where labels repeat: its labels, or its optimiser?

No paper has this table. Tables 1 and 5 of Geng et al. 2021 change both at once; here the paper's
own attack is given the labels that GradInversion reads, and nothing else is changed.
"""

from collections.abc import Iterator, Sequence

from gleak_core.studies.general_attacks import BATCH, BLOCK, Victims, general, measures
from gleak_core.studies.general_rivals import ASKS
from gleak_core.studies.study import Cell, Row, Study, grid
from gleak_core.studies.trials import groups

__all__ = ["STUDIES", "misread", "times"]

_SET = "ImageNet"
_SECONDS = 60.0  # of one CPU core, as long as a batch of gen.table5


def times(setting: str, count: int) -> tuple[int, ...]:
    """Return how often each label of a batch stands; in repetition 0 they are unique."""
    if setting == "repetition":
        return (count + 1, *[1] * (BATCH - count - 1))
    return (count,) * (BATCH // count)


def misread(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """The paper's attack, with the labels of GradInversion's rule."""
    victims = Victims(_SET, times(str(cell["setting"]), int(cell["count"])))
    for number, some in groups(seeds, BLOCK):
        own, seen = victims.share(number, some, device)
        found = general(seen, some, _SET, labels="grad_inversion")
        yield from measures(found, own, *ASKS)


STUDIES: tuple[Study, ...] = (
    Study(
        id="rivals.labels",
        title="General leakage with the labels that GradInversion reads",
        metrics=tuple(ASKS),
        cells=grid(setting=("repetition",), count=(0, 1, 3))
        + grid(setting=("rep_amount",), count=(2, 4)),
        measure=misread,
        seconds=lambda _: _SECONDS,
        reads=lambda _: ("imagenet",),
        trials={"smoke": 2, "quick": 5, "paper": 10},
        block=BLOCK,
        deviations=(
            "The batches, networks, starts and evaluations are those of gen.table5 and, where no "
            "label repeats (repetition 0), of gen.table1; the labels are those of GradInversion's "
            "rule, which names each class once.",
            f"10 trials instead of 20, on two networks: {BLOCK} batches share one, and the "
            "interval treats them as if each had its own.",
        ),
        asks=ASKS,
        chapter="03_general",
    ),
)
