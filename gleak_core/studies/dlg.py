"""Grids of a critique of "Deep leakage from gradients"."""

from gleak_core.studies.batches import DATASETS
from gleak_core.studies.cost import (
    EVALUATIONS,
    TRAINING,
    WIDE,
    share_of_training,
)
from gleak_core.studies.dlg_attacks import (
    ABREAST,
    EFFORT,
    JUDGED,
    batches,
    data_sets,
    deeper,
    filmstrip,
    known_labels,
    sizes,
)
from gleak_core.studies.dlg_defences import STAGES, TOLD, defended, pruned, while_training
from gleak_core.studies.dlg_doubts import lockstep, prior_knowledge, threat
from gleak_core.studies.dlg_text import sentence
from gleak_core.studies.study import Cell, Study, declared, grid
from gleak_core.studies.trials import BUDGET, INNER, ITERATIONS, SHARED

__all__ = ["STUDIES"]

SIDE = 32  # of a picture, in all but one of these studies
WIDTHS = (12, 48)
TRIALS = 40  # fewer cannot show that at most one picture in ten leaks, or at least nine do

# One CPU core, measured with the state of L-BFGS, twenty trials side by side.
_PUBLISHED = 6.0  # seconds: DLG's 300 steps with a history of 100, to the end or to its failure
_OURS_TAKES = 2.5  # seconds: our recipe, of whose 3000 evaluations most trials need most
_BATCH_MS = {1: 0.9, 2: 2.4, 4: 4.5, 8: 8.0, 16: 16.0, 32: 33.0}  # an evaluation of a batch
_SIDE_MS = {32: 0.9, 64: 3.3, 128: 12.0}
_WIDE_MS = {64: 16.0, 128: 90.0}  # with 48 channels
_WIDE_BATCH = 4.0  # times the cost
_RESNET_MS = {"ResNet-20": 75.0, "ResNet-56": 220.0}  # in float32
_BERT_MS, _BERT_ITERATIONS = 4.0, 900  # two layers of 128, 16 tokens
_EPOCH = TRAINING / 30  # seconds
_GRADIENT = 0.01  # seconds: a network, a picture and its gradient
_SHADOWS = 2.0  # seconds: gradients and classifier of property inference, shared like a training


def _one_picture(cell: Cell) -> float:
    return _PUBLISHED * (WIDE if cell.get("width") == WIDTHS[1] else 1)


def _resnet(cell: Cell) -> float:
    """What a picture costs: one evaluation is of a whole batch, of which several are judged."""
    batch = int(cell["batch"])
    evaluations = ITERATIONS * batch / min(batch, JUDGED)
    slower = 3 if cell["numbers"] == _NUMBERS[1] else 1
    return slower * evaluations * _RESNET_MS[str(cell["network"])] / 1000


def _batch(cell: Cell) -> float:
    batch, wide = int(cell["batch"]), cell["width"] == WIDTHS[1]
    evaluations = int(cell["budget"]) * INNER / min(batch, JUDGED)
    return evaluations * _BATCH_MS[batch] * (_WIDE_BATCH if wide else 1) / 1000


def _resolution(cell: Cell) -> float:
    side, wide = int(cell["resolution"]), cell["width"] == WIDTHS[1]
    steps = EFFORT[side][0] / (4 if wide else 1)
    return steps * (_WIDE_MS if wide else _SIDE_MS)[side] / 1000


def _bert(cell: Cell) -> float:
    size = int(cell["layers"]) / 2 * int(cell["width"]) / 128 * int(cell["length"]) / 16
    return _BERT_ITERATIONS * EVALUATIONS * _BERT_MS / 1000 * size


def _defended(cell: Cell) -> float:
    """What an accuracy costs is told with the attack: another attacker needs no other training."""
    known = cell.get("attacker") == _ATTACKERS[1]
    return _OURS_TAKES + (0 if known else share_of_training(TOLD))


def _stage(cell: Cell) -> float:
    return _OURS_TAKES + int(cell["epochs"]) * _EPOCH / SHARED


def _property(cell: Cell) -> float:
    return _OURS_TAKES if cell["method"] == "DLG" else _SHADOWS


def _labels(cell: Cell) -> float:
    return _PUBLISHED / 2 if cell["method"] == "DLG" else _GRADIENT


def _lockstep(cell: Cell) -> float:
    turns = 2 if cell["update"] == "round robin" else 1  # an update there moves one of the two
    return turns * _OURS_TAKES  # two pictures of half the side


def _named(cell: Cell) -> tuple[str, ...]:
    return (DATASETS[str(cell["dataset"])],)


_BLOCK = SHARED
_STARTS = ("N(0,1)", "U(0,1)")
_DATASETS = ("MNIST", "CIFAR-100", "SVHN", "LFW")
_ATTACKERS = ("as published", "mask-aware")
_PRIORS = ("none", "TV")
_NUMBERS = ("float32", "float64")
_BUDGETS = (BUDGET // INNER, 4 * BUDGET // INNER)  # iterations of 20 evaluations
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
_OURS = (
    "The attack is DLG in our recipe, the stronger one: from U(0,1), with an L-BFGS that shortens "
    "a step which raises the loss, for at most 3000 evaluations. DLG's own takes 6000."
)
_PICTURE = (
    f"A trial is another picture; {SHARED} trials share a network, and others have another one: "
    "the source shows single pictures."
)
_TRAINED = (
    f"The network whose accuracy is told is another one than the attacked one, which hardly "
    "learns: a LeNet of 16 channels with ReLU, trained by four clients on 3660 pictures of "
    f"CIFAR-10 for 15 epochs. {TOLD} trials share a training: an interval of the accuracy is "
    "narrower than that many trainings would give."
)
_RATE = (
    "A trial of a batch judges one picture of it, so that a rate of pictures is one of trials: up "
    "to eight come from the same batch."
)
_CIFAR = f"The pictures are CIFAR-10's, {SIDE}×{SIDE}: the source names no data set here."
_CIFAR_100 = f"The pictures are CIFAR-100's, {SIDE}×{SIDE}: the source says CIFAR."
_SVHN = "SVHN is measured where it is at hand."


def _around(base: Cell, /, **others: tuple[str | int | float, ...]) -> tuple[Cell, ...]:
    """Return the cell `base`, and those in which one of its parameters has another value."""
    return base, *({**base, key: value} for key, values in others.items() for value in values)


STUDIES: tuple[Study, ...] = (
    declared(
        "dlg.fig1",
        measure=filmstrip,
        reads=_named,
        block=_BLOCK,
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
            weights=("U(±¼)",),  # of U(±½) the sum of so many inputs saturates
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
        measure=data_sets,
        reads=_named,
        block=_BLOCK,
        cells=grid(dataset=_DATASETS, start=_STARTS),
        reading={"start": _STARTS[0]},
        seconds=_one_picture,
        paper=TRIALS,
        optional={"dataset": ("SVHN",)},
        deviations=(_LENET, _START, _PICTURE, _SVHN),
    ),
    declared(
        "dlg.c2-resnet",
        measure=deeper,
        reads=("cifar100",),
        block=_BLOCK,
        cells=grid(network=("ResNet-20",), batch=(1, 8), variant=("DLG's",), numbers=_NUMBERS[:1])
        + grid(network=("ResNet-20",), batch=(1,), variant=("DLG's",), numbers=_NUMBERS[1:])
        + grid(network=("ResNet-20",), batch=(1,), variant=("standard",), numbers=_NUMBERS[:1])
        + grid(network=("ResNet-56",), batch=(1,), variant=("DLG's",), numbers=_NUMBERS[:1]),
        reading={"numbers": _NUMBERS[0]},
        seconds=_resnet,
        deviations=(
            _OURS,
            "It gets 300 evaluations on a ResNet, and no gradient distance ends it.",
            "The same in float64, client and attacker, is our question.",
            "The pictures are CIFAR-100's for both networks: the source names four data sets for "
            "ResNet-56, and MNIST, SVHN and LFW are left out.",
            "The standard network is a ResNet-20 with single pictures: our question.",
            _RATE,
        ),
    ),
    declared(
        "dlg.c3-batch",
        measure=batches,
        reads=("cifar100",),
        block=ABREAST,
        cells=grid(batch=(1, 2, 4, 8, 16, 32), prior=_PRIORS, width=WIDTHS[:1], budget=_BUDGETS[:1])
        # Is eight a law or a budget? Four times the iterations, then four times the channels.
        + grid(batch=(16,), prior=_PRIORS[1:], width=WIDTHS[:1], budget=_BUDGETS[1:])
        + grid(batch=(8, 16), prior=_PRIORS[1:], width=WIDTHS[1:], budget=_BUDGETS[:1]),
        reading={"prior": _PRIORS[0], "width": WIDTHS[0], "budget": _BUDGETS[0]},
        seconds=_batch,
        paper=TRIALS,
        deviations=(
            _LENET,
            _OURS,
            _CIFAR_100,
            _RATE,
            "An iteration is 20 evaluations, as one of DLG's; the budget is counted in them.",
            f"{ABREAST} trials share a network, their batches attacked side by side.",
        ),
    ),
    declared(
        "dlg.c4-resolution",
        measure=sizes,
        reads=("lfw",),
        block=_BLOCK,
        cells=grid(resolution=(32, 64, 128), prior=_PRIORS, width=WIDTHS[:1])
        + grid(resolution=(64,), prior=_PRIORS[1:], width=WIDTHS[1:]),
        reading={"prior": _PRIORS[0], "width": WIDTHS[0]},
        seconds=_resolution,
        paper=TRIALS,
        deviations=(
            _LENET,
            _OURS,
            "The same network is used at every size, with a longer last layer: a wider one is "
            "measured beside it at 64×64, and not at 128×128, where a trial takes minutes.",
            f"A picture of 128×128 gets {EFFORT[128][0]} evaluations instead of {BUDGET}.",
            "The pictures are LFW's, scaled to each size: the source names no data set here.",
        ),
    ),
    declared(
        "dlg.c5-text",
        measure=sentence,
        reads=(),
        block=_BLOCK,
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
            "The masked words, without their places, are read off the bias gradient of the decoder "
            "instead of being optimised; every masked place becomes [MASK].",
            "The start is small, a tenth of the embeddings' deviation. A trial ends as soon as its "
            "sentence reproduces the gradient of the position embeddings: an attacker sees that.",
        ),
    ),
    declared(
        "dlg.c6-noise",
        measure=defended,
        reads=("cifar10",),
        block=_BLOCK,
        cells=grid(noise=("Gaussian", "Laplacian"), scale=(1e-4, 1e-3, 1e-2, 1e-1), clip=(0,))
        # Differential privacy: an update is clipped to length 1, so the scale multiplies the noise.
        + grid(noise=("Gaussian",), scale=(0.0, 1e-2, 1e-1, 1.0), clip=(1,)),
        reading={"clip": 0},
        seconds=_defended,
        paper=TRIALS,
        deviations=(
            _LENET,
            _OURS,
            _CIFAR,
            _TRAINED,
            "The scale is a standard deviation.",
            "Where updates are clipped, our question, it is to a length of 1 over all layers, and "
            "the attacker is not told.",
        ),
    ),
    declared(
        "dlg.c7-precision",
        measure=defended,
        reads=("cifar10",),
        block=_BLOCK,
        cells=grid(precision=("single", "half", "bfloat16", "int8")),
        seconds=_defended,
        paper=TRIALS,
        deviations=(_LENET, _OURS, _CIFAR, _TRAINED),
    ),
    declared(
        "dlg.c8-pruning",
        measure=pruned,
        reads=("cifar10",),
        block=_BLOCK,
        cells=grid(pruned=(0, 1, 10, 20, 30, 50, 70, 90), attacker=_ATTACKERS[:1])
        + grid(pruned=(20, 50, 70, 90), attacker=_ATTACKERS[1:]),
        seconds=_defended,
        paper=TRIALS,
        deviations=(
            _LENET,
            _OURS,
            _CIFAR,
            _TRAINED,
            "The smallest entries of all layers together are pruned, without error feedback.",
        ),
    ),
    declared(
        "dlg.c9-untrained",
        measure=while_training,
        reads=("cifar10",),
        block=_BLOCK,
        cells=grid(epochs=STAGES),
        seconds=_stage,
        paper=TRIALS,
        deviations=(
            _LENET,
            _OURS,
            _CIFAR,
            f"{SHARED} trials attack the same network, trained on 3660 pictures.",
        ),
    ),
    declared(
        "dlg.c10-prior",
        measure=prior_knowledge,
        reads=("cifar10",),
        block=_BLOCK,
        cells=grid(method=("DLG", "property inference")),
        seconds=_property,
        paper=60,  # a property is right or wrong, and a share of such needs many
        deviations=(
            _LENET,
            _OURS,
            _CIFAR,
            "The property is whether the picture is brighter than the median of its data set: the "
            "background colour that the source names is not annotated.",
            "Property inference is a classifier of gradients, trained on the attacker's own "
            "pictures: the source ran no comparison.",
        ),
    ),
    declared(
        "dlg.w1-lockstep",
        measure=lockstep,
        reads=("cifar10",),
        block=_BLOCK,
        cells=grid(
            update=("joint", "round robin", "independent"),
            starts=("random", "similar", "identical"),
            labels=("different", "same"),
        ),
        reading={"labels": "different"},
        seconds=_lockstep,
        deviations=(
            "The network is DLG's LeNet with weights from U(±¼), and the pictures are CIFAR-10's "
            "at 16×16, so that two of them can be rebuilt from one gradient at all.",
            _OURS,
            "A batch has two pictures, the smallest in which two starts can collapse. Their labels "
            "are given: DLG's joint labels would tell the two dummies apart by themselves.",
            "Similar starts differ by noise of a thousandth of their range: the source gives none.",
            "Different labels stand for the source, which says nothing of labels: the same label "
            "is measured beside them.",
        ),
    ),
    declared(
        "dlg.w2-threat",
        measure=threat,
        reads=("cifar10",),
        block=_BLOCK,
        cells=grid(weights=("exact", "1 step old", "10 steps old", "stale", "wrong", "none")),
        seconds=_one_picture,
        paper=TRIALS,
        deviations=(
            _LENET,
            _OURS,
            _CIFAR,
            "Stale weights are those of one epoch earlier: one and ten steps are measured beside "
            "them, as the source does not discuss them. A step is one of SGD at a rate of 0.02 "
            "with momentum, from the untrained network on.",
        ),
    ),
    declared(
        "dlg.w3-labels",
        measure=known_labels,
        reads=_named,
        block=_BLOCK,
        cells=grid(method=("DLG",), dataset=_DATASETS, start=_STARTS)
        + grid(method=("iDLG",), dataset=_DATASETS, start=_STARTS[:1]),  # it needs no start
        reading={"start": _STARTS[0]},
        seconds=_labels,
        paper=60,  # 79 % is known to ten points only then
        optional={"dataset": ("SVHN",)},
        deviations=(
            _LENET,
            _START,
            _PICTURE,
            "DLG gets half of its budget, 150 iterations: a label is settled before the picture.",
            _SVHN,
        ),
    ),
    declared(
        "dlg.w4-overclaim",
        measure=defended,
        reads=("cifar10",),
        block=_BLOCK,
        cells=grid(pruned=(20, 70), feedback=("on",), attacker=_ATTACKERS)
        + grid(pruned=(20,), feedback=("off",), attacker=_ATTACKERS),
        seconds=_defended,
        paper=TRIALS,
        deviations=(
            _LENET,
            _OURS,
            _CIFAR,
            _TRAINED,
            "The smallest entries of all layers together are pruned.",
        ),
    ),
)
