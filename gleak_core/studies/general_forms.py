"""What is it in the clip term that stops the attack as it is printed: the weight, or the kink?

No paper has this table. In `gen.table2` the term costs fifteen decibels, in print it gains six
tenths of one. One thing is changed at a time: the weight, the square, the optimiser, the distance.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gleak_core.papers import Metric
from gleak_core.studies.general_attacks import (
    BLOCK,
    CIFAR_BATCH,
    RATE,
    TERMS,
    TV,
    Victims,
    general,
    measures,
)
from gleak_core.studies.study import Cell, Row, Study, grid
from gleak_core.studies.trials import SIDE, groups

__all__ = ["ATTACKS", "FORMS", "STUDIES", "formed"]

_LINE: Mapping[str, Any] = {"solver": "lbfgs", "rate": 1.0}
_NORMS: Mapping[str, Any] = {"distance": "l2_per_layer"}
ATTACKS: Mapping[str, Mapping[str, Any]] = {
    "squared distance, fixed steps": {},
    "squared distance, line search": _LINE,
    "Equation 10, fixed steps": _NORMS,
    "Equation 10, line search": _LINE | _NORMS,
}
_AS_IT_IS, *_OTHERS = ATTACKS
_PRINTED = TERMS["clip"]
_NUMBERS = CIFAR_BATCH * 3 * SIDE**2  # of a batch: the library's square is a mean over them
FORMS: Mapping[str, Mapping[str, float]] = {
    "none": {},
    f"norm × {_PRINTED:g}": {"clip": _PRINTED},
    "norm × 1": {"clip": 1.0},
    "norm × 0.01": {"clip": 0.01},
    f"sum of squares × {_PRINTED:g}": {"clip_squared": _PRINTED * _NUMBERS},
    f"mean of squares × {_PRINTED:g}": {"clip_squared": _PRINTED},
}
_NONE, _NORM, *_MORE = FORMS
_SET = "CIFAR-10"


def formed(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """The batches, networks and starts of Table 2; how much of a picture leaves [0, 1] as well."""
    how = ATTACKS[str(cell["attack"])]
    terms = {"tv_mean": TV, **FORMS[str(cell["clip"])]}
    for number, some in groups(seeds, BLOCK):
        own, seen = Victims(_SET, (1,) * CIFAR_BATCH).share(number, some, device)
        found = general(seen, some, _SET, penalties=terms, **how)
        outside = (found.images < 0) | (found.images > 1)
        share = 100 * outside.flatten(1).double().mean(1)
        for row, out in zip(measures(found, own, "psnr"), share.tolist(), strict=True):
            yield {**row, "outside": out}


STUDIES: tuple[Study, ...] = (
    Study(
        id="regularisers.form",
        title="The clip term: its weight, its square, the optimiser, the distance",
        metrics=("psnr", "outside"),
        cells=grid(attack=(_AS_IT_IS,), clip=tuple(FORMS))
        + grid(attack=tuple(_OTHERS), clip=(_NONE, _NORM)),
        measure=formed,
        seconds=lambda _: 9.5,
        reads=lambda _: ("cifar10",),
        trials={"smoke": 2, "quick": 5, "paper": 20},
        block=BLOCK,
        deviations=(
            "The batches, networks, labels, starts, evaluations and the weight of total variation "
            f"(a mean) are those of gen.table2, whose optimiser is L-BFGS with fixed steps of "
            f"{RATE:g}. A line search begins each step at 1.",
            "Equation 10 matches the sum of the norms of all layers' differences.",
            "Outside: the share of pixels that are not in [0, 1] at the end, in per cent. Pictures "
            "are clipped before they are judged.",
            f"{BLOCK} batches share a network; the interval treats them as if each had its own.",
        ),
        asks={
            "psnr": Metric("psnr", "dB", "higher", "mean"),
            "outside": Metric("outside", "%", "lower", "mean"),
        },
        chapter="03_general",
    ),
)
