"""What can go wrong, said in one sentence that names the cure."""

import difflib
from collections.abc import Iterable

__all__ = ["GleakError", "choose"]


class GleakError(Exception):
    """A failure the user can mend; its text is one sentence that says how."""


def choose(kind: str, name: str, options: Iterable[str]) -> str:
    """Return `name` if it is among `options`, else raise a ValueError that suggests the nearest."""
    known = sorted(options)
    if name in known:
        return name
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"unknown {kind} {name!r}: {hint}known: {', '.join(known)}")
