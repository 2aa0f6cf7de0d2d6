"""Kernels over lanes, compiled by numba: one register holds one number of several trials.

Imported late, by `lane_maps` alone: numba is optional and slow to import. A `_Vec` is one
register, 32 bytes: 8 trials in float32, 4 in float64. Its arithmetic is elementwise, so no trial
can touch another. `load` and `store` move it from and to arrays [..., lanes], `spread` fills it
with one number that all trials share; the rest is plain Python on such values. Offsets count
entries from the array's beginning and are never checked. Every kernel runs in one thread.
"""

# numba has no types, and need not be there where types are checked.
# pyright: reportMissingImports=false

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import extending
from numba.core import types

__all__ = ["BYTES", "contract", "match_linear", "matvec", "square"]

BYTES = 32  # of one register in AVX2; elsewhere LLVM takes two halves
_CHUNK = 100  # terms of a sum whose factors stay in the first cache
_HOW: dict[str, Any] = {
    "fastmath": {"contract", "nsz"},  # not "nnan", "ninf": a trial that has blown up must say so
    "boundscheck": False,
    "error_model": "numpy",
    "nogil": True,
}


def _intrinsic(typed: Callable[..., Any]) -> Callable[..., Any]:
    """Make what writes its own machine code; given a name here so that types can be checked."""
    return extending.intrinsic(typed)


def _jit(function: Callable[..., None]) -> Callable[..., None]:
    """Compile on first use, once for each precision, and keep it on disk if there is a place."""
    try:
        return numba.njit(cache=True, **_HOW)(function)
    except RuntimeError:  # neither this folder, NUMBA_CACHE_DIR nor the user's can be written
        return numba.njit(**_HOW)(function)


class _Vec(types.Type):
    def __init__(self, dtype: Any) -> None:
        self.dtype, self.width = dtype, BYTES * 8 // dtype.bitwidth
        super().__init__(name=f"Vec({dtype} x {self.width})")


@extending.register_model(_Vec)
class _VecModel(extending.models.PrimitiveModel):
    def __init__(self, manager: Any, kind: _Vec) -> None:
        scalar = ir.FloatType() if kind.dtype.bitwidth == 32 else ir.DoubleType()
        super().__init__(manager, kind, ir.VectorType(scalar, kind.width))


def _address(context, builder, kind, array, offset):
    """Return a pointer to an entry: numba's own indexing would ask whether it is negative."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [offset])


def _load(context, builder, signature, args):
    kind = signature.args[0]
    pointer = _address(context, builder, kind, *args)
    pointer = builder.bitcast(pointer, context.get_value_type(signature.return_type).as_pointer())
    return builder.load(pointer, align=kind.dtype.bitwidth // 8)


def _spread(context, builder, signature, args):
    one = builder.load(_address(context, builder, signature.args[0], *args))
    kind = context.get_value_type(signature.return_type)
    empty = ir.Constant(kind, ir.Undefined)
    order = ir.Constant(ir.VectorType(ir.IntType(32), kind.count), [0] * kind.count)
    return builder.shuffle_vector(
        builder.insert_element(empty, one, ir.IntType(32)(0)), empty, order
    )


@_intrinsic
def at(typing, array, offset):
    """Return one entry."""

    def generate(context, builder, signature, args):
        return builder.load(_address(context, builder, signature.args[0], *args))

    return array.dtype(array, types.intp), generate


@_intrinsic
def load(typing, array, offset):
    """Return the lanes that begin at `offset`."""
    return _Vec(array.dtype)(array, types.intp), _load


@_intrinsic
def spread(typing, array, offset):
    """Return one entry, the same in all lanes."""
    return _Vec(array.dtype)(array, types.intp), _spread


@_intrinsic
def factor(typing, array, offset):
    """Return lanes of an array (n, lanes), or one entry for all lanes of an array (n,)."""
    return _Vec(array.dtype)(array, types.intp), _load if array.ndim == 2 else _spread


@_intrinsic
def store(typing, array, offset, value):
    """Write lanes to `offset`."""

    def generate(context, builder, signature, args):
        pointer = _address(context, builder, signature.args[0], *args[:2])
        pointer = builder.bitcast(pointer, args[2].type.as_pointer())
        builder.store(args[2], pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), generate


@_intrinsic
def fma(typing, a, b, c):
    """Return a·b + c, in one instruction where there is one."""

    def generate(context, builder, signature, args):
        kind = args[0].type
        name = f"llvm.fmuladd.v{kind.count}f{signature.args[0].dtype.bitwidth}"
        f = builder.module.declare_intrinsic(name, (), ir.FunctionType(kind, [kind] * 3))
        return builder.call(f, args)

    return a(a, a, a), generate


@_intrinsic
def add(typing, a, b):
    """Return a + b."""
    return a(a, a), lambda context, builder, signature, args: builder.fadd(*args)


@_intrinsic
def mul(typing, a, b):
    """Return a·b."""
    return a(a, a), lambda context, builder, signature, args: builder.fmul(*args)


@_jit
def contract(out, a, x, rows, cols, red, blocks):
    """Add Σ_r A[i, r]·X[r, j] to out[i, j]: every place is a sum of two offsets from tables.

    A is shared by the trials (n,) or differs (n, lanes). rows (2, I): where row i begins in out and
    A. cols (2, J): where column j begins in out and X. red (2, R): what r adds in A and X. blocks
    (·, 4): begin and end of the columns, and of the r, that belong together. 3 × 4 sums stay in
    registers (12 of 16), with `_CHUNK` terms at a time. Past the end a tile repeats the last row or
    column: that writes the same sum twice, and spares a second loop.
    """
    last = rows.shape[1] - 1
    for block in blocks:
        right = block[1] - 1
        for begin in range(block[2], block[3], _CHUNK):
            end = min(begin + _CHUNK, block[3])
            for i in range(0, last + 1, 3):
                i1, i2 = min(i + 1, last), min(i + 2, last)
                o0, o1, o2 = rows[0, i], rows[0, i1], rows[0, i2]
                a0, a1, a2 = rows[1, i], rows[1, i1], rows[1, i2]
                for j in range(block[0], block[1], 4):
                    j1, j2, j3 = min(j + 1, right), min(j + 2, right), min(j + 3, right)
                    t0, t1, t2, t3 = cols[0, j], cols[0, j1], cols[0, j2], cols[0, j3]
                    x0, x1, x2, x3 = cols[1, j], cols[1, j1], cols[1, j2], cols[1, j3]
                    c00, c01 = load(out, o0 + t0), load(out, o0 + t1)
                    c02, c03 = load(out, o0 + t2), load(out, o0 + t3)
                    c10, c11 = load(out, o1 + t0), load(out, o1 + t1)
                    c12, c13 = load(out, o1 + t2), load(out, o1 + t3)
                    c20, c21 = load(out, o2 + t0), load(out, o2 + t1)
                    c22, c23 = load(out, o2 + t2), load(out, o2 + t3)
                    for r in range(begin, end):
                        p, q = at(red, r), at(red, r + red.shape[1])
                        f0, f1, f2 = factor(a, a0 + p), factor(a, a1 + p), factor(a, a2 + p)
                        b = load(x, x0 + q)
                        c00, c10, c20 = fma(f0, b, c00), fma(f1, b, c10), fma(f2, b, c20)
                        b = load(x, x1 + q)
                        c01, c11, c21 = fma(f0, b, c01), fma(f1, b, c11), fma(f2, b, c21)
                        b = load(x, x2 + q)
                        c02, c12, c22 = fma(f0, b, c02), fma(f1, b, c12), fma(f2, b, c22)
                        b = load(x, x3 + q)
                        c03, c13, c23 = fma(f0, b, c03), fma(f1, b, c13), fma(f2, b, c23)
                    store(out, o0 + t0, c00)
                    store(out, o0 + t1, c01)
                    store(out, o0 + t2, c02)
                    store(out, o0 + t3, c03)
                    store(out, o1 + t0, c10)
                    store(out, o1 + t1, c11)
                    store(out, o1 + t2, c12)
                    store(out, o1 + t3, c13)
                    store(out, o2 + t0, c20)
                    store(out, o2 + t1, c21)
                    store(out, o2 + t2, c22)
                    store(out, o2 + t3, c23)


@_jit
def square(value, residual):
    """Add Σ r² to the lanes of `value`, and double every r: the slope of the square."""
    lanes = BYTES // residual.itemsize
    for begin in range(0, residual.size, 256 * lanes):  # short sums of short sums round off less
        r = load(residual, begin)
        store(residual, begin, add(r, r))
        total = mul(r, r)
        for i in range(begin + lanes, min(begin + 256 * lanes, residual.size), lanes):
            r = load(residual, i)
            total = fma(r, r, total)
            store(residual, i, add(r, r))
        store(value, 0, add(load(value, 0), total))


@_jit
def matvec(out, matrix, x):
    """Add M x to out, for one image: `matrix` (K/8, F, 8) holds M by stripes of eight rows."""
    lanes = BYTES // out.itemsize
    last, begin = out.size - lanes, 0
    for k in range(0, out.size, 8 * lanes):
        k1, k2 = min(k + lanes, last), min(k + 2 * lanes, last)
        k3, k4 = min(k + 3 * lanes, last), min(k + 4 * lanes, last)
        k5, k6 = min(k + 5 * lanes, last), min(k + 6 * lanes, last)
        k7 = min(k + 7 * lanes, last)
        c0, c1, c2, c3 = load(out, k), load(out, k1), load(out, k2), load(out, k3)
        c4, c5, c6, c7 = load(out, k4), load(out, k5), load(out, k6), load(out, k7)
        for f in range(0, x.size, lanes):
            b = load(x, f)
            c0, c1 = fma(spread(matrix, begin), b, c0), fma(spread(matrix, begin + 1), b, c1)
            c2, c3 = fma(spread(matrix, begin + 2), b, c2), fma(spread(matrix, begin + 3), b, c3)
            c4, c5 = fma(spread(matrix, begin + 4), b, c4), fma(spread(matrix, begin + 5), b, c5)
            c6, c7 = fma(spread(matrix, begin + 6), b, c6), fma(spread(matrix, begin + 7), b, c7)
            begin += 8
        store(out, k7, c7)  # from the last to the first: past the end only repeats are wrong
        store(out, k6, c6)
        store(out, k5, c5)
        store(out, k4, c4)
        store(out, k3, c3)
        store(out, k2, c2)
        store(out, k1, c1)
        store(out, k, c0)


@_jit
def match_linear(value, wish, arriving, delta, a, up, weight, seen):
    """Do all that a linear layer's residual R = 2(δaᵀ + seen) is for, and never store it.

    One pass over `seen` (K·F rows of lanes, then K for the bias; −G*), for one image: Σ r² joins
    `value`, `wish` becomes R a + r + W `up`, and Rᵀ δ joins `arriving`. Two rows at a time; an odd
    last row is met twice, and `keep` (zeros) takes the second one out of every sum.
    """
    lanes = BYTES // seen.itemsize
    columns, last = a.size // lanes, delta.size // lanes - 1
    once = np.zeros(2 * lanes, seen.dtype)
    once[:lanes] = 1
    for k in range(0, last + 1, 2):
        k1 = min(k + 1, last)
        keep = load(once, (k - k1 + 1) * lanes)
        d0, d1 = load(delta, k * lanes), mul(load(delta, k1 * lanes), keep)
        w0, w1, s0, s1 = k * columns, k1 * columns, k * a.size, k1 * a.size
        total = ours0 = ours1 = above0 = above1 = load(once, lanes)  # zeros
        for f in range(columns):
            at_f = f * lanes
            b, c = load(a, at_f), load(up, at_f)
            above0 = fma(spread(weight, w0 + f), c, above0)
            above1 = fma(spread(weight, w1 + f), c, above1)
            r0 = fma(d0, b, load(seen, s0 + at_f))
            r1 = fma(d1, b, mul(load(seen, s1 + at_f), keep))
            total = fma(r1, r1, fma(r0, r0, total))
            r0, r1 = add(r0, r0), add(r1, r1)
            ours0, ours1 = fma(r0, b, ours0), fma(r1, b, ours1)
            store(arriving, at_f, fma(r1, d1, fma(r0, d0, load(arriving, at_f))))
        store(value, 0, add(load(value, 0), total))
        store(wish, k1 * lanes, add(ours1, above1))
        store(wish, k * lanes, add(ours0, above0))
    if seen.size > delta.size // lanes * a.size:
        for k in range(0, delta.size, lanes):
            r = add(load(delta, k), load(seen, seen.size - delta.size + k))
            store(value, 0, fma(r, r, load(value, 0)))
            store(wish, k, add(load(wish, k), add(r, r)))
