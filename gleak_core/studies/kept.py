"""Runs that several studies look at, each in its own way: made once, and kept on disk.

What is kept is what a judge read off a run, as JSON. Its name stands for all that it depends on:
the code, the data sets, the arguments, PyTorch. With it comes what the run took when it was made,
so that the cost beside a table does not depend on which study came first.
"""

import functools
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import ParamSpec, TypeVar

import torch

from gleak_core import data
from gleak_core.errors import GleakError
from gleak_core.files import BUILD, atomic_write
from gleak_core.studies import inputs

__all__ = ["FOLDER", "kept"]

FOLDER = BUILD / "kept"  # may be emptied at any time: a run is made again

P = ParamSpec("P")
T = TypeVar("T")


def kept(
    reads: Callable[..., Sequence[str]],
) -> Callable[[Callable[P, T]], Callable[P, tuple[T, float]]]:
    """Have a function's results kept; it then returns each with the seconds that it took.

    `reads` names the data sets behind a call. The results must be what JSON can hold, the
    arguments what `repr` tells apart, and the function must give the same for the same.
    """

    def keeping(make: Callable[P, T]) -> Callable[P, tuple[T, float]]:
        @functools.wraps(make)
        def remembered(*args: P.args, **more: P.kwargs) -> tuple[T, float]:
            parts = {
                "call": repr((args, sorted(more.items()))),
                "source": inputs.sources(make),
                "data": {name: data.fingerprint(name) for name in reads(*args, **more)},
                "torch": str(torch.__version__),
            }
            path = FOLDER / f"{make.__name__}.{inputs.key(parts)}.json"
            with suppress(OSError, ValueError, TypeError):  # not there, or not whole
                return _read(path.read_text(encoding="utf-8"))
            began = time.perf_counter()
            text = json.dumps([make(*args, **more), time.perf_counter() - began])
            with suppress(GleakError):  # a full disk costs a repetition, and no result
                atomic_write(path, text)
            return _read(text)  # the same, whether it was kept or not

        return remembered

    return keeping


def _read(text: str) -> tuple[T, float]:  # pyright: ignore[reportInvalidTypeVarUse]
    result, seconds = json.loads(text)
    return result, float(seconds)
