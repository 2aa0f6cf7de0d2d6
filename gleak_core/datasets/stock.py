"""Getting data sets onto this machine and vouching for them: fetch, pack, verify, status."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from gleak_core import files
from gleak_core.datasets import archives, folders, packed, registry, sampling, shelf
from gleak_core.datasets.download import Progress, download
from gleak_core.datasets.packed import Check
from gleak_core.datasets.registry import Entry
from gleak_core.datasets.source import Source, digest, from_arrays
from gleak_core.errors import GleakError

__all__ = ["Status", "fetch", "pack", "status", "verify"]


@dataclass(frozen=True)
class Status:
    """Whether a data set is here, in which form and where, and what brings it if not."""

    name: str
    here: bool
    form: shelf.Form | None
    path: Path | None
    verdict: Literal["ok", "unrecorded", "corrupt"] | None
    command: str


def status(name: str, home: Path | None = None) -> Status:
    """Say whether a data set is here, where, and whether its bytes are the known ones."""
    entry, home = registry.entry(name), home or files.data_home()
    try:
        place = shelf.find(entry, home)
    except (
        GleakError
    ) as error:  # there, but not to be used: the cure stands where the command would
        return Status(name, False, None, None, "corrupt", str(error))
    if not place:
        return Status(name, False, None, None, None, shelf.command(entry, home))
    return Status(name, True, place.form, place.path, verify(name, home).verdict, "")


def verify(name: str, home: Path | None = None) -> Check:
    """Compare a data set's bytes with the recorded SHA-256: ok, unrecorded or corrupt."""
    entry, home = registry.entry(name), home or files.data_home()
    try:
        place = shelf.find(entry, home)
    except GleakError as error:
        return Check(name, "corrupt", "", str(error))
    if not place:
        raise shelf.missing(entry, home)
    if place.form == "packed":
        return packed.check(place.path, entry)
    found = shelf.fingerprint(entry, place)
    if place.form == "embedded":  # an embedded set is only found if its files are the known ones
        return Check(name, "ok", found, f"{name} comes with the installed packages, unchanged")
    return Check(
        name,
        "unrecorded",
        found,
        f"{place.path} holds {len(place.files)} files and nobody vouches for them: "
        f"together they hash to {found}",
    )


def fetch(name: str, home: Path | None = None, progress: Progress | None = None) -> Path:
    """Download a data set, check its SHA-256, and pack it to `<home>/<name>.npz`.

    A pack that is already there is kept as it is. The archives stay in `<home>/downloads`.
    """
    entry, home = registry.entry(name), home or files.data_home()
    if entry.kind == "embedded":
        raise GleakError(f"{name} needs no download: it comes with the installed packages")
    if entry.kind == "folder":
        raise GleakError(f"{name} cannot be fetched for you: {shelf.command(entry, home)}")
    target = home / f"{name}.npz"
    if target.is_file():
        return target
    for archive in entry.archives:
        path = shelf.downloads(home) / archive.file
        if not (path.is_file() and digest(path) == archive.sha256):
            download(archive.urls, path, archive.bytes, archive.sha256, progress)
    return pack(name, shelf.downloads(home), home)


def pack(
    name: str, source: Path | None = None, home: Path | None = None, limit: int | None = None
) -> Path:
    """Write `<home>/<name>.npz` from published archives, picture folders or torchvision's files.

    Args:
        name: A set that is not embedded; training images come first, then test images.
        source: A folder in one of these three forms; searched below `home` if not given.
        home: The data folder.
        limit: How many images to keep, balanced over the classes.
    """
    entry, home = registry.entry(name), home or files.data_home()
    if entry.kind == "embedded":
        raise GleakError(f"{name} needs no packing: it comes with the installed packages")
    opened, origin = _unpacked(entry, source, home)
    count = len(opened.labels)
    if limit is not None and not 1 <= limit <= count:
        raise ValueError(f"limit={limit} is not possible: keep 1 to {count} images of {name}")
    kept = np.sort(sampling.pick(opened.labels, limit or count, seed=0, balanced=True))
    path = home / f"{name}.npz"
    note = f"{len(kept)} of {count} images, from {origin}"
    packed.write(path, opened.read_all(kept), opened.labels[kept], opened.class_names, note)
    return path


def _unpacked(entry: Entry, source: Path | None, home: Path) -> tuple[Source, str]:
    forms: list[tuple[Callable[[Entry, Path], Source | None], str, list[Path]]] = [
        (_from_archives, "its published archives", [shelf.downloads(home)]),
        (_from_folder, "a folder of pictures", [home / folder for folder in entry.folders]),
        (_from_torchvision, "torchvision's download", [home / "torchvision"]),
    ]
    for opener, origin, roots in forms:
        for root in [source] if source else roots:
            if opened := opener(entry, root):
                return opened, origin
    if source:
        raise GleakError(
            f"{source} holds nothing that {entry.name} can be packed from: give the folder with "
            f"{entry.layout or ', '.join(part.file for part in entry.archives)}"
        )
    raise shelf.missing(entry, home, "nothing to pack as")


def _from_archives(entry: Entry, root: Path) -> Source | None:
    if not shelf.has_archives(entry, root):
        return None
    for archive in entry.archives:
        if digest(root / archive.file) != archive.sha256:
            raise GleakError(
                f"{root / archive.file} is not the file in data/datasets.toml (another SHA-256): "
                f"delete it and run `gleak data fetch {entry.name}`"
            )
    return from_arrays(*archives.READERS[entry.name](root, entry))


def _from_folder(entry: Entry, root: Path) -> Source | None:
    return folders.open_folder(entry, root) if shelf.find_folder(entry, root) else None


def _from_torchvision(entry: Entry, root: Path) -> Source | None:
    if not (place := shelf.find_torchvision(entry, root)):
        return None
    return from_arrays(*archives.TORCHVISION[entry.name].read(place.path, entry))
