"""Grids of a critique of "Deep leakage from gradients"."""

from gleak_core.studies.cost import (
    EVALUATIONS,
    ITERATIONS,
    ONE_PICTURE,
    SHARED,
    TRAINING,
    WIDE,
    lenet_seconds,
    share_of_training,
)
from gleak_core.studies.study import Cell, Study, declared, grid

__all__ = ["STUDIES"]

SIDE = 32  # of a picture, in all but one of these studies
WIDTHS = (12, 48)
TRIALS = 40  # fewer cannot show that at most one picture in ten leaks, or at least nine do

# One CPU core, measured.
_RESNET_MS = {"ResNet-20": 60.0, "ResNet-56": 180.0}
_BERT_MS, _BERT_ITERATIONS = 4.0, 900  # two layers of 128, 16 tokens
_EPOCH = TRAINING / 30  # seconds
_GRADIENT = 0.01  # seconds: a network, a picture and its gradient
_SHADOWS = 2.0  # seconds: gradients and classifier of property inference, shared like a training


def _one_picture(cell: Cell) -> float:
    return ONE_PICTURE * _wide(cell)


def _wide(cell: Cell) -> float:
    return WIDE if cell.get("width") == WIDTHS[1] else 1


def _resnet(cell: Cell) -> float:
    evaluations = ITERATIONS * EVALUATIONS * int(cell["batch"])
    return evaluations * _RESNET_MS[str(cell["network"])] / 1000


def _batch(cell: Cell) -> float:
    return lenet_seconds(int(cell["batch"]), iterations=float(cell["budget"])) * _wide(cell)


def _resolution(cell: Cell) -> float:
    return lenet_seconds(1, int(cell["resolution"])) * _wide(cell)


def _bert(cell: Cell) -> float:
    size = int(cell["layers"]) / 2 * int(cell["width"]) / 128 * int(cell["length"]) / 16
    return _BERT_ITERATIONS * EVALUATIONS * _BERT_MS / 1000 * size


def _defended(cell: Cell) -> float:
    """What an accuracy costs is told with the attack: another attacker needs no other training."""
    known = cell.get("attacker") == _ATTACKERS[1]
    return ONE_PICTURE + (0 if known else share_of_training())


def _stage(cell: Cell) -> float:
    return ONE_PICTURE + int(cell["epochs"]) * _EPOCH / SHARED


def _property(cell: Cell) -> float:
    return ONE_PICTURE if cell["method"] == "DLG" else _SHADOWS


def _labels(cell: Cell) -> float:
    return ONE_PICTURE if cell["method"] == "DLG" else _GRADIENT


def _lockstep(cell: Cell) -> float:
    turns = 2 if cell["update"] == "round robin" else 1  # an update there moves one of the two
    return turns * lenet_seconds(2)


_STARTS = ("N(0,1)", "U(0,1)")
_DATASETS = ("MNIST", "CIFAR-100", "SVHN", "LFW")
_ATTACKERS = ("as published", "mask-aware")
_PRIORS = ("none", "TV")
_SENTENCE = {
    "model": "BERT",
    "embeddings": "withheld",
    "layers": 2,
    "width": 128,
    "length": 16,
    "vocabulary": 1000,
    "init_range": 0.1,
}

_LENET = (
    "The network is LeNet with 12-12-12 channels and sigmoids, its weights from U(±½), as in the "
    "code of DLG: the critique gives neither."
)
_START = "The start is N(0,1), as DLG's: U(0,1) is measured beside it where the start is varied."
_PICTURE = "A trial is another picture on another network: the source shows single pictures."
_TRAINED = (
    f"{SHARED} trials share one trained network, a small CNN on 4000 pictures: an interval of "
    "the accuracy is narrower than that many trainings would give."
)
_RATE = "A trial of a batch judges one picture of it, so that a rate of pictures is one of trials."
_CIFAR = f"The pictures are CIFAR-100's, {SIDE}×{SIDE}: the source names no data set here."


def _around(base: Cell, /, **others: tuple[str | int | float, ...]) -> tuple[Cell, ...]:
    """Return the cell `base`, and those in which one of its parameters has another value."""
    return base, *({**base, key: value} for key, values in others.items() for value in values)


STUDIES: tuple[Study, ...] = (
    declared(
        "dlg.fig1",
        cells=grid(
            network=("LeNet",),
            dataset=("CIFAR-10",),
            start=_STARTS,
            weights=("U(±½)", "U(±¼)", "PyTorch's default"),
            activation=("sigmoid", "ReLU"),
            width=WIDTHS[:1],
        )
        + grid(
            network=("LeNet",),
            dataset=("CIFAR-10",),
            start=_STARTS,
            weights=("U(±½)", "U(±¼)"),
            activation=("sigmoid",),
            width=WIDTHS[1:],
        ),
        reading={
            "start": _STARTS[0],
            "weights": "U(±½)",
            "activation": "sigmoid",
            "width": WIDTHS[0],
        },
        seconds=_one_picture,
        deviations=(_LENET, _PICTURE),
    ),
    declared(
        "dlg.c1-datasets",
        cells=grid(dataset=_DATASETS, start=_STARTS),
        reading={"start": _STARTS[0]},
        seconds=_one_picture,
        paper=TRIALS,
        deviations=(_LENET, _START, _PICTURE),
    ),
    declared(
        "dlg.c2-resnet",
        cells=grid(network=("ResNet-20",), batch=(1, 8), variant=("DLG's",))
        + grid(network=("ResNet-20",), batch=(1,), variant=("standard",))
        + grid(network=("ResNet-56",), batch=(1,), variant=("DLG's",)),
        seconds=_resnet,
        paper=20,
        deviations=(
            "20 trials instead of 25: a batch of 8 on ResNet-20 takes three minutes.",
            "The pictures are CIFAR-100's for both networks: the source names four data sets for "
            "ResNet-56, and MNIST, SVHN and LFW are left out.",
            "The standard network is a ResNet-20 with single pictures: our question.",
            _RATE,
        ),
    ),
    declared(
        "dlg.c3-batch",
        cells=grid(
            batch=(1, 2, 4, 8, 16, 32), prior=_PRIORS, width=WIDTHS[:1], budget=(ITERATIONS,)
        )
        # Is eight a law or a budget? Four times the iterations, then four times the channels.
        + grid(batch=(16,), prior=_PRIORS, width=WIDTHS[:1], budget=(4 * ITERATIONS,))
        + grid(batch=(8, 16), prior=_PRIORS[1:], width=WIDTHS[1:], budget=(ITERATIONS,)),
        reading={"prior": _PRIORS[0], "width": WIDTHS[0], "budget": ITERATIONS},
        seconds=_batch,
        paper=TRIALS,
        deviations=(_LENET, _START, _CIFAR, _RATE),
    ),
    declared(
        "dlg.c4-resolution",
        cells=grid(resolution=(32, 64, 128), prior=_PRIORS, width=WIDTHS[:1])
        + grid(resolution=(64, 128), prior=_PRIORS[1:], width=WIDTHS[1:]),
        reading={"prior": _PRIORS[0], "width": WIDTHS[0]},
        seconds=_resolution,
        paper=TRIALS,
        deviations=(
            _LENET,
            "The same network is used at every size, with a longer last layer: a wider one is "
            "measured beside it.",
            "The pictures are LFW's, scaled to each size: the source names no data set here.",
        ),
    ),
    declared(
        "dlg.c5-text",
        cells=_around(
            _SENTENCE,
            embeddings=("shared",),
            layers=(1, 4),
            width=(64, 256),
            length=(8, 32),
            vocabulary=(5000,),
            init_range=(0.02, 0.05),
        ),
        reading={key: _SENTENCE[key] for key in _SENTENCE if key not in ("model", "embeddings")},
        seconds=_bert,
        deviations=(
            "The model is a BERT of 2 layers and 128 features with a vocabulary of 1000 words, "
            "untrained: the source gives no size, and a BERT of full size does not fit.",
            "Its initial weights have a deviation of 0.1: BERT's own 0.02 is measured beside it.",
            "The private text is a paragraph of ours, 16 words at a time.",
        ),
    ),
    declared(
        "dlg.c6-noise",
        cells=grid(noise=("Gaussian", "Laplacian"), scale=(1e-4, 1e-3, 1e-2, 1e-1)),
        seconds=_defended,
        paper=TRIALS,
        deviations=(_LENET, _CIFAR, _TRAINED, "The scale is a standard deviation."),
    ),
    declared(
        "dlg.c7-precision",
        cells=grid(precision=("single", "half", "bfloat16", "int8")),
        seconds=_defended,
        paper=TRIALS,
        deviations=(_LENET, _CIFAR, _TRAINED),
    ),
    declared(
        "dlg.c8-pruning",
        cells=grid(pruned=(0, 1, 10, 20, 30, 50, 70, 90), attacker=_ATTACKERS[:1])
        + grid(pruned=(20, 50, 70, 90), attacker=_ATTACKERS[1:]),
        seconds=_defended,
        paper=TRIALS,
        deviations=(
            _LENET,
            _CIFAR,
            _TRAINED,
            "The smallest entries of all layers together are pruned, without error feedback.",
        ),
    ),
    declared(
        "dlg.c9-untrained",
        cells=grid(epochs=(0, 1, 2, 5, 10, 30)),
        seconds=_stage,
        paper=TRIALS,
        deviations=(_LENET, _CIFAR, f"{SHARED} trials attack the same trained network."),
    ),
    declared(
        "dlg.c10-prior",
        cells=grid(method=("DLG", "property inference")),
        seconds=_property,
        paper=100,  # a property is right or wrong, and a share of such needs many
        deviations=(
            _LENET,
            "The property is whether the picture is brighter than the median of its data set: the "
            "background colour that the source names is not annotated.",
            "Property inference is a classifier of gradients, trained on the attacker's own "
            "pictures: the source ran no comparison.",
        ),
    ),
    declared(
        "dlg.w1-lockstep",
        cells=grid(
            update=("joint", "round robin", "independent"),
            starts=("random", "similar", "identical"),
            labels=("different", "same"),
        ),
        reading={"labels": "different"},
        seconds=_lockstep,
        paper=50,
        deviations=(
            _LENET,
            "A batch has two pictures, the smallest in which two starts can collapse.",
            "Similar starts differ by noise of a thousandth of their range: the source gives none.",
            "Different labels stand for the source, which says nothing of labels: the same label "
            "is measured beside them.",
        ),
    ),
    declared(
        "dlg.w2-threat",
        cells=grid(weights=("exact", "1 step old", "10 steps old", "stale", "wrong", "none")),
        seconds=_one_picture,
        paper=100,  # of so many, four may leak where at most one in ten may
        deviations=(
            _LENET,
            "Stale weights are those of one epoch earlier: one and ten steps are measured beside "
            "them, as the source does not discuss them.",
        ),
    ),
    declared(
        "dlg.w3-labels",
        cells=grid(method=("DLG",), dataset=_DATASETS, start=_STARTS)
        + grid(method=("iDLG",), dataset=_DATASETS, start=_STARTS[:1]),  # it needs no start
        reading={"start": _STARTS[0]},
        seconds=_labels,
        paper=100,  # 79 % is known to ten points only then
        deviations=(_LENET, _START),
    ),
    declared(
        "dlg.w4-overclaim",
        cells=grid(pruned=(20, 70), feedback=("on",), attacker=_ATTACKERS)
        + grid(pruned=(20,), feedback=("off",), attacker=_ATTACKERS),
        seconds=_defended,
        paper=TRIALS,
        deviations=(
            _LENET,
            _CIFAR,
            _TRAINED,
            "The smallest entries of all layers together are pruned.",
        ),
    ),
)
