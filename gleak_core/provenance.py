"""Which commit this is, and which machine: what every recorded number says of itself."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gleak_core.errors import GleakError
from gleak_core.files import ROOT

__all__ = ["commit", "cores", "state"]


def state(root: Path = ROOT, *, but: Sequence[str] = ()) -> dict[str, Any]:
    """Return the commit and whether anything differs from it; nothing where there is no git.

    `but` names folders that may differ.
    """

    def ask(*words: str) -> str:
        answer = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
        if answer.returncode:
            raise GleakError(answer.stderr)
        return answer.stdout.strip()

    try:
        differs = ask("status", "--porcelain", "--", ":/", *(f":(top,exclude){f}" for f in but))
        return {"commit": ask("rev-parse", "HEAD"), "modified": bool(differs)}
    except (GleakError, OSError):
        return {"commit": None, "modified": None}


def commit(root: Path = ROOT) -> str:
    """Return the commit in words: `unknown` without git, `(modified)` where the code differs.

    The results may differ: each run adds to them.
    """
    found = state(root, but=("data/results",))
    if found["commit"] is None:
        return "unknown"
    return f"{found['commit'][:12]}{' (modified)' if found['modified'] else ''}"


def cores() -> int:
    """Return how many cores this process may use: in a container or a job, not all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
