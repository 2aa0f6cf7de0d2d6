"""The results: one CSV per study, one row per cell and seed, one writer at a time.

Rows are appended block by block, each block in one write, so a kill loses at most the block that
was running; a torn last line is cut off by the next writer. What a key stands for lies beside the
table, as `<table>.inputs.json`. A newer measurement of a cell does not erase the older one until
it is complete.
"""

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from gleak_core.errors import GleakError
from gleak_core.files import BUILD, FACTS, atomic_write
from gleak_core.locks import held
from gleak_core.studies.study import PROFILES, STATUSES, Study

__all__ = ["ABOUT", "RESULTS", "Frame", "Store", "Writer", "home", "word"]

RESULTS = FACTS / "results"
Frame: TypeAlias = Any
"""A `pandas.DataFrame`, whose own types take every column for one of five things."""
ABOUT = ("status", "evaluations", "seconds", "profile", "device", "key", "hardware", "torch",
         "python", "gleak", "commit", "date")  # fmt: skip
"""What every row says beside its cell, its seed and its metrics."""
_WORDS: Any = {name: str for name in ABOUT if name not in ("evaluations", "seconds")}


def home(profile: str) -> Path:
    """Return the folder of a profile's rows: only those of paper scale belong to the book."""
    return RESULTS if profile == "paper" else BUILD / "results"


@dataclass(frozen=True)
class Store:
    """The recorded rows of one study."""

    study: Study
    folder: Path = RESULTS

    def __post_init__(self) -> None:
        taken = sorted(set(self.study.keys) & {"seed", *self.study.metrics, *ABOUT})
        if taken:
            raise ValueError(
                f"{self.study.id} has the key {taken[0]}, which is a column of every row: "
                "give the key another name"
            )

    @property
    def path(self) -> Path:
        """Where the rows lie."""
        prefix, _, table = self.study.id.partition(".")
        return self.folder / prefix / f"{table}.csv"

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns, in order."""
        own = (name for name in self.study.metrics if name not in ABOUT)  # the seconds are there
        return (*self.study.keys, "seed", *own, *ABOUT)

    def rows(self) -> Frame:
        """Return all rows, the newest last; a torn last line is left out."""
        text = _whole_lines(self.path)
        if not text:
            return pd.DataFrame(columns=list(self.columns))
        try:
            kinds = _WORDS | dict.fromkeys(self.study.keys, str)
            gaps = {name: [""] for name in (*self.study.metrics, "seconds", "evaluations")}
            frame = pd.read_csv(
                io.StringIO(text), dtype=kinds, keep_default_na=False, na_values=gaps
            )
        except ValueError as error:
            raise GleakError(
                f"{self.path} is not a table of results ({error}): restore it from git, or remove "
                "it and measure again"
            ) from error
        if missing := sorted({*self.study.keys, "seed", *ABOUT} - set(frame.columns)):
            raise GleakError(
                f"{self.path} lacks the columns {', '.join(missing)}, so it holds another grid: "
                "move it away and measure again, or restore it from git"
            )
        if extra := sorted(set(frame.columns) - set(self.columns)):
            raise GleakError(
                f"{self.path} has the columns {', '.join(extra)}, so it holds another grid: "
                "move it away and measure again, or restore it from git"
            )
        for name in self.study.metrics:  # a metric that was added later
            if name not in frame:
                frame[name] = float("nan")
        if bad := sorted(set(frame["status"]) - set(STATUSES)):
            raise GleakError(
                f"{self.path} has rows of status {', '.join(map(str, bad))}: a status is one of "
                f"{', '.join(STATUSES)}"
            )
        frame = self._typed(frame)
        # Two writers cannot be, but two checkouts merged by git can. An interrupted trial is the
        # first of its kind, whenever it came: it hides none that was finished.
        done = frame["status"] != "interrupted"
        return (
            pd.concat([frame[~done], frame[done]])
            .drop_duplicates([*self.study.keys, "seed", "key"], keep="last")
            .sort_index()
        )

    def _typed(self, frame: Frame) -> Frame:
        """Return parameters as the grid has them, and numbers as numbers."""
        for name in self.study.keys:
            cells = (cell for profile in PROFILES for cell in self.study.grid(profile))
            values = {word(cell[name]): cell[name] for cell in cells}
            frame[name] = [values.get(said, said) for said in frame[name]]
        try:
            frame["seed"] = frame["seed"].astype(int)
            for name in {"seconds", "evaluations", *self.study.metrics}:
                frame[name] = frame[name].astype(float)
        except ValueError as error:
            raise GleakError(
                f"{self.path} has something else where a number should be ({error}): restore it "
                "from git"
            ) from error
        if bad := sorted(set(frame["profile"]) - set(PROFILES)):
            raise GleakError(
                f"{self.path} has rows of profile {', '.join(bad)}: a profile is one of "
                f"{', '.join(PROFILES)}"
            )
        return frame

    def inputs(self) -> dict[str, Any]:
        """Return what each recorded key stands for."""
        try:
            known = json.loads(self._inputs.read_text(encoding="utf-8"))
            if not isinstance(known, dict):
                raise ValueError("it holds no table")
            return known
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise GleakError(
                f"{self._inputs} is damaged ({error}): restore it from git, or remove it"
            ) from error

    @contextmanager
    def writing(self, *, waiting: Any = lambda: None) -> Iterator["Writer"]:
        """Hold the table for the block, and cut off what a killed writer left half-written."""
        name = f"{self.study.id}.lock" if self.folder == RESULTS else None
        lock = BUILD / "results" / name if name else self.path.with_suffix(".lock")
        with held(lock, waiting=waiting):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            whole = _whole_lines(self.path)
            if whole and whole.partition("\n")[0] != ",".join(self.columns):
                self._rewrite(self.rows())  # of fewer metrics: none of its rows is lost
            elif self.path.exists() and len(whole.encode()) != self.path.stat().st_size:
                atomic_write(self.path, whole)
            yield Writer(self)

    def _rewrite(self, frame: Frame) -> None:
        known = frame.reindex(columns=list(self.columns))
        lines = [_cells(self.columns, row) for row in known.to_dict("records")]
        atomic_write(self.path, _csv([list(self.columns), *lines]))

    @property
    def _inputs(self) -> Path:
        return self.path.with_suffix(".inputs.json")


@dataclass(frozen=True)
class Writer:
    """The one that may add rows to a table."""

    store: Store

    def describe(self, key: str, inputs: Mapping[str, Any]) -> None:
        """Write down what a key stands for, before the first row with it."""
        known = self.store.inputs()
        if key not in known:
            text = json.dumps({**known, key: inputs}, indent=1, sort_keys=True)
            atomic_write(self.store._inputs, f"{text}\n")

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows, all of them or none."""
        lines = _csv([_cells(self.store.columns, row) for row in rows]).encode()
        path = self.store.path
        if not path.exists():
            self.store._rewrite(pd.DataFrame(columns=list(self.store.columns)))
        size = path.stat().st_size
        with path.open("ab", buffering=0) as file:
            try:
                if file.write(lines) != len(lines):
                    raise OSError(28, "No space left on device")
                os.fsync(file.fileno())
            except OSError as error:
                file.truncate(size)
                raise GleakError(
                    f"cannot write {path} ({error.strerror}): free some space; what was "
                    "finished before is kept"
                ) from error

    def tidy(self, finished: Mapping[str, Mapping[str, Any]]) -> None:
        """Drop the rows of older keys of cells whose measurement is complete.

        `finished` maps a complete key to its cell, profile and device. A measurement of fewer
        trials replaces none of more.
        """
        store = self.store
        rows = store.rows()
        if rows.empty:
            return
        place = [*store.study.keys, "profile", "device"]
        full = {tuple(word(about[name]) for name in place): key for key, about in finished.items()}
        records = rows.to_dict("records")
        cells = [tuple(word(row[name]) for name in place) for row in records]
        seeds = Counter((at, row["key"]) for at, row in zip(cells, records, strict=True))

        def stays(at: tuple[str, ...], key: str) -> bool:
            new = full.get(at, key)
            return new == key or seeds[at, new] < seeds[at, key]

        keep = [stays(at, row["key"]) for at, row in zip(cells, records, strict=True)]
        if not all(keep) or len(rows) < _lines(store.path):
            store._rewrite(rows[keep])
        known, used = store.inputs(), set(rows[keep]["key"])
        if set(known) - used:
            left = {key: known[key] for key in sorted(used & set(known))}
            atomic_write(store._inputs, json.dumps(left, indent=1, sort_keys=True) + "\n")


def _whole_lines(path: Path) -> str:
    """Return a file's text up to its last line break."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return ""
    return text[: text.rfind(b"\n") + 1].decode("utf-8", "replace")


def _lines(path: Path) -> int:
    """Count the rows that a file holds, those that a newer one has replaced included."""
    return sum(1 for _ in csv.reader(io.StringIO(_whole_lines(path)))) - 1


def _cells(columns: Sequence[str], row: Mapping[str, Any]) -> list[str]:
    if unknown := sorted(set(row) - set(columns)):
        raise ValueError(f"a row has the columns {', '.join(unknown)}, which its study lacks")
    return [word(row.get(name)) for name in columns]


def word(value: Any) -> str:
    """Return what the table says for a value: six digits, a whole number whole, or nothing."""
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def _csv(lines: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
