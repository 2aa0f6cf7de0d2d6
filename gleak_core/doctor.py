"""What works on this machine, and what to do about the rest.

Nothing is assumed to be installed: each examination imports what it needs and reports what fails.
"""

import importlib
import platform
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from gleak_core import files
from gleak_core.errors import GleakError
from gleak_core.provenance import cores

__all__ = ["BROWSERS", "CURE", "Finding", "State", "examine", "pinned", "try_writing", "works"]

State = Literal["ok", "warn", "missing", "broken"]
CURE = "make setup"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# A full build with its executed chapters stays well below this.
_ROOM_TO_BUILD = 2 * 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the report: `broken` keeps gleak from working, `missing` only a part of it."""

    topic: str
    name: str
    state: State
    says: str
    cure: str = ""


def examine(root: Path = files.ROOT) -> list[Finding]:
    """Look at versions, device, data sets, disk and browser, in that order."""
    return [finding for look in EXAMINATIONS.values() for finding in look(root)]


def works(findings: list[Finding]) -> bool:
    """Tell whether nothing essential is broken."""
    return all(f.state != "broken" for f in findings)


def pinned(constraints: Path) -> dict[str, str]:
    """Return the exact versions of a constraints file that apply to this Python and platform."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (line.partition("#")[0].strip() for line in constraints.read_text().splitlines())
    wanted = [Requirement(line) for line in lines if line]
    return {
        canonicalize_name(each.name): next(iter(each.specifier)).version
        for each in wanted
        if each.marker is None or each.marker.evaluate()
    }


def try_writing(folder: Path) -> None:
    """Raise OSError if nothing can be written into a folder, made first if need be."""
    with tempfile.TemporaryFile(dir=_nearest(folder.absolute())):
        pass


def _nearest(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())


def _versions(root: Path) -> Iterator[Finding]:
    """Compare what is installed with what was tested together."""
    yield Finding("versions", "python", "ok", platform.python_version())
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
        exact = pinned(root / "constraints.txt")
    except FileNotFoundError as error:
        says = f"there is no {error.filename}, so nothing to compare the versions with"
        yield Finding("versions", "packages", "warn", says, "run gleak from a checkout")
        return
    extras = project["optional-dependencies"]
    yield from _compare(project["dependencies"], exact, absent="broken")
    useful = [line for name in ("book", "test", "fast") for line in extras.get(name, ())]
    yield from _compare(useful, exact, absent="missing")


def _compare(wanted: list[str], exact: Mapping[str, str], *, absent: State) -> Iterator[Finding]:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    for name in (canonicalize_name(Requirement(line).name) for line in wanted):
        tested = exact.get(name, "")
        try:
            here = version(name)
        except PackageNotFoundError:
            yield Finding("versions", name, absent, "not installed", CURE)
            continue
        # A build for one device has a local part: 2.14.1+cpu is the tested 2.14.1.
        if tested and here.partition("+")[0] != tested:
            yield Finding("versions", name, "warn", f"{here}; tested with {tested}", CURE)
        else:
            yield Finding("versions", name, "ok", here)


def _device(root: Path) -> Iterator[Finding]:
    """Import PyTorch for good, and see what it can compute on."""
    yield Finding("device", "cpu", "ok", f"{cores()} cores, {platform.machine()}")
    try:
        importlib.import_module("torchvision")  # fails at import when it is not torch's own twin
        device = importlib.import_module("gleak_core.device")
    except (ImportError, RuntimeError, OSError) as error:
        says = f"PyTorch does not start: {_first_line(error)}"
        yield Finding("device", "torch", "broken", says, f"rm -r .venv; {CURE}")
        return
    try:
        name = device.describe(device.pick("cuda"))
        yield Finding("device", "gpu", "ok", name)
    except (GleakError, RuntimeError):
        says = "none: the smoke and quick profiles are made for CPUs, the paper profile is not"
        yield Finding("device", "gpu", "ok", says)


def _data(root: Path) -> Iterator[Finding]:
    """Ask after every data set; an absent one is no fault, a changed one is."""
    try:
        data = importlib.import_module("gleak_core.data")
    except (ImportError, RuntimeError, OSError) as error:
        yield Finding("data", "data sets", "broken", _first_line(error), CURE)
        return
    for name in data.names():
        try:
            status = data.status(name)
        except GleakError as error:
            yield Finding("data", name, "warn", str(error), f"gleak data verify {name}")
            continue
        if not status.here:
            yield Finding("data", name, "missing", "not here", status.command)
        elif status.verdict == "corrupt":
            says = f"{status.path} is not what it was"
            yield Finding("data", name, "warn", says, f"gleak data verify {name}")
        else:
            known = "" if status.verdict == "ok" else ", no recorded SHA-256"
            where = "" if status.form == "embedded" else f" in {status.path}"
            yield Finding("data", name, "ok", f"{status.form}{where}{known}")


def _disk(root: Path) -> Iterator[Finding]:
    """Look for room, and try to write where the book is built."""
    build = root / "_build"
    nearest = _nearest(build)
    free = shutil.disk_usage(nearest).free
    says = f"{free / 2**30:.1f} GiB free"
    if free < _ROOM_TO_BUILD:
        cure = f"free some space: a build wants {_ROOM_TO_BUILD / 2**30:.0f} GiB"
        yield Finding("disk", "space", "warn", says, cure)
    else:
        yield Finding("disk", "space", "ok", says)
    try:
        try_writing(build)
        yield Finding("disk", "build folder", "ok", f"{build} is writable")
    except OSError as error:
        says = f"cannot write into {nearest} ({error.strerror})"
        yield Finding("disk", "build folder", "broken", says, f"chmod u+w {nearest}")


def _browser(root: Path) -> Iterator[Finding]:
    """Find the Chromium that the tests of the book open."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found:
        yield Finding("browser", "chromium", "ok", found)
    else:
        says = "not here: the tests that open the book are skipped"
        yield Finding("browser", "chromium", "missing", says, "apt-get install chromium")


EXAMINATIONS: Mapping[str, Callable[[Path], Iterator[Finding]]] = {
    "versions": _versions,
    "device": _device,
    "data": _data,
    "disk": _disk,
    "browser": _browser,
}


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
