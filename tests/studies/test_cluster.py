"""The same studies on a real Dask scheduler: workers compute, one process writes."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from studies import toy
from studies.test_runner import ALL, lines, rows, run

from gleak_core.errors import GleakError
from gleak_core.studies import cluster, runner

distributed = pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
HERE = ("--host", "127.0.0.1", "--no-dashboard")
Process = subprocess.Popen[bytes]


@pytest.fixture
def dask(tmp_path: Path) -> Iterator[tuple[str, list[Process]]]:
    """A scheduler and two workers, each a process of its own, on the loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        # A block that kills its worker is given to one more, not to three.
        "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
        toy.PAUSE: "0.3",
    }
    with ExitStack() as stack:
        log = stack.enter_context((tmp_path / "log.txt").open("ab"))

        def start(what: str, *words: str) -> Process:
            process = subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{what}", *words, *HERE],
                env=environment, stdout=log, stderr=log, cwd=tmp_path,
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        start("scheduler", "--port", str(port))
        workers = [start("worker", address, "--nthreads", "1", "--no-nanny") for _ in range(2)]
        with distributed.Client(address, timeout="60s", set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
        yield address, workers


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_run_on_workers_that_die(
    dask: tuple[str, list[Process]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, (first, second) = dask
    with cluster.connect(address) as (execute, workers):
        assert workers == 2
        path, killed = tmp_path / "toy" / "table1.csv", []

        def kill(event: object) -> None:
            if not killed and lines(path) >= 3:  # mid-run: a block is done, and most are not
                second.send_signal(signal.SIGKILL)
                killed.append(lines(path))

        outcome = run(toy.toy(), tmp_path, execute=execute, workers=workers, progress=kill)
        assert killed
        assert killed[0] < 13
        assert second.wait(10) == -signal.SIGKILL
        assert (outcome.rows, outcome.failures) == (18, [])
        assert rows(toy.toy(), tmp_path) == ALL  # each exactly once

        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(cluster, "ROOT", tmp_path)  # here; the worker has its own
            cluster._library.cache_clear()
            with pytest.raises(GleakError, match="another version of gleak_core"):
                cluster.connect(address).__enter__()
        cluster._library.cache_clear()

        broken = toy.toy(toy.break_at_two, id="toy.broken")
        outcome = run(broken, tmp_path, execute=execute, trials=2)
        assert outcome.rows == 4
        assert [words.partition(": ")[2] for words in outcome.failures] == [
            "two is not to be had: take another number"
        ]

        assert first.poll() is None
        monkeypatch.setattr(cluster, "_LOOK", 0.2)
        monkeypatch.setattr(cluster, "_ALONE", 0.5)
        with pytest.raises(GleakError, match="no worker is left: what was finished is kept"):
            run(toy.toy(toy.always_die, id="toy.deadly"), tmp_path, execute=execute, trials=1)
        with pytest.raises(GleakError, match="has no workers: start some, `dask worker"):
            cluster.connect(address).__enter__()


def test_a_worker_that_joined_late_with_other_code_computes_nothing() -> None:
    task = runner.Task("toy.table1", toy.count, {"a": 1}, (0, 1), "cpu")
    assert "another version of gleak_core" in cluster._perform(task, "another").error
    assert len(cluster._perform(task, cluster._library()).rows) == 2


@pytest.mark.parametrize("address", ["foo", "foo:bar", "tcp://", "http://x", "tcp://1.2.3.4:port"])
def test_what_is_no_address_is_refused_at_once(address: str) -> None:
    with pytest.raises(GleakError, match="is no scheduler's address: give host and port"):
        cluster.connect(address).__enter__()


def test_a_scheduler_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_PATIENCE", "1s")
    with pytest.raises(GleakError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9"):
        cluster.connect("tcp://127.0.0.1:9").__enter__()
