"""What is known of each data set: a typed view of `data/datasets.toml`."""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from gleak_core import files
from gleak_core.errors import GleakError, choose

__all__ = ["Archive", "Entry", "Pack", "WheelFile", "entry", "names"]


@dataclass(frozen=True)
class WheelFile:
    """A file that an installed package carries."""

    package: str
    path: str
    sha256: str
    licence: str
    class_name: str = ""


@dataclass(frozen=True)
class Archive:
    """A file to download, from the first address that answers."""

    file: str
    bytes: int
    sha256: str
    urls: tuple[str, ...]


@dataclass(frozen=True)
class Pack:
    """A packed `.npz` whose contents somebody vouches for."""

    sha256: str
    count: int
    note: str


@dataclass(frozen=True)
class Entry:
    """One data set: source, terms, shape, and the hashes of every byte we accept."""

    name: str
    title: str
    kind: Literal["embedded", "download", "folder"]
    page: str
    licence: str
    citation: str
    count: int
    shape: tuple[int, int, int]
    classes: int
    default_size: int
    largest_size: int
    channels: int
    note: str
    files: tuple[WheelFile, ...] = ()
    archives: tuple[Archive, ...] = ()
    known_packs: tuple[Pack, ...] = ()
    folders: tuple[str, ...] = ()
    layout: str = ""
    at_least: int = 1
    crop: tuple[int, ...] = ()

    @property
    def stored_size(self) -> int:
        """The side of the images that `data.load` gives."""
        return self.shape[0]


_PARTS = {"files": WheelFile, "archives": Archive, "known_packs": Pack}


def names() -> tuple[str, ...]:
    """Return the names of all data sets, in the order of the registry."""
    return tuple(_entries(files.FACTS / "datasets.toml"))


def entry(name: str) -> Entry:
    """Return what is known of the data set `name`."""
    known = _entries(files.FACTS / "datasets.toml")
    return known[choose("data set", name, known)]


@cache
def _entries(path: Path) -> dict[str, Entry]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        return {name: _entry(name, table) for name, table in tables.items()}
    except (OSError, TypeError, ValueError) as error:
        raise GleakError(
            f"cannot read the data registry {path} ({error}): restore it from the repository"
        ) from error


def _entry(name: str, table: dict[str, Any]) -> Entry:
    parts = {
        key: tuple(part(**_frozen(row)) for row in table[key])
        for key, part in _PARTS.items()
        if key in table
    }
    fields: dict[str, Any] = {**_frozen(table), **parts}
    return Entry(name=name, **fields)


def _frozen(table: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in table.items()}
