"""The published files of the downloadable sets, read without unpacking them to disk.

CIFAR as torchvision stores it is the one place where pickles are read, and only in `data.pack`:
torchvision checks the MD5 of every such file before it opens it. Our own downloads hold none.
"""

import gzip
import io
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from gleak_core.datasets import folders
from gleak_core.datasets.registry import Entry
from gleak_core.datasets.source import reading

__all__ = ["READERS", "TORCHVISION", "Arrays"]

_DIGITS = tuple("0123456789")


class Arrays(NamedTuple):
    """All of a data set: bytes (N, H, W, C), labels (N,), names of the classes."""

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]


def _mnist(folder: Path, entry: Entry) -> Arrays:
    images = [_idx(folder, f"{split}-images-idx3-ubyte") for split in ("train", "t10k")]
    labels = [_idx(folder, f"{split}-labels-idx1-ubyte") for split in ("train", "t10k")]
    return Arrays(
        np.concatenate(images)[..., None], np.concatenate(labels).astype(np.int64), _DIGITS
    )


def _idx(folder: Path, name: str) -> np.ndarray:
    packed = folder / f"{name}.gz"
    path = packed if packed.is_file() else folder / name
    with _reading(path):
        content = path.read_bytes()
        content = gzip.decompress(content) if path == packed else content
        # Magic number: two zero bytes, 8 for "unsigned byte", the number of dimensions.
        if content[:3] != b"\0\0\x08":
            raise ValueError("not an IDX file of bytes")
        dimensions = content[3]
        shape = np.frombuffer(content, ">u4", dimensions, offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _cifar(
    archive: str, members: tuple[str, ...], names: str, label_bytes: int
) -> Callable[[Path, Entry], Arrays]:
    def read(folder: Path, entry: Entry) -> Arrays:
        path = folder / archive
        with _reading(path), tarfile.open(path, "r:gz") as tar:
            content = {
                PurePosixPath(member.name).name: file.read()
                for member in tar
                if member.isfile() and (file := tar.extractfile(member))
            }
            # A record: the label (CIFAR-100: coarse, then fine), then 3 planes of 32×32.
            rows = np.concatenate([np.frombuffer(content[member], np.uint8) for member in members])
            rows = rows.reshape(-1, label_bytes + 3 * 32 * 32)
            planes = rows[:, label_bytes:].reshape(-1, 3, 32, 32)
            labels = rows[:, label_bytes - 1].astype(np.int64)
            return Arrays(
                np.ascontiguousarray(planes.transpose(0, 2, 3, 1)),
                labels,
                tuple(content[names].decode().split()),
            )

    return read


def _svhn(folder: Path, entry: Entry) -> Arrays:
    from scipy.io import loadmat  # slow to import, and only this set needs it

    images, labels = [], []
    for split in ("train", "test"):
        path = folder / f"{split}_32x32.mat"
        with _reading(path):
            content = loadmat(path, variable_names=["X", "y"])
            images.append(content["X"].transpose(3, 0, 1, 2))  # (H, W, C, N) -> (N, H, W, C)
            labels.append(content["y"].reshape(-1).astype(np.int64) % 10)  # 10 stands for digit 0
    return Arrays(np.concatenate(images), np.concatenate(labels), _DIGITS)


def _lfw(folder: Path, entry: Entry) -> Arrays:
    path = folder / "lfw.tgz"
    with _reading(path), tarfile.open(path, "r:gz") as tar:
        members = [m for m in tar if m.isfile() and m.name.endswith(".jpg")]
        pictures = Counter(PurePosixPath(member.name).parent.name for member in members)
        images: dict[tuple[str, str], np.ndarray] = {}
        for member in members:
            place = PurePosixPath(member.name)
            person = place.parent.name
            if pictures[person] >= entry.at_least and (file := tar.extractfile(member)):
                content = io.BytesIO(file.read())
                images[person, place.name] = folders.square(
                    content, place.name, entry, entry.stored_size
                )
    people = tuple(sorted({person for person, _ in images}))
    order = sorted(images)
    labels = np.array([people.index(person) for person, _ in order])
    return Arrays(np.stack([images[key] for key in order]), labels, people)


def _torchvision_cifar(kind: str) -> Callable[[Path, Entry], Arrays]:
    def read(folder: Path, entry: Entry) -> Arrays:
        from torchvision import datasets

        with _reading(folder):
            parts: list[Any] = [
                getattr(datasets, kind)(folder, train=part) for part in (True, False)
            ]
        labels = np.concatenate([part.targets for part in parts]).astype(np.int64)
        images = np.concatenate([part.data for part in parts])
        return Arrays(images, labels, tuple(parts[0].classes))

    return read


def _reading(path: Path) -> Any:
    return reading(path, "it is damaged or incomplete: delete it and fetch it again")


READERS: dict[str, Callable[[Path, Entry], Arrays]] = {
    "mnist": _mnist,
    "cifar10": _cifar(
        "cifar-10-binary.tar.gz",
        (*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"),
        "batches.meta.txt",
        label_bytes=1,
    ),
    "cifar100": _cifar(
        "cifar-100-binary.tar.gz",
        ("train.bin", "test.bin"),
        "fine_label_names.txt",
        label_bytes=2,
    ),
    "svhn": _svhn,
    "lfw": _lfw,
}
"""How each set's own archives are read, training images first."""


class _Layout(NamedTuple):
    folder: str
    mark: str
    """A file or folder that shows that the set is there."""
    read: Callable[[Path, Entry], Arrays]
    pickled: bool = False


TORCHVISION: dict[str, _Layout] = {
    "mnist": _Layout("MNIST/raw", "train-labels-idx1-ubyte*", _mnist),
    "svhn": _Layout(".", "train_32x32.mat", _svhn),
    "cifar10": _Layout(".", "cifar-10-batches-py", _torchvision_cifar("CIFAR10"), pickled=True),
    "cifar100": _Layout(".", "cifar-100-python", _torchvision_cifar("CIFAR100"), pickled=True),
}
"""Where torchvision's own downloads lie below its root."""
