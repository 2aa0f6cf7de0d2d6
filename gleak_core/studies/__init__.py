"""Studies: every published table and figure as a grid of cells, measured by one runner.

The studies only say what is measured; the runner says when and where, the store keeps it, and the
scoreboard holds it against the papers.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from gleak_core.errors import choose
from gleak_core.studies import (
    cafe,
    cafe_counters,
    cafe_early,
    cafe_ends,
    cafe_learnt,
    cafe_longer,
    cafe_rates,
    cafe_taught,
    cafe_thousands,
    cpl,
    dlg,
    general,
    general_controls,
    general_forms,
    general_fused,
    general_images,
    general_labels,
    general_large,
    general_repeats,
    general_rivals,
    general_solvers,
    general_updates,
    matrix,
)
from gleak_core.studies.cost import GPU
from gleak_core.studies.study import PROFILES, Cell, Row, Study, grid

if TYPE_CHECKING:
    from gleak_core.studies.runner import Plan

__all__ = [
    "INSTEAD",
    "PROFILES",
    "STAND_INS",
    "STUDIES",
    "Cell",
    "Row",
    "Study",
    "find",
    "grid",
    "human",
    "named",
    "report",
    "select",
]

STUDIES: Mapping[str, Study] = {
    study.id: study
    for room in (
        dlg,
        cpl,
        general,
        general_images,
        general_large,
        general_controls,
        general_updates,
        general_labels,
        general_repeats,
        general_rivals,
        general_solvers,
        general_forms,
        general_fused,
        cafe,
        cafe_thousands,
        cafe_rates,
        cafe_longer,
        cafe_ends,
        cafe_learnt,
        cafe_taught,
        cafe_early,
        cafe_counters,
        matrix,
    )
    for study in room.STUDIES
}
"""Every study by its id, in the order of the chapters."""

STAND_INS: Mapping[str, Mapping[str, str]] = cafe.STAND_INS
"""A result → a data set that may stand in for one of the source's, and how to say so."""

INSTEAD: Mapping[str, str] = cafe.INSTEAD
"""A result → what stands in for the source's attack: a claim may hold so, and is not reproduced."""


def find(name: str) -> Study:
    """Return a study by its id."""
    return STUDIES[choose("study", name, STUDIES)]


def select(names: Iterable[str]) -> list[Study]:
    """Return the studies of some ids or papers, all of them if none is named."""
    return [STUDIES[name] for name in named(names, STUDIES, "study")]


def named(names: Iterable[str], known: Iterable[str], kind: str) -> list[str]:
    """Return the ids that are meant, in their order: `gen` means all that begin with `gen.`."""
    known = list(known)
    wanted: set[str] = set()
    for name in names:
        below = {one for one in known if one.startswith(f"{name}.")}
        wanted |= below or {choose(kind, name, known)}
    return [name for name in known if not wanted or name in wanted]


def human(seconds: float) -> str:
    """Return a duration as one would say it."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 or seconds == 0 else f"{seconds:.2g} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def report(plans: "Sequence[Plan]", *, device: str = "cpu", cells: bool = False) -> list[str]:
    """Say what a run would measure and what that is expected to cost, a line per study or cell."""
    out: list[str] = []
    by_study: dict[str, list[Plan]] = {}
    for one in plans:
        by_study.setdefault(one.study.id, []).append(one)
    width = max(map(len, by_study))
    for name, some in by_study.items():
        there, missing = sum(p.present for p in some), sum(len(p.missing) for p in some)
        cost, noun = sum(p.cost for p in some), "cell" if len(some) == 1 else "cells"
        basis = "timed" if all(p.timed for p in some) else "guessed"
        if some[0].study.measure is None:
            state = "declared, not written yet"
        elif not missing:
            state = "complete"
        else:
            reasons = sorted({p.why for p in some if p.missing})
            state = (
                reasons[0]
                if len(reasons) == 1
                else f"{reasons[0]} (and {len(reasons) - 1} more reasons)"
            )
        out.append(
            f"{name:<{width}}  {len(some):>4} {noun:<5}  {there:>6} trials there, "
            f"{missing:>6} missing  {human(cost):>8} {basis}  {state}"
        )
        if cells:
            for p in some:
                at = ", ".join(f"{key} {value}" for key, value in p.cell.items())
                out.append(f"    {at}: {p.present} there, {len(p.missing)} missing, "
                           f"{human(p.cost)}{': ' + p.why if p.why else ''}")  # fmt: skip
    total, ready = (sum(p.cost for p in plans if all_ or p.study.measure) for all_ in (True, False))
    where = (
        f"one GPU, guessed at {GPU:g} times a core where nothing was timed"
        if device == "cuda"
        else f"one process, {human(total / 2)} on two"
    )
    out.append(f"in all {human(total)} on {where}; of that {human(ready)} for what is written")
    return out
