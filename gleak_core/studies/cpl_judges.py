"""One picture is rebuilt from the gradient of a batch: what is it to be compared with?

The source prints one SSIM for a batch and does not say. Three judges look at the same runs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache

from torch import Tensor

from gleak_core import metrics
from gleak_core.data import Batch
from gleak_core.observation import Reconstruction
from gleak_core.studies.cpl_attacks import METHODS, SHOWN, Clients, attack, one_dummy
from gleak_core.studies.study import Cell, Row
from gleak_core.studies.trials import groups

__all__ = ["JUDGES", "judges"]

JUDGES: Mapping[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "the nearest picture": lambda errors, alike: (errors.min(), alike.max()),
    "the first picture": lambda errors, alike: (errors[0], alike[0]),
    "every picture, the mean": lambda errors, alike: (errors.mean(), alike.mean()),
}
"""A name → the MSE and SSIM that stand for a batch, out of those to each of its pictures (B,)."""


def judges(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """CPL with one dummy for a batch, by what the dummy is compared with."""
    judge = JUDGES[str(cell["compared_with"])]
    for number, some in groups(seeds):
        own, found = _runs(int(cell["batch"]), number, tuple(some), device)
        for t, batch in enumerate(own):
            shown = found.images[t].cpu().clamp(0, 1).nan_to_num(0.5).expand_as(batch.images)
            error, alike = judge(
                metrics.mse(shown, batch.images), metrics.ssim(shown, batch.images)
            )
            yield {
                "ssim": float(alike),
                "mse": float(error),
                "status": found.status[t],
                "evaluations": int(found.evaluations[t]),
            }


@lru_cache(maxsize=1)  # the judges look at the same runs
def _runs(
    batch: int, number: int, seeds: tuple[int, ...], device: str
) -> tuple[list[Batch], Reconstruction]:
    own, seen = Clients(batch=batch).share(number, seeds, device)
    aim = one_dummy(seen)
    return own, attack(aim, METHODS["CPL"], seeds, number=number, steps=SHOWN, every=0)
