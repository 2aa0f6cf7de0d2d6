"""Named data sets and the private batch: `data.sample("photographs", 8, size=32, seed=0)`.

Three sets come with the installed packages (photographs, faces, digits); the others lie in the
folder `GLEAK_DATA` and are described in `data/datasets.toml`. Nothing here knows of attacks.
"""

import operator
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import SupportsIndex

import numpy as np
import torch
from torch import Tensor

from gleak_core import files
from gleak_core.datasets import pictures, sampling, shelf
from gleak_core.datasets.batch import Batch
from gleak_core.datasets.packed import Check
from gleak_core.datasets.registry import Entry, names
from gleak_core.datasets.registry import entry as info
from gleak_core.datasets.source import Dataset, MissingData, Source
from gleak_core.datasets.stock import Status, fetch, pack, status, verify
from gleak_core.errors import choose

__all__ = [
    "Batch",
    "Check",
    "Dataset",
    "Entry",
    "MissingData",
    "Status",
    "fetch",
    "fingerprint",
    "from_image",
    "info",
    "load",
    "names",
    "pack",
    "sample",
    "status",
    "verify",
]

_LARGEST_OWN = 1024


def sample(
    name: str,
    n: int | None = None,
    *,
    size: int | None = None,
    seed: int = 0,
    balanced: bool = True,
    classes: Iterable[str] | None = None,
    labels: Iterable[int] | Tensor | None = None,
    indices: Iterable[int] | Tensor | None = None,
    channels: int | None = None,
) -> Batch:
    """Return a batch of a named data set, the same on every machine for the same arguments.

    Args:
        name: A name in `data.names()`.
        n: How many images: 1, or as many as `labels` or `indices` ask for.
        size: Side of the images in pixels (bilinear, antialiased); else the set's own default.
        seed: Chooses the images (NumPy's PCG64); a larger `n` only appends to the batch.
        balanced: As many of each class as possible: no label twice while there are other classes.
        classes: Choose among these class names only; labels keep their numbers.
        labels: Choose images with exactly these labels, in this order.
        indices: Take exactly these images of the set, in this order.
        channels: 1 for grey, 3 for RGB; else the set's own default.
    """
    entry = info(name)
    size = _whole("size", entry.default_size if size is None else size, 1, entry.largest_size)
    channels = _channels(entry.channels if channels is None else channels)
    source = _open(entry, files.data_home())
    chosen = _choose(source, n, _whole("seed", seed, 0), balanced, classes, labels, indices)
    images = pictures.to_channels(source.read(chosen, size), channels)
    return _batch(images, source.labels[chosen], source.class_names, name, chosen)


def from_image(
    path: str | Path,
    size: int = 32,
    label: int = 0,
    *,
    classes: int | Sequence[str] = 10,
    channels: int = 3,
) -> Batch:
    """Return a batch of one picture of your own (PNG or JPEG): its central square, resized.

    `classes` is how many classes its label is one of, or their names.
    """
    size, channels = _whole("size", size, 1, _LARGEST_OWN), _channels(channels)
    known = tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(classes)
    # With a single class the loss is constant and every gradient is zero.
    _whole("number of classes", len(known), 2)
    label = _whole("label", label, 0, len(known) - 1)
    path = Path(path).expanduser()
    picture = pictures.resize(pictures.centre(pictures.decode(path, str(path))), size)
    images = pictures.to_channels(pictures.pixels(picture)[None], channels)
    return _batch(images, np.array([label]), known, path.name, np.array([0]))


def load(name: str, home: Path | None = None) -> Dataset:
    """Return a whole data set as arrays, at the size in which it is stored."""
    entry = info(name)
    source = _open(entry, home or files.data_home())
    images = source.read_all(np.arange(len(source.labels)))
    return Dataset(name, images, source.labels, source.class_names, entry)


def fingerprint(name: str, home: Path | None = None) -> str:
    """Return a SHA-256 that changes when the images `load` gives may have, or `absent`."""
    entry = info(name)
    place = shelf.find(entry, home or files.data_home())
    return shelf.fingerprint(entry, place) if place else "absent"


def _open(entry: Entry, home: Path) -> Source:
    place = shelf.find(entry, home)
    if not place:
        raise shelf.missing(entry, home)
    return shelf.open_place(entry, place)


def _choose(
    source: Source,
    n: int | None,
    seed: int,
    balanced: bool,
    classes: Iterable[str] | None,
    labels: Iterable[int] | Tensor | None,
    indices: Iterable[int] | Tensor | None,
) -> np.ndarray:
    ways = {"classes": classes, "labels": labels, "indices": indices}
    given = [way for way, value in ways.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"{'= and '.join(given)}= exclude each other: give one of them")
    count = len(source.labels)
    if labels is not None:
        wanted = _list("label", labels, n, len(source.class_names))
        return sampling.pick_labels(source.labels, wanted, seed)
    if indices is not None:
        return np.array(_list("index", indices, n, count))
    pool = np.arange(count)
    if classes is not None:
        asked = (classes,) if isinstance(classes, str) else classes
        known = source.class_names
        numbers = [known.index(choose("class", name, known)) for name in asked]
        pool = np.flatnonzero(np.isin(source.labels, numbers))
    n = _whole("n", 1 if n is None else n, 1)
    if n > len(pool):
        raise ValueError(f"n={n} is more than the {len(pool)} images to choose from: ask for fewer")
    return pool[sampling.pick(source.labels[pool], n, seed, balanced)]


def _list(what: str, values: Iterable[int] | Tensor, n: int | None, limit: int) -> list[int]:
    whole = [_whole(what, value, 0, limit - 1) for value in values]
    if not whole or (n is not None and n != len(whole)):
        raise ValueError(
            f"a batch of {1 if n is None else n} needs as many entries in the list of each {what}, "
            f"got {len(whole)}: give one per image, and leave n out"
        )
    return whole


def _whole(what: str, value: SupportsIndex, low: int, high: int | None = None) -> int:
    try:
        number = operator.index(value)
    except TypeError as error:
        raise TypeError(f"{what} must be a whole number, got {value!r}") from error
    if number < low or (high is not None and number > high):
        span = f"{low} to {high}" if high is not None else f"{low} or more"
        raise ValueError(f"{what} cannot be {number}: use {span}")
    return number


def _channels(channels: int) -> int:
    if channels not in (1, 3):
        raise ValueError(f"channels cannot be {channels}: use 1 for grey or 3 for RGB")
    return channels


def _batch(
    images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], name: str, indices: np.ndarray
) -> Batch:
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2))  # (B, H, W, C) -> (B, C, H, W)
    return Batch(
        torch.from_numpy(planes / np.float32(255)),
        torch.from_numpy(labels.astype(np.int64)),
        classes,
        name,
        torch.from_numpy(indices.astype(np.int64)),
    )
