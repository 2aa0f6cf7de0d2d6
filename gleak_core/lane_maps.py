"""What the layers of a stack do to one group of trials: places in memory, and sums over them.

Arrays are [..., lanes]. A layer owns a workspace, made once; its steps read and write there, and
`lanes` joins them by what is elementwise.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gleak_core.observation import Weights
from gleak_core.stacks import Layer

__all__ = ["Map", "One", "flat", "lanes_of", "names_of"]


@cache
def _kernels() -> Any:
    from gleak_core import lane_kernels  # numba is optional, and takes a second to import

    return lane_kernels


def lanes_of(dtype: torch.dtype) -> int:
    """Return how many trials one register holds."""
    return _kernels().BYTES // dtype.itemsize


def names_of(layer: Layer) -> list[str]:
    """Return the names of a layer's parameters, the weight first."""
    return [f"{layer.name}.weight", f"{layer.name}.bias"][: 1 + layer.bias]


def flat(tensor: Tensor) -> np.ndarray:
    """See a contiguous tensor as a flat array."""
    return tensor.view(-1).numpy()


class _Place:
    """A piece of the workspace (B, C, H, W, lanes), with rims of zeros round each image.

    The rims (before and after, for H and W) let no kernel ask where an image ends. `inner` is the
    tensor without them, `flat` all of it as numpy's, and `index` (`inner_index`) says where an
    entry's lanes begin in `flat`.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        rims: Sequence[tuple[int, int]] = ((0, 0), (0, 0)),
    ) -> None:
        lanes = lanes_of(dtype)
        shape = (*shape[:2], *(n + sum(rim) for n, rim in zip(shape[2:], rims, strict=True)))
        self.tensor = torch.zeros(*shape, lanes, dtype=dtype)
        self.flat = flat(self.tensor)
        self.index = np.arange(math.prod(shape)).reshape(shape) * lanes
        inside = (..., *(slice(a, n - b) for n, (a, b) in zip(shape[2:], rims, strict=True)))
        self.inner, self.inner_index = self.tensor[(*inside, slice(None))], self.index[inside]

    def reshape(self, side: Sequence[int]) -> None:
        """See a place without rims as another shape."""
        self.tensor = self.inner = self.tensor.view(*side, -1)


class _Sum(NamedTuple):
    """The tables of one `contract`: where its sums and their factors lie."""

    rows: np.ndarray
    cols: np.ndarray
    red: np.ndarray
    blocks: np.ndarray

    @classmethod
    def of(cls, rows: Any, *blocks: tuple[Any, Any]) -> "_Sum":
        """Take rows (out, A), and for each block columns (out, X) and terms (A, X), any shape."""
        cols, red = [_pair(c) for c, _ in blocks], [_pair(r) for _, r in blocks]
        ends = np.cumsum([(c.shape[1], r.shape[1]) for c, r in zip(cols, red, strict=True)], 0)
        begins = np.vstack([[0, 0], ends[:-1]])
        bounds = np.stack([begins, ends], 2).reshape(-1, 4)
        return cls(_pair(rows), np.concatenate(cols, 1), np.concatenate(red, 1), bounds)

    def own(self, lanes: int) -> "_Sum":
        """Return the same sums for an A that differs from trial to trial."""
        return self._replace(rows=self.rows * [[1], [lanes]], red=self.red * [[lanes], [1]])


def _pair(offsets: Any) -> np.ndarray:
    return np.stack([np.asarray(o, np.int64).ravel() for o in offsets])


class Map:
    """One affine layer on one group: its places, its tables, and its steps of the recursion.

    A linear layer is a 1×1 convolution of a 1×1 image that has a channel for every entry.
    """

    def __init__(
        self, layer: Layer, weights: Weights, side: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        weight, lanes = weights[f"{layer.name}.weight"].detach(), lanes_of(dtype)
        self.weight = flat(weight.contiguous())
        self.bias = None
        if layer.bias:
            self.bias = weights[f"{layer.name}.bias"].detach()[:, None, None, None]
        kernel, stride, padding = layer.kernel or (1, 1), layer.stride, layer.padding
        into = side if layer.kernel else (side[0], math.prod(side[1:]), 1, 1)
        geometry = list(zip(into[2:], kernel, stride, padding, strict=True))
        high, wide = ((n + 2 * p - k) // s + 1 for n, k, s, p in geometry)
        out = (side[0], len(weight), high, wide)
        # The taps of an inner pixel look for δ in front of the first and behind the last of them.
        rims = [
            ((k - 1) // s, max(0, (n - 1 + p) // s + 1 - o))
            for (n, k, s, p), o in zip(geometry, out[2:], strict=True)
        ]
        self.a, self.up = (_Place(into, dtype, [(p, p) for p in padding]) for _ in range(2))
        self.error, self.arriving = (_Place(into, dtype) for _ in range(2))
        self.delta, self.down = (_Place(out, dtype, rims) for _ in range(2))
        self.z, self.wish = (_Place(out, dtype) for _ in range(2))
        self.residual = torch.zeros(weight.numel() + len(weight) * layer.bias, lanes, dtype=dtype)
        self.rest = self.residual[weight.numel() :].view(-1, 1, 1, lanes)  # the bias's
        self.ones = np.ones(lanes, self.delta.flat.dtype)
        (kh, kw), (sh, sw), (ph, pw) = kernel, stride, padding

        # Where things lie, without their lanes' first: weights [o, c, u, v], images [b, c, y, x].
        w = np.arange(weight.numel()).reshape(*weight.shape[:1], into[1], *kernel)
        a, z, e, d = self.a.index, self.z.index, self.error.index, self.delta.inner_index
        taps = a[0, :, :kh, :kw]  # [c, u, v]: what a tap adds to where its window begins
        windows = a[:, 0, : high * sh : sh, : wide * sw : sw]  # [b, i, j]
        # z[o, bij] = Σ_cuv w[o, cuv] a[cuv + bij]
        self.forwards = _Sum.of((z[0, :, 0, 0], w[:, 0, 0, 0]), ((z[:, 0], windows), (w[0], taps)))
        # R[o, cuv] = Σ_bij δ[o, bij] a[cuv + bij], and for the bias r[o] = Σ_bij δ[o, bij]·1
        places = d[:, 0] - d[0, 0, 0, 0]
        self.gradient = _Sum.of(
            (w[:, 0, 0, 0] * lanes, d[0, :, 0, 0]), ((w[0] * lanes, taps), (places, windows))
        )
        self.gathered = _Sum.of(
            ((w.size + np.arange(len(w))) * lanes, d[0, :, 0, 0]),
            (([0], [0]), (places, 0 * places)),
        )
        # e[c, byx] = Σ_ouv w[o, c, uv] δ[o, b, (y + p − u)/s, (x + p − v)/s] over whole quotients:
        # a block for each remainder of y + p and x + p, with the taps u and v of that remainder.
        blocks, d = [], self.delta.index
        for u in range(sh):
            for v in range(sw):
                y = np.arange((u - ph) % sh, e.shape[2], sh)
                x = np.arange((v - pw) % sw, e.shape[3], sw)
                i, j = (y + ph) // sh + rims[0][0], (x + pw) // sw + rims[1][0]
                some = w[:, 0, u::sh, v::sw]
                back = d[0, 0, : some.shape[1], : some.shape[2]]
                pixels = (e[:, 0][:, y][:, :, x], d[:, 0][:, i][:, :, j])
                blocks.append((pixels, (some, d[0, :, :1, :1] - back)))
        self.backwards = _Sum.of((e[0, :, 0, 0], w[0, :, 0, 0]), *blocks)
        self.pulled, self.pushed = self.forwards.own(lanes), self.backwards.own(lanes)
        if not layer.kernel:  # what comes from below keeps its own shape
            for place in (self.a, self.up, self.error, self.arriving):
                place.reshape(side)

    def forward(self) -> Tensor:
        """Return z = W a + b."""
        _begin(self.z, self.bias)
        _kernels().contract(self.z.flat, self.weight, self.a.flat, *self.forwards)
        return self.z.tensor

    def backward(self) -> Tensor:
        """Return e = Wᵀ δ."""
        _begin(self.error)
        _kernels().contract(self.error.flat, self.weight, self.delta.flat, *self.backwards)
        return self.error.tensor

    def match(self, seen: Tensor, value: np.ndarray, lowest: bool) -> Tensor:
        """Add ‖δ aᵀ + seen‖² to `value`, keep its slope (R, r), and return R a + r + W up."""
        contract, residual = _kernels().contract, self.residual.numpy()
        delta = self.delta.flat.reshape(-1, len(self.ones))
        self.residual.copy_(seen)
        contract(residual.reshape(-1), delta, self.a.flat, *self.gradient)
        if self.bias is not None:
            contract(residual.reshape(-1), delta, self.ones, *self.gathered)
        _kernels().square(value, residual.reshape(-1))
        _begin(self.wish, None if self.bias is None else self.rest)
        contract(self.wish.flat, residual, self.a.flat, *self.pulled)
        if not lowest:
            contract(self.wish.flat, self.weight, self.up.flat, *self.forwards)
        return self.wish.tensor

    def descend(self) -> Tensor:
        """Return Rᵀ δ + Wᵀ down."""
        _begin(self.arriving)
        out, contract = self.arriving.flat, _kernels().contract
        contract(out, self.residual.numpy(), self.delta.flat, *self.pushed)
        contract(out, self.weight, self.down.flat, *self.backwards)
        return self.arriving.tensor


class One(Map):
    """A linear layer with B = 1: R is used in one pass and never stored, W is read in order."""

    def __init__(
        self, layer: Layer, weights: Weights, side: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        super().__init__(layer, weights, side, dtype)
        weight = weights[f"{layer.name}.weight"].detach()
        self.stripes, self.turned = _stripes(weight), _stripes(weight.T)

    def forward(self) -> Tensor:
        """Return z = W a + b."""
        _begin(self.z, self.bias)
        _kernels().matvec(self.z.flat, self.stripes, self.a.flat)
        return self.z.tensor

    def backward(self) -> Tensor:
        """Return e = Wᵀ δ."""
        _begin(self.error)
        _kernels().matvec(self.error.flat, self.turned, self.delta.flat)
        return self.error.tensor

    def match(self, seen: Tensor, value: np.ndarray, lowest: bool) -> Tensor:
        """Do what `Map.match` does, and Rᵀ δ at once."""
        _begin(self.arriving)
        _kernels().match_linear(
            value,
            self.wish.flat,
            self.arriving.flat,
            self.delta.flat,
            self.a.flat,
            self.up.flat,  # zeros in the lowest layer
            self.weight,
            flat(seen),
        )
        return self.wish.tensor

    def descend(self) -> Tensor:
        """Return Rᵀ δ + Wᵀ down."""
        _kernels().matvec(self.arriving.flat, self.turned, self.down.flat)
        return self.arriving.tensor


def _begin(place: _Place, bias: Tensor | None = None) -> None:
    """Set what a sum starts from."""
    if bias is None:
        place.tensor.zero_()
    else:
        place.tensor.copy_(bias)


def _stripes(weight: Tensor) -> np.ndarray:
    """Lay a matrix (K, F) out as (K/8, F, 8), with rows of zeros at the end."""
    k, f = weight.shape
    padded = weight.new_zeros(-(-k // 8) * 8, f)
    padded[:k] = weight
    return flat(padded.view(-1, 8, f).transpose(1, 2).contiguous())
