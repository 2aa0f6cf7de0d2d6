"""Processes of this machine that measure blocks, each on one thread."""

import sys
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process

from gleak_core.studies.runner import Done, Executor, Task, perform

__all__ = ["processes"]

_MB = 2**20

_DIED = (
    "its process died twice (killed, or out of memory): run it again with fewer --jobs, or on a "
    "machine with more memory"
)


def processes(jobs: int) -> Executor:
    """Return what runs blocks in `jobs` processes.

    A process that dies takes the blocks that were running with it. Each of them is run once more,
    alone, so that the one that kills is told from those that were beside it.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")

    def execute(tasks: Sequence[Task]) -> Generator[tuple[int, Done]]:
        left, suspects = dict(enumerate(tasks)), list[int]()
        while left:
            alone = [suspects.pop()] if suspects else []
            chosen = {n: left[n] for n in alone or left}
            # A new pool, for one that lost a process takes no work any more.
            with _pool(min(jobs, len(chosen))) as pool:
                running = {pool.submit(perform, task): n for n, task in chosen.items()}
                try:
                    for future, number in _as_finished(running):
                        yield number, future.result()
                        del left[number]
                except BrokenProcessPool:
                    if alone:
                        yield alone[0], Done([], _DIED)
                        del left[alone[0]]
                    else:  # a pool starts no more than one block beside those that run
                        suspects = [n for n in chosen if n in left][: jobs + 1]
                except BaseException:  # Ctrl-C, or nobody wants the rest
                    for process in list((pool._processes or {}).values()):
                        process.terminate()
                    raise

    return execute


def _pool(jobs: int) -> ProcessPoolExecutor:
    # spawn: a forked child would inherit threads' locks, and could not use a GPU.
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_alone)


def _alone() -> None:
    """Take one thread, leave Ctrl-C to the parent, and end with it."""
    import signal
    import threading

    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, daemon=True).start()
    torch.set_num_threads(1)
    _keep_memory()


def _keep_memory() -> None:
    """Keep what is freed for the next evaluation, which needs as much of it.

    What goes back to the kernel comes again page by page: that was a sixth of an attack's time.
    """
    import ctypes

    trim, above, pad = -1, -3, -2  # glibc's names for what `mallopt` sets; elsewhere nothing is
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for what, value in ((trim, -1), (above, 32 * _MB), (pad, 64 * _MB)):
            libc.mallopt(what, value)


def _follow() -> None:
    """End this process when its parent has: one that was killed could not say goodbye."""
    import os

    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _as_finished(
    running: dict["Future[Done]", int],
) -> Generator[tuple["Future[Done]", int]]:
    waiting = set(running)
    while waiting:
        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        for future in done:
            yield future, running[future]
