"""Running nbval on a notebook, under the same environment as `gleak run`."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from gleak_core.files import ROOT
from gleak_core.publish import notebooks, worker

CHAPTERS: Sequence[Path] = list(notebooks.find(ROOT).values())
PATIENCE = 600  # seconds per cell


def nbval(path: Path, scratch: Path) -> tuple[dict[int, str], str]:
    """Run a notebook against its stored outputs; return each code cell's result and the report."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-c", str(Path(__file__).with_name("nbval.ini"))),
            *("--rootdir", str(path.parent), "--nbval-cell-timeout", str(PATIENCE)),
            *("-v", "--color=no", str(path)),
        ],
        capture_output=True,
        text=True,
        cwd=path.parent,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("PYTEST")},
            **worker.environment(),
            "CUDA_VISIBLE_DEVICES": "",  # the committed outputs are those of a CPU
            "IPYTHONDIR": str(scratch),
        },
    )
    report = done.stdout + done.stderr
    found = re.findall(r"::Cell (\d+) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)", report)
    return {int(number) + 1: result for number, result in found}, report
