"""The sets that need no download: files inside the scikit-image and scikit-learn wheels.

The files are read from the installed packages without importing those (slow, and scikit-image may
download); a file with another SHA-256 than the registry's is refused.
"""

import gzip
import importlib.util
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from gleak_core.datasets import pictures, sampling
from gleak_core.datasets.registry import Entry, WheelFile
from gleak_core.datasets.source import Source, digest, from_arrays
from gleak_core.errors import GleakError

__all__ = ["CROPS", "locate", "open_embedded"]

CROPS = 24
"""Crops per photograph."""


def open_embedded(entry: Entry) -> Source:
    """Open one of the embedded sets, after checking the files it is made of."""
    return _READERS[entry.name](tuple(locate(file) for file in entry.files), entry)


def locate(file: WheelFile) -> Path:
    """Return the path of a file inside an installed package, after checking its SHA-256."""
    spec = importlib.util.find_spec(file.package)
    path = Path(spec.origin).parent / file.path if spec and spec.origin else None
    if path is None or not path.is_file():
        raise GleakError(
            f"the installed {file.package} does not carry {file.path}: "
            "install the version in constraints.txt"
        )
    if digest(path) != file.sha256:
        raise GleakError(
            f"{file.path} of the installed {file.package} is not the file in data/datasets.toml "
            "(another SHA-256): install the version in constraints.txt"
        )
    return path


def _photographs(paths: Sequence[Path], entry: Entry) -> Source:
    names = tuple(file.class_name for file in entry.files)
    # One fixed stream for all crops: (picture, crop, [side, left, top, mirrored]).
    dice = sampling.uniform(len(paths) * CROPS * 4).reshape(-1, 4)

    def crop(index: int, size: int) -> np.ndarray:
        picture = _picture(paths[index // CROPS])
        side, left, top, mirrored = dice[index]
        longest = min(picture.size)
        shortest = max(entry.stored_size, longest // 2)
        side = shortest + int(side * (longest - shortest + 1))
        left = int(left * (picture.width - side + 1))
        top = int(top * (picture.height - side + 1))
        square = picture.crop((left, top, left + side, top + side))
        return pictures.pixels(
            pictures.resize(ImageOps.mirror(square) if mirrored < 0.5 else square, size)
        )

    return Source(
        np.arange(len(paths)).repeat(CROPS),
        names,
        entry.stored_size,
        lambda indices, size: np.stack([crop(int(index), size) for index in indices]),
    )


@lru_cache(maxsize=16)
def _picture(path: Path) -> Image.Image:
    return pictures.decode(path, path.name).convert("RGB")


def _faces(paths: Sequence[Path], entry: Entry) -> Source:
    # The file holds 100 faces and then 100 patches of background, as fractions of 1.
    crops = np.load(paths[0], allow_pickle=False)[: entry.count]
    images = np.rint(crops * 255).astype(np.uint8)[..., None]
    names = tuple(f"person {k}" for k in range(entry.count))
    return from_arrays(images, np.arange(entry.count), names)


def _digits(paths: Sequence[Path], entry: Entry) -> Source:
    # Each row: 64 cells of 0 to 16, then the digit.
    with gzip.open(paths[0], "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    images = np.rint(table[:, :64].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    return from_arrays(images, table[:, 64].copy(), tuple("0123456789"))


_READERS: dict[str, Callable[[Sequence[Path], Entry], Source]] = {
    "photographs": _photographs,
    "faces": _faces,
    "digits": _digits,
}
