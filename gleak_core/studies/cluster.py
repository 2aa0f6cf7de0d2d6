"""The same blocks on other machines, by Dask: workers compute, this process writes.

Any scheduler will do: one that this machine started, or one that SLURM or Kubernetes runs. A
worker that dies loses its block, and the scheduler gives that to another one.
"""

import functools
import queue
import re
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any

from gleak_core.errors import GleakError
from gleak_core.files import ROOT, sha256, sha256_bytes
from gleak_core.studies.runner import Done, Executor, Task, perform

__all__ = ["connect"]

_PATIENCE = "20s"  # for the scheduler to answer
_LOOK = 5.0  # seconds between two looks at whether anybody is working
_ALONE = 60.0  # seconds without any worker after which none will come


@contextmanager
def connect(address: str) -> Iterator[tuple[Executor, int]]:
    """Yield what runs blocks on the workers of a scheduler, and how many workers there are."""
    try:
        import distributed
    except ImportError as error:
        raise GleakError(
            "--scheduler needs Dask: pip install -c constraints.txt -e '.[cluster]'"
        ) from error

    if not re.fullmatch(r"(\w+://)?[^/:\s]+:\d+", address):
        raise GleakError(
            f"{address!r} is no scheduler's address: give host and port, as in tcp://10.0.0.1:8786"
        )
    try:
        client = distributed.Client(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise GleakError(
            f"no Dask scheduler answers at {address} ({error or type(error).__name__}): start one "
            "with `dask scheduler`, and give the address that it prints"
        ) from error
    with client:
        threads: Any = client.nthreads()
        if not threads:
            raise GleakError(
                f"the scheduler at {address} has no workers: start some, `dask worker {address} "
                "--nthreads 1` on each machine"
            )
        ours = _library()
        _same_library(client, ours)
        yield _executor(client, ours), sum(threads.values())


def _executor(client: Any, ours: str) -> Executor:
    """Return what sends blocks to the workers and yields their answers as they come."""

    def execute(tasks: Sequence[Task]) -> Generator[tuple[int, Done]]:
        # pure=False: two runs of the same block are two measurements.
        futures = {
            client.submit(_perform, task, ours, pure=False): n for n, task in enumerate(tasks)
        }
        finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for future in futures:
            future.add_done_callback(finished.put)
        last = time.monotonic()
        try:
            while futures:
                try:
                    future = finished.get(timeout=_LOOK)
                except queue.Empty:
                    _alive(client, since=last)
                    continue
                last = time.monotonic()
                yield futures.pop(future), _result(future)
        finally:
            client.cancel(list(futures))

    return execute


def _alive(client: Any, since: float) -> None:
    """Give up when the last worker has been gone for a while: nobody would ever answer."""
    if not client.nthreads() and time.monotonic() - since > _ALONE:
        raise GleakError(
            "no worker is left: what was finished is kept; start workers, then run it again"
        )


def _result(future: Any) -> Done:
    import distributed

    try:
        return future.result()
    except CancelledError as error:
        raise GleakError(
            "the scheduler is gone: what was finished is kept; start it and its workers, then run "
            "it again"
        ) from error
    except distributed.KilledWorker as error:
        return Done([], f"it killed {error.allowed_failures + 1} workers in turn: give the "
                    "workers more memory, or smaller blocks")  # fmt: skip
    except Exception as error:  # a worker without our code, or an answer that does not unpickle
        return Done([], f"the worker failed ({error!r})")


def _perform(task: Task, ours: str) -> Done:
    """Measure a block on a worker, which may have joined after the others were looked at."""
    if _library() != ours:
        return Done([], "a worker has another version of gleak_core: check out the same commit "
                    "there, and start it again")  # fmt: skip
    return perform(task)


def _same_library(client: Any, ours: str) -> None:
    """Refuse workers that run another version of the library: their rows would lie."""
    answers = client.run(_library, on_error="return")
    for worker, theirs in answers.items():
        if isinstance(theirs, Exception):
            raise GleakError(
                f"the worker {worker} has no gleak ({theirs}): install the same checkout there"
            )
        if theirs != ours:
            raise GleakError(
                f"the worker {worker} has another version of gleak_core: check out the same "
                "commit there, and start the worker again"
            )


@functools.cache
def _library() -> str:
    """Return a hash of all of the library's source."""
    root = ROOT / "gleak_core"
    found = [f"{p.relative_to(root)} {sha256(p)}" for p in sorted(root.rglob("*.py"))]
    return sha256_bytes("\n".join(found).encode())
