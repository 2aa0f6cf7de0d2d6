"""The gradient distance of a plain stack and its gradient, written out: no autograd graph.

One forward pass, one backward pass for the fake gradient, and the adjoint of both. With
z_l = W_l a_{l−1} + b_l, a_l = σ(z_l), e_l = W_{l+1}ᵀ δ_{l+1}, δ_l = σ′(z_l) e_l and
δ_L = (p − q)/B the fake gradient is G_l = Σ_b δ_l a_{l−1}ᵀ; the adjoint recursion runs once up
(through the backward pass) and once down (through the forward pass). All dense work is `unfold`
and `bmm` over T·B samples at once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from gleak_core.distances import Distance, slope
from gleak_core.observation import Update, Weights
from gleak_core.stacks import SLOPES, Layer

__all__ = ["logits", "value_and_grad"]


def value_and_grad(
    stack: Sequence[Layer],
    weights: Weights,
    target: Update,
    distance: Distance,
    images: Tensor,
    soft: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return D (T,), ∂D/∂images (T, B, C, H, W) and ∂D/∂labels (T, B, K), for weights all share."""
    trials, batch = images.shape[:2]
    maps = [_Conv(at, weights) if at.kernel else _Linear(at, weights) for at in stack]
    last = len(maps) - 1

    # forward: a[l] goes into layer l
    a, first, second = [images.flatten(0, 1)], [], []
    for layer, m in zip(stack, maps, strict=True):
        value, one, two = SLOPES[layer.act](m.forward(a[-1]))
        a.append(value)
        first.append(one)  # σ′(z_l)
        second.append(two)  # σ″(z_l)
    p = a.pop().softmax(-1)  # (T·B, K)

    # backward, and the fake gradient
    delta = [p] * len(maps)
    delta[last] = (p - soft.flatten(0, 1)) / batch
    error = [p] * len(maps)  # e_l: what arrives at a_l from above
    for at in range(last, 0, -1):
        error[at - 1] = maps[at].transpose(delta[at])
        delta[at - 1] = first[at - 1] * error[at - 1]
    fake: Update = {}
    for layer, m, d in zip(stack, maps, delta, strict=True):
        m.keep(d, trials)
        if f"{layer.name}.weight" in target:
            fake[f"{layer.name}.weight"] = m.weight_gradient()
        if f"{layer.name}.bias" in target:
            fake[f"{layer.name}.bias"] = m.bias_gradient()
    value, residual = slope(distance, fake, target)

    # the adjoint of the backward pass, upwards: what D wants of each δ_l
    bent: list[Tensor] = []  # σ″(z_l) e_l t_l, which later joins the adjoint of z_l
    up: Tensor | None = None  # the adjoint of e_l
    wish = p
    for at, (layer, m) in enumerate(zip(stack, maps, strict=True)):
        wish = m.pull_delta(
            residual.get(f"{layer.name}.weight"), residual.get(f"{layer.name}.bias")
        )
        if up is not None:
            wish = wish + m.linear(up)
        if at < last:
            up = first[at] * wish
            bent.append(second[at] * error[at] * wish)

    # the adjoint of the forward pass, downwards
    wish = wish / batch
    down = p * (wish - (p * wish).sum(-1, keepdim=True))  # through the softmax
    for at in range(last, -1, -1):
        weight = residual.get(f"{stack[at].name}.weight")
        arriving = maps[at].transpose(down, weight)
        down = bent[at - 1] + first[at - 1] * arriving if at > 0 else arriving
    return value, down.view_as(images), -wish.view_as(soft)


def logits(stack: Sequence[Layer], weights: Weights, images: Tensor) -> Tensor:
    """Return the answers of a stack to images (N, C, H, W): (N, K)."""
    a = images
    for layer in stack:
        m = _Conv(layer, weights) if layer.kernel else _Linear(layer, weights)
        a = SLOPES[layer.act](m.forward(a))[0]
    return a


class _Linear:
    """z = W a + b on flattened inputs (N, F); N = T·B."""

    def __init__(self, layer: Layer, weights: Weights) -> None:
        self.weight = weights[f"{layer.name}.weight"]
        self.bias = weights.get(f"{layer.name}.bias")

    def forward(self, a: Tensor) -> Tensor:
        self.shape = a.shape
        self.a = a.flatten(1)
        return F.linear(self.a, self.weight, self.bias)

    def linear(self, a: Tensor) -> Tensor:
        """Return W a, without the bias."""
        return F.linear(a.flatten(1), self.weight)

    def keep(self, delta: Tensor, trials: int) -> None:
        self.trials, self.delta = trials, delta.unflatten(0, (trials, -1))  # (T, B, K)

    def weight_gradient(self) -> Tensor:
        return self.delta.transpose(1, 2) @ self.a.unflatten(0, (self.trials, -1))

    def bias_gradient(self) -> Tensor:
        return self.delta.sum(1)

    def pull_delta(self, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Return R a + r, what the residual (R, r) of this layer wants of its δ."""
        a = self.a.unflatten(0, (self.trials, -1))
        wish = torch.zeros_like(self.delta) if weight is None else a @ weight.transpose(1, 2)
        return (wish if bias is None else wish + bias[:, None]).flatten(0, 1)

    def transpose(self, delta: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return Wᵀ δ, plus Rᵀ δ_l for a residual R."""
        arriving = delta @ self.weight
        if residual is not None:
            arriving = arriving + (self.delta @ residual).flatten(0, 1)
        return arriving.view(self.shape)


class _Conv:
    """The same with shared weights: a matrix product on unfolded inputs U (N, C·k·k, P)."""

    def __init__(self, layer: Layer, weights: Weights) -> None:
        assert layer.kernel is not None
        self.weight = weights[f"{layer.name}.weight"]
        self.bias = weights.get(f"{layer.name}.bias")
        self.kernel, self.stride, self.padding = layer.kernel, layer.stride, layer.padding

    def forward(self, a: Tensor) -> Tensor:
        self.shape = a.shape
        self.u = F.unfold(a, self.kernel, padding=self.padding, stride=self.stride)
        return F.conv2d(a, self.weight, self.bias, self.stride, self.padding)

    def linear(self, a: Tensor) -> Tensor:
        return F.conv2d(a, self.weight, None, self.stride, self.padding)

    def keep(self, delta: Tensor, trials: int) -> None:
        self.trials, self.size = trials, delta.shape[2:]
        self.delta = delta.flatten(2)  # (N, O, P)

    def weight_gradient(self) -> Tensor:
        per_image = self.delta @ self.u.transpose(1, 2)  # (N, O, C·k·k)
        summed = per_image.unflatten(0, (self.trials, -1)).sum(1)
        return summed.view(self.trials, *self.weight.shape)

    def bias_gradient(self) -> Tensor:
        return self.delta.sum(2).unflatten(0, (self.trials, -1)).sum(1)

    def pull_delta(self, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        batch = len(self.u) // self.trials
        wish = torch.zeros_like(self.delta)
        if weight is not None:
            wish = weight.flatten(2).repeat_interleave(batch, 0) @ self.u
        if bias is not None:
            wish = wish + bias.repeat_interleave(batch, 0)[..., None]
        return wish.unflatten(2, self.size)

    def transpose(self, delta: Tensor, residual: Tensor | None = None) -> Tensor:
        height, width = self.shape[2:]
        left = [
            size - ((out - 1) * s - 2 * p + k)
            for size, out, s, p, k in zip(
                (height, width),
                delta.shape[2:],
                self.stride,
                self.padding,
                self.kernel,
                strict=True,
            )
        ]
        arriving = F.conv_transpose2d(
            delta, self.weight, None, self.stride, self.padding, output_padding=left
        )
        if residual is not None:
            batch = len(self.u) // self.trials
            spread = residual.flatten(2).repeat_interleave(batch, 0).transpose(1, 2) @ self.delta
            arriving = arriving + F.fold(
                spread, (height, width), self.kernel, padding=self.padding, stride=self.stride
            )
        return arriving
