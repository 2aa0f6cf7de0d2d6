"""The tables and figures of "Towards general deep leakage" (Geng et al. 2021), as grids."""

from collections.abc import Iterator, Sequence

import torch

from gleak_core import clients, labels, metrics, models
from gleak_core.observation import Observation
from gleak_core.studies.batches import DATASETS, repeated
from gleak_core.studies.study import Cell, Row, Study, grid

__all__ = ["STUDIES"]

BATCH = 16
_RULES = {
    "GradInversion": labels.grad_inversion,
    "General leakage": labels.general,
    "bias gradient": labels.bias,
}
_NETWORK = (
    "The network is DLG's LeNet, sigmoids and all weights from U(±½), new for every trial: the "
    "paper says LeNet and no more."
)
_GROUPS = (
    "Our ImageNet holds one picture of each of 800 classes, so a label that repeats is a run of "
    "neighbouring classes taken as one; the last layer keeps 800 outputs."
)
_DUMMIES = (
    "The probabilities are estimated with 64 dummy images from U(0,1): the paper feeds dummy data "
    "and does not say which."
)


def _label_row(seen: Observation, rule: str, true: Sequence[int]) -> Row:
    """Return the share of labels that a rule reads off a message, in per cent."""
    found = _RULES[rule](seen)
    share = float(metrics.label_accuracy(found[0].cpu(), torch.tensor(true)))
    return {"accuracy": 100 * share, "status": "solved" if share == 1 else "failed",
            "evaluations": 1}  # fmt: skip


def _read_labels(
    dataset: str, times: Sequence[int], rule: str, seeds: Sequence[int], device: str
) -> Iterator[Row]:
    """Share the gradient of one batch of an untrained network, and read the labels off it."""
    for seed in seeds:
        batch = repeated(dataset, times, seed=seed)
        channels, size = batch.images.shape[1:3]
        net = models.lenet(len(batch.classes), channels, size, seed=seed).to(device)
        seen = clients.fedsgd(net, batch.to(device))
        yield _label_row(seen, rule, batch.labels.tolist())


def table3(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """One label `repetition` + 1 times, the others once, in a batch of 16."""
    more = int(cell["repetition"])
    times = (more + 1, *[1] * (BATCH - more - 1))
    return _read_labels(str(cell["dataset"]), times, str(cell["method"]), seeds, device)


def table4(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Every label `rep_amount` times."""
    times = (int(cell["rep_amount"]),) * (int(cell["batch"]) // int(cell["rep_amount"]))
    return _read_labels(str(cell["dataset"]), times, str(cell["rule"]), seeds, device)


def _reads(cell: Cell) -> tuple[str, ...]:
    return (DATASETS[str(cell["dataset"])],)


def _seconds3(cell: Cell) -> float:
    return 0.6 if cell["dataset"] == "ImageNet" else 0.02


def _seconds4(cell: Cell) -> float:
    return (0.2 + 0.03 * int(cell["batch"])) if cell["dataset"] == "ImageNet" else 0.1


TRIALS = {"smoke": 2, "quick": 5, "paper": 31}  # 31 batches of 16 give the paper's fractions

STUDIES: tuple[Study, ...] = (
    Study(
        id="gen.table3",
        title="Label accuracy when one label repeats",
        metrics=("accuracy",),
        cells=grid(
            method=tuple(_RULES),
            repetition=range(9),
            network=("untrained",),
            dataset=("ImageNet",),
        ),
        reduced={
            "smoke": grid(
                method=tuple(_RULES),
                repetition=(0, 4, 8),
                network=("untrained",),
                dataset=("faces",),
            )
        },
        measure=table3,
        reads=_reads,
        reading={"dataset": "ImageNet"},
        seconds=_seconds3,
        trials=TRIALS,
        deviations=(_NETWORK, _GROUPS, _DUMMIES),
        chapter="03_general",
    ),
    Study(
        id="gen.table4",
        title="Label accuracy in large batches in which every label repeats",
        metrics=("accuracy",),
        cells=grid(
            dataset=("CIFAR-10", "ImageNet"),
            rep_amount=(2, 4),
            batch=(4, 8, 16, 32, 64, 128, 256),
            network=("untrained",),
            rule=("General leakage", "bias gradient"),
        ),
        reduced={
            "smoke": grid(
                dataset=("photographs",),
                rep_amount=(2, 4),
                batch=(4, 16, 64),
                network=("untrained",),
                rule=("General leakage", "bias gradient"),
            )
        },
        measure=table4,
        reads=_reads,
        reading={"rule": "General leakage"},
        seconds=_seconds4,
        trials=TRIALS,
        deviations=(
            _NETWORK,
            _GROUPS,
            _DUMMIES,
            "CIFAR-10 has ten labels, too few for batches above 20 (two of each) and 40 (four of "
            "each): there the labels start again from the first, so that each stands as often as "
            "any other.",
        ),
        chapter="03_general",
    ),
)
