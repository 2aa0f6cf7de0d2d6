"""Grids of a critique of "Deep leakage from gradients", and what a LeNet costs in any study."""

import numpy as np

from gleak_core.studies.study import Cell, Study, declared, grid

__all__ = ["ITERATIONS", "ONE_PICTURE", "STUDIES", "WIDE", "lenet_seconds", "share_of_training"]

ITERATIONS = 300  # DLG's own budget
SIDE = 32  # of a picture, in all but one of these studies
WIDTHS = (12, 48)
TRIALS = 40  # fewer cannot show that at most one picture in ten leaks, or at least nine do

# One CPU core, measured. Other sizes cost the same for every picture of a batch.
_EVALUATIONS = 1.2  # of L-BFGS in an iteration
_PICTURES, _MS = (1, 4, 16, 64), (0.38, 1.2, 4.4, 19.0)  # a batch at 32×32, one evaluation
_MS_AT = {64: 1.0, 128: 4.1, 224: 12.8}  # one picture
WIDE = 10  # times the cost, for 48 channels in place of 12
ONE_PICTURE = 0.6  # seconds: attacked to the end, in some 1600 evaluations
_RESNET_MS = {"ResNet-20": 60.0, "ResNet-56": 180.0}
_BERT_MS = 4.0  # two layers of 128, 16 tokens
_TRAINING = 60.0  # seconds: a small CNN, to the end, on 4000 pictures
_EPOCH = _TRAINING / 30
_SHARED = 10  # trials that share one trained network
_SHADOWS = 2.0  # seconds: gradients and classifier of property inference, shared like a training


def lenet_seconds(pictures: int = 1, side: int = SIDE, iterations: float = ITERATIONS) -> float:
    """Return what L-BFGS takes to match the gradient of a batch on DLG's LeNet."""
    one = float(np.interp(pictures, _PICTURES, _MS)) if side == SIDE else pictures * _MS_AT[side]
    return iterations * _EVALUATIONS * one / 1000


def share_of_training(trials: int = _SHARED) -> float:
    """Return a trial's share of one training."""
    return _TRAINING / trials


def _one_picture(cell: Cell) -> float:
    return ONE_PICTURE * _wide(cell)


def _wide(cell: Cell) -> float:
    return WIDE if cell.get("width") == WIDTHS[1] else 1


def _resnet(cell: Cell) -> float:
    evaluations = ITERATIONS * _EVALUATIONS * int(cell["batch"])
    return evaluations * _RESNET_MS[str(cell["network"])] / 1000


def _batch(cell: Cell) -> float:
    return lenet_seconds(int(cell["batch"]), iterations=float(cell["budget"])) * _wide(cell)


def _resolution(cell: Cell) -> float:
    return lenet_seconds(1, int(cell["resolution"])) * _wide(cell)


def _bert(cell: Cell) -> float:
    size = int(cell["layers"]) / 2 * int(cell["width"]) / 128 * int(cell["length"]) / 16
    return 4 * ITERATIONS * _EVALUATIONS * _BERT_MS / 1000 * size  # it may need 1200 iterations


def _defended(cell: Cell) -> float:
    return ONE_PICTURE + share_of_training()


def _stage(cell: Cell) -> float:
    return ONE_PICTURE + int(cell["epochs"]) * _EPOCH / _SHARED


def _property(cell: Cell) -> float:
    return ONE_PICTURE if cell["method"] == "DLG" else _SHADOWS


def _lockstep(cell: Cell) -> float:
    turns = 2 if cell["update"] == "round robin" else 1  # an update there moves one of the two
    return turns * lenet_seconds(2)


_STARTS = ("N(0,1)", "U(0,1)")
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
    f"{_SHARED} trials share one trained network, a small CNN on 4000 pictures: an interval of "
    "the accuracy is narrower than that many trainings would give."
)
_RATE = "A trial of a batch judges one picture of it, so that a rate of pictures is one of trials."
_CIFAR = "The pictures are CIFAR-100's, 32×32: the source names no data set here."


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
            width=WIDTHS,
        ),
        reading={"start": "N(0,1)", "weights": "U(±½)", "activation": "sigmoid", "width": 12},
        seconds=_one_picture,
        deviations=(_LENET, _PICTURE),
    ),
    declared(
        "dlg.c1-datasets",
        cells=grid(dataset=("MNIST", "CIFAR-100", "SVHN", "LFW"), start=_STARTS),
        reading={"start": "N(0,1)"},
        seconds=_one_picture,
        paper=TRIALS,
        deviations=(_LENET, _START, _PICTURE),
    ),
    declared(
        "dlg.c2-resnet",
        cells=grid(network=("ResNet-20",), batch=(1, 8), variant=("DLG's",))
        + grid(network=("ResNet-20",), batch=(1,), variant=("standard",))
        + grid(network=("ResNet-56",), batch=(1,), variant=("DLG's", "standard")),
        seconds=_resnet,
        paper=20,
        deviations=(
            "20 trials instead of 25: a batch of 8 on ResNet-20 takes three minutes.",
            "The pictures are CIFAR-100's for both networks: the source names four data sets for "
            "ResNet-56, and MNIST, SVHN and LFW are left out.",
            "The standard ResNet-20 is attacked with single pictures only, as it is our question.",
            _RATE,
        ),
    ),
    declared(
        "dlg.c3-batch",
        cells=grid(
            batch=(1, 2, 4, 8, 16, 32), prior=_PRIORS, width=WIDTHS[:1], budget=(ITERATIONS,)
        )
        # Is eight a law or a budget? Four times the iterations, then four times the channels.
        + grid(batch=(8, 16), prior=_PRIORS, width=WIDTHS[:1], budget=(4 * ITERATIONS,))
        + grid(batch=(1, 2, 4, 8, 16), prior=_PRIORS, width=WIDTHS[1:], budget=(ITERATIONS,)),
        reading={"prior": "none", "width": 12, "budget": ITERATIONS},
        seconds=_batch,
        paper=TRIALS,
        deviations=(_LENET, _START, _CIFAR, _RATE),
    ),
    declared(
        "dlg.c4-resolution",
        cells=grid(resolution=(32, 64, 128), prior=_PRIORS, width=WIDTHS),
        reading={"prior": "none", "width": 12},
        seconds=_resolution,
        paper=TRIALS,
        deviations=(
            _LENET,
            "The same network is used at every size, with a longer last layer: a wider one is "
            "measured beside it.",
            "The pictures are the embedded photographs, the only ones here of 128×128 with labels "
            "that repeat.",
        ),
    ),
    declared(
        "dlg.c5-text",
        cells=_around(
            _SENTENCE,
            embeddings=("shared",),
            layers=(1, 4, 8),
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
        cells=grid(noise=("Gaussian", "Laplacian"), scale=(0.0, 1e-4, 1e-3, 1e-2, 1e-1)),
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
        cells=grid(pruned=(0, 1, 10, 20, 30, 50, 70, 90), attacker=_ATTACKERS),
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
        deviations=(_LENET, _CIFAR, f"{_SHARED} trials attack the same trained network."),
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
        paper=50,
        deviations=(
            _LENET,
            "Stale weights are those of one epoch earlier: one and ten steps are measured beside "
            "them, as the source does not discuss them.",
        ),
    ),
    declared(
        "dlg.w3-labels",
        cells=grid(
            method=("DLG", "iDLG"), dataset=("MNIST", "CIFAR-100", "SVHN", "LFW"), start=_STARTS
        ),
        reading={"start": "N(0,1)"},
        seconds=_one_picture,
        paper=100,  # 79 % is known to ten points only then
        deviations=(_LENET, _START),
    ),
    declared(
        "dlg.w4-overclaim",
        cells=grid(pruned=(20, 70), feedback=("on", "off"), attacker=_ATTACKERS),
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
