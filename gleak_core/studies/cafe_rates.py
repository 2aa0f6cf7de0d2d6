"""Where CAFE's descent ends: the length of its steps, the weight of total variation; the tables.

The source says "normalised gradient descent" and gives no rate. At 0.05 of a pixel's range, that of
`cafe_attacks`, the descent is on its floor half way. `matching.rate`, which no paper has, tries
others, and the tables that show the end of an attack are measured here, at the best of them.
"""

from collections.abc import Iterator, Sequence

from gleak_core.papers import Metric
from gleak_core.studies import cafe_attacks, cafe_pools
from gleak_core.studies.cafe_attacks import (
    BATCHES,
    MANY,
    METHODS,
    ONE,
    WITHOUT_Z,
    _matched,
    _named,
)
from gleak_core.studies.cafe_pools import (
    HORIZONTAL,
    PUBLISHED,
    RATE,
    WORKERS,
    Loss,
    Pool,
    reads,
)
from gleak_core.studies.study import Cell, Row, Study, grid
from gleak_core.studies.trials import groups

__all__ = ["SLOW", "STUDIES", "by_epoch", "by_method", "ended", "helped", "slower"]

SLOW = 0.02
RATES = (RATE, SLOW, 0.01)
SETS = ("CIFAR-10", "Linnaeus")
TV, NONE = Loss().smooth, 0.0
_SLOW = Loss(rate=SLOW)
_ASKS = {
    "psnr": Metric("psnr", "dB", "higher", "mean"),
    "success_rate": Metric("success_rate", "", "higher", "rate"),
}


def _to_the_end(
    protocol: str,
    dataset: str,
    loss: Loss,
    seeds: Sequence[int],
    device: str,
    *,
    messages: int = BATCHES,
) -> Iterator[Row]:
    """Yield the score of each picture that is matched with as many steps as any run has.

    Where one message holds the pool its pictures are thinned out, so that they are among those of
    two.
    """
    own = cafe_attacks.BATCH // WORKERS if protocol == HORIZONTAL else cafe_attacks.BATCH
    block = cafe_attacks.MANY
    for number, some in groups(seeds, block):
        pool = Pool(protocol, dataset, messages * own, own, number, BATCHES // messages)
        scores, seconds = _matched(pool, loss, block, cafe_pools.JOINT, device)
        for seed in some:
            yield {**scores[seed % block], "seconds": seconds / block}


def slower(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """The pictures of Figure 1, matched as there but for the rate and total variation."""
    loss = Loss(smooth=float(cell["tv"]), rate=float(cell["rate"]))
    for score in _to_the_end(HORIZONTAL, str(cell["dataset"]), loss, seeds, device):
        yield _named(score, *_ASKS)


def _helped(
    method: str, dataset: str, rate: float, seeds: Sequence[int], device: str
) -> Iterator[Row]:
    """Yield the scores of CAFE, without Z, or with a single message."""
    loss = Loss(rate=rate, internal=0 if method == WITHOUT_Z else Loss().internal)
    messages = 1 if method == ONE else BATCHES
    return _to_the_end(HORIZONTAL, dataset, loss, seeds, device, messages=messages)


def helped(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Rows of Figure 1 at some rate: CAFE, without Z, and with Z and a single message."""
    method, rate = str(cell["method"]), float(cell["rate"])
    for score in _helped(method, "CIFAR-10", rate, seeds, device):
        yield _named(score, *_ASKS)


def by_method(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """CAFE, with its help and without; what is not matched is as in `cafe_attacks`."""
    method = str(cell["method"])
    if cell["attack"] != PUBLISHED or method not in (METHODS[0], WITHOUT_Z, ONE):
        yield from cafe_attacks.by_method(cell, seeds, device)
        return
    names = ("psnr",) if "dataset" in cell else ("psnr", "success_rate")
    dataset = str(cell.get("dataset", "CIFAR-10"))
    for score in _helped(method, dataset, SLOW, seeds, device):
        yield _named(score, *names)


def by_epoch(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """What stands on the screen after so many steps on every picture; one run shows them all."""
    if cell["attack"] != PUBLISHED:
        yield from cafe_attacks.by_epoch(cell, seeds, device)
        return
    for score in _to_the_end(HORIZONTAL, "Linnaeus", _SLOW, seeds, device):
        yield _named(score, "psnr", at=int(cell["epoch"]))


def ended(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Both protocols at forty a step: the quality at the end, and what is left of the loss."""
    if cell["attack"] != PUBLISHED:
        yield from cafe_attacks.ended(cell, seeds, device)
        return
    for score in _to_the_end(str(cell["protocol"]), str(cell["dataset"]), _SLOW, seeds, device):
        yield _named(score, "psnr", "loss")


STUDIES: tuple[Study, ...] = (
    Study(
        id="matching.rate",
        title="CAFE's descent: shorter steps, and no total variation",
        metrics=tuple(_ASKS),
        cells=grid(dataset=SETS, rate=RATES, tv=(TV, NONE)),
        measure=slower,
        seconds=lambda _: 20.0,
        reads=reads,
        trials={"smoke": 1, "quick": 2, "paper": 20},
        block=MANY,
        reduced={
            name: grid(dataset=SETS[:1], rate=(SLOW,), tv=(TV,)) for name in ("smoke", "quick")
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
    Study(
        id="matching.help",
        title="What helps CAFE, at either rate",
        metrics=tuple(_ASKS),
        cells=grid(method=(METHODS[0], ONE, WITHOUT_Z), rate=(RATE, SLOW)),
        measure=helped,
        seconds=lambda _: 10.0,
        reads=lambda _: reads({"dataset": "CIFAR-10"}),
        trials={"smoke": 1, "quick": 2, "paper": 40},
        block=MANY,
        reduced=dict.fromkeys(("smoke", "quick"), grid(method=METHODS[:1], rate=(SLOW,))),
        deviations=(
            "Rows of cafe.fig1, all but the rate as there.",
            f"A trial is a picture, and {MANY} of them come out of one run, with one network: the "
            "interval treats them as if each had its own.",
        ),
        asks=_ASKS,
        chapter="04_cafe",
    ),
)
