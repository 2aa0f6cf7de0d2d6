"""The input of one layer, out of its gradient and its output: linear equations, all trials at once.

`analytic` walks down a network with these. T trials, O output channels at P positions, C input
channels of Q pixels.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gleak_core.errors import GleakError
from gleak_core.observation import Weights
from gleak_core.stacks import Layer

__all__ = ["Conv", "Linear"]

# Of MᵀM beside AᵀA, and of μ: picked by hand on LeNets of 32×32 pixels, between few steps of
# `_together` (a smaller share) and an accurate image (a larger one).
_SHARE = 1e-3
_RIDGE = 2e-4
_STEPS = 200  # at most; such a LeNet takes tens in float32, about a hundred in float64


class Linear:
    """z = W a + b on flattened inputs."""

    def __init__(self, layer: Layer, weights: Weights, shape: tuple[int, ...]) -> None:
        self.weight, self.bias = weights["weight"], weights.get("bias", torch.zeros(()))
        self.shape, self.out = shape, self.weight.shape[:1]
        self.floats = 3 * self.weight.numel()

    def forward(self, a: Tensor) -> Tensor:
        """Return W a."""
        return a.flatten(1) @ self.weight.T

    def transpose(self, delta: Tensor) -> Tensor:
        """Return Wᵀ δ, what arrives at the input."""
        return (delta @ self.weight).view(-1, *self.shape)

    def gradient(self, a: Tensor, delta: Tensor) -> Tensor:
        """Return δ aᵀ, (T, O, F)."""
        return delta[:, :, None] * a.flatten(1)[:, None]

    def solve(self, G: Tensor, delta: Tensor, y: Tensor, eps: float) -> Tensor:
        """Return the input: G = δ aᵀ alone gives it."""
        a = (delta[:, None] @ G)[:, 0] / delta.square().sum(1, keepdim=True)
        return a.view(-1, *self.shape)


@dataclass(frozen=True)
class _Class:
    """Pixels and kernel offsets that meet: a stride s parts both into s·s classes.

    `place[u, q]` is the output position whose window has pixel q at offset u, `pixel[u, p]` the
    pixel at offset u in window p; where there is none, they point one past the end.
    """

    pixels: Tensor  # (Q′,) numbers of pixels
    offsets: Tensor  # (k′,) numbers of kernel offsets
    place: Tensor  # (k′, Q′)
    pixel: Tensor  # (k′, P), numbers within `pixels`

    def rows(self, maps: int) -> int:
        """Return how many equations for a channel so many maps of δ give."""
        return maps * len(self.offsets)

    def rank(self, maps: int) -> int:
        """Return how many of them are independent if δ is in general position."""
        positions = (self.place < self.pixel.shape[1]).sum(1)  # (k′,)
        return min(int(positions.clamp(max=maps).sum()), len(self.pixels))


class Conv:
    """z = W ∗ a + b, and its two sets of equations for a (Q pixels in each of C channels).

    The gradient of each channel is Σ_p δ[o, p] a[pixel(u, p)] for a map o and an offset u: one
    matrix M for all channels, in blocks by class of pixels, but another for each trial. The matrix
    A of the forward pass couples everything, and all trials share it. Where M has half as many rows
    again as there are pixels, it alone gives a. Else, where A has rows enough, as in most first
    layers, both sets are solved together; where it has not, it only settles what M leaves free.
    """

    def __init__(self, layer: Layer, weights: Weights, shape: tuple[int, ...]) -> None:
        assert layer.kernel is not None
        self.weight = weights["weight"]  # (O, C, k, k)
        self.bias = weights["bias"][:, None, None] if layer.bias else torch.zeros(())
        self.kernel, self.stride, self.padding = layer.kernel, layer.stride, layer.padding
        sides = list(zip(shape[1:], self.kernel, self.stride, self.padding, strict=True))
        height, width = ((n + 2 * p - k) // s + 1 for n, k, s, p in sides)
        self.left = [(n + 2 * p - k) % s for n, k, s, p in sides]  # pixels that no window reaches
        self.shape, self.out = shape, (len(self.weight), height, width)
        self.classes = _classes(self)
        maps, P, C, Q = self.out[0], height * width, shape[0], math.prod(shape[1:])
        forward, free = maps * P, C * (Q - sum(c.rank(maps) for c in self.classes))
        full = all(c.rank(maps) == min(c.rows(maps), len(c.pixels)) for c in self.classes)
        plenty = all(c.rows(maps) >= 1.5 * len(c.pixels) for c in self.classes)
        self.together = forward >= C * Q and not (plenty and full)
        reached = all(bool((c.place < P).any(0).all()) for c in self.classes)
        if free > forward or not reached or not (full or self.together):
            raise GleakError(
                f"the equations of {layer.name!r} leave some of the {C * Q:,} numbers of its input "
                "free: make it wider, its kernel larger or its image smaller, or take an attack "
                "that optimises"
            )
        self.floats = 12 * C * (Q + P * math.prod(self.kernel))  # about what one trial takes
        if self.together:
            self.factor = _Factor(self)
        else:
            self.floats += 3 * max(c.rows(maps) * len(c.pixels) for c in self.classes)
            self.floats += 3 * forward * free

    def forward(self, a: Tensor) -> Tensor:
        """Return W ∗ a, (T, O, h, w)."""
        return F.conv2d(a, self.weight, None, self.stride, self.padding)

    def transpose(self, delta: Tensor) -> Tensor:
        """Return Wᵀ δ, what arrives at the input."""
        return F.conv_transpose2d(
            delta, self.weight, None, self.stride, self.padding, output_padding=self.left
        )

    def both(self, a: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Return W ∗ a (T, O, P) and M a (T, O, C·k·k), the weight gradient of an input a."""
        u = F.unfold(a, self.kernel, padding=self.padding, stride=self.stride)
        return self.weight.flatten(1) @ u, delta @ u.mT

    def both_transpose(self, y: Tensor, G: Tensor, delta: Tensor) -> Tensor:
        """Return Wᵀ y + Mᵀ G, (T, C, H, W)."""
        u = torch.baddbmm(self.weight.flatten(1).T @ y, G.mT, delta)
        return F.fold(u, self.shape[1:], self.kernel, padding=self.padding, stride=self.stride)

    def gradient(self, a: Tensor, delta: Tensor) -> Tensor:
        """Return the weight gradient of an input, (T, O, C·k·k)."""
        return self.both(a, delta.flatten(2))[1]

    def solve(self, G: Tensor, delta: Tensor, y: Tensor, eps: float) -> Tensor:
        """Return the input, from M a = G and W ∗ a = y."""
        C, P, k = self.shape[0], math.prod(self.out[1:]), math.prod(self.kernel)
        # However small a gradient is: MᵀM becomes _SHARE of WᵀW, by the mean of their diagonals.
        size = self.weight.norm() * math.sqrt(_SHARE * P / (C * k))
        size = delta.flatten(1).norm(dim=1)[:, None, None] / size
        G, delta, y = G.flatten(2) / size, delta.flatten(2) / size, y.flatten(2)
        return (self._together if self.together else self._by_classes)(G, delta, y, eps)

    def _by_classes(self, G: Tensor, delta: Tensor, y: Tensor, _: float) -> Tensor:
        T, C = len(y), self.shape[0]
        G = G.unflatten(2, (C, -1))  # (T, O, C, k·k)
        delta = F.pad(delta, (0, 1))  # a zero one past the end
        a = y.new_zeros(T, C, math.prod(self.shape[1:]))
        free: list[tuple[_Class, Tensor]] = []
        for c in self.classes:
            M = delta[:, :, c.place].flatten(1, 2)  # (T, O·k′, Q′)
            R = G[..., c.offsets].transpose(2, 3).flatten(1, 2)  # (T, O·k′, C)
            rows, columns = M.shape[1:]
            if rows >= columns:
                x = _least_squares(M, R)
            else:  # the smallest solution, and a basis of all that M does not see
                q, r = torch.linalg.qr(M.mT, mode="complete")
                x = q[..., :rows] @ torch.linalg.solve_triangular(r[:, :rows].mT, R, upper=False)
                free.append((c, q[..., rows:]))  # (T, Q′, r)
            a[:, :, c.pixels] = x.mT
        if free:
            missing = y - self.forward(a.view(T, *self.shape)).flatten(2)
            E = torch.cat([self._seen(c, basis) for c, basis in free], 3)  # (T, O·P, C, r)
            h = _least_squares(E.flatten(2), missing.flatten(1)[..., None]).view(T, C, -1)
            for (c, basis), part in zip(
                free, h.split([b.shape[2] for _, b in free], 2), strict=True
            ):
                a[:, :, c.pixels] += part @ basis.mT
        return a.view(T, *self.shape)

    def _seen(self, c: _Class, basis: Tensor) -> Tensor:
        """Return what A makes of each basis image in each channel, (T, O·P, C, r)."""
        u = F.pad(basis, (0, 0, 0, 1))[:, c.pixel]  # (T, k′, P, r)
        w = self.weight.flatten(2)[:, :, c.offsets].flatten(0, 1)  # (O·C, k′)
        E = (w @ u.flatten(2)).view(len(u), *self.weight.shape[:2], *u.shape[2:])
        return E.transpose(2, 3).flatten(1, 2)

    def _together(self, G: Tensor, delta: Tensor, y: Tensor, eps: float) -> Tensor:
        """Solve by conjugate gradients on the normal equations (CGLS), preconditioned by `factor`.

        The forward equations alone are nearly singular in a few directions, at the border, which
        those of the gradient hold down. A trial ends where its message is too coarse for more.
        """
        a, p = y.new_zeros(2, len(y), *self.shape)
        enough = old = y.new_ones(len(y))
        for step in range(_STEPS):
            g = self.both_transpose(y, G, delta)
            h = self.factor.solve(g)
            new = (g * h).flatten(1).sum(1)  # (T,)
            if step == 0:
                enough = new * max(10 * eps, 1e-13) ** 2
            going = new > enough
            if not going.any():
                break
            p = h + torch.where(going, new / old, 0).view(-1, 1, 1, 1) * p
            up, across = self.both(p, delta)
            length = up.flatten(1).square().sum(1) + across.flatten(1).square().sum(1)
            rate = torch.where(going, new / length, 0).view(-1, 1, 1)
            a, y, G = a + rate[..., None] * p, y - rate * up, G - rate * across
            old = new
        return a


def _least_squares(M: Tensor, R: Tensor) -> Tensor:
    """Solve full-rank M x ≈ R: normal equations, whose rounding one step of refinement undoes."""
    N = M.mT @ M
    diagonal = N.diagonal(dim1=1, dim2=2)
    diagonal += 1e-15 * diagonal.mean(1, keepdim=True)
    L, _ = torch.linalg.cholesky_ex(N)  # of a singular one nonsense, which the residual shows
    x = torch.cholesky_solve(M.mT @ R, L)
    return x + torch.cholesky_solve(M.mT @ (R - M @ x), L)


def _classes(conv: Conv) -> list[_Class]:
    """Sort pixels and offsets by their remainders, and tabulate which meet where."""
    (_, H, W), (k, across), (s, t) = conv.shape, conv.kernel, conv.stride
    P, Q = math.prod(conv.out[1:]), H * W
    numbers = torch.arange(1.0, Q + 1, dtype=torch.double).view(1, 1, H, W)  # 0 is the padding
    pixel = F.unfold(numbers, conv.kernel, padding=conv.padding, stride=conv.stride)[0].long() - 1
    pixel[pixel < 0] = Q  # (k·k, P)
    place = torch.full((k * across, Q + 1), P).scatter_(
        1, pixel, torch.arange(P).expand(k * across, P)
    )
    row, column = torch.arange(Q) // W + conv.padding[0], torch.arange(Q) % W + conv.padding[1]
    u = torch.arange(k * across)
    found = []
    for phase in range(s * t):
        pixels = (row % s * t + column % t == phase).nonzero()[:, 0]
        offsets = (u // across % s * t + u % across % t == phase).nonzero()[:, 0]
        within = torch.full((Q + 1,), len(pixels))
        within[pixels] = torch.arange(len(pixels))
        if len(pixels):
            parts = pixels, offsets, place[offsets][:, pixels], within[pixel[offsets]]
            found.append(_Class(*(x.to(conv.weight.device) for x in parts)))
    return found


class _Factor:
    """(AᵀA + μ)⁻¹ for the matrix A of a convolution, from its block tridiagonal Cholesky factor.

    Pixels further apart than the kernel is high share no window. In strips of k − 1 rows AᵀA is
    block tridiagonal, with L_j on the diagonal of its factor and F_j beside it.
    """

    def __init__(self, conv: Conv) -> None:
        (C, H, W), (k, _), (s, t), (p, r) = conv.shape, conv.kernel, conv.stride, conv.padding
        n, self.strip = C * W, max(k - 1, 1)
        count = -(-H // self.strip)
        # Each row of outputs sees its k rows of pixels in the same way.
        unit = torch.eye(k * n, dtype=torch.double, device=conv.weight.device)
        unit = unit.view(-1, k, C, W).transpose(1, 2)
        B = F.conv2d(unit, conv.weight, None, (1, t), (0, r)).flatten(1)
        BB = (B @ B.T).view(k, n, k, n)
        size = count, self.strip, n, self.strip, n
        D, E = unit.new_zeros(size), unit.new_zeros(size)  # strip j with itself, with strip j − 1
        for i, u, v in itertools.product(range(conv.out[1]), range(k), range(k)):
            row, column = i * s - p + u, i * s - p + v
            (j, y), (h, x) = divmod(row, self.strip), divmod(column, self.strip)
            if min(row, column) >= 0 and max(row, column) < H and j - 1 <= h <= j:
                (D if h == j else E)[j, y, :, x] += BB[u, :, v]
        D, E = D.view(count, self.strip * n, -1), E.view(count, self.strip * n, -1)
        diagonal = D.diagonal(dim1=1, dim2=2)
        diagonal += _RIDGE * diagonal.mean()
        inverses, beside = [], [E[0]]  # L_j⁻¹, F_j
        one = torch.eye(len(E[0]), dtype=E.dtype, device=E.device)
        for j in range(count):
            if j:
                beside.append(E[j] @ inverses[-1].T)
            L = torch.linalg.cholesky(D[j] - beside[j] @ beside[j].T)
            inverses.append(torch.linalg.solve_triangular(L, one, upper=False))
        inverse, beside = torch.stack(inverses), torch.stack(beside)
        # It only speeds up what is iterated in float64, so its own precision may be single.
        self.inverse = inverse.float()  # (count, n′, n′)
        self.down = (inverse @ beside).mT.float().contiguous()  # (L_j⁻¹ F_j)ᵀ
        self.up = (beside[1:] @ inverse[:-1]).float()  # F_{j+1} L_j⁻¹

    def solve(self, v: Tensor) -> Tensor:
        """Return (AᵀA + μ)⁻¹ v for v (T, C, H, W)."""
        T, C, H, W = v.shape
        count = len(self.inverse)
        rows = F.pad(v.transpose(1, 2), (0, 0, 0, 0, 0, count * self.strip - H))
        y = rows.float().reshape(T, count, -1).transpose(0, 1) @ self.inverse.mT
        for j in range(1, count):
            y[j] -= y[j - 1] @ self.down[j]
        x = y @ self.inverse
        for j in range(count - 2, -1, -1):
            x[j] -= x[j + 1] @ self.up[j]
        return x.transpose(0, 1).reshape(T, -1, C, W)[:, :H].transpose(1, 2).double()
