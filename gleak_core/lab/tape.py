"""From PyTorch to a tape: a traced function as a list of some twenty primitive operations.

The page runs no second derivation of the mathematics: PyTorch's autograd makes the graph of an
attack's step, and this module only rewrites its operations. What is a view in PyTorch (`expand`,
`t`, `slice`, …) costs nothing here either, constants are folded, and what is computed twice is
computed once. An operation that is not known fails the build.
"""

import json
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from gleak_core.errors import GleakError

__all__ = ["OPERATIONS", "Tape", "lower", "trace"]

OPERATIONS: Mapping[str, str] = {
    "input": "what the page writes",
    "fill": "o = v",
    "copy": "o = the strided view of a, in order",
    "place": "o = 0, but a at a strided view of it",
    "add": "o = a + b",
    "sub": "o = a − b",
    "mul": "o = a · b",
    "div": "o = a / b",
    "affine": "o = m a + c",
    "abs": "o = |a|",
    "sgn": "o = the sign of a",
    "sqrt": "o = √a",
    "exp": "o = exp a",
    "sigmoid": "o = σ(a)",
    "sigmoid_back": "o = a · b (1 − b)",
    "sum": "o = the sum over the middle one of three axes",
    "softmax": "o = softmax of the rows of a",
    "softmax_back": "o = b (a − Σ a b), by rows",
    "log_softmax": "o = log softmax of the rows of a",
    "log_softmax_back": "o = a − exp b Σ a, by rows",
    "mm": "o = a b, both strided",
    "conv": "o = a ⋆ b + c",
    "conv_input": "the adjoint of conv in its input",
    "conv_weight": "the adjoint of conv in its weight",
}
_MOST = 4  # axes of a strided view


@dataclass(frozen=True)
class Tape:
    """A function as data: buffers by number with their sizes, steps in order, inputs by name."""

    sizes: list[int]
    steps: list[dict[str, Any]]  # {"op": …, "i": [buffers], "o": buffer, …}
    inputs: dict[str, int]
    outputs: list[int]

    def parts(self) -> dict[str, Any]:
        """Return the tape as what JSON can hold."""
        return {
            "sizes": self.sizes,
            "steps": self.steps,
            "inputs": self.inputs,
            "outputs": self.outputs,
        }

    def text(self) -> str:
        """Return the tape as JSON, the same bytes for the same function."""
        return json.dumps(self.parts(), separators=(",", ":"), sort_keys=True)


def trace(function: Callable[..., Any], *examples: Tensor) -> GraphModule:
    """Return the graph of a function of tensors, its derivatives included."""
    traced = make_fx(function, tracing_mode="fake")(*examples)
    traced.graph.eliminate_dead_code()
    return traced


def lower(traced: GraphModule, names: Sequence[str]) -> Tape:
    """Rewrite a graph whose placeholders have these names."""
    work, known, left = _Writer(), dict[Node, Any](), list(names)
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            if not left:
                raise ValueError("the function has more inputs than names were given")
            known[node] = work.input(left.pop(0), tuple(node.meta["val"].shape))
        elif node.op == "output":
            if left:
                raise ValueError(f"the function has no input for the name {left[0]!r}")
            outputs = [work.buffer(known[one]) for one in _flat(node.args[0])]
            return work.tape(outputs)
        else:
            arguments = torch.fx.map_arg(node.args, lambda one: known[one])
            rule = _RULES.get(node.target)
            if rule is None:
                raise GleakError(
                    f"the lab does not know {node.target}: add a rule to gleak_core.lab.tape, and "
                    "a kernel if it is none of the old ones"
                )
            known[node] = rule(work, _shape(node), *arguments, **node.kwargs)
    raise ValueError("the graph has no output")


@dataclass(frozen=True)
class _View:
    """A strided look at a buffer, or a number that fills a shape."""

    buffer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    number: float | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def whole(self) -> bool:
        """Whether the elements lie in the buffer one after another, from its beginning."""
        flat = zip(self.shape, self.strides, _dense(self.shape), strict=True)
        return self.offset == 0 and all(n == 1 or a == b for n, a, b in flat)


def _dense(shape: Sequence[int]) -> tuple[int, ...]:
    strides, step = list[int](), 1
    for n in reversed(shape):
        strides.insert(0, step)
        step *= n
    return tuple(strides)


def _number(value: float, shape: Sequence[int] = ()) -> _View:
    return _View(-1, tuple(shape), (0,) * len(shape), number=float(value))


@dataclass
class _Writer:
    """Writes steps, each only once."""

    sizes: list[int] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    inputs: dict[str, int] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)

    def input(self, name: str, shape: tuple[int, ...]) -> _View:
        self.sizes.append(math.prod(shape))
        self.inputs[name] = len(self.sizes) - 1
        return _View(self.inputs[name], shape, _dense(shape))

    def step(self, op: str, of: Sequence[int], shape: Sequence[int], **more: Any) -> _View:
        assert op in OPERATIONS, op
        shape = tuple(shape)
        call = {"op": op, "i": list(of), **more}
        key = json.dumps([call, math.prod(shape)], sort_keys=True)
        if key not in self.memory:
            self.sizes.append(math.prod(shape))
            self.memory[key] = len(self.sizes) - 1
            self.steps.append({**call, "o": self.memory[key]})
        return _View(self.memory[key], shape, _dense(shape))

    def buffer(self, view: _View) -> int:
        """Return a buffer that holds a view's elements one after another."""
        if view.number is not None:
            return self.step("fill", [], view.shape, v=view.number).buffer
        if view.whole and view.size == self.sizes[view.buffer]:
            return view.buffer
        return self.step("copy", [view.buffer], view.shape, **_strided(view)).buffer

    def tape(self, outputs: list[int]) -> Tape:
        """Drop what nobody reads, and number the buffers anew."""
        live, kept = {*outputs, *self.inputs.values()}, list[dict[str, Any]]()
        for one in reversed(self.steps):
            if one["o"] in live:
                live.update(one["i"])
                kept.insert(0, one)
        new = {old: number for number, old in enumerate(sorted(live))}
        return Tape(
            sizes=[self.sizes[old] for old in sorted(live)],
            steps=[{**one, "i": [new[k] for k in one["i"]], "o": new[one["o"]]} for one in kept],
            inputs={name: new[old] for name, old in self.inputs.items()},
            outputs=[new[old] for old in outputs],
        )


def _strided(view: _View) -> dict[str, Any]:
    """Return a view as four axes, their strides and an offset."""
    axes = [(n, s) for n, s in zip(view.shape, view.strides, strict=True) if n != 1]
    merged = list[tuple[int, int]]()
    for n, s in axes:  # axes that lie one in another are one
        if merged and merged[-1][1] == n * s:
            merged[-1] = (merged[-1][0] * n, s)
        else:
            merged.append((n, s))
    if len(merged) > _MOST:
        raise GleakError(f"a view of {len(merged)} axes has no kernel: the lab knows {_MOST}")
    merged = [(1, 0)] * (_MOST - len(merged)) + merged
    return {"d": [n for n, _ in merged], "s": [s for _, s in merged], "f": view.offset}


def _shape(node: Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _flat(thing: Any) -> list[Any]:
    if isinstance(thing, list | tuple):
        return [one for part in thing for one in _flat(part)]
    return [thing]


# --- views ----------------------------------------------------------------------------------------


def _expand(work: _Writer, shape: tuple[int, ...], a: _View, *_: Any) -> _View:
    if a.number is not None:
        return _number(a.number, shape)
    more = len(shape) - len(a.shape)
    old, strides = (1,) * more + a.shape, (0,) * more + a.strides
    strides = tuple(
        0 if n == 1 and m != 1 else s for n, m, s in zip(old, shape, strides, strict=True)
    )
    return replace(a, shape=shape, strides=strides)


def _reshape(work: _Writer, shape: tuple[int, ...], a: _View, *_: Any) -> _View:
    if a.number is not None:
        return _number(a.number, shape)
    return _View(work.buffer(a), shape, _dense(shape))


def _transpose(work: _Writer, shape: tuple[int, ...], a: _View) -> _View:
    return replace(a, shape=shape, strides=a.strides[::-1])


def _select(work: _Writer, shape: tuple[int, ...], a: _View, axis: int, index: int) -> _View:
    if a.number is not None:
        return _number(a.number, shape)
    axis, index = axis % len(a.shape), index % a.shape[axis]
    strides = a.strides[:axis] + a.strides[axis + 1 :]
    return replace(a, shape=shape, strides=strides, offset=a.offset + index * a.strides[axis])


def _slice(
    work: _Writer,
    shape: tuple[int, ...],
    a: _View,
    axis: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> _View:
    assert step == 1, "slices with a step"
    if a.number is not None:
        return _number(a.number, shape)
    first, _, _ = slice(start, end).indices(a.shape[axis])
    return replace(a, shape=shape, offset=a.offset + first * a.strides[axis])


def _placed(work: _Writer, shape: tuple[int, ...], a: _View, part: _View) -> _View:
    """Return zeros of a shape with `a` where `part`, a view of them, points."""
    return work.step("place", [work.buffer(a)], shape, **_strided(part))


def _select_back(
    work: _Writer, shape: tuple[int, ...], a: _View, sizes: list[int], axis: int, index: int
) -> _View:
    whole = _View(-2, tuple(sizes), _dense(sizes))
    less = tuple(n for k, n in enumerate(sizes) if k != axis % len(sizes))
    return _placed(work, shape, a, _select(work, less, whole, axis, index))


def _slice_back(
    work: _Writer,
    shape: tuple[int, ...],
    a: _View,
    sizes: list[int],
    axis: int,
    start: int,
    end: int,
    step: int,
) -> _View:
    assert step == 1, "slices with a step"
    whole = _View(-2, tuple(sizes), _dense(sizes))
    return _placed(work, shape, a, _slice(work, a.shape, whole, axis, start, end))


def _stack(work: _Writer, shape: tuple[int, ...], parts: list[_View], axis: int = 0) -> _View:
    total: _View | None = None
    for k, part in enumerate(parts):
        one = _select_back(work, shape, part, list(shape), axis, k)
        total = one if total is None else _binary("add")(work, shape, total, one)
    assert total is not None
    return total


# --- element by element ---------------------------------------------------------------------------

_FOLD: Mapping[str, Callable[[float, float], float]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
}


def _binary(op: str) -> Callable[..., _View]:
    def rule(work: _Writer, shape: tuple[int, ...], a: Any, b: Any) -> _View:
        a, b = (
            _expand(work, shape, one if isinstance(one, _View) else _number(one)) for one in (a, b)
        )
        if a.number is not None and b.number is not None:
            return _number(_FOLD[op](a.number, b.number), shape)
        if b.number is not None:
            m = b.number if op == "mul" else 1 / b.number if op == "div" else 1.0
            c = {"add": b.number, "sub": -b.number}.get(op, 0.0)
            return _affine(work, a, m, c)
        if a.number is not None and op != "div":
            m = a.number if op == "mul" else -1.0 if op == "sub" else 1.0
            return _affine(work, b, m, 0.0 if op == "mul" else a.number)
        return work.step(op, [work.buffer(a), work.buffer(b)], shape)

    return rule


def _affine(work: _Writer, a: _View, m: float, c: float) -> _View:
    if (m, c) == (1.0, 0.0):
        return a
    if m == 0.0:
        return _number(c, a.shape)
    return work.step("affine", [work.buffer(a)], a.shape, m=m, c=c)


def _unary(op: str) -> Callable[..., _View]:
    def rule(work: _Writer, shape: tuple[int, ...], a: _View) -> _View:
        return work.step(op, [work.buffer(a)], shape)

    return rule


def _negative(work: _Writer, shape: tuple[int, ...], a: _View) -> _View:
    return _binary("mul")(work, shape, a, -1.0)


def _from_number(work: _Writer, shape: tuple[int, ...], a: _View, value: float) -> _View:
    return _binary("sub")(work, shape, value, a)


def _power(work: _Writer, shape: tuple[int, ...], a: _View, exponent: float) -> _View:
    if exponent not in (1, 2):
        raise GleakError(f"the lab knows no power of {exponent:g}: it knows 1 and 2")
    return a if exponent == 1 else _binary("mul")(work, shape, a, a)


def _filled(value: float) -> Callable[..., _View]:
    def rule(work: _Writer, shape: tuple[int, ...], *_: Any, **__: Any) -> _View:
        return _number(value, shape)

    return rule


def _relu(work: _Writer, shape: tuple[int, ...], a: _View) -> _View:
    """Return a·(sgn a + 1)/2, which rounds nothing."""
    on = _affine(work, work.step("sgn", [work.buffer(a)], shape), 0.5, 0.5)
    return _binary("mul")(work, shape, a, on)


def _relu_back(
    work: _Writer, shape: tuple[int, ...], slope: _View, y: _View, threshold: float
) -> _View:
    """Return the slope where y = relu a is positive: the sign of y is 1 there, else 0."""
    assert threshold == 0, "a threshold other than 0"
    return _binary("mul")(work, shape, slope, work.step("sgn", [work.buffer(y)], shape))


def _sigmoid_back(work: _Writer, shape: tuple[int, ...], a: _View, y: _View) -> _View:
    return work.step("sigmoid_back", [work.buffer(a), work.buffer(y)], shape)


# --- sums and rows --------------------------------------------------------------------------------


def _sum(work: _Writer, shape: tuple[int, ...], a: _View, axes: Any = None, *_: Any) -> _View:
    """Sum over neighbouring axes, one group after another from the right."""
    if axes is None or not axes:
        axes = range(len(a.shape))
    groups = list[list[int]]()
    for axis in sorted({k % len(a.shape) for k in axes}):
        if groups and axis == groups[-1][-1] + 1:
            groups[-1].append(axis)
        else:
            groups.append([axis])
    for group in reversed(groups):
        before, after = a.shape[: group[0]], a.shape[group[-1] + 1 :]
        many = math.prod(a.shape[group[0] : group[-1] + 1])
        if a.number is not None:
            a = _number(a.number * many, before + after)
        elif many == 1:
            a = _reshape(work, before + after, a)
        else:
            axes3 = [math.prod(before), many, math.prod(after)]
            a = work.step("sum", [work.buffer(a)], before + after, d=axes3)
    return _reshape(work, shape, a)


def _mean(work: _Writer, shape: tuple[int, ...], a: _View, *more: Any) -> _View:
    total = _sum(work, shape, a, *more)
    return _binary("mul")(work, shape, total, math.prod(shape) / a.size)


def _rows(op: str) -> Callable[..., _View]:
    def rule(work: _Writer, shape: tuple[int, ...], *given: Any) -> _View:
        views = [one for one in given if isinstance(one, _View)]
        axis = next(one for one in given if not isinstance(one, _View))
        if axis % len(shape) != len(shape) - 1:
            raise GleakError(f"the lab takes {op} over the last axis only")
        rows = [math.prod(shape[:-1]), shape[-1]]
        return work.step(op, [work.buffer(one) for one in views], shape, d=rows)

    return rule


# --- matrices and convolutions --------------------------------------------------------------------


def _mm(work: _Writer, shape: tuple[int, ...], a: _View, b: _View) -> _View:
    ready = [
        one
        if one.number is None and one.offset == 0
        else _View(work.buffer(one), one.shape, _dense(one.shape))
        for one in (a, b)
    ]
    d = [shape[0], a.shape[1], shape[1]]
    s = [*ready[0].strides, *ready[1].strides]
    return work.step("mm", [one.buffer for one in ready], shape, d=d, s=s)


def _addmm(work: _Writer, shape: tuple[int, ...], c: _View, a: _View, b: _View) -> _View:
    return _binary("add")(work, shape, _mm(work, shape, a, b), c)


def _plain(stride: Any, padding: Any, dilation: Any, groups: int) -> tuple[int, int]:
    if stride[0] != stride[1] or padding[0] != padding[1] or set(dilation) != {1} or groups != 1:
        raise GleakError("the lab knows square strides and paddings, no dilation and no groups")
    return stride[0], padding[0]


def _geometry(x: Sequence[int], w: Sequence[int], o: Sequence[int], s: int, p: int) -> list[int]:
    """Return batch, input, output and kernel: [n, ci, hi, wi, co, ho, wo, kh, kw, stride, pad]."""
    return [*x, *o[1:], w[2], w[3], s, p]


def _conv(
    work: _Writer,
    shape: tuple[int, ...],
    x: _View,
    w: _View,
    bias: _View | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    _: Any,
    groups: int,
) -> _View:
    s, p = _plain(stride, padding, dilation, groups)
    of = [work.buffer(x), work.buffer(w)]
    if transposed:  # the adjoint of a convolution from `shape` to x
        if bias is not None:
            raise GleakError("the lab knows transposed convolutions without bias only")
        return work.step("conv_input", of, shape, g=_geometry(shape, w.shape, x.shape, s, p))
    if bias is not None:
        of.append(work.buffer(bias))
    return work.step("conv", of, shape, g=_geometry(x.shape, w.shape, shape, s, p))


def _conv_back(
    work: _Writer,
    shape: tuple[int, ...],
    slope: _View,
    x: _View,
    w: _View,
    _: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    __: Any,
    groups: int,
    wanted: Sequence[bool],
) -> tuple[_View | None, ...]:
    s, p = _plain(stride, padding, dilation, groups)
    if transposed:
        raise GleakError("the lab does not know the adjoint of a transposed convolution")
    g, up = _geometry(x.shape, w.shape, slope.shape, s, p), work.buffer(slope)
    return (
        work.step("conv_input", [up, work.buffer(w)], x.shape, g=g) if wanted[0] else None,
        work.step("conv_weight", [work.buffer(x), up], w.shape, g=g) if wanted[1] else None,
        _sum(work, w.shape[:1], slope, (0, 2, 3)) if wanted[2] else None,
    )


def _item(work: _Writer, shape: tuple[int, ...], parts: Sequence[Any], index: int) -> Any:
    return parts[index]


_A = torch.ops.aten
_RULES: dict[Any, Callable[..., Any]] = {
    operator.getitem: _item,
    _A.expand.default: _expand,
    _A.view.default: _reshape,
    _A.unsqueeze.default: _reshape,
    _A.squeeze.dim: _reshape,
    _A.t.default: _transpose,
    _A.select.int: _select,
    _A.slice.Tensor: _slice,
    _A.select_backward.default: _select_back,
    _A.slice_backward.default: _slice_back,
    _A.stack.default: _stack,
    _A.add.Tensor: _binary("add"),
    _A.add.Scalar: _binary("add"),
    _A.sub.Tensor: _binary("sub"),
    _A.mul.Tensor: _binary("mul"),
    _A.mul.Scalar: _binary("mul"),
    _A.div.Tensor: _binary("div"),
    _A.div.Scalar: _binary("div"),
    _A.rsub.Scalar: _from_number,
    _A.neg.default: _negative,
    _A.pow.Tensor_Scalar: _power,
    _A.abs.default: _unary("abs"),
    _A.sgn.default: _unary("sgn"),
    _A.sqrt.default: _unary("sqrt"),
    _A.exp.default: _unary("exp"),
    _A.sigmoid.default: _unary("sigmoid"),
    _A.sigmoid_backward.default: _sigmoid_back,
    _A.relu.default: _relu,
    _A.threshold_backward.default: _relu_back,
    _A.ones_like.default: _filled(1.0),
    _A.zeros_like.default: _filled(0.0),
    _A.sum.default: _sum,
    _A.sum.dim_IntList: _sum,
    _A.mean.default: _mean,
    _A.mean.dim: _mean,
    _A._softmax.default: _rows("softmax"),
    _A._softmax_backward_data.default: _rows("softmax_back"),
    _A._log_softmax.default: _rows("log_softmax"),
    _A._log_softmax_backward_data.default: _rows("log_softmax_back"),
    _A.mm.default: _mm,
    _A.addmm.default: _addmm,
    _A.convolution.default: _conv,
    _A.convolution_backward.default: _conv_back,
}
