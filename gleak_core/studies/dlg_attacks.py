"""How the claims on DLG's attack are measured: pictures, batches, sizes, networks, labels."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from gleak_core import attacks, clients, labels, metrics, models
from gleak_core.data import Batch
from gleak_core.observation import Observation, Reconstruction
from gleak_core.studies.study import Cell, Row
from gleak_core.studies.trials import (
    BUDGET,
    CLOSE,
    INNER,
    ITERATIONS,
    SIDE,
    attempts,
    begin,
    groups,
    ours,
    pictures,
    published,
)

__all__ = ["batches", "data_sets", "deeper", "filmstrip", "known_labels", "sizes"]

JUDGED = 8  # pictures of a batch that count as a trial each
# Weights by name, with the gradient distance (a share of ‖∇W‖²) at which an attack may end: with
# large ones the picture has then leaked; the smaller they are, the less a match says.
WEIGHTS: Mapping[str, tuple[Mapping[str, Any], float]] = {
    "U(±½)": ({"scale": 0.5}, CLOSE),
    "U(±¼)": ({"scale": 0.25}, 1e-8),
    "PyTorch's default": ({"init": "pytorch"}, 1e-12),
}
RANGES = {"N(0,1)": "normal", "U(0,1)": "uniform"}
# TV as a mean, found by trial on other seeds, so that the picture stays sharp.
TV: Mapping[int, float] = {32: 0.01, 64: 0.01, 128: 0.01}


def filmstrip(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """DLG as published on single pictures; the start, the weights and the network vary."""
    yield from _published(cell, seeds, device, "iterations", "mse", "success_rate")


def data_sets(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """The same on several data sets."""
    yield from _published(cell, seeds, device, "mse", "success_rate")


def _published(cell: Cell, seeds: Sequence[int], device: str, *measures: str) -> Iterator[Row]:
    how, stop = WEIGHTS[str(cell.get("weights", "U(±½)"))]
    options = {
        **how,
        "activation": str(cell.get("activation", "sigmoid")).lower(),
        "width": int(cell.get("width", 12)),
    }
    for number, some in groups(seeds):
        batch, seen = _seen(str(cell["dataset"]), some, number, device, **options)
        found = attacks.dlg(
            seen, **published(start=_start(cell, some, batch), stop=stop, seed=number)
        )
        yield from attempts(found, batch, *measures, budget=ITERATIONS, per=INNER)


def known_labels(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """The label that DLG ends with, and the one that iDLG reads off the gradient."""
    for number, some in groups(seeds):
        batch, seen = _seen(str(cell["dataset"]), some, number, device)
        if cell["method"] == "iDLG":
            right = labels.idlg(seen)[:, 0].cpu() == batch.labels
            for good in right.tolist():
                yield {"accuracy": 100.0 * good, "status": "solved", "evaluations": 1}
            continue
        start = _start(cell, some, batch)
        found = attacks.dlg(seen, **published(start=start, stop=CLOSE, seed=number))
        assert found.labels is not None
        right = found.labels[:, 0].cpu() == batch.labels
        for t, good in enumerate(right.tolist()):
            yield {
                "accuracy": 100.0 * good,
                "status": found.status[t],
                "evaluations": int(found.evaluations[t]),
            }


def deeper(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Single pictures and batches on ResNets: DLG's, smooth and without strides, or the usual."""
    smooth = cell["variant"] == "DLG's"
    build = {"ResNet-20": models.resnet20, "ResNet-56": models.resnet56}[str(cell["network"])]
    options: dict[str, Any] = {"stride": False, "norm": "none", "init": "uniform"} if smooth else {}
    for number, some in _batches(cell, seeds):
        batch = pictures("CIFAR-100", _all(cell, number), side=SIDE)
        net = build(
            len(batch.classes), activation="sigmoid" if smooth else "relu", seed=number, **options
        )
        seen = clients.fedsgd(net.to(device), batch.to(device))
        start = begin("uniform", [number], batch.images.shape[1:], batch=len(batch))
        found = attacks.dlg(seen, **ours(steps=ITERATIONS, start=start, seed=number))
        yield from _judged(found, batch, some, cell, "success_rate", "psnr")


def batches(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """The pictures of a batch, attacked together; a trial is one of them."""
    wide = int(cell["width"]) > 12
    options = {"width": int(cell["width"]), "scale": 0.25 if wide else 0.5}
    steps = BUDGET * int(cell["budget"]) // ITERATIONS
    steps = steps // 2 if wide else steps
    for number, some in _batches(cell, seeds):
        batch = pictures("CIFAR-100", _all(cell, number), side=SIDE)
        net = models.lenet(len(batch.classes), seed=number, **options)
        seen = clients.fedsgd(net.to(device), batch.to(device))
        start = begin("uniform", [number], batch.images.shape[1:], batch=len(batch))
        found = attacks.dlg(
            seen,
            **ours(steps=steps, start=start, penalties=_prior(cell, SIDE), seed=number),
        )
        measures = ("success_rate", "iterations", "mse")
        yield from _judged(found, batch, some, cell, *measures, per=INNER, budget=steps // INNER)


def sizes(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Single pictures of LFW at growing sizes."""
    side, wide = int(cell["resolution"]), int(cell["width"]) > 12
    options = {"width": int(cell["width"]), "scale": 0.25 if wide else 0.5}
    steps = BUDGET // (4 if wide else 1)
    for number, some in groups(seeds):
        batch, seen = _seen("LFW", some, number, device, side=side, **options)
        found = attacks.dlg(
            seen,
            **ours(
                steps=steps,
                every=0,  # frames would fill the memory, and no iteration is asked for
                start=begin("uniform", some, batch.images.shape[1:]),
                penalties=_prior(cell, side),
                seed=number,
            ),
        )
        yield from attempts(found, batch, "success_rate", "mse")


def _seen(
    dataset: str, seeds: Sequence[int], number: int, device: str, *, side: int = SIDE, **net: Any
) -> tuple[Batch, Observation]:
    """Return a picture for each seed, and the gradients that a LeNet has at each of them."""
    batch = pictures(dataset, seeds, side=side)
    channels = batch.images.shape[1]
    model = models.lenet(len(batch.classes), channels, side, seed=number, **net).to(device)
    return batch, clients.fedsgd(model, batch.to(device), each=True)


def _start(cell: Cell, seeds: Sequence[int], batch: Batch) -> torch.Tensor:
    return begin(RANGES[str(cell.get("start", "N(0,1)"))], seeds, batch.images.shape[1:])


def _prior(cell: Cell, side: int) -> dict[str, float]:
    return {"tv_mean": TV[side]} if cell["prior"] == "TV" else {}


def _batches(cell: Cell, seeds: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    return groups(seeds, min(JUDGED, int(cell["batch"])))


def _all(cell: Cell, number: int) -> range:
    """Return the seeds of the pictures of a batch, those that are not judged with them."""
    size = int(cell["batch"])
    return range(number * size, (number + 1) * size)


def _judged(
    found: Reconstruction,
    batch: Batch,
    seeds: Sequence[int],
    cell: Cell,
    *measures: str,
    budget: int = 1,
    per: int = 1,
) -> Iterator[Row]:
    """Yield a row for each picture of a batch that stands for a seed."""
    score = metrics.score(found, batch)
    frames = found.history.frames[:, 0].clamp(0, 1)  # (F, B, C, H, W)
    frames = frames[:, score.order[0].to(frames.device)]  # in the order of the private pictures
    whole = replace(
        found,
        images=found.images.transpose(0, 1)[score.order[0].to(found.images.device)],
        history=replace(found.history, frames=frames[:, :, None]),
        labels=None,
        loss=found.loss.expand(len(batch)),
        status=found.status * len(batch),
        evaluations=found.evaluations.expand(len(batch)),
    )
    rows = list(attempts(whole, batch, *measures, budget=budget, per=per))
    judged = min(JUDGED, int(cell["batch"]))
    yield from (rows[seed % judged] for seed in seeds)
