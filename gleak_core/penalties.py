"""What an attacker expects of a picture or of the network's answer: terms beside the distance.

A term maps what it looks at, for all trials at once, to one number per trial. A `Penalty` makes an
objective of it, and objectives add up (`objectives.Total`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gleak_core.errors import GleakError, choose
from gleak_core.objectives import GradientMatch, some
from gleak_core.observation import Observation

__all__ = [
    "IMAGE_TERMS",
    "PENALTIES",
    "Above",
    "AwayFrom",
    "GroupConsistency",
    "Penalty",
    "Statistics",
    "build",
    "clip",
    "clip_squared",
    "l2",
    "running_statistics",
    "scale",
    "scale_squared",
    "tv_mean",
    "tv_sum",
]

Term = Callable[[Any], Tensor]
_TINY = 1e-20  # under a square root: a norm of exactly zero has slope zero, not NaN


# --- of the images (T, B, C, H, W) ------------------------------------------------------------


def tv_sum(x: Tensor) -> Tensor:
    """Return Σ |x_{i+1,j} − x_{i,j}| + |x_{i,j+1} − x_{i,j}| (Geng et al. 2021, Eq. 8)."""
    return x.diff(dim=-2).abs().flatten(1).sum(1) + x.diff(dim=-1).abs().flatten(1).sum(1)


def tv_mean(x: Tensor) -> Tensor:
    """Return the mean of both kinds of differences in place of their sum.

    The papers print sums; with their coefficients only the mean converges, and Geiping et al.'s
    code takes it. At 32×32×3 the sum is about 3000 times as large.
    """
    return x.diff(dim=-2).abs().flatten(1).mean(1) + x.diff(dim=-1).abs().flatten(1).mean(1)


def l2(x: Tensor) -> Tensor:
    """Return ‖x‖₂ of the batch (Yin et al. 2021, fidelity regularisation)."""
    return _norm(x)


def clip(x: Tensor) -> Tensor:
    """Return the ℓ2 norm of what leaves [0, 1] (Geng et al. 2021, Eq. 17)."""
    return _norm(x - x.clamp(0, 1))


def clip_squared(x: Tensor) -> Tensor:
    """Return the mean of (x − clip(x, 0, 1))²: Eq. 17 without its kink at the boundary."""
    return (x - x.clamp(0, 1)).square().flatten(1).mean(1)


def scale(x: Tensor) -> Tensor:
    """Return ‖x − (x − min)/(max − min)‖₂ with the range of each image (Geng et al. 2021, Eq. 18).

    As printed it pulls every image to the full range [0, 1], a dark or a pale one too.
    """
    return _norm(x - _scaled(x))


def scale_squared(x: Tensor) -> Tensor:
    """Return the mean of (x − (x − min)/(max − min))²."""
    return (x - _scaled(x)).square().flatten(1).mean(1)


def _scaled(x: Tensor) -> Tensor:
    low, high = x.amin((-3, -2, -1), keepdim=True), x.amax((-3, -2, -1), keepdim=True)
    return (x - low) / (high - low).clamp(min=1e-6)


def _norm(x: Tensor) -> Tensor:
    return (x.square().flatten(1).sum(1) + _TINY).sqrt()


IMAGE_TERMS: Mapping[str, Term] = {
    "tv_mean": tv_mean,
    "tv_sum": tv_sum,
    "l2": l2,
    "clip": clip,
    "clip_squared": clip_squared,
    "scale": scale,
    "scale_squared": scale_squared,
}


@dataclass(frozen=True, eq=False)
class Above:
    """Σ TV(x)·1[TV(x) ≥ ξ] over the images of a batch, TV as a sum (CAFE, Eq. 8)."""

    level: Tensor  # (T, B), ξ of each image

    def __call__(self, x: Tensor) -> Tensor:
        """Return the total variation of those images that have too much of it."""
        each = tv_sum(x.flatten(0, 1)).view(x.shape[:2])  # (T, B)
        return torch.where(each >= self.level, each, 0).sum(1)

    def compact(self, keep: Tensor) -> "Above":
        """Return the same for some of the trials."""
        return Above(some(self.level, keep))


@dataclass(frozen=True, eq=False)
class GroupConsistency:
    """‖x − x̄‖² with x̄ the mean over the trials of the same message (Yin et al. 2021).

    Trials of one `group` pull each other to a consensus, so they are no longer independent: only
    for methods without a line search. The consensus is over the trials that still run.
    """

    group: Tensor  # (T,) which message a trial attacks

    def __call__(self, x: Tensor) -> Tensor:
        """Return each trial's squared distance from the consensus of its group."""
        flat = x.flatten(1)
        runs = flat.detach().isfinite().all(1)  # one that blew up takes nobody with it
        same = ((self.group[:, None] == self.group) & runs).to(x)  # (T, T)
        weight = same / same.sum(1, keepdim=True).clamp(min=1)
        mean = weight @ torch.where(runs[:, None], flat.detach(), 0)
        return (flat - mean).square().sum(1)

    def compact(self, keep: Tensor) -> "GroupConsistency":
        """Return the same for some of the trials."""
        return GroupConsistency(some(self.group, keep))


# --- of what the network makes of them --------------------------------------------------------


@dataclass(frozen=True, eq=False)
class AwayFrom:
    """‖f − f*‖² from a goal: CPL's task loss, or CAFE's internal representation (Eq. 8)."""

    goal: Tensor  # (T, B, F)

    def __call__(self, found: Tensor) -> Tensor:
        """Return the squared distance of (T, B, F) from the goal."""
        return (found - self.goal).square().flatten(1).sum(1)

    def compact(self, keep: Tensor) -> "AwayFrom":
        """Return the same for some of the trials."""
        return AwayFrom(some(self.goal, keep))


@dataclass(frozen=True, eq=False)
class Statistics:
    """Σ_l ‖μ_l(x) − μ_l‖₂ + ‖σ²_l(x) − σ²_l‖₂ at batch normalisations (Yin et al. 2021)."""

    known: Mapping[str, tuple[Tensor, Tensor]]  # layer -> mean and variance, (C,) each

    def __call__(self, found: Mapping[str, Tensor]) -> Tensor:
        """Return the distance of the inputs (T, B, C, H, W) of each layer from what is known."""
        total = torch.zeros(())
        for name, (mean, variance) in self.known.items():
            values = found[name].movedim(2, 1).flatten(2)  # (T, C, B·H·W)
            total = total + _norm(values.mean(2) - mean)
            total = total + _norm(values.var(2, correction=0) - variance)
        return total


@dataclass(frozen=True, eq=False)
class Penalty:
    """A term as an objective: what it looks at, and the term."""

    match: GradientMatch  # for the dummies and the network
    term: Term
    look: str = "images"  # or "logits", "softmax", "internal"
    layers: tuple[str, ...] = ()  # or layers by name, whose inputs the term gets

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the term (T,) and its gradient (T, n)."""
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            value = self.term(self._seen(z))
            (slope,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), slope

    def compact(self, keep: Tensor) -> "Penalty":
        """Return the same for some of the trials."""
        return replace(self, match=self.match.compact(keep), term=some(self.term, keep))

    def _seen(self, z: Tensor) -> Any:
        images = self.match.dummies.images(z)
        if self.layers:
            return self.match.answer(images, self.layers)[1]
        if self.look == "images":
            return images
        if self.look == "internal":
            first = _first_linear(self.match.architecture)
            inputs = self.match.answer(images, first)[1]
            return torch.cat([inputs[name].flatten(2) for name in first], 2)
        logits, _ = self.match.answer(images)
        return logits.softmax(-1) if self.look == "softmax" else logits


def _first_linear(architecture: nn.Module) -> list[str]:
    """Return the first fully connected layer: one for each party where there are several."""
    workers = getattr(architecture, "workers", None)
    parties = {"": architecture}
    if isinstance(workers, nn.ModuleList):  # CAFE's vertical protocol: Z is all of theirs in turn
        parties = {f"workers.{n}": net for n, net in workers.named_children()}
    linear = [
        [name for name, m in net.named_modules(prefix=party) if isinstance(m, nn.Linear)]
        for party, net in parties.items()
    ]
    if not all(linear):
        raise GleakError("this network has no fully connected layer, so no internal representation")
    return [names[0] for names in linear]


def _oracle(seen: Observation, match: GradientMatch, name: str, capability: str, by: str) -> Tensor:
    """Return what is granted of the private batch, if it is of as many images as the dummies."""
    (known,) = seen.need(capability, by=by)
    batch = match.dummies.image_shape[0]
    if known.shape[1] != batch:  # batch indices: all items, of which a round takes some
        raise ValueError(
            f"{name}: {capability} is of {known.shape[1]} images, and the message of a batch of "
            f"{batch}: grant it for those images, or leave the penalty out"
        )
    return known


def running_statistics(seen: Observation) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the running mean and variance that a model carries beside its weights, by layer."""
    held = seen.weights(by="the BatchNorm term")
    suffix = ".running_mean"
    layers = [n.removesuffix(suffix) for n in held if n.endswith(suffix)]
    if not layers:
        raise GleakError(
            "this model carries no running statistics, so there is nothing to hold the dummy's "
            "against: attack a model whose BatchNorm layers track them, or leave batch_norm out"
        )
    return {n: (held[f"{n}.running_mean"], held[f"{n}.running_var"]) for n in layers}


def _task(seen: Observation, match: GradientMatch) -> Penalty:
    labels = match.dummies.labels
    if labels is None:
        raise ValueError("the task loss needs a recovered label: choose a label rule, not 'joint'")
    like = next(iter(match.target.values()))
    return Penalty(match, AwayFrom(match.dummies.soft_labels(like)), "softmax")


def _oracle_task(seen: Observation, match: GradientMatch) -> Penalty:
    by = "the task loss as CPL's code computes it"
    logits = _oracle(seen, match, "oracle_task_loss", "oracle_logits", by)
    return Penalty(match, AwayFrom(logits), "logits")


def _internal(seen: Observation, match: GradientMatch) -> Penalty:
    by = "internal representation regularisation"
    inputs = _oracle(seen, match, "internal", "oracle_inputs", by)
    return Penalty(match, AwayFrom(inputs), "internal")


def _group(seen: Observation, match: GradientMatch) -> Penalty:
    return Penalty(match, GroupConsistency(torch.arange(seen.trials, device=seen.device)))


def _batch_norm(seen: Observation, match: GradientMatch) -> Penalty:
    known = running_statistics(seen)
    return Penalty(match, Statistics(known), layers=tuple(known))


def _tv_above(seen: Observation, match: GradientMatch) -> Penalty:
    by = "CAFE's TV threshold"
    return Penalty(match, Above(_oracle(seen, match, "tv_above_oracle", "oracle_tv_level", by)))


_BUILDERS: Mapping[str, Callable[[Observation, GradientMatch], Penalty]] = {
    "task_loss": _task,
    "oracle_task_loss": _oracle_task,
    "internal": _internal,
    "group": _group,
    "batch_norm": _batch_norm,
    "tv_above_oracle": _tv_above,
}
PENALTIES = (*IMAGE_TERMS, *_BUILDERS)
"""The names that `build` and the attacks' `penalties=` know."""


def build(name: str, seen: Observation, match: GradientMatch) -> Penalty:
    """Return a penalty by name, with what the observation grants; refuse if that is not enough."""
    choose("penalty", name, PENALTIES)
    if name in IMAGE_TERMS:
        return Penalty(match, IMAGE_TERMS[name])
    return _BUILDERS[name](seen, match)
