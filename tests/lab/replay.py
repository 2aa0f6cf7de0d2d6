"""A tape, replayed in NumPy: slow, plain, and independent of the kernels."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from gleak_core.lab.tape import Tape

Array = NDArray[np.float64]


def replay(tape: Tape, **inputs: Any) -> list[Array]:
    """Return the outputs of a tape, each flat."""
    held = {at: np.asarray(inputs[name], float).ravel().copy() for name, at in tape.inputs.items()}
    for step in tape.steps:
        of = [held[k] for k in step["i"]]
        held[step["o"]] = _KERNELS[step["op"]](step, tape.sizes[step["o"]], *of).ravel()
        assert held[step["o"]].size == tape.sizes[step["o"]], step
    return [held[k] for k in tape.outputs]


def look(a: Array, step: Mapping[str, Any]) -> Array:
    return as_strided(a[step["f"] :], step["d"], [8 * s for s in step["s"]])


def place(step: Any, n: int, a: Array) -> Array:
    whole = np.zeros(n)
    look(whole, step)[...] = a.reshape(step["d"])
    return whole


def rows(step: Any, a: Array) -> Array:
    return a.reshape(step["d"])


def softmax(a: Array) -> Array:
    e = np.exp(a - a.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def mm(step: Any, _: int, a: Array, b: Array) -> Array:
    (m, k, n), (a0, a1, b0, b1) = step["d"], step["s"]
    return as_strided(a, (m, k), (8 * a0, 8 * a1)) @ as_strided(b, (k, n), (8 * b0, 8 * b1))


def conv(step: Any, _: int, x: Array, w: Array, *bias: Array) -> Array:
    n, ci, hi, wi, co, _, _, kh, kw, s, p = step["g"]
    given = [torch.tensor(one) for one in bias]
    made = F.conv2d(
        torch.tensor(x).view(n, ci, hi, wi),
        torch.tensor(w).view(co, ci, kh, kw),
        *given,
        stride=s,
        padding=p,
    )
    return made.numpy()


def conv_input(step: Any, _: int, g: Array, w: Array) -> Array:
    n, ci, hi, wi, co, ho, wo, kh, kw, s, p = step["g"]
    up, weight = torch.tensor(g).view(n, co, ho, wo), torch.tensor(w).view(co, ci, kh, kw)
    return conv2d_input((n, ci, hi, wi), weight, up, stride=s, padding=p).numpy()


def conv_weight(step: Any, _: int, x: Array, g: Array) -> Array:
    n, ci, hi, wi, co, ho, wo, kh, kw, s, p = step["g"]
    below, up = torch.tensor(x).view(n, ci, hi, wi), torch.tensor(g).view(n, co, ho, wo)
    return conv2d_weight(below, (co, ci, kh, kw), up, stride=s, padding=p).numpy()


_KERNELS: dict[str, Any] = {
    "fill": lambda s, n: np.full(n, s["v"]),
    "copy": lambda s, n, a: look(a, s).copy(),
    "place": place,
    "add": lambda s, n, a, b: a + b,
    "sub": lambda s, n, a, b: a - b,
    "mul": lambda s, n, a, b: a * b,
    "div": lambda s, n, a, b: a / b,
    "affine": lambda s, n, a: s["m"] * a + s["c"],
    "abs": lambda s, n, a: np.abs(a),
    "sgn": lambda s, n, a: np.sign(a),
    "sqrt": lambda s, n, a: np.sqrt(a),
    "exp": lambda s, n, a: np.exp(a),
    "sigmoid": lambda s, n, a: 1 / (1 + np.exp(-a)),
    "sigmoid_back": lambda s, n, a, b: a * b * (1 - b),
    "sum": lambda s, n, a: a.reshape(s["d"]).sum(1),
    "softmax": lambda s, n, a: softmax(rows(s, a)),
    "softmax_back": lambda s, n, a, b: (
        rows(s, b) * (rows(s, a) - (rows(s, a) * rows(s, b)).sum(-1, keepdims=True))
    ),
    "log_softmax": lambda s, n, a: np.log(softmax(rows(s, a))),
    "log_softmax_back": lambda s, n, a, b: (
        rows(s, a) - np.exp(rows(s, b)) * rows(s, a).sum(-1, keepdims=True)
    ),
    "mm": mm,
    "conv": conv,
    "conv_input": conv_input,
    "conv_weight": conv_weight,
}
