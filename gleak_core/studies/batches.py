"""Batches with given labels, also of sets that have one picture of each class."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from gleak_core import data
from gleak_core.data import Batch
from gleak_core.datasets.sampling import shuffled

__all__ = ["DATASETS", "repeated"]

DATASETS = {
    "MNIST": "mnist",
    "CIFAR-10": "cifar10",
    "CIFAR-100": "cifar100",
    "SVHN": "svhn",
    "LFW": "lfw",
    "ImageNet": "imagenet",
    "Linnaeus": "linnaeus5",
    "photographs": "photographs",
    "faces": "faces",
    "digits": "digits",
}
"""What a table calls a data set → its name here."""
# Sets with one picture of each class: neighbouring classes are taken as one where labels repeat.
_SINGLE = ("imagenet", "faces")


def repeated(name: str, times: Sequence[int], *, seed: int, size: int | None = None) -> Batch:
    """Return a batch in which the k-th label that is drawn stands `times[k]` times.

    Labels are drawn without repetition as long as there are any left. Where a set has one picture
    of each class, neighbouring classes count as one; the number of classes stays, so that the
    network's last layer does too.
    """
    known = DATASETS.get(name, name)
    classes = len(data.sample(known, 1, size=8).classes)
    if known not in _SINGLE:
        order = shuffled(classes, seed)
        labels = [int(order[k % classes]) for k, n in enumerate(times) for _ in range(n)]
        return data.sample(known, labels=labels, seed=seed, size=size)
    span = max(times)
    groups = shuffled(classes // span, seed)
    if len(times) > len(groups):
        raise ValueError(
            f"{name} has {classes} classes, which make {len(groups)} groups of {span}: "
            f"{len(times)} different labels are too many, take a smaller batch"
        )
    first = [int(groups[k]) * span for k in range(len(times))]
    chosen = [at + j for at, n in zip(first, times, strict=True) for j in range(n)]
    batch = data.sample(known, labels=chosen, seed=seed, size=size)
    labels = [at for at, n in zip(first, times, strict=True) for _ in range(n)]
    return replace(batch, labels=torch.tensor(labels))
