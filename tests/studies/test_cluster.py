"""The same studies on a real Dask scheduler: workers compute, one process writes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from studies import toy
from studies.test_runner import ALL, lines, rows, run, wait_until

from gleak_core.errors import GleakError
from gleak_core.studies import cluster

pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
WHERE = ["--host", "127.0.0.1"]


class Cluster:
    """A scheduler and its workers, each a process of its own."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        where = folder / "scheduler.json"
        self.start("distributed.cli.dask_scheduler", *WHERE, "--port", "0", "--no-dashboard",
                   "--scheduler-file", str(where))  # fmt: skip
        wait_until(where.exists)
        self.address = json.loads(where.read_text())["address"]

    def start(self, module: str, *words: str, **environment: str) -> subprocess.Popen[bytes]:
        paths = os.pathsep.join(path for path in sys.path if path)
        log = (self.folder / "log.txt").open("ab")
        process = subprocess.Popen(
            [sys.executable, "-m", module, *words],
            env={**os.environ, "PYTHONPATH": paths, "DASK_DISTRIBUTED__COMM__RETRY__COUNT": "0",
                 **environment},
            stdout=log,
            stderr=log,
            cwd=self.folder,
        )  # fmt: skip
        self.stack.callback(log.close)
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        return process

    def worker(self, **environment: str) -> subprocess.Popen[bytes]:
        return self.start("distributed.cli.dask_worker", self.address, *WHERE, "--nthreads", "1",
                          "--no-nanny", "--no-dashboard", **environment)  # fmt: skip

    def workers(self) -> int:
        from distributed import Client

        with Client(self.address, timeout="20s", set_as_default=False) as client:
            found: Any = client.nthreads()
            return len(found)


@pytest.fixture
def dask(tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(tmp_path, stack)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_worker_that_is_killed_loses_no_row(dask: Cluster, tmp_path: Path) -> None:
    first, second = (dask.worker(**{toy.PAUSE: "0.3"}) for _ in range(2))
    wait_until(lambda: dask.workers() == 2)
    execute, workers = cluster.connect(dask.address)
    assert workers == 2
    path = tmp_path / "toy" / "table1.csv"
    killed = []

    def kill(event) -> None:
        if not killed and lines(path) >= 3:  # mid-run: a block is done and most are not
            second.send_signal(signal.SIGKILL)
            killed.append(time.monotonic())

    outcome = run(toy.toy(), tmp_path, execute=execute, workers=workers, progress=kill)
    assert killed
    assert (outcome.rows, outcome.failures) == (18, [])
    assert rows(toy.toy(), tmp_path) == ALL
    assert first.poll() is None


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_what_goes_wrong_is_said(
    dask: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(GleakError, match=r"has no workers: start some, `dask worker"):
        cluster.connect(dask.address)
    dask.worker()
    wait_until(lambda: dask.workers() == 1)
    execute, _ = cluster.connect(dask.address)
    outcome = run(toy.toy(toy.break_at_two), tmp_path, execute=execute)
    assert outcome.rows == 12
    assert all("two is not to be had" in words for words in outcome.failures)
    outcome = run(toy.toy(toy.always_die, id="toy.deadly"), tmp_path, execute=execute, trials=1)
    assert outcome.rows == 0
    assert outcome.failures
    dask.worker()
    wait_until(lambda: dask.workers() >= 1)
    monkeypatch.setattr(cluster, "ROOT", tmp_path)  # here; the worker has its own
    with pytest.raises(GleakError, match="another version of gleak_core"):
        cluster.connect(dask.address)


def test_a_scheduler_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_PATIENCE", "1s")
    with pytest.raises(GleakError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9"):
        cluster.connect("tcp://127.0.0.1:9")
