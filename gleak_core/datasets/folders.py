"""Folders of pictures: `<class>/*.jpg`, also below `train/`, `val/` and `test/`."""

import re
from collections import Counter
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gleak_core.datasets import pictures
from gleak_core.datasets.registry import Entry
from gleak_core.datasets.source import Source, reading

__all__ = ["find", "open_folder", "square"]

_SUFFIXES = {".jpg", ".jpeg", ".png"}
_SPLITS = ("train", "val", "test")
_WNID = re.compile(r"n\d{8}_")


def find(entry: Entry, root: Path) -> dict[str, list[Path]]:
    """Return the pictures below `root` by class folder, in the order of their names."""
    classes: dict[str, list[Path]] = {}
    with reading(root, "make the folder and those below it readable"):
        splits = [root / split for split in _SPLITS if (root / split).is_dir()] or [root]
        for folder in splits:
            for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
                found = (p for p in inner.iterdir() if p.suffix.lower() in _SUFFIXES)
                visible = sorted(path for path in found if not path.name.startswith("."))
                classes.setdefault(inner.name, []).extend(visible)
    return {name: classes[name] for name in sorted(classes) if len(classes[name]) >= entry.at_least}


def open_folder(entry: Entry, root: Path) -> Source:
    """Open a folder of pictures; each is decoded only when it is asked for."""
    classes = find(entry, root)
    paths = [path for found in classes.values() for path in found]

    def read(indices: np.ndarray, size: int) -> np.ndarray:
        return np.stack([square(paths[index], paths[index].name, entry, size) for index in indices])

    labels = np.arange(len(classes)).repeat([len(found) for found in classes.values()])
    return Source(labels, _names(list(classes)), entry.stored_size, read)


def square(source: Path | BinaryIO, name: str, entry: Entry, size: int) -> np.ndarray:
    """Decode a picture, crop it as the registry says, and resize it."""
    picture = pictures.decode(source, name).convert("RGB")
    side = None
    if entry.crop and picture.size == (entry.crop[0], entry.crop[0]):
        side = entry.crop[1]
    return pictures.pixels(pictures.resize(pictures.centre(picture, side), size))


def _names(folders: list[str]) -> tuple[str, ...]:
    # ImageNet has two maillots and two cranes: those keep their numbers.
    short = [_WNID.sub("", folder) for folder in folders]
    uses = Counter(short)
    return tuple(
        name if uses[name] == 1 else folder for name, folder in zip(short, folders, strict=True)
    )
