"""The tables and figures of "Towards general deep leakage" (Geng et al. 2021), as grids."""

from collections.abc import Iterator, Sequence

from gleak_core import clients, labels, metrics, models
from gleak_core.data import Batch
from gleak_core.observation import Observation
from gleak_core.studies.batches import DATASETS, repeated
from gleak_core.studies.study import Cell, Row, Study, grid

__all__ = ["STUDIES"]

BATCH = 16
RULES = {
    "GradInversion": labels.grad_inversion,
    "General leakage": labels.general,
    "bias gradient": labels.bias,
}
WEIGHTS = {"U(±½)": "uniform", "PyTorch's default": "pytorch"}
TRIALS = {"smoke": 2, "quick": 5, "paper": 31}  # 31 batches of 16 give the fractions in print


def table3(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """One label `repetition` + 1 times and the others once, in a batch of 16."""
    more = int(cell["repetition"])
    times = (more + 1, *[1] * (BATCH - more - 1))
    for seed in seeds:
        batch, seen = _message(cell, times, seed, device)
        accuracy = _accuracy(seen, str(cell["method"]), batch)
        yield _row(accuracy=accuracy)


def table4(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Every label `rep_amount` times, read by the paper's rule and by our refinement of it."""
    times = (int(cell["rep_amount"]),) * (int(cell["batch"]) // int(cell["rep_amount"]))
    for seed in seeds:
        batch, seen = _message(cell, times, seed, device)
        accuracy = _accuracy(seen, "General leakage", batch)
        yield _row(accuracy=accuracy, accuracy_bias=_accuracy(seen, "bias gradient", batch))


def _message(cell: Cell, times: Sequence[int], seed: int, device: str) -> tuple[Batch, Observation]:
    """Return a batch and its gradient on a LeNet of its own that nobody has trained."""
    batch = repeated(str(cell["dataset"]), times, seed=seed)
    channels, size = batch.images.shape[1:3]
    init = WEIGHTS[str(cell["weights"])]
    net = models.lenet(len(batch.classes), channels, size, init=init, seed=seed).to(device)
    return batch, clients.fedsgd(net, batch.to(device))


def _accuracy(seen: Observation, rule: str, batch: Batch) -> float:
    """Return the share of labels that a rule reads off a message, in per cent."""
    return 100 * float(metrics.label_accuracy(RULES[rule](seen)[0].cpu(), batch.labels))


def _row(**accuracies: float) -> Row:
    whole = accuracies["accuracy"] == 100
    return {**accuracies, "status": "solved" if whole else "failed", "evaluations": 1}


def _reads(cell: Cell) -> tuple[str, ...]:
    return (DATASETS[str(cell["dataset"])],)


def _seconds(cell: Cell) -> float:
    """One CPU core, measured."""
    batch = int(cell.get("batch", BATCH))
    return 2.0 + 0.027 * batch if cell["dataset"] == "ImageNet" else 0.033 + 3e-4 * batch


_DEVIATIONS = (
    "The network is DLG's LeNet with sigmoids, new for every trial. Its weights come from U(±½), "
    "as DLG's do: the paper says LeNet and no more. PyTorch's default weights are measured beside.",
    "Our ImageNet holds one picture of each of 800 classes, so a label that repeats is a run of "
    "neighbouring classes taken as one; the last layer keeps 800 outputs.",
    "The probabilities are estimated with 64 dummy images from U(0,1): the paper feeds dummy data "
    "and does not say which.",
)

STUDIES: tuple[Study, ...] = (
    Study(
        id="gen.table3",
        title="Label accuracy when one label repeats",
        metrics=("accuracy",),
        cells=grid(
            method=RULES,
            repetition=range(9),
            network=("untrained",),
            dataset=("ImageNet",),
            weights=WEIGHTS,
        ),
        reduced={
            "smoke": grid(
                method=RULES,
                repetition=(0, 4, 8),
                network=("untrained",),
                dataset=("faces",),
                weights=("U(±½)",),
            )
        },
        measure=table3,
        reads=_reads,
        reading={"dataset": "ImageNet", "weights": "U(±½)"},
        seconds=_seconds,
        trials=TRIALS,
        block=8,
        deviations=_DEVIATIONS,
        chapter="03_general",
    ),
    Study(
        id="gen.table4",
        title="Label accuracy in large batches in which every label repeats",
        metrics=("accuracy", "accuracy_bias"),
        cells=grid(
            dataset=("CIFAR-10", "ImageNet"),
            rep_amount=(2, 4),
            batch=(4, 8, 16, 32, 64, 128, 256),
            network=("untrained",),
            weights=WEIGHTS,
        ),
        reduced={
            "smoke": grid(
                dataset=("photographs",),
                rep_amount=(2, 4),
                batch=(4, 16, 64),
                network=("untrained",),
                weights=("U(±½)",),
            )
        },
        measure=table4,
        reads=_reads,
        reading={"weights": "U(±½)"},
        seconds=_seconds,
        trials=TRIALS,
        block=8,
        deviations=(
            *_DEVIATIONS,
            "CIFAR-10 has ten labels, too few for batches above 20 (two of each) and above 40 "
            "(four of each): there the labels start again from the first.",
        ),
        chapter="03_general",
    ),
)
