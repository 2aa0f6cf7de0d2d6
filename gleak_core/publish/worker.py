"""Run one chapter in a process of its own, so that its death is only its own.

The parent writes one JSON job to standard input and keeps that pipe open: when it closes, the
parent is gone, and the worker stops its kernel and leaves. Events go out as JSON lines.
"""

import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

from gleak_core.errors import GleakError
from gleak_core.files import atomic_write
from gleak_core.locks import held
from gleak_core.publish import gate, notebooks
from gleak_core.publish.parameters import declared
from gleak_core.publish.staleness import record

__all__ = ["environment", "main"]

_GRACE = 5.0  # seconds from the wish to stop until the end, whatever happens


def environment() -> dict[str, str]:
    """Return the variables under which every chapter runs, whoever starts it."""
    # One thread: the order of sums, and so the page, must not depend on the number of cores; and
    # small convolutions on two threads of a busy machine were seen to run ten times slower.
    return {
        "TQDM_DISABLE": "1",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


def main() -> None:
    """Read a job, run it, report it."""
    events = _private_output()
    job = json.loads(sys.stdin.readline())
    signal.signal(signal.SIGTERM, partial(_stop, job))
    threading.Thread(target=_watch_parent, daemon=True).start()

    def tell(kind: str, **detail: Any) -> None:
        events.write(json.dumps({"kind": kind, **detail}) + "\n")
        events.flush()

    try:
        with held(Path(job["lock"]), waiting=lambda: tell("waiting")):
            run = record(Path(job["target"]))
            if run and run.get("key") == job["key"] and not job["force"]:
                tell("up to date")
                return
            tell("executed", seconds=_run(job, tell))
    except GleakError as error:
        tell("failed", message=str(error))
    except OSError as error:
        tell("failed", message=f"the run could not be written ({error}): free some space")


def _run(job: dict[str, Any], tell: Any) -> float:
    """Execute into a scratch folder; move the page into place only when it is whole."""
    target = Path(job["target"])
    notebook = notebooks.read(Path(job["source"]))
    if job["values"]:
        cell = notebooks.tagged(notebook, "parameters")[0]
        cell["source"] = declared(job["chapter"], notebook).rewrite(job["values"])
    lock = Path(job["lock"])
    scratch = Path(tempfile.mkdtemp(dir=lock.parent, prefix=f"{lock.stem}-"))
    job["scratch"] = str(scratch)
    os.environ["IPYTHONDIR"] = str(scratch / "ipython")  # nobody's start-up files
    started = time.perf_counter()
    try:
        executed = _execute(notebook, scratch, job, tell)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    seconds = time.perf_counter() - started
    gate.require(gate.WHOLE, executed, name=job["chapter"], root=Path(job["root"]))
    notebooks.clean(executed)
    executed["metadata"].setdefault("gleak", {}).pop("run", None)
    if job["record"] is None:
        gate.require(gate.COMMITTED, executed, name=job["chapter"], root=Path(job["root"]))
    else:
        executed["metadata"]["gleak"]["run"] = {
            **job["record"],
            "hardware": _hardware(job["record"]["device"]),
            "seconds": round(seconds, 1),
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"),
            "versions": _versions(),
        }
    atomic_write(target, notebooks.text(executed))
    return seconds


def _execute(notebook: Any, scratch: Path, job: dict[str, Any], tell: Any) -> Any:
    """Run the cells with papermill; turn each way of failing into a sentence."""
    import nbformat
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    total, current = len(notebook["cells"]), [0]

    def starting(cell: Any, cell_index: int) -> None:
        current[0] = cell_index
        tell("cell", done=cell_index, total=total)

    def failure(what: str, detail: str = "") -> GleakError:
        cell = notebook["cells"][current[0]]
        number = sum(c["cell_type"] == "code" for c in notebook["cells"][: current[0] + 1])
        lines = [f"{job['chapter']}, code cell {number}: {what}"]
        lines += [f"    {line}" for line in notebooks.head(cell, 4).splitlines()]
        return GleakError("\n".join([*lines, *([detail] if detail else [])]))

    source, output = scratch / "source.ipynb", scratch / "page.ipynb"
    nbformat.write(notebook, source)
    try:
        papermill.execute_notebook(
            str(source),
            str(output),
            cwd=str(Path(job["source"]).parent),
            kernel_name="python3",
            progress_bar=False,
            execution_timeout=job["timeout"],
            on_cell_execute=starting,
            shutdown_kernel="immediate",
            config=Config({"KernelManager": {"transport_encryption": "auto"}}),
        )
    except PapermillExecutionError as error:
        raise failure(f"{error.ename}: {error.evalue}".splitlines()[0], _end_of(error)) from error
    except CellTimeoutError as error:
        raise failure(
            f"ran longer than {job['timeout']} s: raise --timeout or make the cell smaller"
        ) from error
    except DeadKernelError as error:
        raise failure(
            "the kernel died here (killed, or out of memory): nothing was kept; "
            "run it again with fewer --jobs or a smaller profile"
        ) from error
    except RuntimeError as error:
        raise failure(f"the kernel could not go on ({error})") from error
    return notebooks.read(output)


def _private_output() -> TextIO:
    """Keep standard output for events alone; what libraries or the kernel print goes to stderr."""
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return events


def _watch_parent() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


def _stop(job: dict[str, Any], number: int, frame: FrameType | None) -> NoReturn:
    """Leave in order, by an exception that unwinds; what swallows it only delays the end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_leave_anyway, args=(job, 128 + number), daemon=True).start()
    raise SystemExit(128 + number)


def _leave_anyway(job: dict[str, Any], code: int) -> None:
    """Do what unwinding should have done: the exception can land where Python discards it.

    It does so inside a destructor or a callback from C; the cell would then run on to its end.
    """
    time.sleep(_GRACE)
    if "scratch" in job:
        shutil.rmtree(job["scratch"], ignore_errors=True)
    os._exit(code)  # the kernel looks after its parent every second, and follows


def _hardware(device: str) -> str:
    if device == "cuda":
        from gleak_core.device import describe

        return describe(device)
    # The words of device.describe, without the seconds that importing PyTorch takes.
    import platform

    return f"CPU ({platform.machine()}, 1 thread)"


def _versions() -> dict[str, str]:
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in ("torch", "numpy", "gleak"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _end_of(error: Any) -> str:
    """Return the last lines of a traceback, without colours and the two lines of its head."""
    lines = re.sub("\x1b\\[[0-9;]*[A-Za-z]", "", "\n".join(error.traceback)).strip().splitlines()
    return "\n".join(lines[2:][-6:])


if __name__ == "__main__":
    main()
