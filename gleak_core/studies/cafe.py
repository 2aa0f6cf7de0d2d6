"""Grids of CAFE.

A trial is a picture: an attack on a pool of pictures gives many trials at once, which share its
cost.
"""

from gleak_core.studies import cafe_attacks, cafe_learning
from gleak_core.studies.cafe_attacks import (
    BATCH,
    BLOCK,
    EPOCHS,
    HORIZONTAL,
    JOINT,
    LONG,
    LOSSES,
    MANY,
    METHODS,
    POOLS,
    RATIO,
    SINGLE,
    TOGETHER,
    VARIANTS,
    VERTICAL,
    VERTICAL_RATIO,
    WORKERS,
)
from gleak_core.studies.cafe_learning import ATTACKS, EACH, ITEMS, RATES, ROUNDS
from gleak_core.studies.study import Cell, Study, declared, grid

__all__ = ["STUDIES"]

FORTY = 40  # trials: fewer cannot show that nine pictures in ten leak

# One CPU core, measured.
_MS = 7e-3  # seconds: a picture and an evaluation of the whole gradient
_FIT = 1.5e-3  # of the first part of the network alone
_ITEM = 0.04  # seconds: a picture in a pool's linear systems

DATASETS = ("CIFAR-10", "CIFAR-100", "Linnaeus")


def _shot(items: float, epochs: float = EPOCHS, block: int = BLOCK) -> float:
    """The share of the linear systems of a pool, and the fit of one picture by itself."""
    return _ITEM * items / block + epochs * _FIT


def _joint(pictures: int, steps: float, block: int) -> float:
    """The share of a run that matches all pictures of a batch together."""
    return steps * pictures * _MS / block


def _method(cell: Cell) -> float:
    block = BLOCK if "dataset" in cell else MANY
    return _joint(BATCH, EPOCHS, block) if cell["method"] == "DLG" else _at_forty(cell)


def _speed(cell: Cell) -> float:
    return SINGLE * _MS if cell["method"] == "DLG" else _shot(int(cell["batch"]) / WORKERS / RATIO)


def _loss(cell: Cell) -> float:
    return _joint(TOGETHER, JOINT, MANY)


def _horizontal(cell: Cell) -> float:
    return _shot(int(cell["batch"]) / RATIO)


def _vertical(cell: Cell) -> float:
    return _shot(int(cell["batch"]) / VERTICAL_RATIO)


def _pool(cell: Cell) -> float:
    return _shot(POOLS[str(cell["protocol"])])


def _epoch(cell: Cell) -> float:
    return _shot(BATCH / WORKERS / RATIO, LONG) / 3  # a run shows several epochs


def _at_forty(cell: Cell) -> float:
    vertical = cell.get("protocol") == VERTICAL
    return _shot(BATCH / RATIO if vertical else BATCH / WORKERS / RATIO)


def _learning(cell: Cell) -> float:
    learnt = ROUNDS * EACH * _MS / BLOCK
    if cell["attack"] != ATTACKS[0]:
        return learnt + EPOCHS * _FIT
    return learnt + _joint(EACH, ROUNDS * int(cell["inner_steps"]), BLOCK)


def _scale(cell: Cell) -> float:
    return _shot(int(cell["pictures"]), block=MANY)


def _inputs(cell: Cell) -> float:
    items = int(cell["batch"]) / RATIO if cell["updates"] == "many" else 1
    return 0.05 + _ITEM * items / (1 if cell["batch"] == 1 else BLOCK)


_PHOTOGRAPHS = (
    "The embedded photographs stand in for Linnaeus 5 where its folder is missing: 240 crops, and "
    "where a pool is larger the same mirrored and turned."
)
_NET = (
    "The paper gives neither activation nor strides nor weights: ours are ReLU, a stride of 2 in "
    "either convolution, and PyTorch's default weights."
)
_SHOTS = (
    "The inputs of the first fully connected layer, which the paper says can be derived, come from "
    "two linear systems over twice as many rounds as there are pictures; each picture is then "
    "found from its own by L-BFGS."
)
_OWN = (
    "The server sees each worker's own message, so that the four workers are four problems of one "
    "kind: a run attacks one of them."
)
_EPOCHS = f"Every picture gets {EPOCHS} evaluations instead of 800 epochs."
_PICTURES = (
    f"A trial is a picture: {BLOCK} of them are judged of each run, so that runs vary less often "
    "than pictures."
)
_TEN = (
    f"A trial is a picture: {MANY} of them are judged of each run, so that runs vary less often "
    "than pictures."
)
_DLG = f"DLG descends by Adam for {EPOCHS} steps, from U(0,1) and with its labels to be found."
_TOGETHER = (
    f"A pool is {TOGETHER} pictures, in messages of {BATCH} that are dealt out in epochs, and is "
    f"matched for {JOINT} epochs; in the horizontal protocol a message is the mean of all workers.",
    "The inputs of the first fully connected layer come from two linear systems.",
    "The paper gives no weights: at the start the inputs' term is as large as the distance, and "
    "total variation a hundredth of it; ξ is the mean of a hundred other pictures.",
    "The descent is Adam's: the paper says normalised, and no more.",
)
_CAFE = (_NET, _OWN, _SHOTS, _EPOCHS)

STUDIES: tuple[Study, ...] = (
    declared(
        "cafe.fig1",
        cells=grid(method=METHODS),
        measure=cafe_attacks.by_method,
        reads=("cifar10",),
        block=MANY,
        seconds=_method,
        paper=FORTY,
        deviations=(*_CAFE, _TEN, _DLG),
    ),
    declared(
        "cafe.table1a",
        cells=grid(method=("DLG",), batch=(1,), dataset=DATASETS)
        + grid(method=("CAFE",), batch=(40, 80, 120, 160), dataset=DATASETS),
        measure=cafe_attacks.speed,
        reads=cafe_attacks.reads,
        block=BLOCK,
        seconds=_speed,
        deviations=(
            *_CAFE,
            _PICTURES,
            _PHOTOGRAPHS,
            f"DLG descends by Adam for at most {SINGLE} steps; a picture that is never clear "
            "counts as one step more.",
            "CAFE's iterations are those until a picture exceeds 30 dB, divided by the pictures "
            "of one batch.",
        ),
    ),
    declared(
        "cafe.table1b",
        cells=grid(method=METHODS, dataset=DATASETS),
        measure=cafe_attacks.by_method,
        reads=cafe_attacks.reads,
        block=BLOCK,
        seconds=_method,
        deviations=(*_CAFE, _PICTURES, _DLG, _PHOTOGRAPHS),
    ),
    declared(
        "cafe.table2a",
        cells=grid(loss=tuple(LOSSES), dataset=DATASETS),
        measure=cafe_attacks.losses_horizontal,
        reads=cafe_attacks.reads,
        block=MANY,
        seconds=_loss,
        deviations=(_NET, *_TOGETHER, _TEN, _PHOTOGRAPHS),
    ),
    declared(
        "cafe.table2b",
        cells=grid(loss=tuple(LOSSES), dataset=DATASETS),
        measure=cafe_attacks.losses_vertical,
        reads=cafe_attacks.reads,
        block=MANY,
        seconds=_loss,
        deviations=(_NET, *_TOGETHER, _TEN, _PHOTOGRAPHS),
    ),
    declared(
        "cafe.table3a",
        cells=grid(batch=(10, 20, 30, 40), dataset=DATASETS),
        measure=cafe_attacks.batches_horizontal,
        reads=cafe_attacks.reads,
        block=BLOCK,
        seconds=_horizontal,
        deviations=(*_CAFE, _PICTURES, _PHOTOGRAPHS),
    ),
    declared(
        "cafe.table3b",
        cells=grid(batch=(8, 40, 80, 160), dataset=DATASETS),
        measure=cafe_attacks.batches_vertical,
        reads=cafe_attacks.reads,
        block=BLOCK,
        seconds=_vertical,
        deviations=(_NET, _SHOTS, _EPOCHS, _PICTURES, _PHOTOGRAPHS),
    ),
    declared(
        "cafe.table4",
        cells=grid(
            protocol=(HORIZONTAL,),
            dataset=("CIFAR-10", "Linnaeus"),
            batch_ratio=(0.1, 0.05, 0.02, 0.01),
        )
        + grid(protocol=(VERTICAL,), dataset=("CIFAR-10",), batch_ratio=(0.1, 0.05, 0.02, 0.01)),
        measure=cafe_attacks.by_ratio,
        reads=cafe_attacks.reads,
        block=BLOCK,
        seconds=_pool,
        deviations=(*_CAFE, _PICTURES, _PHOTOGRAPHS),
    ),
    declared(
        "cafe.fig3",
        cells=grid(epoch=(50, 100, 200, 300, 450, 600)),
        measure=cafe_attacks.by_epoch,
        reads=lambda _: cafe_attacks.reads({"dataset": "Linnaeus"}),
        block=BLOCK,
        seconds=_epoch,
        deviations=(
            _NET,
            _OWN,
            _SHOTS,
            _PICTURES,
            _PHOTOGRAPHS,
            "An epoch is an evaluation of every picture.",
        ),
    ),
    declared(
        "cafe.fig4",
        cells=grid(protocol=(HORIZONTAL, VERTICAL), dataset=DATASETS),
        measure=cafe_attacks.ended,
        reads=cafe_attacks.reads,
        block=BLOCK,
        seconds=_at_forty,
        deviations=(
            *_CAFE,
            _PICTURES,
            _PHOTOGRAPHS,
            "The loss is the distance of the inputs, which is what is minimised.",
        ),
    ),
    declared(
        "cafe.fig5",
        cells=grid(inner_steps=(1, 10), rate=(1e-2,), attack=ATTACKS[:1])
        + grid(inner_steps=(10,), rate=(1e-3, 3e-3, 3e-2), attack=ATTACKS[:1])
        + grid(inner_steps=(10,), rate=RATES, attack=ATTACKS[1:]),
        measure=cafe_learning.learning,
        reads=lambda _: cafe_attacks.reads({"dataset": "Linnaeus"}),
        block=BLOCK,
        reading={"rate": 1e-2, "attack": ATTACKS[0]},
        seconds=_learning,
        deviations=(
            _NET,
            _PICTURES,
            _PHOTOGRAPHS,
            f"The attack runs for {ROUNDS} rounds instead of 1000, on one worker with {ITEMS} "
            f"pictures in batches of {EACH}; it matches the gradients alone.",
            "The rate of the model is not published: at 1e-2, which stands for the figure, the "
            "training loss about halves; others are measured beside.",
            "The moments of the descent begin anew in every epoch.",
        ),
    ),
    declared(
        "cafe.fig6",
        cells=grid(variant=tuple(VARIANTS)),
        measure=cafe_attacks.ablated,
        reads=("cifar10",),
        block=MANY,
        seconds=_loss,
        deviations=(
            _NET,
            *_TOGETHER,
            _TEN,
            "The pictures are CIFAR-10's, horizontal: the paper names neither.",
        ),
    ),
    declared(
        "cafe.scale",
        cells=grid(pictures=(400, 1000, 2000, 4000, 10_000)),
        measure=cafe_attacks.by_size,
        reads=("cifar10",),
        block=MANY,
        seconds=_scale,
        paper=FORTY,
        deviations=(
            _NET,
            _SHOTS,
            _EPOCHS,
            f"All pictures' inputs are recovered, and {MANY} of each run are fitted and judged.",
            "The pictures are CIFAR-10's, in batches of 40: the paper names neither. Where the set "
            "has fewer, mirrored and turned ones follow.",
        ),
    ),
    declared(
        "cafe.z",
        cells=grid(batch=(1, 10, 40), updates=("one", "many")),
        measure=cafe_attacks.inputs,
        reads=("cifar10",),
        block=BLOCK,
        seconds=_inputs,
        deviations=(
            _NET,
            "Many updates are twice as many as there are pictures, in batches of known indices.",
        ),
    ),
)
