"""Where a data set lies on this machine, and opening it from there.

Searched in this order below the data folder: the packed `<name>.npz`, the set's folder of pictures,
torchvision's own download below `torchvision/` (for CIFAR these are pickles, which only `data.pack`
opens). Embedded sets lie in installed packages.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from gleak_core.datasets import archives, embedded, folders, packed
from gleak_core.datasets.registry import Entry
from gleak_core.datasets.source import MissingData, Source, digest, from_arrays
from gleak_core.errors import GleakError

__all__ = [
    "Place",
    "command",
    "downloads",
    "find",
    "find_folder",
    "find_torchvision",
    "fingerprint",
    "has_archives",
    "missing",
    "open_place",
]

Form = Literal["embedded", "packed", "folder", "torchvision"]

# Up to here a folder's fingerprint reads every picture; beyond it, their names and sizes.
_READ_ALL = 20_000


@dataclass(frozen=True)
class Place:
    """A form in which a data set is here, the path it has, and the files it consists of."""

    form: Form
    path: Path
    files: tuple[Path, ...]


def downloads(home: Path) -> Path:
    """Return the folder that keeps downloaded archives."""
    return home / "downloads"


def find(entry: Entry, home: Path) -> Place | None:
    """Return where a data set lies, or None."""
    if entry.kind == "embedded":
        paths = tuple(embedded.locate(file) for file in entry.files)
        return Place("embedded", paths[0].parent, paths)
    pack = home / f"{entry.name}.npz"
    if pack.is_file():
        return Place("packed", pack, (pack,))
    for folder in entry.folders:
        if place := find_folder(entry, home / folder):
            return place
    layout = archives.TORCHVISION.get(entry.name)
    return None if layout and layout.pickled else find_torchvision(entry, home / "torchvision")


def has_archives(entry: Entry, root: Path) -> bool:
    """Say whether all published files of the set lie in `root`."""
    return bool(entry.archives) and all((root / part.file).is_file() for part in entry.archives)


def find_folder(entry: Entry, root: Path) -> Place | None:
    """Return the set's folder of pictures if `root` is one."""
    if not (entry.folders and root.is_dir()):
        return None
    found = tuple(path for paths in folders.find(entry, root).values() for path in paths)
    return Place("folder", root, found) if found else None


def find_torchvision(entry: Entry, root: Path) -> Place | None:
    """Return torchvision's download of the set if it lies below `root`."""
    layout = archives.TORCHVISION.get(entry.name)
    if not (layout and (root / layout.folder).is_dir()):
        return None
    marks = sorted((root / layout.folder).glob(layout.mark))
    inside = (sorted(mark.iterdir()) if mark.is_dir() else [mark] for mark in marks)
    found = tuple(path for paths in inside for path in paths if path.is_file())
    return Place("torchvision", root / layout.folder, found) if found else None


def open_place(entry: Entry, place: Place) -> Source:
    """Open a data set where it lies; the last two stay open until their files change."""
    state = tuple((stat.st_size, stat.st_mtime_ns) for stat in map(Path.stat, place.files))
    return _open(entry, place, state)


@lru_cache(maxsize=2)
def _open(entry: Entry, place: Place, state: tuple[tuple[int, int], ...]) -> Source:
    if place.form == "embedded":
        return embedded.open_embedded(entry)
    if place.form == "packed":
        if packed.recorded(place.path):
            check = packed.check(place.path, entry)
            if check.verdict == "corrupt":
                raise GleakError(check.sentence)
        return packed.read(place.path)
    if place.form == "folder":
        return folders.open_folder(entry, place.path)
    return from_arrays(*archives.TORCHVISION[entry.name].read(place.path, entry))


def command(entry: Entry, home: Path) -> str:
    """Return the command, or the folder, that brings a data set."""
    if entry.kind == "folder":
        return f"get the pictures from {entry.page} and lay them out as {entry.layout} in {home}"
    here = has_archives(entry, downloads(home)) or find_torchvision(entry, home / "torchvision")
    return f"gleak data {'pack' if here else 'fetch'} {entry.name}"


def missing(entry: Entry, home: Path, what: str = "no data set") -> MissingData:
    """Return the error that says how to get a data set."""
    cure = command(entry, home)
    how = (
        cure
        if entry.kind == "folder"
        else f"run `{cure}`, or set GLEAK_DATA to the folder it is in"
    )
    return MissingData(f"there is {what} {entry.name} in {home}: {how}")


def fingerprint(entry: Entry, place: Place) -> str:
    """Hash all that decides what a data set's images are: its recipe and its files."""
    recipe = [entry.name, entry.shape, entry.at_least, entry.crop, place.form]
    total = hashlib.sha256(json.dumps(recipe).encode())
    for path in place.files:
        content = digest(path) if len(place.files) <= _READ_ALL else str(path.stat().st_size)
        total.update(f"{path.parent.name}/{path.name} {content}\n".encode())
    return total.hexdigest()
