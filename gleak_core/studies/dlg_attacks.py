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
    side_by_side,
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
NARROW = 12  # channels of DLG's LeNet
ABREAST = 40  # trials of a batch that share a network, their batches attacked side by side
# Evaluations and history of L-BFGS by the side of a picture: a larger one costs more of each.
EFFORT: Mapping[int, tuple[int, int]] = {32: (BUDGET, 40), 64: (BUDGET, 20), 128: (1600, 20)}
# TV as a mean, by the side: the best of four on other pictures and another network, with batches
# of 1 and 4 at 32×32. A larger picture needs more: its gradient is longer, and it is smoother.
TV: Mapping[int, float] = {32: 0.05, 64: 5.0, 128: 20.0}


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
        # Half of DLG's budget: the label is settled early, in fewer steps than the picture.
        steps = ITERATIONS // 2 * INNER
        found = attacks.dlg(seen, **published(start=start, steps=steps, stop=CLOSE, seed=number))
        assert found.labels is not None
        right = found.labels[:, 0].cpu() == batch.labels
        for t, good in enumerate(right.tolist()):
            yield {
                "accuracy": 100.0 * good,
                "status": found.status[t],
                "evaluations": int(found.evaluations[t]),
            }


def deeper(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Single pictures and batches on ResNets: DLG's, smooth and without strides, or the usual.

    No gradient distance ends an attack here: on a deep network nearly all of the gradient is the
    last layers', which say little of a picture, and what does is near the rounding of float32.
    """
    smooth, numbers = cell["variant"] == "DLG's", getattr(torch, str(cell["numbers"]))
    build = {"ResNet-20": models.resnet20, "ResNet-56": models.resnet56}[str(cell["network"])]
    options: dict[str, Any] = {"stride": False, "norm": "none", "init": "uniform"} if smooth else {}
    for number, some in _batches(cell, seeds):
        batch = pictures("CIFAR-100", _all(cell, number), side=SIDE)
        batch = replace(batch, images=batch.images.to(numbers))
        net = build(
            len(batch.classes), activation="sigmoid" if smooth else "relu", seed=number, **options
        )
        seen = clients.fedsgd(net.to(device, numbers), batch.to(device))
        start = begin("uniform", [number], batch.images.shape[1:], batch=len(batch)).to(numbers)
        found = attacks.dlg(seen, **ours(steps=ITERATIONS, stop=0.0, start=start, seed=number))
        yield from _judged(found, 0, batch, some, cell, "success_rate", "psnr")


def batches(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """The pictures of a batch, attacked together; a trial is one of them."""
    wide = int(cell["width"]) > NARROW
    options = {"width": int(cell["width"]), "scale": 0.25 if wide else 0.5}
    budget = int(cell["budget"])
    for number, those in groups(seeds, ABREAST):
        parts = list(_batches(cell, those))
        privates = [pictures("CIFAR-100", _all(cell, k), side=SIDE) for k, _ in parts]
        net = models.lenet(len(privates[0].classes), seed=number, **options).to(device)
        seen = side_by_side([clients.fedsgd(net, batch.to(device)) for batch in privates])
        start = begin(
            "uniform", [k for k, _ in parts], privates[0].images.shape[1:], batch=len(privates[0])
        )
        found = attacks.dlg(
            seen,
            **ours(steps=budget * INNER, start=start, penalties=_prior(cell, SIDE), seed=number),
        )
        for t, (batch, (_, some)) in enumerate(zip(privates, parts, strict=True)):
            measures = ("success_rate", "iterations", "mse")
            yield from _judged(found, t, batch, some, cell, *measures, per=INNER, budget=budget)


def sizes(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Single pictures of LFW at growing sizes."""
    side, wide = int(cell["resolution"]), int(cell["width"]) > NARROW
    options = {"width": int(cell["width"]), "scale": 0.25 if wide else 0.5}
    steps, history = EFFORT[side]
    for number, some in groups(seeds):
        batch, seen = _seen("LFW", some, number, device, side=side, **options)
        found = attacks.dlg(
            seen,
            **ours(
                steps=steps // 4 if wide else steps,
                history=history,
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
    trial: int,
    batch: Batch,
    seeds: Sequence[int],
    cell: Cell,
    *measures: str,
    budget: int = 1,
    per: int = 1,
) -> Iterator[Row]:
    """Yield a row for each picture of a trial's batch that stands for a seed."""
    pictures, frames = found.images[trial], found.history.frames[:, trial].clamp(0, 1)
    order = metrics.score(_rows(found, pictures[None], frames[:, None], trial), batch).order[0]
    # The pictures of one trial become trials of one picture, in the order of the private ones.
    whole = _rows(
        found,
        pictures[order.to(pictures.device)][:, None],  # (B, 1, C, H, W)
        frames[:, order.to(frames.device)][:, :, None],  # (F, B, 1, C, H, W)
        trial,
    )
    rows = list(attempts(whole, batch, *measures, budget=budget, per=per))
    judged = min(JUDGED, int(cell["batch"]))
    yield from (rows[seed % judged] for seed in seeds)


def _rows(
    found: Reconstruction, images: torch.Tensor, frames: torch.Tensor, trial: int
) -> Reconstruction:
    """Return some pictures of one trial as a reconstruction of its own."""
    return replace(
        found,
        images=images,
        history=replace(found.history, frames=frames),
        labels=None,
        loss=found.loss[trial].expand(len(images)),
        status=found.status[trial : trial + 1] * len(images),
        evaluations=found.evaluations[trial].expand(len(images)),
    )
