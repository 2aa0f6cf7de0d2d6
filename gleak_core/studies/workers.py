"""Processes of this machine that measure blocks, each on one thread."""

from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

from gleak_core.errors import GleakError
from gleak_core.studies.runner import Done, Executor, Task, perform

__all__ = ["processes"]

_DEATHS = 3  # after so many, a block is what kills its process


def processes(jobs: int) -> Executor:
    """Return what runs blocks in `jobs` processes; a process that dies loses its block only."""
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")

    def execute(tasks: Sequence[Task]) -> Generator[tuple[int, Done]]:
        left, deaths = dict(enumerate(tasks)), 0
        while left:
            # A new pool, for one that lost a process takes no work any more.
            with _pool(min(jobs, len(left))) as pool:
                running = {pool.submit(perform, task): number for number, task in left.items()}
                try:
                    for future, number in _as_finished(running):
                        yield number, future.result()
                        del left[number]
                except BrokenProcessPool as error:
                    deaths += 1
                    if deaths >= _DEATHS:
                        raise GleakError(
                            f"{deaths} processes died (killed, or out of memory): what was "
                            "finished is kept; run it again with fewer --jobs"
                        ) from error
                except BaseException:  # Ctrl-C, or nobody wants the rest
                    for process in list((pool._processes or {}).values()):
                        process.terminate()
                    raise

    return execute


def _pool(jobs: int) -> ProcessPoolExecutor:
    # spawn: a forked child would inherit threads' locks, and could not use a GPU.
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_alone)


def _alone() -> None:
    """Take one thread, and leave Ctrl-C to the parent."""
    import signal

    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _as_finished(
    running: dict["Future[Done]", int],
) -> Generator[tuple["Future[Done]", int]]:
    waiting = set(running)
    while waiting:
        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        for future in done:
            yield future, running[future]
