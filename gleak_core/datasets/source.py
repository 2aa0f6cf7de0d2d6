"""`Source`: an opened data set, its images read on demand; `Dataset`: all of it at once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from gleak_core import files
from gleak_core.datasets import pictures
from gleak_core.datasets.registry import Entry
from gleak_core.errors import GleakError

__all__ = ["Dataset", "MissingData", "Source", "digest", "from_arrays", "reading"]


_MOST_BYTES = 4 * 2**30


class MissingData(GleakError):
    """A data set is not on this machine; the text says which command or folder brings it."""


@dataclass(frozen=True, eq=False)
class Source:
    """An opened data set: its labels, and a way to read some of its images at some size."""

    labels: np.ndarray  # (N,), int64
    class_names: tuple[str, ...]
    size: int
    """Side of the images as they are stored, in pixels."""
    read: Callable[[np.ndarray, int], np.ndarray]  # indices (B,), size -> bytes (B, size, size, C)

    def __post_init__(self) -> None:
        self.labels.setflags(write=False)  # shared by all who open the set

    def read_all(self, indices: np.ndarray) -> np.ndarray:
        """Read many images at their stored size, unless they would fill the memory."""
        if len(indices) * self.size**2 * 3 > _MOST_BYTES:
            raise GleakError(
                f"{len(indices)} images of {self.size}×{self.size} do not fit in memory: "
                "pack a part of them with `gleak data pack NAME --limit N`"
            )
        return self.read(indices, self.size)


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A whole data set in memory."""

    name: str
    images: np.ndarray  # (N, H, W, C), uint8
    labels: np.ndarray  # (N,), int64
    class_names: tuple[str, ...]
    info: Entry

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        height, width, channels = self.images.shape[1:]
        return (
            f"Dataset({self.name}: {len(self)} × {height}×{width}×{channels} uint8, "
            f"{len(self.class_names)} classes)"
        )


def from_arrays(images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> Source:
    """Make a source of arrays that are already in memory."""
    return Source(
        labels,
        class_names,
        images.shape[1],
        lambda indices, size: pictures.resize_all(images[indices], size),
    )


@contextmanager
def reading(path: Path, cure: str) -> Iterator[None]:
    """Turn whatever a parser makes of a damaged file into one sentence with the cure."""
    try:
        yield
    except GleakError:
        raise
    # Deliberately wide: zip, gzip, tar, MATLAB and NumPy parsers each fail in ways of their own.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise GleakError(f"cannot read {path} ({reason}): {cure}") from error


def digest(path: Path) -> str:
    """Return a file's SHA-256, computed again only when its size or time has changed."""
    with reading(path, "make the file readable, or delete it and get it again"):
        stat = path.stat()
        return _digest(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=100_000)
def _digest(path: Path, size: int, mtime: int) -> str:
    return files.sha256(path)
