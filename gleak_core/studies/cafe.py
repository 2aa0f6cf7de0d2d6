"""Grids of CAFE.

A trial is a picture: an attack on a pool of pictures gives many trials at once, which share its
cost.
"""

from gleak_core.studies.cost import ITERATIONS
from gleak_core.studies.study import Cell, Study, declared, grid

__all__ = ["STUDIES"]

WORKERS = 4
RATIO, VERTICAL_RATIO = 0.1, 0.2  # of the pool, in one batch
BATCH = 40
EPOCHS = 300  # steps on every picture
ROUNDS = 100  # of the attack while the model learns
TRIALS = 40  # fewer cannot show that nine pictures in ten leak

# One CPU core, measured.
_MS = 6.0  # conv64-128-fc, a picture and an evaluation
_SOLVE = 60 / 2000  # seconds: a linear system of batches, a picture
_EVALUATIONS = 1.2  # of L-BFGS in an iteration
_BLOCK = 20  # trials that come out of one run
_LEARNT = 10  # fewer while the model learns, so that there is more than one training

DATASETS = ("CIFAR-10", "CIFAR-100", "Linnaeus")
METHODS = ("CAFE", "DLG")
LOSSES = ("CAFE", "CAFE with cosine similarity", "Geiping et al. 2020")
HORIZONTAL, VERTICAL = "HFL", "VFL"
POOLS = {HORIZONTAL: 4 * 500, VERTICAL: 800}  # of Table 4
LEARNING = ("warm start", "static solve", "drift model")
LEARNING_RATES = (1e-4, 1e-3, 1e-2)


def _leak(pool: float, epochs: float = EPOCHS) -> float:
    """The share of the linear systems of a pool, and the fit of one picture by itself."""
    return _SOLVE * pool / _BLOCK + epochs * _MS / 1000


def _joint(pictures: int, steps: float, judged: int = _BLOCK) -> float:
    """The share of a run that can only match all pictures of a batch together."""
    return steps * pictures * _MS / 1000 / judged


def _dlg(pictures: int) -> float:
    alone = ITERATIONS * _EVALUATIONS
    return alone * _MS / 1000 if pictures == 1 else _joint(pictures, alone)


def _method(cell: Cell) -> float:
    batch = int(cell.get("batch", BATCH))
    return _dlg(batch) if cell["method"] == "DLG" else _leak(batch / RATIO)


def _loss(cell: Cell) -> float:
    return _leak(BATCH / RATIO) if cell["loss"] == "CAFE" else _joint(BATCH, EPOCHS)


def _horizontal(cell: Cell) -> float:
    return _leak(WORKERS * int(cell["batch"]) / RATIO)


def _vertical(cell: Cell) -> float:
    return _leak(int(cell["batch"]) / VERTICAL_RATIO)


def _pool(cell: Cell) -> float:
    return _leak(POOLS[str(cell["protocol"])])


def _epoch(cell: Cell) -> float:
    return _leak(BATCH / RATIO, float(cell["epoch"]))


def _at_forty(cell: Cell) -> float:
    return _leak(BATCH / RATIO)


def _learning(cell: Cell) -> float:
    """A static solve is one; the others match a batch again after every round."""
    if cell["attack"] == "static solve":
        return _at_forty(cell)
    return _joint(BATCH, ROUNDS * int(cell["inner_steps"]), _LEARNT)


def _scale(cell: Cell) -> float:
    return _SOLVE * int(cell["pictures"]) / _BLOCK + EPOCHS * _MS / 1000


def _inputs(cell: Cell) -> float:
    rounds = int(cell["batch"]) / RATIO if cell["updates"] == "many" else 1
    return 0.01 + _SOLVE * rounds / _BLOCK


_LINNAEUS = "The embedded photographs stand in for Linnaeus 5 where its folder is missing."
_NET = (
    "The network is conv64-conv128-fc512-fc256 with sigmoids and strides: the paper gives neither "
    "activation nor strides."
)
_SHOTS = (
    "The inputs of the first fully connected layer, which the paper says can be derived, come from "
    "two linear systems over many rounds; each picture is then found from its own."
)
_EPOCHS = f"Every picture gets {EPOCHS} steps instead of 800 epochs."
_PICTURES = (
    f"A trial is a picture: {_BLOCK} of them come out of one run, so that runs vary less often "
    "than pictures."
)
_STEPS = f"A loss that matches a whole batch gets {EPOCHS} steps on it, as many as a picture gets."
_CAFE = (_NET, _SHOTS, _EPOCHS, _PICTURES)

STUDIES: tuple[Study, ...] = (
    declared(
        "cafe.fig1",
        cells=grid(method=METHODS),
        seconds=_method,
        paper=TRIALS,
        deviations=(*_CAFE, _STEPS),
    ),
    declared(
        "cafe.table1a",
        cells=grid(method=("DLG",), batch=(1,), dataset=DATASETS)
        + grid(method=("CAFE",), batch=(40, 80, 120, 160), dataset=DATASETS),
        seconds=_method,
        deviations=(
            *_CAFE,
            _LINNAEUS,
            "CAFE's iterations are those until the pictures exceed 30 dB, divided by the pictures "
            "of one batch.",
        ),
    ),
    declared(
        "cafe.table1b",
        cells=grid(method=METHODS, dataset=DATASETS),
        seconds=_method,
        deviations=(*_CAFE, _STEPS, _LINNAEUS),
    ),
    declared(
        "cafe.table2a",
        cells=grid(loss=LOSSES, dataset=DATASETS),
        seconds=_loss,
        deviations=(*_CAFE, _STEPS, _LINNAEUS),
    ),
    declared(
        "cafe.table2b",
        cells=grid(loss=LOSSES, dataset=DATASETS),
        seconds=_loss,
        deviations=(*_CAFE, _STEPS, _LINNAEUS),
    ),
    declared(
        "cafe.table3a",
        cells=grid(batch=(10, 20, 30, 40), dataset=DATASETS),
        seconds=_horizontal,
        deviations=(*_CAFE, _LINNAEUS),
    ),
    declared(
        "cafe.table3b",
        cells=grid(batch=(8, 40, 80, 160), dataset=DATASETS),
        seconds=_vertical,
        deviations=(*_CAFE, _LINNAEUS),
    ),
    declared(
        "cafe.table4",
        cells=grid(
            protocol=(HORIZONTAL,),
            dataset=("CIFAR-10", "Linnaeus"),
            batch_ratio=(0.1, 0.05, 0.02, 0.01),
        )
        + grid(protocol=(VERTICAL,), dataset=("CIFAR-10",), batch_ratio=(0.1, 0.05, 0.02, 0.01)),
        seconds=_pool,
        deviations=(*_CAFE, _LINNAEUS),
    ),
    declared(
        "cafe.fig3",
        cells=grid(epoch=(50, 100, 200, 300, 450, 600)),
        seconds=_epoch,
        deviations=(_NET, _SHOTS, _PICTURES, _LINNAEUS, "An epoch is a step on every picture."),
    ),
    declared(
        "cafe.fig4",
        cells=grid(protocol=(HORIZONTAL, VERTICAL), dataset=DATASETS),
        seconds=_at_forty,
        deviations=(*_CAFE, _LINNAEUS),
    ),
    declared(
        "cafe.fig5",
        cells=grid(inner_steps=(1, 5), rate=(1e-3,), attack=LEARNING[:1])
        + grid(inner_steps=(10,), rate=LEARNING_RATES, attack=LEARNING[:2])
        + grid(inner_steps=(10,), rate=(1e-3,), attack=LEARNING[2:]),
        reading={"rate": 1e-3, "attack": LEARNING[0]},
        seconds=_learning,
        deviations=(
            _NET,
            _LINNAEUS,
            f"The attack runs for {ROUNDS} rounds instead of 1000, and is judged by {_LEARNT} "
            "pictures of a run: the trials are those of two runs.",
            "The model learns at a rate of 1e-3, horizontally: the paper gives neither.",
        ),
    ),
    declared(
        "cafe.fig6",
        cells=grid(variant=("full", "no threshold", "no TV", "no internal representation")),
        seconds=_at_forty,
        deviations=(*_CAFE, "The pictures are CIFAR-10's, horizontal: the paper names neither."),
    ),
    declared(
        "cafe.scale",
        cells=grid(pictures=(400, 1000, 2000, 4000, 10_000)),
        seconds=_scale,
        paper=TRIALS,
        deviations=(
            _NET,
            _SHOTS,
            _EPOCHS,
            f"All pictures' inputs are recovered, and {_BLOCK} of each run are fitted and judged.",
            "The pictures are CIFAR-10's: the paper names no data set.",
        ),
    ),
    declared(
        "cafe.z",
        cells=grid(batch=(1, 10, 40), updates=("one", "many")),
        seconds=_inputs,
        deviations=(
            _NET,
            "Many updates are as many as there are pictures, in batches of known indices.",
        ),
    ),
)
