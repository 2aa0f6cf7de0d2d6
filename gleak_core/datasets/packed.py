"""The packed form `<name>.npz`: three plain arrays, no pickles, and a note of its SHA-256.

`images` (N, S, S, C) uint8, `labels` (N,) integers, `class_names` (K,) unicode strings.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from gleak_core import files
from gleak_core.datasets.registry import Entry, Pack
from gleak_core.datasets.source import Source, digest, from_arrays, reading
from gleak_core.errors import GleakError

__all__ = ["Check", "check", "read", "recorded", "write"]


@dataclass(frozen=True)
class Check:
    """The verdict on a data set's bytes, their SHA-256, and a sentence."""

    name: str
    verdict: Literal["ok", "unrecorded", "corrupt"]
    sha256: str
    sentence: str


def read(path: Path) -> Source:
    """Open a packed set, after checking that its arrays fit together."""
    cure = f"delete it and make it again with `gleak data pack {path.stem}`"
    with (
        reading(path, cure),
        path.open("rb") as file,  # NumPy does not close what it cannot read
        np.load(file, allow_pickle=False) as arrays,
    ):
        images, labels = arrays["images"], arrays["labels"]
        names = arrays["class_names"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise _misfit(
            path, f"images are {images.dtype} {images.shape}, not uint8 (N, S, S, 1 or 3)"
        )
    if 0 in images.shape or images.shape[1] != images.shape[2]:
        raise _misfit(path, f"images of shape {images.shape} are empty or not square")
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise _misfit(path, f"{len(images)} images have labels {labels.dtype} {labels.shape}")
    if names.dtype.kind != "U" or names.ndim != 1:
        raise _misfit(path, f"class_names are {names.dtype} {names.shape}, not a row of strings")
    if labels.min() < 0 or labels.max() >= len(names):
        raise _misfit(path, f"labels run to {labels.max()} but there are {len(names)} class names")
    return from_arrays(images, labels.astype(np.int64), tuple(names.tolist()))


def _misfit(path: Path, what: str) -> GleakError:
    return GleakError(f"{path} is not a packed data set: {what}; make it with `gleak data pack`")


def check(path: Path, entry: Entry) -> Check:
    """Compare a packed set with the packs made beside it and those the registry knows."""
    found = digest(path)
    ours = recorded(path)
    for known in (*ours, *entry.known_packs):
        if known.sha256 == found:
            return Check(entry.name, "ok", found, f"{path}: {known.note}")
    if ours:
        return Check(
            entry.name,
            "corrupt",
            found,
            f"{path} has changed since it was packed (its SHA-256 is now {found}): delete it and "
            "pack it again, or delete packed.toml beside it if you replaced the file yourself",
        )
    try:
        count = len(read(path).labels)
    except GleakError as error:
        return Check(entry.name, "corrupt", found, str(error))
    return Check(
        entry.name,
        "unrecorded",
        found,
        f"{path} holds {count} images and nobody vouches for them: its SHA-256 is {found}",
    )


def write(
    path: Path, images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...], note: str
) -> Pack:
    """Write a packed set and record its SHA-256 beside it, whole or not at all."""
    with files.atomic(path) as scratch:
        with scratch.open("wb") as file:
            np.savez_compressed(
                file, images=images, labels=labels, class_names=np.array(class_names, dtype=str)
            )
        pack = Pack(files.sha256(scratch), len(images), note)
        # Recorded before the move: a crash in between leaves the old file with its old record.
        _record(path, pack)
    return pack


def recorded(path: Path) -> tuple[Pack, ...]:
    """Return the packs of this name that were made in this folder, the newest last."""
    return _records(path.parent / "packed.toml").get(path.stem, ())


def _records(path: Path) -> dict[str, tuple[Pack, ...]]:
    if not path.is_file():
        return {}
    with reading(path, "delete it and pack the sets again"):
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        return {name: tuple(Pack(**row) for row in rows) for name, rows in tables.items()}


def _record(path: Path, pack: Pack) -> None:
    book = path.parent / "packed.toml"
    records = _records(book)
    older = [old for old in records.get(path.stem, ()) if old.sha256 != pack.sha256]
    records[path.stem] = (*older[-1:], pack)
    rows = [
        f'[[{name}]]\nsha256 = "{row.sha256}"\ncount = {row.count}\nnote = "{row.note}"\n'
        for name, packs in sorted(records.items())
        for row in packs
    ]
    header = (
        "# The packs made in this folder: `gleak data verify` compares them with their files.\n"
    )
    files.atomic_write(book, "\n".join([header, *rows]))
