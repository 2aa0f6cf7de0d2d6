"""What an attack minimises: the distance between the dummy's gradient and the one it saw.

An objective is a function of a flat vector per trial, z (T, n), and gives value and gradient; the
solvers see nothing else. Objectives add up: a `Total` of gradient matches and penalties is one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from gleak_core import closed_form, lanes, stacks
from gleak_core.distances import Distance, slope, squared_l2
from gleak_core.errors import choose
from gleak_core.observation import Observation, Update, Weights
from gleak_core.pool import Objective

__all__ = [
    "EVALUATORS",
    "Dummies",
    "GradientMatch",
    "Repeated",
    "Total",
    "soft_cross_entropy",
    "some",
]

EVALUATORS = ("auto", "lanes", "closed_form", "vmap", "autograd")
_SMALL = 8 * 32 * 32
"""B·H·W up to which it pays to evaluate trials side by side in PyTorch (`make bench`)."""
_FEW = 4
"""Trials from which on lanes pay at any size; fewer leave too many of them idle."""


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross-entropy against soft labels (B, K): DLG's loss for a dummy label."""
    return -(target * F.log_softmax(logits, -1)).sum(-1).mean()


def some(thing: Any, keep: Tensor) -> Any:
    """Return the trials in `keep` of a tensor, a dict of tensors or anything that compacts."""
    if isinstance(thing, Tensor):
        return thing[keep.to(thing.device)]
    if isinstance(thing, dict):
        return {name: some(value, keep) for name, value in thing.items()}
    return thing.compact(keep) if hasattr(thing, "compact") else thing


@dataclass(frozen=True)
class Dummies:
    """How dummy images and labels lie in z (T, n).

    The images come first; where `labels` is None the logits of the dummy labels follow them (DLG's
    joint label), with `labels` (T, B) the labels are fixed (iDLG).
    """

    image_shape: tuple[int, ...]  # (B, C, H, W)
    classes: int
    labels: Tensor | None

    def pack(self, images: Tensor, label_logits: Tensor | None = None) -> Tensor:
        """Flatten dummies into z (T, n); logits that start the labels count where these move."""
        parts = [images]
        if self.labels is None:
            if label_logits is None:
                raise ValueError("joint labels need a start: pass label_logits= (T, B, K)")
            parts.append(label_logits)
        return torch.cat([p.flatten(1).to(images) for p in parts], 1)

    def images(self, z: Tensor) -> Tensor:
        """Return the dummy images in z (…, n) as (…, B, C, H, W)."""
        return z[..., : self.pixels].unflatten(-1, self.image_shape)

    def soft_labels(self, z: Tensor) -> Tensor:
        """Return the dummy labels in z (T, n), or the fixed ones, as probabilities (T, B, K)."""
        if self.labels is None:
            return z[..., self.pixels :].unflatten(-1, (-1, self.classes)).softmax(-1)
        # Not one_hot(): on some devices it reads the labels back to check them.
        return (self.labels[..., None] == self._kinds).to(z)

    def compact(self, keep: Tensor) -> "Dummies":
        """Return the same for some of the trials."""
        return self if self.labels is None else replace(self, labels=some(self.labels, keep))

    @cached_property
    def pixels(self) -> int:
        """The number of unknowns that are pixels."""
        return torch.Size(self.image_shape).numel()

    @property
    def unknowns(self) -> int:
        """The length of z."""
        return self.pixels + (self.image_shape[0] * self.classes if self.labels is None else 0)

    @cached_property
    def _kinds(self) -> Tensor:
        assert self.labels is not None
        return torch.arange(self.classes, device=self.labels.device)


@dataclass(frozen=True)
class Total:
    """The weighted sum of objectives of the same dummies."""

    parts: tuple[tuple[float, Objective], ...]

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums of values (T,) and gradients (T, n)."""
        both = [(c, *part.value_and_grad(z)) for c, part in self.parts]
        values = torch.stack([c * value for c, value, _ in both]).sum(0)
        gradient = both[0][0] * both[0][2]
        for c, _, g in both[1:]:
            gradient = gradient + c * g
        return values, gradient

    def compact(self, keep: Tensor) -> "Total":
        """Return the sum for some of the trials."""
        return Total(tuple((c, part.compact(keep)) for c, part in self.parts))


@dataclass(frozen=True)
class Repeated:
    """An objective with every trial `times` over: many starts against one message.

    Nothing is copied before a pool takes some of the trials.
    """

    once: Objective
    times: int

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return values (T·times,) and gradients of all of them."""
        return self.compact(torch.arange(len(z), device=z.device)).value_and_grad(z)

    def compact(self, keep: Tensor) -> Objective:
        """Return the objective of some of the trials."""
        return self.once.compact(keep // self.times)


@dataclass(frozen=True)
class GradientMatch:
    """The distance between the dummies' gradient and a message, as a function of z.

    There are four ways to the same number. `closed_form` (a plain stack, written out), `lanes` (the
    same in SIMD, on a CPU), `vmap` (any network), `autograd` (any network, one
    trial at a time: best where a trial is large). `auto` chooses by the network and by size.
    """

    architecture: nn.Module
    weights: Weights
    target: Update  # (T, *shape) each
    dummies: Dummies
    distance: Distance
    evaluator: str
    stack: tuple[stacks.Layer, ...] = ()

    @classmethod
    def of(
        cls,
        seen: Observation,
        *,
        labels: Tensor | None,
        by: str,
        distance: Distance = squared_l2,
        evaluator: str = "auto",
        round: int = 0,
        abreast: int | None = None,
    ) -> "GradientMatch":
        """Take from an observation what it grants, and refuse if that is not enough.

        `abreast` helps to choose an evaluator: how many trials will be asked for at once, where
        that is not one for each message.
        """
        choose("evaluator", evaluator, EVALUATORS)
        shape, batch_size = seen.need("image_shape", "batch_size", by=by)
        weight, _ = seen.head()
        match = cls(
            architecture=seen.architecture,
            weights=seen.weights(by=by, round=round),
            target=seen.gradient(round, by=by),
            dummies=Dummies((batch_size, *shape), seen.rounds[0].update[weight].shape[1], labels),
            distance=distance,
            evaluator="vmap",
        )
        stack = match._read()
        return replace(match, stack=stack, evaluator=match._choose(evaluator, stack, abreast))

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss (T,) and its gradient (T, n)."""
        return getattr(self, f"_{self.evaluator}")(z)

    def compact(self, keep: Tensor) -> "GradientMatch":
        """Return the same objective for some of the trials only."""
        return replace(
            self,
            weights={n: some(w, keep) if self._stacked(n) else w for n, w in self.weights.items()},
            target=some(self.target, keep),
            dummies=self.dummies.compact(keep),
            distance=some(self.distance, keep),
        )

    @property
    def scale(self) -> Tensor:
        """Return how far no gradient at all is from the message (T,); for ‖·‖², that is ‖∇W‖²."""
        return self.distance({n: torch.zeros_like(g) for n, g in self.target.items()}, self.target)

    @cached_property
    def floats(self) -> int:
        """About how many numbers one trial needs while it is evaluated."""
        counted = 4 * sum(g[0].numel() for g in self.target.values())

        def count(module: nn.Module, _: tuple[Tensor, ...], out: Tensor) -> None:
            nonlocal counted
            counted += 10 * out.numel()
            if isinstance(module, nn.Conv2d):  # its input, unfolded, and what is folded back
                counted += 3 * out[:, 0].numel() * module.weight[0].numel()

        leaves = [m for m in self.architecture.modules() if not list(m.children())]
        hooks = [m.register_forward_hook(count) for m in leaves]
        try:
            like = next(self.architecture.parameters())  # on the meta device: shapes only
            self.architecture(like.new_empty(self.dummies.image_shape))
        finally:
            for hook in hooks:
                hook.remove()
        return counted

    def answer(
        self, images: Tensor, layers: Sequence[str] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the network's logits (T, B, K) for images, and the inputs of named layers."""
        axes = {n: 0 if self._stacked(n) else None for n in self.weights}

        def one(weights: Weights, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            caught: dict[str, Tensor] = {}

            def keep(name: str, _: nn.Module, given: tuple[Tensor, ...]) -> None:
                caught[name] = given[0]

            hooks = [
                self.architecture.get_submodule(name).register_forward_pre_hook(partial(keep, name))
                for name in layers
            ]
            try:
                return functional_call(self.architecture, weights, (x,)), caught
            finally:
                for hook in hooks:
                    hook.remove()

        return vmap(one, in_dims=(axes, 0))(self.weights, images)

    # --- the four ways ------------------------------------------------------------------------

    def _lanes(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._written_out(z, self._in_lanes)

    def _closed_form(self, z: Tensor) -> tuple[Tensor, Tensor]:
        fixed = (self.stack, self.weights, self.target, self.distance)
        return self._written_out(z, partial(closed_form.value_and_grad, *fixed))

    @torch.no_grad()
    def _written_out(self, z: Tensor, evaluate: Callable[..., Any]) -> tuple[Tensor, Tensor]:
        soft = self.dummies.soft_labels(z)
        value, images, labels = evaluate(self.dummies.images(z), soft)
        if self.dummies.labels is not None:
            return value, images.flatten(1)
        logits = soft * (labels - (soft * labels).sum(-1, keepdim=True))  # through the softmax
        return value, torch.cat([images.flatten(1), logits.flatten(1)], 1)

    def _vmap(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if len(z) == 1:  # `vmap` costs more than it saves there
            return self._autograd(z)
        return self._written_out(z, self._side_by_side)

    def _side_by_side(self, images: Tensor, soft: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return D (T,), ∂D/∂images and ∂D/∂labels of trials under `vmap`.

        `vmap` stays outermost. With an autograd graph around it, PyTorch 2.14 drops how BatchNorm's
        and LayerNorm's statistics depend on the image: values are right then, slopes are not.
        """
        own = {n: self.weights[n] for n in self._dims}
        fixed = {n: w for n, w in self.weights.items() if n not in own}
        axes = {n: 0 if self._stacked(n) else None for n in own}

        def loss(w: Weights, x: Tensor, y: Tensor) -> Tensor:
            return soft_cross_entropy(functional_call(self.architecture, w | fixed, (x,)), y)

        def along(x: Tensor, y: Tensor, w: Weights, wish: Update) -> Tensor:
            fake = grad(loss)(w, x, y)
            return torch.stack([(fake[n] * r).sum() for n, r in wish.items()]).sum()

        fake = vmap(grad(loss), in_dims=(axes, 0, 0))(own, images, soft)
        value, wish = slope(self.distance, fake, self.target)
        pull = vmap(grad(along, argnums=(0, 1)), in_dims=(0, 0, axes, 0))
        return value, *pull(images, soft, own, wish)

    def _autograd(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if len(z) == 1:
            return self._one(z)
        rows = torch.arange(len(z), device=z.device).split(1)
        both = [self.compact(row)._one(z[row]) for row in rows]
        values, gradients = zip(*both, strict=True)
        return torch.cat(values), torch.cat(gradients)

    def _one(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Zhu et al.'s closure: a gradient with a graph, and one backward pass through it."""
        z = z.detach().requires_grad_()
        weights = {n: w[0] if self._stacked(n) else w for n, w in self.weights.items()}
        own = {n: weights[n].detach().requires_grad_() for n in self._dims}
        with torch.enable_grad():
            images, soft = self.dummies.images(z)[0], self.dummies.soft_labels(z)[0]
            logits = functional_call(self.architecture, weights | own, (images,))
            loss = soft_cross_entropy(logits, soft)
            fake = torch.autograd.grad(loss, list(own.values()), create_graph=True)
            named = {n: g[None] for n, g in zip(own, fake, strict=True)}
            value = self.distance(named, self.target)
            (down,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), down

    # --- what the network is ------------------------------------------------------------------

    def _choose(self, wish: str, stack: Sequence[stacks.Layer], abreast: int | None) -> str:
        """Return the fastest evaluator that fits, or the one wished for, or refuse."""
        batch, _, height, width = self.dummies.image_shape
        pixels, trials = batch * height * width, len(next(iter(self.target.values())))
        small, abreast = pixels <= _SMALL, trials if abreast is None else abreast
        if wish in ("vmap", "autograd"):
            return wish
        if not stack:
            if wish == "auto":
                return "vmap" if small else "autograd"
            raise ValueError(
                f"evaluator {wish!r} is for stacks of convolutions, activations and linear layers "
                "whose weights all trials share: use evaluator='auto'"
            )
        shape = (trials, *self.dummies.image_shape)
        fits = lanes.available() and lanes.supports(
            stack, self.weights, self.target, self.distance, shape
        )
        if wish == "lanes" and not fits:
            raise ValueError(
                "evaluator 'lanes' is for the squared distance of a whole message on a CPU, "
                "and needs numba (pip install 'gleak[fast]'): use evaluator='auto'"
            )
        if wish != "auto":
            return wish
        if fits and (abreast >= _FEW or (abreast > 1 and small) or pixels <= _SMALL // 4):
            return "lanes"
        on_cpu = next(iter(self.target.values())).device.type == "cpu"
        return "autograd" if on_cpu and not small else "closed_form"

    def _read(self) -> tuple[stacks.Layer, ...]:
        """Return the network as a plain stack, if it is one and computes what it looks like."""
        layers = stacks.read(self.architecture)
        if layers is None or any(self._stacked(n) for n in self._dims):
            return ()
        _, *shape = self.dummies.image_shape
        # Two images, beyond [0, 1]: a dummy leaves it, and a forward may clip or mix its inputs.
        probe = torch.linspace(-2, 3, 2 * torch.Size(shape).numel()).view(2, *shape)
        probe = probe.to(next(iter(self.weights.values())))
        with torch.no_grad():
            told = functional_call(self.architecture, self.weights, (probe,))
            try:
                read = closed_form.logits(layers, self.weights, probe)
            except RuntimeError:  # the shapes do not even fit
                return ()
        if told.shape != read.shape:
            return ()
        # Against how the answers differ between images: biases say nothing of what `forward` does.
        return layers if (told - read).abs().max() <= 1e-3 * (told[0] - told[1]).abs().max() else ()

    @cached_property
    def _in_lanes(self) -> Callable[..., Any]:
        return lanes.Lanes(self.stack, self.weights, self.target)

    @cached_property
    def _dims(self) -> dict[str, int]:
        """The parameters' own dimensions: walking a module for them costs as much as a layer."""
        return {n: p.dim() for n, p in self.architecture.named_parameters()}

    def _stacked(self, name: str) -> bool:
        """Say whether these weights differ from trial to trial."""
        return self.weights[name].dim() > self._dims.get(name, self.weights[name].dim())
