"""A tape on the kernels, in wasmtime: what a browser does, without one."""

from typing import Any

import numpy as np
import wasmtime
from numpy.typing import NDArray

from gleak_core.lab.tape import Tape

Array = NDArray[np.float64]
_PAGE = 1 << 16


class Kernels:
    """A module's memory and functions."""

    def __init__(self, module: bytes) -> None:
        self.store = wasmtime.Store()
        made = wasmtime.Module(self.store.engine, module)
        self.exports = wasmtime.Instance(self.store, made, []).exports(self.store)
        self.memory: Any = self.exports["memory"]
        heap: Any = self.exports["__heap_base"]
        self.top = (heap.value(self.store) + 15) & ~15

    def alloc(self, count: int) -> int:
        at, self.top = self.top, (self.top + 8 * count + 15) & ~15
        short = self.top - self.memory.data_len(self.store)
        if short > 0:
            self.memory.grow(self.store, -(-short // _PAGE))
        return at

    def call(self, name: str, *arguments: float) -> Any:
        function: Any = self.exports[name]
        return function(self.store, *arguments)

    def write(self, at: int, values: Any) -> None:
        self.memory.write(self.store, np.ascontiguousarray(values, np.float64).tobytes(), at)

    def read(self, at: int, count: int) -> Array:
        return np.frombuffer(self.memory.read(self.store, at, at + 8 * count), np.float64)


class Runner:
    """A tape whose buffers lie in a module's memory."""

    def __init__(self, tape: Tape, module: bytes) -> None:
        self.tape, self.kernels = tape, Kernels(module)
        self.at = [self.kernels.alloc(size) for size in tape.sizes]
        self.scratch = self.kernels.alloc(max([1, *map(_columns, tape.steps)]))

    def __call__(self, **inputs: Any) -> list[Array]:
        for name, k in self.tape.inputs.items():
            self.kernels.write(self.at[k], inputs[name])
        for step in self.tape.steps:
            self.kernels.call(f"k_{step['op']}", *self.arguments(step))
        return [self.kernels.read(self.at[k], self.tape.sizes[k]) for k in self.tape.outputs]

    def arguments(self, step: dict[str, Any]) -> list[float]:
        """Return what a kernel is called with: output, inputs, numbers."""
        op, n = step["op"], self.tape.sizes[step["o"]]
        places = [self.at[step["o"]], *(self.at[k] for k in step["i"])]
        if op in ("copy", "place"):
            view = [*step["d"], *step["s"], step["f"]]
            return [*places, *([n] if op == "place" else []), *view]
        if op == "mm":
            return [*places, *step["d"], *step["s"]]
        if "d" in step:
            return [*places, *step["d"]]
        if "g" in step:
            places += [0] * (4 - len(places)) if op == "conv" else []
            return [*places, self.scratch, *step["g"]]
        numbers = [float(step[k]) for k in ("v", "m", "c") if k in step]
        return [*places, n, *numbers]


def _columns(step: dict[str, Any]) -> int:
    """Return the numbers that a convolution's windows need."""
    if "g" not in step:
        return 0
    _, ci, _, _, _, ho, wo, kh, kw, _, _ = step["g"]
    return ci * kh * kw * ho * wo
