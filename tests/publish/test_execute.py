"""Executing for real, in small: finished or absent, whatever happens on the way."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from publish.conftest import Write
from publish.small_project import leftovers, notebook, outputs, pages

from gleak_core.errors import GleakError
from gleak_core.locks import held, is_free
from gleak_core.publish import execute, gate, notebooks


def kernels(project: Path) -> set[int]:
    """Return the living processes that work in the project's chapters, which only kernels do."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if link.readlink() == project.resolve() / "chapters":
                found.add(int(link.parent.name))
        except OSError:
            continue
    return found


def wait_until(what: Callable[[], object], seconds: float = 30) -> None:
    limit = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.05)


def test_a_page_shows_and_records_what_ran(project: Path, write: Write) -> None:
    chapter = write("01_a", "import os\nprint(profile, device, seed)", "print(os.getcwd()[-9:])")
    before = chapter.read_bytes()
    events: list[execute.Event] = []
    [outcome] = execute.run(
        root=project, profile="quick", device="cpu", params={"seed": 3}, progress=events.append
    )
    assert outcome.status == "executed", outcome.message
    assert outputs(outcome.path) == "quick cpu 3\n/chapters\n"
    page = notebooks.read(outcome.path)
    assert notebooks.tagged(page, "parameters")[0]["source"] == (
        'profile = "quick"  # smoke | quick | paper\ndevice = "cpu"\nseed = 3  # of the start\n'
    )
    run = page["metadata"]["gleak"]["run"]
    assert run["parameters"] == {"profile": "quick", "device": "cpu", "seed": 3}
    assert (run["profile"], run["device"], run["commit"]) == ("quick", "cpu", None)
    assert set(run["versions"]) == {"python", "torch", "numpy", "gleak"}
    assert run["seconds"] > 0
    assert outcome.path.name == f"01_a.{run['key']}.ipynb"
    assert [event.kind for event in events] == ["cell", "cell", "cell", "executed"]
    assert chapter.read_bytes() == before
    assert leftovers(project) == []
    [again] = execute.run(root=project, profile="quick", device="cpu", params={"seed": 3})
    assert (again.status, again.path) == ("up to date", outcome.path)


@pytest.mark.slow
def test_two_runs_differ_only_in_the_record(project: Path, write: Write) -> None:
    source = (
        "import matplotlib.pyplot as plt, sys\nplt.plot([1, 2]);",
        "for i in range(200): print(i, flush=True)",
        "{'a', 'b', 'c', 'd'}",
    )
    write("01_a", *source)
    runs = []
    for _ in range(2):
        [outcome] = execute.run(root=project, device="cpu", force=True)
        page = json.loads(outcome.path.read_text())
        del page["metadata"]["gleak"]["run"]
        runs.append(json.dumps(page))
    assert "image/png" in runs[0]
    assert runs[0] == runs[1]


@pytest.mark.slow
def test_failures_are_told_and_stop_no_other_chapter(project: Path, write: Write) -> None:
    write("01_error", "x = 1\n1 / 0  # here")
    write("02_kernel_killed", "import os\nos.kill(os.getpid(), 9)")
    write("03_worker_killed", "import os, time\nos.kill(os.getppid(), 9)\ntime.sleep(60)")
    write("04_exits", "raise SystemExit(0)", "print(1)")
    write("05_slow", "import time\ntime.sleep(60)")
    write("06_fine", "print(1)")
    found = {o.chapter: o for o in execute.run(root=project, device="cpu", jobs=3, timeout=3)}
    assert {name for name, o in found.items() if o.status == "executed"} == {"06_fine"}
    assert "01_error, code cell 2: ZeroDivisionError: division by zero\n    x = 1\n    1 / 0" in (
        found["01_error"].message
    )
    assert (
        "02_kernel_killed, code cell 2: the kernel died here" in found["02_kernel_killed"].message
    )
    assert (
        "03_worker_killed: its process was killed (signal 9)" in found["03_worker_killed"].message
    )
    assert "has execution count None" in found["04_exits"].message
    assert "05_slow, code cell 2: ran longer than 3 s" in found["05_slow"].message
    assert [page.name[:7] for page in pages(project)] == ["06_fine"]
    wait_until(lambda: not kernels(project))
    execute.run(["06"], root=project, device="cpu", force=True)
    assert leftovers(project) == []  # also what the killed worker left


@pytest.mark.parametrize("params", [{"sed": 1}, {"seed": "one"}])
def test_bad_parameters_start_no_kernel(project: Path, write: Write, params: dict) -> None:
    write("01_a", "open('ran', 'w')")
    with pytest.raises(GleakError):
        execute.run(root=project, params=params, device="cpu")
    assert not (project / "_build").exists()
    assert not (project / "chapters" / "ran").exists()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make a folder read-only for us; as root, who may write anywhere, be nobody for a while."""
    user = os.geteuid()
    folder.chmod(0o555)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if user == 0:
            os.seteuid(0)
        folder.chmod(0o755)


def test_a_read_only_folder_is_a_sentence() -> None:
    with tempfile.TemporaryDirectory() as name:  # tmp_path lies where nobody may look
        (Path(name) / "chapters").mkdir()
        (Path(name) / "gleak_core").mkdir()
        (Path(name) / "chapters" / "01_a.ipynb").write_text(notebooks.text(notebook()))
        with (
            read_only(Path(name)),
            pytest.raises(GleakError, match=r"cannot write into .*make the folder writable"),
        ):
            execute.run(root=Path(name), device="cpu")
        assert not (Path(name) / "_build").exists()


RUN = """
import sys
from pathlib import Path
from gleak_core.publish import execute
for outcome in execute.run(root=Path(sys.argv[1]), device="cpu", jobs=1):
    print(outcome.chapter, outcome.status, flush=True)
"""


def start(project: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(project)], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_kill_9_then_only_the_missing_runs(project: Path, write: Write) -> None:
    write("01_a", "open('ran_1', 'a').write('x')")
    write("02_b", "open('ran_2', 'a').write('x')", "import time\ntime.sleep(0 if seed else 60)")
    first = start(project)
    ran = project / "chapters" / "ran_2"
    wait_until(ran.exists)
    first.kill()
    first.communicate()
    assert [page.name[:4] for page in pages(project)] == ["01_a"]
    wait_until(lambda: not kernels(project))  # no orphans
    # The second chapter is made quick through its parameter's default, not to wait for a minute.
    chapter = project / "chapters" / "02_b.ipynb"
    chapter.write_text(chapter.read_text().replace("seed = 0", "seed = 1"))
    second = start(project)
    assert second.communicate()[0].split("\n") == ["01_a up to date", "02_b executed", ""]
    assert (project / "chapters" / "ran_1").read_text() == "x"
    assert leftovers(project) == []


def test_ctrl_c_leaves_nothing(project: Path, write: Write) -> None:
    write("01_a", "open('ran', 'w')", "import time\ntime.sleep(60)")
    process = start(project)
    wait_until((project / "chapters" / "ran").exists)
    assert kernels(project)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode != 0
    wait_until(lambda: not kernels(project), 5)
    assert pages(project) == []
    assert leftovers(project) == []


SWALLOW = """
import os, signal, sys, time
from functools import partial
from pathlib import Path
from gleak_core.publish import worker
worker._GRACE = 0.2
Path(sys.argv[1]).mkdir()
signal.signal(signal.SIGTERM, partial(worker._stop, {"scratch": sys.argv[1]}))
class Discards:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
Discards()
print("went on", flush=True)
time.sleep(60)
"""


def test_a_worker_leaves_although_its_exit_was_discarded(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    command = [sys.executable, "-c", SWALLOW, str(scratch)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (ended.stdout, ended.returncode) == ("went on\n", 128 + signal.SIGTERM)
    assert "SystemExit" in ended.stderr  # Python says that it ignored it
    assert not scratch.exists()


def test_the_second_of_two_runs_waits_and_takes_the_page(project: Path, write: Write) -> None:
    write("01_a", "open('ran', 'a').write('x')", "import time\ntime.sleep(2)")
    first = start(project)
    wait_until((project / "chapters" / "ran").exists)
    events: list[execute.Event] = []
    [outcome] = execute.run(root=project, device="cpu", progress=events.append)
    assert [event.kind for event in events] == ["waiting", "up to date"]
    assert outcome.status == "up to date"
    assert first.communicate()[0] == "01_a executed\n"
    assert (project / "chapters" / "ran").read_text() == "x"


def test_a_lock_is_free_when_its_holder_is_gone(tmp_path: Path) -> None:
    lock = tmp_path / "deep" / "x.lock"
    with held(lock):
        assert not is_free(lock)
    assert is_free(lock)


def test_refresh_writes_the_committed_form(project: Path, write: Write) -> None:
    chapter = write("01_a", "print(profile, device, seed)", "print('$0 \\\\le x$')")
    [outcome] = execute.refresh(root=project)
    assert outcome.status == "executed", outcome.message
    first = chapter.read_bytes()
    assert outputs(chapter) == "smoke auto 0\n$0 \\le x$\n"
    gate.require(gate.COMMITTED, notebooks.read(chapter), name="01_a", root=project)
    assert first.endswith(b"}\n")
    assert b'\n "cells": [' in first
    execute.refresh(root=project)
    assert chapter.read_bytes() == first


def test_refresh_keeps_the_old_chapter_when_the_new_is_bad(project: Path, write: Write) -> None:
    chapter = write("01_a", "import warnings; warnings.warn('careful')")
    before = chapter.read_bytes()
    [outcome] = execute.refresh(root=project)
    assert outcome.status == "failed"
    assert "wrote to standard error" in outcome.message
    assert chapter.read_bytes() == before
    write("02_b", "print(1)", parameters='profile = "quick"\n')
    with pytest.raises(gate.GateRefused, match="its default profile is 'quick'"):
        execute.refresh(["02"], root=project)


def test_jobs_must_be_positive(project: Path, write: Write) -> None:
    write("01_a")
    with pytest.raises(ValueError, match="jobs must be at least 1, got 0"):
        execute.run(root=project, device="cpu", jobs=0)
