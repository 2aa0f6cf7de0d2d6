"""Grids of CAFE.

A trial is a picture: an attack on a pool of pictures gives many trials at once, which share its
cost.
"""

from dataclasses import replace

from gleak_core.studies import cafe_attacks, cafe_learning, cafe_rates
from gleak_core.studies.cafe_attacks import (
    BATCHES,
    GRANTED,
    LOSSES,
    MANY,
    METHODS,
    ONE,
    RATIO,
    SHOWN,
    SPARSE,
    VARIANTS,
    VERTICAL_RATIO,
    WHOLE,
    WITHOUT_Z,
)
from gleak_core.studies.cafe_learning import ATTACKS, EACH, ITEMS, RATES, ROUNDS, STEP
from gleak_core.studies.cafe_learning import SHOWN as ROUNDS_SHOWN
from gleak_core.studies.cafe_pools import (
    BATCH,
    BLOCK,
    EPOCHS,
    HORIZONTAL,
    JOINT,
    KNOWN,
    OURS,
    PUBLISHED,
    RATE,
    SHORT,
    SINGLE,
    VERTICAL,
    WORKERS,
    reads,
)
from gleak_core.studies.cafe_rates import SLOW
from gleak_core.studies.study import Cell, Study, declared, grid
from gleak_core.studies.trials import SHARED

__all__ = ["INSTEAD", "STAND_INS", "STUDIES"]

_BY = f"{OURS}, which is not the source's attack"
INSTEAD = {
    "cafe.scale": _BY,
    "cafe.table4": _BY,
    "cafe.fig5": "by the first term of the source's attack alone",
}

FORTY = 40  # trials: fewer cannot show that nine pictures in ten leak

# One CPU core, measured.
_MS = 7e-3  # seconds: a picture and an evaluation of the whole gradient, in a batch
_ALONE = 40e-3  # and by itself
_FIT = 1.5e-3  # of the first part of the network alone
_ITEM = 0.04  # seconds: a picture in a pool's linear systems

DATASETS = ("CIFAR-10", "CIFAR-100", "Linnaeus")
BOTH = (PUBLISHED, OURS)


def _shot(items: float, block: int = BLOCK) -> float:
    """The share of the linear systems of a pool, and the fit of one picture by itself."""
    return _ITEM * items / block + EPOCHS * _FIT


def _joint(pictures: int, steps: float = SHORT) -> float:
    """The share of a run that matches all pictures of a pool together."""
    return steps * pictures * _MS / MANY


def _leak(cell: Cell, batch: int, *, ratio: float = RATIO) -> float:
    if cell.get("attack", PUBLISHED) == PUBLISHED:
        return _joint(BATCHES * batch, JOINT if batch == BATCH else SHORT)
    own = batch / WORKERS if cell.get("protocol", HORIZONTAL) == HORIZONTAL else batch
    return _shot(own / ratio)


def _method(cell: Cell) -> float:
    forty = cell["method"] in (METHODS[1], GRANTED, ONE)
    return _joint(BATCH, JOINT) if forty else _leak(cell, BATCH)


def _speed(cell: Cell) -> float:
    return SINGLE * _ALONE if cell["method"] == "DLG" else _leak(cell, int(cell["batch"]))


def _loss(cell: Cell) -> float:
    to_the_end = ("CAFE", "full", "no internal representation")
    of_cafe = cell.get("loss", cell.get("variant")) in to_the_end
    return _joint(BATCHES * BATCH, JOINT if of_cafe else SHORT)


def _horizontal(cell: Cell) -> float:
    return _leak(cell, WORKERS * int(cell["batch"]))


def _vertical(cell: Cell) -> float:
    vertical = {**cell, "protocol": VERTICAL}
    return _leak(vertical, int(cell["batch"]), ratio=VERTICAL_RATIO)


def _pool(cell: Cell) -> float:
    if cell["attack"] == OURS:
        return _shot(WHOLE[str(cell["protocol"])])
    return 2 * _joint(SPARSE)  # small batches: a message costs something by itself


def _epoch(cell: Cell) -> float:
    return _leak(cell, BATCH) * int(cell["epoch"]) / JOINT


def _at_forty(cell: Cell) -> float:
    return _leak(cell, BATCH)


def _learning(cell: Cell) -> float:
    learnt = ROUNDS * EACH * _MS / BLOCK
    if cell["attack"] != ATTACKS[0]:
        return learnt + EPOCHS * _FIT
    return learnt * (1 + int(cell["inner_steps"])) * int(cell["rounds"]) / ROUNDS


def _scale(cell: Cell) -> float:
    return _shot(int(cell["pictures"]), block=SHARED)


def _inputs(cell: Cell) -> float:
    items = int(cell["batch"]) / RATIO if cell["updates"] == "many" else 1
    return 0.05 + _ITEM * items / (1 if cell["batch"] == 1 else BLOCK)


_PHOTOGRAPHS = (
    "The embedded photographs stand in for Linnaeus 5 where its folder is missing: 240 crops of "
    "ten classes, and where a pool is larger the same mirrored and turned."
)
_NET = (
    "The paper gives neither activation nor kernels, strides or weights: ours are ReLU, 5×5, a "
    "stride of 2 in either convolution, and PyTorch's default weights."
)
_ALGEBRA = (
    f"{OURS.capitalize()} is not the paper's attack: nothing is matched. The inputs of the first "
    "fully connected layer come from two linear systems, and each picture is found from its own by "
    f"L-BFGS in {EPOCHS} evaluations. It takes twice as many messages as there are pictures, and "
    "two to four epochs more, of batches that are drawn anew; in the horizontal protocol those of "
    "one worker, of whom the run attacks one: a mean over four takes a further step "
    "(counters.pool)."
)
_MATCHED = (
    f"{PUBLISHED.capitalize()}, a pool is {BATCHES} messages' pictures instead of the paper's five "
    "or ten. Its batches are dealt anew five times, and these deals repeated.",
    f"Every picture gets {JOINT} steps instead of 800 epochs where a table shows the end of an "
    f"attack on {BATCH} pictures at a time. Tables that hold batches or losses against each other "
    f"do so after {SHORT} steps, for all alike: with more a large pool takes hours. Where a run "
    "is looked at before its end, whether it is solved is said of the end.",
    "The attacker is given the labels, which he could read.",
    "The inputs of the first fully connected layer, which the paper says can be derived, come from "
    "two linear systems over further messages of each worker.",
    "The paper gives no weights: at the start the inputs' term is as large as the distance, "
    f"whichever that is, and total variation a hundredth of it; ξ is the mean of {KNOWN} other "
    "pictures of the set.",
    "The descent is Adam's at a constant rate, and the last pictures are judged: the paper says "
    f"normalised, and no more. In {SHORT} steps the rate is {RATE:g}, and so in Table 1a; where "
    f"another table shows the end of an attack it is {SLOW:g}, the best of three (matching.rate, "
    f"on the same pictures). DLG has {RATE:g}.",
)
_PICTURES = (
    f"A trial is a picture, and {MANY} ({PUBLISHED}) or {BLOCK} of them come out of one run, with "
    "one network: the interval treats them as if each had its own. Tables that ask for the same "
    "runs show the same runs, and each says what its own would take, up to where it looks."
)
_DLG = (
    f"DLG descends by Adam for {SINGLE} steps, from U(0,1) and with its labels to be found, on one "
    f"message over {BATCH} pictures: every other one of CAFE's pool, and so all that are judged."
)
_CAFE = (_NET, _ALGEBRA, *_MATCHED, _PICTURES)


def _with_smaller(study: Study) -> Study:
    """Return a study whose smaller profiles have a cell of linear algebra; quick, one matched too.

    A run that is matched takes minutes, however few of its pictures are trials.
    """
    solved = [c for c in study.cells if c.get("attack") in (OURS, *ATTACKS[1:])][:1]
    matched = [c for c in study.cells if c not in solved and c.get("attack") != OURS][:1]
    return replace(
        study, reduced={"smoke": tuple(solved or matched), "quick": tuple(solved + matched)}
    )


_STUDIES: tuple[Study, ...] = (
    declared(
        "cafe.fig1",
        cells=grid(method=METHODS[:1], attack=BOTH)
        + grid(method=(*METHODS[1:], GRANTED, ONE, WITHOUT_Z), attack=(PUBLISHED,)),
        measure=cafe_rates.by_method,
        reads=("cifar10",),
        block=MANY,
        reading={"attack": PUBLISHED},
        seconds=_method,
        paper=FORTY,
        deviations=(
            *_CAFE,
            _DLG,
            "Three rows are ours. DLG with its labels granted is what iDLG could reach at best: "
            "its rule finds the label of a single picture. One message with labels and Z is the "
            "whole loss of CAFE on DLG's message, with an oracle for Z. CAFE without Z has the "
            "messages alone.",
        ),
    ),
    declared(
        "cafe.table1a",
        cells=grid(method=("DLG",), batch=(1,), dataset=DATASETS, attack=(PUBLISHED,))
        + grid(method=("CAFE",), batch=(40, 80, 120, 160), dataset=DATASETS, attack=BOTH),
        measure=cafe_attacks.speed,
        reads=reads,
        block=MANY,
        reading={"attack": PUBLISHED},
        seconds=_speed,
        deviations=(
            *_CAFE,
            _PHOTOGRAPHS,
            f"DLG descends by Adam for at most {SINGLE} steps, on a picture and a network for each "
            "trial.",
            "CAFE's iterations are the steps until a picture exceeds 30 dB, looked at every tenth, "
            "divided by the pictures of a batch, as print suggests: what falls with the batch is "
            "then a quotient. A picture that is never clear counts as "
            f"{SINGLE + 1}, undivided; larger batches than {BATCH} have {SHORT} steps.",
        ),
    ),
    declared(
        "cafe.table1b",
        cells=grid(method=METHODS[:1], dataset=DATASETS, attack=BOTH)
        + grid(method=METHODS[1:], dataset=DATASETS, attack=(PUBLISHED,)),
        measure=cafe_rates.by_method,
        reads=reads,
        block=MANY,
        reading={"attack": PUBLISHED},
        seconds=_method,
        deviations=(*_CAFE, _DLG, _PHOTOGRAPHS),
    ),
    declared(
        "cafe.table2a",
        cells=grid(loss=tuple(LOSSES), dataset=DATASETS),
        measure=cafe_attacks.losses_horizontal,
        reads=reads,
        block=MANY,
        seconds=_loss,
        deviations=(_NET, *_MATCHED, _PICTURES, _PHOTOGRAPHS),
    ),
    declared(
        "cafe.table2b",
        cells=grid(loss=tuple(LOSSES), dataset=DATASETS),
        measure=cafe_attacks.losses_vertical,
        reads=reads,
        block=MANY,
        seconds=_loss,
        deviations=(_NET, *_MATCHED, _PICTURES, _PHOTOGRAPHS),
    ),
    declared(
        "cafe.table3a",
        cells=grid(batch=(10, 20, 30, 40), dataset=DATASETS, attack=BOTH),
        measure=cafe_attacks.batches_horizontal,
        reads=reads,
        block=MANY,
        reading={"attack": PUBLISHED},
        seconds=_horizontal,
        deviations=(*_CAFE, _PHOTOGRAPHS),
    ),
    declared(
        "cafe.table3b",
        cells=grid(batch=(8, 40, 80, 160), dataset=DATASETS, attack=BOTH),
        measure=cafe_attacks.batches_vertical,
        reads=reads,
        block=MANY,
        reading={"attack": PUBLISHED},
        seconds=_vertical,
        deviations=(*_CAFE, _PHOTOGRAPHS),
    ),
    declared(
        "cafe.table4",
        cells=grid(
            protocol=(HORIZONTAL,),
            dataset=("CIFAR-10", "Linnaeus"),
            batch_ratio=(0.1, 0.05, 0.02, 0.01),
            attack=(OURS,),
        )
        + grid(
            protocol=(VERTICAL,),
            dataset=("CIFAR-10",),
            batch_ratio=(0.1, 0.05, 0.02, 0.01),
            attack=(OURS,),
        )
        + grid(
            protocol=(VERTICAL,),
            dataset=("CIFAR-10",),
            batch_ratio=(0.1, 0.02),
            attack=(PUBLISHED,),
        ),
        measure=cafe_attacks.by_ratio,
        reads=reads,
        block=MANY,
        reading={"attack": OURS},
        seconds=_pool,
        deviations=(
            _NET,
            _ALGEBRA,
            "The verdict is that of linear algebra, which takes two messages for each picture "
            f"at any ratio. {PUBLISHED.capitalize()}, the attack has two cells of twelve "
            f"beside it: a vertical pool of {SPARSE} instead of 800, in batches of a tenth, 20, "
            f"and of a fiftieth, 4, and {SHORT} steps. At a fiftieth two epochs are dealt instead "
            "of five: more messages do not fit into memory.",
            *_MATCHED[2:],
            _PICTURES,
            _PHOTOGRAPHS,
        ),
    ),
    declared(
        "cafe.fig3",
        cells=grid(epoch=SHOWN, attack=BOTH),
        measure=cafe_rates.by_epoch,
        reads=lambda _: reads({"dataset": "Linnaeus"}),
        block=MANY,
        reading={"attack": PUBLISHED},
        seconds=_epoch,
        deviations=(
            *_CAFE,
            _PHOTOGRAPHS,
            "An epoch is a step on every picture; by linear algebra an evaluation, of which there "
            f"are {EPOCHS}.",
        ),
    ),
    declared(
        "cafe.fig4",
        cells=grid(protocol=(HORIZONTAL, VERTICAL), dataset=DATASETS, attack=BOTH),
        measure=cafe_rates.ended,
        reads=reads,
        block=MANY,
        reading={"attack": PUBLISHED},
        seconds=_at_forty,
        deviations=(
            *_CAFE,
            _PHOTOGRAPHS,
            f"The loss is what the attack minimises: {OURS}, the distance of the inputs.",
        ),
    ),
    declared(
        "cafe.fig5",
        cells=grid(inner_steps=(1, 10), rate=(1e-2,), attack=ATTACKS[:1], rounds=ROUNDS_SHOWN)
        + grid(inner_steps=(10,), rate=(1e-4, 3e-2), attack=ATTACKS[:1], rounds=(ROUNDS,))
        + grid(inner_steps=(10,), rate=RATES, attack=ATTACKS[1:], rounds=(ROUNDS,)),
        measure=cafe_learning.learning,
        reads=lambda _: reads({"dataset": "Linnaeus"}),
        block=BLOCK,
        reading={"rate": 1e-2, "attack": ATTACKS[0], "rounds": ROUNDS},
        seconds=_learning,
        paper=FORTY,
        deviations=(
            _NET,
            _PICTURES,
            _PHOTOGRAPHS,
            f"The attack runs for {ROUNDS} rounds instead of 1000, on one worker with {ITEMS} "
            f"pictures in batches of {EACH}, whose labels it is given; it matches the gradients "
            "alone, and has no inner steps where it solves all rounds at once.",
            "The rate of the model is not published: at 1e-2, which stands for the figure, the "
            "training loss about halves; others are measured beside, and at 1e-4 the model next to "
            "stands still.",
            f"A step moves a pixel by about {STEP:g}, the better of two (matching.learning, on the "
            "same pictures). Adam begins anew with every round.",
            "Ten inner steps are ten times the steps of one: after 30 rounds they have as many as "
            f"one has after {ROUNDS}, and that row is shown.",
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
            *_MATCHED,
            _PICTURES,
            "The pictures are CIFAR-10's, horizontal: the paper names neither.",
            "The last five variants are ours, and bear on no verdict. Normalised steps of a "
            "constant length have a floor.",
        ),
    ),
    replace(
        declared(
            "cafe.scale",
            cells=grid(pictures=(400, 1000, 2000, 4000, 10_000)),
            measure=cafe_attacks.by_size,
            reads=("cifar10",),
            block=SHARED,
            seconds=_scale,
            paper=FORTY,
            deviations=(
                _NET,
                _ALGEBRA,
                f"All pictures' inputs are recovered; {SHARED} of each run are fitted and judged.",
                _PICTURES,
                "The pictures are CIFAR-10's, in batches of 40: the paper names neither. Where "
                "the set has fewer, mirrored and turned ones follow.",
            ),
        ),
        reduced={name: grid(pictures=(400,)) for name in ("smoke", "quick")},
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
            "Of one gradient every row is divided by its bias, and the quotient nearest to a "
            "picture's inputs is judged: which it is, the attacker is granted.",
            "Many updates are twice as many as there are pictures, and four epochs more, in "
            "batches of known indices that are drawn anew.",
        ),
    ),
)

_FAST = ("cafe.scale", "cafe.z")  # as they are
STUDIES = tuple(study if study.id in _FAST else _with_smaller(study) for study in _STUDIES)
STAND_INS = {
    study.id: {"photographs": "with photographs in place of Linnaeus 5"}
    for study in STUDIES
    if _PHOTOGRAPHS in study.deviations
}
