"""Batches of large pictures: Figure 1 of Geng et al. 2021, with total variation at two weights."""

from collections.abc import Iterator, Sequence

from gleak_core.studies.general_attacks import LARGE, TV, Victims, general, measures
from gleak_core.studies.study import Cell, Row

__all__ = ["HEAVY", "TV", "restored"]

HEAVY = 40.0
"""As heavy as TV is at 32×32, where the distance of the start is 30 to 130 times less."""
_SET = "ImageNet"


def restored(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """The paper's attack on a batch of large pictures; every batch has a network of its own."""
    victims = Victims(_SET, (1,) * int(cell["batch"]), LARGE)
    for seed in seeds:  # one of them fills the memory
        own, seen = victims.share(seed, [seed], device)
        found = general(seen, [seed], _SET, penalties={"tv_mean": float(cell["tv"])})
        yield from measures(found, own, "psnr", "ssim", "accuracy")
