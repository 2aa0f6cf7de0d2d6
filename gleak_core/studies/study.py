"""A study: one table or figure of a paper, declared as a grid of cells.

A cell is a set of parameters. One function measures one cell for a block of seeds and gives one
row per seed; who calls it, where and in which order is the runner's business.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from gleak_core import papers
from gleak_core.errors import choose

__all__ = ["PROFILES", "STATUSES", "Cell", "Measure", "Row", "Study", "declared", "grid"]

PROFILES = ("smoke", "quick", "paper")
STATUSES = ("solved", "failed", "diverged", "interrupted")

Row = dict[str, Any]
Cell = Mapping[str, str | int | float | bool]
Measure = Callable[[Cell, Sequence[int], str], Iterable[Row]]
"""(cell, seeds, device) → one row per seed, in their order: metrics, `status`, `evaluations`."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is measured, over which cells, how often, and what that is expected to cost.

    Args:
        id: The name in `data/papers`, or a name of our own for what no paper has.
        title: What a reader calls it.
        metrics: The columns that `measure` fills, beside status, evaluations and seconds.
        cells: The grid at paper scale.
        measure: Measures one cell; None while the chapter that brings it is not written.
        seconds: What one trial of a cell takes on one CPU core, guessed before any was timed.
        trials: Seeds per cell and profile.
        block: Seeds that are measured in one go, which is what a kill can cost.
        reduced: The cells of the smaller profiles, where they are not the grid itself.
        reads: The data sets that a cell needs; by default those that its parameters name.
        reading: Values of parameters that the source does not vary: those that stand for it.
        optional: Values of parameters whose cells may be missing: a data set that is not at hand.
        deviations: In what the study departs from its source, a sentence each.
        asks: What its metrics mean, where the question is ours and no paper says it.
        chapter: Where its results are discussed.
    """

    id: str
    title: str
    metrics: tuple[str, ...]
    cells: tuple[Cell, ...]
    measure: Measure | None
    seconds: Callable[[Cell], float]
    trials: Mapping[str, int] = field(default_factory=lambda: {"smoke": 2, "quick": 5, "paper": 25})
    block: int = 25
    reduced: Mapping[str, tuple[Cell, ...]] = field(default_factory=dict)
    reads: Callable[[Cell], Sequence[str]] | None = None
    reading: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    optional: Mapping[str, tuple[str | int | float | bool, ...]] = field(default_factory=dict)
    deviations: tuple[str, ...] = ()
    asks: Mapping[str, papers.Metric] = field(default_factory=dict)
    chapter: str = ""

    def __post_init__(self) -> None:
        if not self.cells:
            raise ValueError(f"{self.id} has no cells: declare its grid")
        if set(self.trials) != set(PROFILES) or min(self.trials.values()) < 1 or self.block < 1:
            raise ValueError(f"{self.id} needs trials for {', '.join(PROFILES)}, and block ≥ 1")
        if self.asks and tuple(self.asks) != self.metrics:
            raise ValueError(f"{self.id} asks for {', '.join(self.asks)}, not what it measures")
        if unknown := sorted(set(self.reading) - set(self.keys)):
            raise ValueError(f"{self.id} reads {', '.join(unknown)}, which its cells lack")
        if unknown := sorted(set(self.optional) - set(self.keys)):
            raise ValueError(f"{self.id} may lack {', '.join(unknown)}, which no cell names")
        for profile in PROFILES:
            seen = set()
            for cell in self.grid(profile):
                if set(cell) != set(self.keys):
                    raise ValueError(f"{self.id}: a cell has {sorted(cell)}, not {self.keys}")
                if (name := tuple(cell.values())) in seen:
                    raise ValueError(f"{self.id} names the cell {dict(cell)} twice")
                seen.add(name)

    @property
    def keys(self) -> tuple[str, ...]:
        """The parameters that name a cell."""
        return tuple(self.cells[0])

    @property
    def prefix(self) -> str:
        """The paper's part of the id."""
        return self.id.partition(".")[0]

    def grid(self, profile: str) -> tuple[Cell, ...]:
        """Return the cells of a profile."""
        return self.reduced.get(choose("profile", profile, PROFILES), self.cells)

    def spares(self, cell: Cell) -> bool:
        """Say whether a cell may be missing: its data set is one that not everybody has."""
        return any(cell.get(name) in values for name, values in self.optional.items())

    def blocks(self, seeds: Sequence[int]) -> list[tuple[int, ...]]:
        """Split seeds into what is measured in one go: as even as can be."""
        if not seeds:
            return []
        count = math.ceil(len(seeds) / self.block)
        size = math.ceil(len(seeds) / count)
        return [tuple(seeds[i : i + size]) for i in range(0, len(seeds), size)]


def grid(**axes: Iterable[str | int | float | bool]) -> tuple[Cell, ...]:
    """Return the cells of a full grid: `grid(method=("a", "b"), batch=(1, 2))` has four."""
    return tuple(dict(zip(axes, values, strict=True)) for values in product(*axes.values()))


def declared(
    id: str,
    *,
    seconds: Callable[[Cell], float],
    cells: tuple[Cell, ...],
    measure: Measure | None = None,
    reads: Sequence[str] | Callable[[Cell], Sequence[str]] | None = None,
    block: int = 25,
    reading: Mapping[str, str | int | float | bool] | None = None,
    paper: int = 20,
    optional: Mapping[str, tuple[str | int | float | bool, ...]] | None = None,
    deviations: tuple[str, ...] = (),
) -> Study:
    """Return the study of a published result, under its title, metrics and chapter.

    Without `measure`, which comes with its chapter, it is here for its cells and its cost; `paper`
    is the number of trials at paper scale, and `reads` may name the data sets of all cells.
    """
    result = papers.find(id)
    named = None if reads is None or callable(reads) else tuple(reads)
    return Study(
        id=id,
        title=result.title,
        metrics=tuple(result.metrics),
        cells=cells,
        measure=measure,
        seconds=seconds,
        trials={"smoke": 2, "quick": 5, "paper": paper},
        block=block,
        reads=(lambda _: named) if named is not None else reads,  # pyright: ignore[reportArgumentType]
        reading=reading or {},
        optional=optional or {},
        deviations=deviations,
        chapter=papers.source(id).chapter,
    )
