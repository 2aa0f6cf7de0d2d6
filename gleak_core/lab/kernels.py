"""The kernels of the lab: built from `kernels.c` with zig, the same bytes everywhere."""

import base64
import json
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from gleak_core.errors import GleakError
from gleak_core.files import atomic_write, sha256

__all__ = ["SOURCE", "build", "committed", "write"]

SOURCE = Path(__file__).with_name("kernels.c")
BUILT = Path(__file__).with_name("kernels.json")  # the module, and the hash of its source
_TARGET = ("-target", "wasm32-freestanding", "-mcpu=generic+simd128")
_HOW = ("-O3", "-ffreestanding", "-fno-builtin", "-ffp-contract=off", "-fvisibility=hidden")
_LINK = (
    "-nostdlib",
    "-Wl,--no-entry",
    "-Wl,--export-dynamic",
    "-Wl,--export=__heap_base",
    "-Wl,--strip-all",
)


def build() -> bytes:
    """Return the WebAssembly module of the kernels."""
    if find_spec("ziglang") is None:
        raise GleakError("building the lab needs the zig compiler: pip install -e '.[lab]'")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "kernels.wasm"
        command = [sys.executable, "-m", "ziglang", "cc", *_TARGET, *_HOW, *_LINK]
        done = subprocess.run(
            [*command, str(SOURCE), "-o", str(made)], capture_output=True, text=True
        )
        if done.returncode:
            raise GleakError(f"the kernels do not compile:\n{done.stderr.strip()[-2000:]}")
        return made.read_bytes()


def write() -> None:
    """Compile the kernels, and put them beside their source."""
    made = {"source": sha256(SOURCE), "wasm": base64.b64encode(build()).decode()}
    atomic_write(BUILT, json.dumps(made, indent=1) + "\n")


def committed() -> bytes:
    """Return the module that is kept beside its source, if it was made from it."""
    made = json.loads(BUILT.read_text(encoding="utf-8"))
    if made["source"] != sha256(SOURCE):
        raise GleakError("the lab's kernels are not those of kernels.c any more: run make lab")
    return base64.b64decode(made["wasm"])
