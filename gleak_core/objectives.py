"""What an attack minimises: the distance between the dummy's gradient and the one it saw.

An objective is a function of a flat vector per trial, z (T, n), and gives value and gradient.
The solvers see nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, vmap
from torch.nn import functional as F

from gleak_core.observation import Observation, Update, Weights

__all__ = ["Distance", "GradientMatch", "soft_cross_entropy", "squared_l2"]

Distance = Callable[[Update, Update], Tensor]


def squared_l2(fake: Update, seen: Update) -> Tensor:
    """Return ‖∇W′ − ∇W‖², summed over every parameter that was seen (Zhu et al. 2019, Eq. 4)."""
    return torch.stack([(fake[n] - g).square().sum() for n, g in seen.items()]).sum()


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross-entropy against soft labels (B, K): DLG's loss for a dummy label."""
    return -(target * F.log_softmax(logits, -1)).sum(-1).mean()


@dataclass(frozen=True)
class GradientMatch:
    """The gradient distance of T independent dummies, as a function of z.

    z holds the dummy images and, where `labels` is None, the logits of the dummy labels after
    them (DLG's joint label); with `labels` (T, B) the labels are fixed (iDLG).
    """

    architecture: nn.Module
    weights: Weights
    target: Update  # (T, *shape) each
    image_shape: tuple[int, ...]  # (B, C, H, W)
    classes: int
    labels: Tensor | None
    distance: Distance = squared_l2

    @classmethod
    def of(
        cls, seen: Observation, *, labels: Tensor | None, by: str, distance: Distance = squared_l2
    ) -> "GradientMatch":
        """Take from an observation what it grants, and refuse if that is not enough."""
        seen.one_message(by=by)
        shape, batch_size = seen.need("image_shape", "batch_size", by=by)
        weight, _ = seen.head()
        return cls(
            architecture=seen.architecture,
            weights=seen.weights(by=by),
            target=seen.gradient(by=by),
            image_shape=(batch_size, *shape),
            classes=seen.rounds[0].update[weight].shape[1],
            labels=labels,
            distance=distance,
        )

    def pack(self, images: Tensor, label_logits: Tensor) -> Tensor:
        """Flatten dummies into z (T, n), in the precision and on the device of the messages."""
        like = next(iter(self.target.values()))
        parts = [images] if self.labels is not None else [images, label_logits]
        return torch.cat([p.flatten(1).to(like) for p in parts], 1)

    def images(self, z: Tensor) -> Tensor:
        """Return the dummy images in z (…, n) as (…, B, C, H, W)."""
        return z[..., : self._pixels].unflatten(-1, self.image_shape)

    def soft_labels(self, z: Tensor) -> Tensor:
        """Return the dummy labels in z (…, n), or the fixed ones, as probabilities (…, B, K)."""
        if self.labels is None:
            return z[..., self._pixels :].unflatten(-1, (-1, self.classes)).softmax(-1)
        return F.one_hot(self.labels, self.classes).to(z)

    def compact(self, keep: Tensor) -> "GradientMatch":
        """Return the same objective for some of the trials only."""
        return replace(
            self,
            weights={n: w[keep] if self._stacked(n) else w for n, w in self.weights.items()},
            target={n: g[keep] for n, g in self.target.items()},
            labels=None if self.labels is None else self.labels[keep],
        )

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss (T,) and its gradient (T, n)."""
        # One trial by plain autograd, as published: `vmap` costs more than it saves there.
        return self._one(z) if len(z) == 1 else self._mapped(z)

    def _one(self, z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_()
        weights = {n: w[0] if self._stacked(n) else w for n, w in self.weights.items()}
        own = {n: weights[n].detach().requires_grad_() for n in self._dims}
        logits = functional_call(self.architecture, weights | own, (self.images(z)[0],))
        loss = soft_cross_entropy(logits, self.soft_labels(z)[0])
        fake = torch.autograd.grad(loss, list(own.values()), create_graph=True)
        seen = {n: g[0] for n, g in self.target.items()}
        value = self.distance(dict(zip(own, fake, strict=True)), seen)
        (gradient,) = torch.autograd.grad(value, z)
        return value.detach()[None], gradient

    def _mapped(self, z: Tensor) -> tuple[Tensor, Tensor]:
        own = {n: self.weights[n] for n in self._dims}
        fixed = {n: w for n, w in self.weights.items() if n not in own}
        axes = {n: 0 if self._stacked(n) else None for n in own}

        def match(z: Tensor, weights: Weights, seen: Update, known: Tensor) -> Tensor:
            soft = known if self.labels is not None else self.soft_labels(z)

            def loss(w: Weights) -> Tensor:
                logits = functional_call(self.architecture, w | fixed, (self.images(z),))
                return soft_cross_entropy(logits, soft)

            return self.distance(grad(loss)(weights), seen)

        both = vmap(grad_and_value(match), in_dims=(0, axes, 0, 0))
        gradient, value = both(z, own, self.target, self.soft_labels(z))
        return value.detach(), gradient.detach()

    @cached_property
    def _pixels(self) -> int:
        return torch.Size(self.image_shape).numel()

    @cached_property
    def _dims(self) -> dict[str, int]:
        """The parameters' own dimensions: walking a module for them costs as much as a layer."""
        return {n: p.dim() for n, p in self.architecture.named_parameters()}

    def _stacked(self, name: str) -> bool:
        """Say whether these weights differ from trial to trial."""
        return self.weights[name].dim() > self._dims.get(name, self.weights[name].dim())
