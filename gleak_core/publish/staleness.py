"""What an executed page depends on, and in words why one must run again.

Every input has a name and a hash of its own, so that two runs can be told apart by more than a
number: "gleak_core/models.py changed", "parameter seed: 0 → 1".
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gleak_core.errors import GleakError
from gleak_core.files import ROOT, data_home, sha256, sha256_bytes
from gleak_core.publish import notebooks

# Rooms that no chapter can reach, so a change in them changes no page's numbers.
_HARMLESS = ("gleak_core/publish/", "gleak_core/cli", "gleak_core/doctor", "gleak_core/.")

__all__ = ["Plan", "executed_folder", "inputs", "key", "pick_device", "record", "why"]


@dataclass(frozen=True)
class Plan:
    """One chapter with everything that decides what its page will say."""

    chapter: str
    source: Path
    values: Mapping[str, Any]
    inputs: Mapping[str, Any]
    root: Path = ROOT

    @property
    def key(self) -> str:
        """Name the run by a hash of all its inputs."""
        return key(self.inputs)

    @property
    def target(self) -> Path:
        """Where the finished page lies."""
        return executed_folder(self.root) / f"{self.chapter}.{self.key}.ipynb"

    @property
    def fresh(self) -> bool:
        """Tell whether a finished page of exactly these inputs exists."""
        run = record(self.target)
        return run is not None and run.get("key") == self.key


def executed_folder(root: Path = ROOT) -> Path:
    """Return the folder of finished pages, which is the resume cache as well."""
    return root / "_build" / "executed"


def inputs(
    notebook: Any, values: Mapping[str, Any], *, device: str, root: Path = ROOT
) -> dict[str, Any]:
    """Hash, by name, everything that a page depends on."""
    wishes = notebook["metadata"].get("gleak", {})
    lock = root / "constraints.txt"
    return {
        "source": notebooks.source_hash(notebook),
        "parameters": dict(values),
        "library": _library(root),
        "data": {name: _fingerprint(name) for name in _data_sets(wishes, values)},
        "reads": {name: _hash_of(root / name) for name in wishes.get("reads", [])},
        "constraints": sha256(lock) if lock.exists() else None,
        "device": device,
    }


def key(parts: Mapping[str, Any]) -> str:
    """Return sixteen hexadecimal digits that stand for all inputs together."""
    return sha256_bytes(json.dumps(parts, sort_keys=True).encode())[:16]


def record(path: Path) -> dict[str, Any] | None:
    """Return what an executed page says about its run, or None if it says nothing."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["metadata"]["gleak"]["run"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def why(plan: Plan) -> str:
    """Say in words why a chapter has to run again, or that it is up to date."""
    if plan.fresh:
        return "up to date"
    profile = plan.values["profile"]
    runs = [run for path in _versions(plan) if (run := record(path)) and "inputs" in run]
    runs = [run for run in runs if run["profile"] == profile]
    if not runs:
        return f"never executed with profile {profile}"
    newest = max(runs, key=lambda run: run["date"])
    changes = _changes(newest["inputs"], json.loads(json.dumps(plan.inputs)))
    return "; ".join(changes) or "its page was removed or damaged"


def pick_device(name: str) -> str:
    """Resolve `auto`, `cpu` or `cuda`, importing PyTorch only where there may be a GPU."""
    if name == "cpu" or (name == "auto" and not _may_have_gpu()):
        return "cpu"
    from gleak_core.device import pick

    return pick(name).type


def _may_have_gpu() -> bool:
    if sys.platform == "darwin":
        return False
    if sys.platform == "linux":
        return any(Path(p).exists() for p in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))
    return True


def _versions(plan: Plan) -> list[Path]:
    return sorted(executed_folder(plan.root).glob(f"{plan.chapter}.*.ipynb"))


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    found = []
    if old["source"] != new["source"]:
        found.append("the chapter itself changed")
    for name in sorted(old["parameters"].keys() | new["parameters"].keys()):
        before, after = (part["parameters"].get(name) for part in (old, new))
        if before != after:
            found.append(f"parameter {name}: {before!r} → {after!r}")
    for group, words in (("library", "{}"), ("data", "data set {}"), ("reads", "{}")):
        before, after = old.get(group, {}), new[group]
        for name in sorted(before.keys() | after.keys()):
            if name not in before:
                found.append(f"{words.format(name)} is new")
            elif name not in after:
                found.append(f"{words.format(name)} is gone")
            elif before[name] != after[name]:
                found.append(f"{words.format(name)} changed")
    if old["constraints"] != new["constraints"]:
        found.append("constraints.txt changed")
    if old["device"] != new["device"]:
        found.append(f"device: {old['device']} → {new['device']}")
    return found


def _library(root: Path) -> dict[str, str]:
    """Hash each file of the library, except the rooms that cannot change a result."""
    core = root / "gleak_core"
    files = {path.relative_to(root).as_posix(): path for path in core.rglob("*") if path.is_file()}
    return {
        name: sha256(path)
        for name, path in sorted(files.items())
        if "__pycache__" not in path.parts and not name.startswith(_HARMLESS)
    }


def _data_sets(wishes: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    """Name the data sets a chapter says it reads, and those its parameters name."""
    from gleak_core.datasets import registry

    asked = {v for v in values.values() if isinstance(v, str) and v in registry.names()}
    return sorted({*wishes.get("data", []), *asked})


def _fingerprint(name: str) -> str:
    """Return what `data.fingerprint` does, without importing PyTorch."""
    from gleak_core.datasets import registry, shelf

    entry = registry.entry(name)
    place = shelf.find(entry, data_home())
    return shelf.fingerprint(entry, place) if place else "absent"


def _hash_of(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise GleakError(
            f"a chapter says that it reads {path.name}, which cannot be read ({error.strerror}): "
            "mend the name in its metadata (gleak.reads) or restore the file"
        ) from error
