"""Whole pools of hundreds and thousands, every picture of them: how good, in what time.

No paper has this table: CAFE leaks 2000 pictures, "up to our hardware limits", and gives no time.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from gleak_core import attacks, cafe, models, samplers, standing
from gleak_core.aligned import recover
from gleak_core.data import Batch
from gleak_core.papers import Metric
from gleak_core.studies import cafe_pools
from gleak_core.studies.cafe_pools import BATCH, CLEAR, HORIZONTAL, VERTICAL, Pool, decibel
from gleak_core.studies.study import Cell, Row, Study, grid
from gleak_core.studies.trials import SHARED, SIDE, groups

__all__ = ["INPUTS", "RECURSION", "STUDIES", "forget_peak", "peak", "whole"]

RECURSION, INPUTS = "the recursion, horizontal", "inputs and a fit, vertical"
STEPS = 150  # evaluations of each fit
AT_ONCE = 250  # fits, of which memory holds the frames
SIZES = {RECURSION: (400, 1000, 2000, 4000, 10_000), INPUTS: (400, 1000, 2000)}


def whole(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Leak a pool to the last picture; a trial is one of its pictures, the cost is the pool's."""
    attack, items = str(cell["attack"]), int(cell["pictures"])
    for number, some in groups(seeds):
        protocol = HORIZONTAL if attack == RECURSION else VERTICAL
        pool = Pool(protocol, "CIFAR-10", items, BATCH, number)
        (own,) = pool.own(1)
        forget_peak()
        began = time.perf_counter()
        images = (_opened if attack == RECURSION else _fitted)(pool, own, device)
        minutes, memory = (time.perf_counter() - began) / 60, peak()
        psnr = decibel(images, own.images)
        shared = {"minutes": minutes, "memory": memory, "lowest": float(psnr.min())}
        for seed in some:
            reached = float(psnr[seed % SHARED * items // SHARED])
            yield {
                "psnr": reached,
                **shared,
                "status": "solved" if reached >= CLEAR else "failed",
                "evaluations": 1 if attack == RECURSION else STEPS,
            }


def _opened(pool: Pool, own: Batch, device: str) -> Tensor:
    """Solve for every picture's own gradient, and open it layer by layer."""
    net = models.lenet(len(own.classes), size=SIDE, seed=pool.number).to(device)
    picks = samplers.independent(pool.items, BATCH, 2 * pool.items, seed=pool.number)
    every = [name for name, _ in net.named_parameters()]
    seen = standing.rounds(net, own.to(device), picks, layers=every)
    return attacks.analytic(cafe.apart(seen)).images[:, 0]


def _fitted(pool: Pool, own: Batch, device: str) -> Tensor:
    """Solve for every picture's inputs of the first layers, and fit it to them by itself."""
    book = cafe_pools.ledger(pool, pool.network(own, device), own.to(device))
    some = torch.arange(pool.items).split(AT_ONCE)
    return torch.cat([recover(book, only=part.tolist(), steps=STEPS).images[:, 0] for part in some])


def forget_peak() -> None:
    """Let the peak of this process's memory begin anew, where the system can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    """Return the most memory that this process has held, in GB; nan where nobody tells."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**20
    with suppress(ImportError):
        import resource  # not on Windows; and macOS counts bytes

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30
    return math.nan


def _seconds(cell: Cell) -> float:
    """One CPU core, guessed: the share of each trial."""
    items = int(cell["pictures"])
    return items * (0.1 if cell["attack"] == RECURSION else 0.04 + STEPS * 1.5e-3) / SHARED


STUDIES: tuple[Study, ...] = (
    Study(
        id="thousands.whole",
        title="Whole pools, to the last picture: quality, time and memory",
        metrics=("psnr", "lowest", "minutes", "memory"),
        cells=tuple(
            cell for attack in SIZES for cell in grid(attack=(attack,), pictures=SIZES[attack])
        ),
        reduced={
            profile: grid(attack=tuple(SIZES), pictures=(most,))
            for profile, most in {"smoke": 40, "quick": 80}.items()
        },
        measure=whole,
        seconds=_seconds,
        reads=lambda _: ("cifar10",),
        trials={"smoke": 2, "quick": 5, "paper": 2 * SHARED},
        block=SHARED,
        deviations=(
            f"Two pools of each size, of which {SHARED} pictures each are trials; the lowest PSNR "
            "is that of the whole pool, and time and memory are its own, the clients' part "
            "included.",
            f"{RECURSION.capitalize()}: DLG's LeNet with sigmoids and weights from U(±½), one "
            f"worker's messages. {INPUTS.capitalize()}: CAFE's network with ReLUs and PyTorch's "
            f"default weights, {STEPS} evaluations for each picture.",
            f"Batches of {BATCH} that are drawn anew, twice as many as there are pictures, and of "
            "the second attack two to four epochs more.",
            "The pictures are CIFAR-10's; where the set has fewer, mirrored and turned ones "
            "follow.",
        ),
        asks={
            "psnr": Metric("psnr", "dB", "higher", "median"),
            "lowest": Metric("lowest", "dB", "higher", "mean", shared=SHARED),
            "minutes": Metric("minutes", "min", "lower", "mean", shared=SHARED),
            "memory": Metric("memory", "GB", "lower", "mean", shared=SHARED),
        },
        chapter="04_cafe",
    ),
)
