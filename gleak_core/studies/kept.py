"""Runs that several studies look at, each in its own way: made once, and kept on disk.

What is kept is what a judge read off a run, as JSON. Its name stands for all that it depends on:
the code, the data sets, the arguments, PyTorch, the kind of machine. With it comes what the run
took when it was made, so that the cost beside a table does not depend on which study came first.
"""

import functools
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

from gleak_core import data
from gleak_core import device as devices
from gleak_core.errors import GleakError
from gleak_core.files import BUILD, atomic_write
from gleak_core.locks import held
from gleak_core.studies import inputs

__all__ = ["FOLDER", "kept"]

FOLDER = BUILD / "kept"  # may be emptied at any time: a run is made again

_NOT_WHOLE = (OSError, ValueError, TypeError)  # not there, or torn

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
        source = inputs.sources(make)  # now, while the files are those that are imported

        @functools.wraps(make)
        def remembered(*args: P.args, **more: P.kwargs) -> tuple[T, float]:
            parts = {
                "call": repr((args, sorted(more.items()))),
                "source": source,
                "data": {name: data.fingerprint(name) for name in reads(*args, **more)},
                "torch": str(torch.__version__),
                "hardware": devices.describe(devices.pick("auto")),
            }
            path = FOLDER / f"{make.__name__}.{inputs.key(parts)}.json"
            with suppress(*_NOT_WHOLE):
                return _read(path)
            with ExitStack() as alone:
                with suppress(GleakError):  # nobody can write here: nobody need wait
                    alone.enter_context(held(path.with_suffix(".lock")))
                with suppress(*_NOT_WHOLE):  # another process made it meanwhile
                    return _read(path)
                began = time.perf_counter()
                text = json.dumps([make(*args, **more), time.perf_counter() - began])
                with suppress(GleakError, OSError):  # a full disk costs a repetition, no result
                    atomic_write(path, text)
            return _parsed(text)  # the same, whether it was kept or not

        return remembered

    return keeping


def _read(path: Path) -> tuple[Any, float]:
    return _parsed(path.read_text(encoding="utf-8"))


def _parsed(text: str) -> tuple[Any, float]:
    result, seconds = json.loads(text)
    return result, float(seconds)
