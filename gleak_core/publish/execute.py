"""Execute chapters: only what is stale, several at once, and nothing half-done.

An input is never an output: papermill writes into a scratch folder, and the page is moved to
`_build/executed/<chapter>.<key>.ipynb` only when it is whole. The key stands for all inputs, so
the finished pages are the resume cache too.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from gleak_core.files import ROOT
from gleak_core.locks import held, is_free
from gleak_core.provenance import cores, state
from gleak_core.publish import gate, notebooks, parameters, staleness, worker

__all__ = ["Event", "Outcome", "Progress", "plan", "refresh", "run", "why_stale"]

Status = Literal["executed", "up to date", "failed"]

# Seconds per cell after which a run is given up; only the paper profile may take what it takes.
_PATIENCE = {"smoke": 600.0, "quick": 1800.0, "paper": None}


@dataclass(frozen=True)
class Event:
    """Something that happened to a chapter: `kind` is a status, `cell` or `waiting`."""

    chapter: str
    kind: str
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    message: str = ""


Progress = Callable[[Event], None]


@dataclass(frozen=True)
class Outcome:
    """How a chapter ended: its page, or the sentence that says why there is none."""

    chapter: str
    status: Status
    path: Path
    seconds: float = 0.0
    message: str = ""


def plan(
    chapters: Sequence[str] | None = None,
    *,
    profile: str = "smoke",
    device: str = "auto",
    params: Mapping[str, Any] | None = None,
    root: Path = ROOT,
) -> list[staleness.Plan]:
    """Check parameters and device of all chapters, and say what each run would depend on."""
    paths = notebooks.select(chapters, root)
    read = {name: notebooks.read(path) for name, path in paths.items()}
    cells = [parameters.declared(name, notebook) for name, notebook in read.items()]
    device = staleness.pick_device(device)
    values = parameters.resolve(cells, params or {}, profile=profile, device=device)
    return [
        staleness.Plan(
            chapter=name,
            source=paths[name],
            values=values[name],
            inputs=staleness.inputs(notebook, values[name], device=device, root=root),
            root=root,
        )
        for name, notebook in read.items()
    ]


def why_stale(
    chapter: str,
    *,
    profile: str = "smoke",
    device: str = "auto",
    params: Mapping[str, Any] | None = None,
    root: Path = ROOT,
) -> str:
    """Say in words why a chapter would run again, or `up to date`."""
    [one] = plan([chapter], profile=profile, device=device, params=params, root=root)
    return staleness.why(one)


def run(
    chapters: Sequence[str] | None = None,
    *,
    profile: str = "smoke",
    device: str = "auto",
    jobs: int | None = None,
    params: Mapping[str, Any] | None = None,
    force: bool = False,
    timeout: float | None = None,
    root: Path = ROOT,
    progress: Progress = lambda event: None,
) -> list[Outcome]:
    """Execute the chapters that are stale, and return how each ended; a failure stops no other.

    Bad names, values and devices raise before any kernel starts.
    """
    plans = plan(chapters, profile=profile, device=device, params=params, root=root)
    ready = [p for p in plans if p.fresh and not force]
    for one in ready:
        progress(Event(one.chapter, "up to date"))
    git = state(root) if len(ready) < len(plans) else {}
    tasks = [
        _Task(one.chapter, one.source, one.target, one.key, dict(one.values), _record(one, git))
        for one in plans
        if one not in ready
    ]
    done = _execute(
        tasks,
        root=root,
        jobs=jobs,
        force=force,
        timeout=timeout or _PATIENCE[profile],
        extra={},
        progress=progress,
    )
    done += [Outcome(one.chapter, "up to date", one.target) for one in ready]
    return sorted(done, key=lambda outcome: outcome.chapter)


def refresh(
    chapters: Sequence[str] | None = None,
    *,
    jobs: int | None = None,
    timeout: float | None = None,
    root: Path = ROOT,
    progress: Progress = lambda event: None,
) -> list[Outcome]:
    """Run chapters with their defaults on the CPU and put the outputs into `chapters/` itself.

    This is the committed form that nbval compares with: no dates, nothing of this machine.
    """
    tasks = []
    for name, path in notebooks.select(chapters, root).items():
        notebook = notebooks.read(path)
        rules = (gate.smoke_by_default, gate.titled, gate.short_lines)
        gate.require(rules, notebook, name=name, root=root)
        tasks.append(_Task(name, path, path, "refresh", {}, None))
    return _execute(
        tasks,
        root=root,
        jobs=jobs,
        force=True,
        timeout=timeout or _PATIENCE["smoke"],
        extra={"CUDA_VISIBLE_DEVICES": ""},  # the cell says `auto`, and it shall mean the CPU
        progress=progress,
    )


@dataclass(frozen=True)
class _Task:
    chapter: str
    source: Path
    target: Path
    key: str
    values: dict[str, Any]
    record: dict[str, Any] | None


def _execute(
    tasks: Sequence[_Task],
    *,
    root: Path,
    jobs: int | None,
    force: bool,
    timeout: float | None,
    extra: Mapping[str, str],
    progress: Progress,
) -> list[Outcome]:
    if not tasks:
        return []
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    jobs = min(jobs or cores(), len(tasks))
    scratch = _scratch(root)
    environment = {**os.environ, **worker.environment(), **extra}
    workers = _Workers()

    def one(task: _Task) -> Outcome:
        job = {
            "chapter": task.chapter,
            "source": str(task.source.resolve()),
            "target": str(task.target.resolve()),
            "lock": str((scratch / f"{task.chapter}.{task.key}.lock").resolve()),
            "root": str(root.resolve()),
            "key": task.key,
            "values": task.values,
            "record": task.record,
            "force": force,
            "timeout": timeout,
        }
        if workers.stopped:
            return Outcome(task.chapter, "failed", task.target, message="stopped before it began")
        return _supervise(task, job, environment, workers, progress)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            return list(pool.map(one, tasks))
        except BaseException:  # Ctrl-C above all
            workers.stop()
            raise


class _Workers:
    """The processes that are running, so that all can be stopped, also one that just starts."""

    def __init__(self) -> None:
        self.stopped = False
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()

    def add(self, process: subprocess.Popen[str]) -> None:
        with self._lock:
            self._running.add(process)
            if self.stopped:
                process.terminate()

    def remove(self, process: subprocess.Popen[str]) -> None:
        with self._lock:
            self._running.discard(process)

    def stop(self) -> None:
        """Ask every worker to stop its kernel and clear its scratch folder."""
        with self._lock:
            self.stopped = True
            for process in self._running:
                process.terminate()


def _supervise(
    task: _Task,
    job: Mapping[str, Any],
    environment: Mapping[str, str],
    workers: _Workers,
    progress: Progress,
) -> Outcome:
    """Start a worker, pass on what it tells, and put its end into words, however it ends."""
    started = time.perf_counter()
    outcome: Outcome | None = None
    with tempfile.TemporaryFile("w+") as errors, _start(job, environment, errors) as process:
        workers.add(process)
        assert process.stdout
        for line in process.stdout:
            detail = json.loads(line)
            seconds = detail.pop("seconds", time.perf_counter() - started)
            event = Event(task.chapter, seconds=seconds, **detail)
            if event.kind in ("executed", "up to date", "failed"):
                status: Any = event.kind
                outcome = Outcome(task.chapter, status, task.target, seconds, event.message)
            progress(event)
        code = process.wait()
        workers.remove(process)
        if outcome is None:
            message = f"{task.chapter}: {_death(code, errors)}"
            seconds = time.perf_counter() - started
            progress(Event(task.chapter, "failed", seconds=seconds, message=message))
            outcome = Outcome(task.chapter, "failed", task.target, seconds, message)
    return outcome


def _start(
    job: Mapping[str, Any], environment: Mapping[str, str], errors: IO[str]
) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", worker.__name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env=dict(environment),
        cwd=job["root"],
        start_new_session=True,  # Ctrl-C reaches us alone; we then stop the workers in order
    )
    assert process.stdin
    process.stdin.write(json.dumps(job) + "\n")
    process.stdin.flush()
    return process


def _death(code: int, errors: IO[str]) -> str:
    if code < 0:
        return (
            f"its process was killed (signal {-code}), perhaps for want of memory: "
            "nothing was kept; run it again with fewer --jobs"
        )
    if code == 128 + 15:
        return "it was stopped; nothing was kept"
    errors.seek(0)
    last = errors.read().strip().splitlines()[-1:] or ["it said nothing"]
    return f"its process ended with code {code} ({last[0]}): nothing was kept"


def _scratch(root: Path) -> Path:
    """Return the scratch folder, without what dead runs have left in it."""
    scratch = staleness.executed_folder(root) / ".scratch"
    with held(scratch / "cleaning.lock"):
        for folder in (path for path in scratch.iterdir() if path.is_dir()):
            lock = scratch / f"{folder.name.rpartition('-')[0]}.lock"
            if not lock.exists() or is_free(lock):
                shutil.rmtree(folder, ignore_errors=True)
    return scratch


def _record(one: staleness.Plan, git: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "profile": one.values["profile"],
        "device": one.inputs["device"],
        "parameters": dict(one.values),
        "key": one.key,
        "inputs": dict(one.inputs),
        **git,
    }
