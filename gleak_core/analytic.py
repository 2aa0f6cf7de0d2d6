"""An image out of one exact gradient by linear algebra alone: no optimiser and no start.

For one image the gradient of a layer is made of outer products of δ_l = ∂L/∂z_l and the layer's
input a_{l−1}. At the head δ is the bias gradient, so the input follows (Phong et al. 2018). From
there downwards (R-GAP: Zhu & Blaschko 2021): a_l and e_l = ∂L/∂a_l give z_l = σ⁻¹(a_l) and
δ_l = σ′(z_l) e_l, and a_{l−1} solves equations that are linear in it, those of the gradient,
G_l = δ_l ⋆ a_{l−1}, and those of the forward pass, W_l a_{l−1} = z_l − b_l.

All is homogeneous in (δ, G): a gradient that was only scaled, as by clipping, gives the same image.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call

from gleak_core import stacks
from gleak_core.errors import GleakError
from gleak_core.observation import Observation, Update, Weights
from gleak_core.preimage import Conv, Linear
from gleak_core.stacks import SLOPES, Layer

__all__ = ["INVERSES", "Recovered", "Recursion", "recover"]

_BY = "the analytic recursion"
_ELSE = "or take an attack that optimises"
_BYTES, _TRIALS = 2**28, 32  # a chunk of trials: its working memory (if one fits), its number

INVERSES: Mapping[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
    "Identity": (lambda a: a, -math.inf, math.inf),
    "Sigmoid": (torch.logit, 0.0, 1.0),
    "Tanh": (torch.atanh, -1.0, 1.0),
    "LeakyReLU": (lambda a: torch.where(a > 0, a, a / 0.01), -math.inf, math.inf),
    "ELU": (lambda a: torch.where(a > 0, a, a.clamp(max=0).log1p()), -1.0, math.inf),
    "Softplus": (lambda a: a + (-(-a).expm1()).log(), 0.0, math.inf),
}
"""σ⁻¹ and the open range of σ; ReLU, GELU and SiLU take several z to one a, so are missing."""


@dataclass(frozen=True)
class Recovered:
    """What the equations gave; a trial they do not determine is mid-grey with residual ∞.

    The residual says how far the equations contradict each other, all that an attacker can see.
    """

    images: Tensor  # (T, 1, C, H, W), float64, not clipped
    labels: Tensor  # (T, 1)
    residual: Tensor  # (T,) the worst layer's
    layers: Tensor  # (T, L) each layer's relative residual, the first layer first


def recover(seen: Observation) -> Recovered:
    """Rebuild each trial's one image from its gradient (Zhu & Blaschko 2021; see the module)."""
    seen.one_message(by=_BY)
    shape, batch_size = seen.need("image_shape", "batch_size", by=_BY)
    weights = seen.weights(by=_BY)
    if batch_size != 1:
        raise GleakError(
            f"{_BY} solves for one image, and this batch has {batch_size}: "
            f"use fedsgd(…, each=True), {_ELSE}"
        )
    shapes = {n: p.shape for n, p in seen.architecture.named_parameters()}
    if any(len(weights[n]) > 1 and weights[n].dim() > len(s) for n, s in shapes.items()):
        raise GleakError(
            f"{_BY} needs weights that all trials share, and these have moved apart: "
            "recover one trial at a time, from seen.select([t])"
        )
    weights = {n: weights[n].double().view(s) for n, s in shapes.items()}
    stack = stacks.read(seen.architecture)
    recursion = None if stack is None else Recursion(stack, weights, shape)
    # What `forward` does cannot be read off the modules, so one output is compared.
    probe = torch.linspace(0, 1, math.prod(shape), dtype=torch.double, device=seen.device)
    probe = probe.view(1, *shape)
    if recursion is None or not torch.allclose(
        recursion.forward(probe), functional_call(seen.architecture, weights, (probe,))
    ):
        raise GleakError(
            f"{_BY} inverts plain stacks of convolution, activation and linear layers, and this "
            "network is none: take one without pooling, shortcuts or normalisation (lenet), "
            f"{_ELSE}"
        )
    return recursion(seen.gradient(by=_BY))


class Recursion:
    """The recursion for one set of weights: built once, applied to any number of messages."""

    def __init__(
        self, stack: Sequence[Layer], weights: Weights, image_shape: tuple[int, int, int]
    ) -> None:
        self.stack, self.image_shape = tuple(stack), tuple(image_shape)
        self.maps: list[Conv | Linear] = []
        if not stack[-1].bias:
            raise GleakError(
                f"{_BY} begins with the bias gradient of the head, and {stack[-1].name!r} has no "
                f"bias: give the head one, {_ELSE}"
            )
        shape = self.image_shape
        for layer in stack:
            if layer.act not in INVERSES:
                raise GleakError(
                    f"{layer.act} after {layer.name!r} cannot be undone, it takes several values "
                    f"to one: use one of {', '.join(sorted(INVERSES))}, {_ELSE}"
                )
            bare = {
                n: weights[f"{layer.name}.{n}"].double()
                for n in ("weight", "bias")[: 1 + layer.bias]
            }
            self.maps.append((Conv if layer.kernel else Linear)(layer, bare, shape))
            shape = self.maps[-1].out

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, K) of images (N, C, H, W) in float64."""
        a = images
        for layer, m in zip(self.stack, self.maps, strict=True):
            a = SLOPES[layer.act](m.forward(a) + m.bias)[0]
        return a

    def __call__(self, gradient: Update) -> Recovered:
        """Solve every trial of a message, in chunks of bounded memory."""
        needed = [f"{layer.name}.weight" for layer in self.stack] + [f"{self.stack[-1].name}.bias"]
        missing = [n for n in needed if n not in gradient]
        if missing:
            raise GleakError(
                f"{_BY} walks through every layer, and {missing[0]!r} is not among the messages: "
                f"let the whole gradient be seen, {_ELSE}"
            )
        size = max(1, min(_TRIALS, _BYTES // (8 * max(m.floats for m in self.maps))))
        chunks = zip(*(g.split(size) for g in gradient.values()), strict=True)
        parts = [self._solve(dict(zip(gradient, chunk, strict=True))) for chunk in chunks]
        images, labels, layers = (torch.cat(p) for p in zip(*parts, strict=True))
        sane = images.flatten(1).isfinite().all(1) & layers.isfinite().all(1)
        return Recovered(
            images=torch.where(sane.view(-1, 1, 1, 1, 1), images, 0.5),
            labels=labels,
            residual=torch.where(sane, layers.amax(1), torch.inf),
            layers=torch.where(sane[:, None], layers, torch.inf),
        )

    def _solve(self, message: Update) -> tuple[Tensor, Tensor, Tensor]:
        """Walk down the stack: return images, labels and residuals of some trials."""
        eps = torch.finfo(next(iter(message.values())).dtype).eps
        g = {n: t.double() for n, t in message.items()}
        z = e = g[f"{self.stack[-1].name}.bias"]  # (T, K): p − y, up to a factor
        labels = e.argmin(1, keepdim=True)  # its only negative entry
        a = e
        misses: list[Tensor] = []  # from the head down
        for layer, m in reversed(list(zip(self.stack, self.maps, strict=True))):
            G, bias = g[f"{layer.name}.weight"], g.get(f"{layer.name}.bias")
            delta, above = e, a
            if misses:
                inverse, low, high = INVERSES[layer.act]
                # Nearer to an end of its range such a message cannot tell two values apart.
                z = inverse(above.clamp(low + eps, high - eps))
                delta = SLOPES[layer.act](z)[1] * e
            if bias is not None and layer.kernel is None:
                delta = bias  # the same, without the errors from above
            a = m.solve(G, delta, z - m.bias, eps)
            miss = [_relative(m.gradient(a, delta), G.flatten(2))]
            if misses:
                miss.append(_relative(SLOPES[layer.act](m.forward(a) + m.bias)[0], above))
            misses.append(torch.stack(miss).amax(0))
            e = m.transpose(delta)
        return a.view(-1, 1, *self.image_shape), labels, torch.stack(misses[::-1], 1)


def _relative(found: Tensor, given: Tensor) -> Tensor:
    """Return ‖found − given‖/‖given‖ of each trial, (T,)."""
    return (found - given).flatten(1).norm(dim=1) / given.flatten(1).norm(dim=1)
