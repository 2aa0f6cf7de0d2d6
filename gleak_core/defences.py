"""What a client may do to its update before it is shared: noise, precision, pruning, clipping, DP.

A defence maps an update to an update, `(T, *shape)` per parameter, treats every trial on its own
and never changes its input. Defences chain: `clip(1.0) >> half()`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import partial

import numpy as np
import torch
from scipy.special import gammaln, logsumexp
from torch import Generator, Tensor

from gleak_core.errors import GleakError, choose

__all__ = [
    "DP",
    "Defence",
    "ErrorFeedback",
    "bfloat16",
    "clip",
    "compose",
    "dp",
    "gaussian",
    "half",
    "int8",
    "laplacian",
    "none",
    "prune",
    "surviving",
]

Update = dict[str, Tensor]  # parameter name -> (T, *shape)


@dataclass(eq=False)
class Defence:
    """A map from update to update, with a short `name` for tables and `words` for readers."""

    name: str
    words: str
    act: Callable[[Update, Generator], Update]

    def __call__(self, update: Update, generator: Generator) -> Update:
        """Return the defended update, drawing any noise from the generator."""
        _check(update, "the update to defend", "the client's training has diverged")
        sent = self.act(update, generator)
        _check(sent, f"the update after {self.name}", "clip it first, e.g. clip(1.0) >> half()")
        return sent

    def __rshift__(self, other: "Defence") -> "Defence":
        return compose(self, other)

    def describe(self) -> str:
        """Say in words what is done to the update."""
        return self.words


def compose(*defences: Defence) -> Defence:
    """Chain defences, the first one first: `compose(a, b)` is `a >> b`."""
    if len(defences) < 2:
        return defences[0] if defences else none()
    return Defence(
        " → ".join(d.name for d in defences),
        "; then ".join(d.describe() for d in defences),
        partial(_one_after_the_other, defences=defences),
    )


def none() -> Defence:
    """Share the update as it is."""
    return Defence("none", "none", partial(_one_after_the_other, defences=()))


def _one_after_the_other(
    update: Update, generator: Generator, *, defences: tuple[Defence, ...]
) -> Update:
    update = dict(update)
    for each in defences:
        update = each(update, generator)
    return update


def _check(update: Update, what: str, cure: str) -> None:
    if len({tuple(v.shape[:1]) for v in update.values()} - {()}) != 1:
        raise ValueError(
            f"a defence needs tensors that share a leading trials axis, got {_shapes(update)}: "
            "stack the trials, or unsqueeze(0) a single one"
        )
    for name, value in update.items():
        if not torch.isfinite(value).all():
            raise GleakError(f"{what} is not finite in {name!r}: {cure}")


def _shapes(update: Update) -> dict[str, tuple[int, ...]]:
    return {name: tuple(v.shape) for name, v in update.items()}


def _flat(value: Tensor) -> Tensor:
    return value.reshape(len(value), -1)  # (T, n)


def _like(per_trial: Tensor, value: Tensor) -> Tensor:
    return per_trial.to(value).view(-1, *[1] * (value.ndim - 1))  # (T, 1, …, 1)


# --- noise -----------------------------------------------------------------------------------


def gaussian(*, std: float | None = None, variance: float | None = None) -> Defence:
    """Add Gaussian noise of a standard deviation *or* of a variance (Zhu et al. 2019, §5.1)."""
    return _noise("Gaussian", _normal, _std(std=(std, 1.0), variance=(variance, None)))


def laplacian(
    *, scale: float | None = None, std: float | None = None, variance: float | None = None
) -> Defence:
    """Add Laplacian noise of a scale b, a standard deviation √2·b *or* a variance 2b²."""
    std = _std(scale=(scale, 2**0.5), std=(std, 1.0), variance=(variance, None))
    return _noise("Laplacian", _laplace, std)


def _noise(family: str, draw: Callable[[Tensor, Generator], Tensor], std: float) -> Defence:
    scale = f", scale {std / 2**0.5:g}" if family == "Laplacian" else ""
    return Defence(
        f"{family} std {std:g}",
        f"{family} noise of standard deviation {std:g} (variance {std**2:g}{scale}) on every entry",
        partial(_add_noise, draw=draw, std=std),
    )


def _add_noise(
    update: Update,
    generator: Generator,
    *,
    draw: Callable[[Tensor, Generator], Tensor],
    std: float,
) -> Update:
    return {name: v + std * draw(v, generator) for name, v in update.items()}


def _normal(like: Tensor, generator: Generator) -> Tensor:
    # Drawn where the generator lives: a CPU generator means the same noise on every device.
    place = generator.device
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=place).to(like)


def _laplace(like: Tensor, generator: Generator) -> Tensor:
    """Draw a Laplace variable of variance 1: the difference of two exponential ones, over √2."""
    two = torch.empty((2, *like.shape), dtype=like.dtype, device=generator.device)
    first, second = two.exponential_(generator=generator).to(like)
    return (first - second) / 2**0.5


def _std(**ways: tuple[float | None, float | None]) -> float:
    """Return the standard deviation, given in one of several ways: (value, factor or None = √)."""
    given = [(name, value, factor) for name, (value, factor) in ways.items() if value is not None]
    if len(given) != 1:
        raise ValueError(
            f"noise needs exactly one of {', '.join(f'{name}=' for name in ways)}, got "
            f"{' and '.join(f'{name}=' for name, *_ in given) or 'none'}: "
            "a bare strength means different things in different papers"
        )
    name, value, factor = given[0]
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a number ≥ 0, got {value}")
    return value**0.5 if factor is None else factor * value


# --- precision -------------------------------------------------------------------------------


def half() -> Defence:
    """Round to IEEE half precision, fp16: 11 significant bits, at most 65 504."""
    words = "rounded to half precision (fp16)"
    return Defence("fp16", words, partial(_round_trip, dtype=torch.float16))


def bfloat16() -> Defence:
    """Round to bfloat16: 8 significant bits, the range of float32."""
    return Defence("bf16", "rounded to bfloat16", partial(_round_trip, dtype=torch.bfloat16))


def _round_trip(update: Update, _: Generator, *, dtype: torch.dtype) -> Update:
    return {name: v.to(dtype).to(v.dtype) for name, v in update.items()}


def int8() -> Defence:
    """Quantise to 8-bit integers, symmetric, with one scale per tensor and trial: max|v|/127."""
    words = "quantised to 8-bit integers, symmetric, one scale per tensor: largest magnitude / 127"
    return Defence("int8", words, _to_int8)


def _to_int8(update: Update, _: Generator) -> Update:
    sent = {}
    for name, v in update.items():
        scale = _like(_flat(v).abs().amax(1) / 127, v)
        sent[name] = scale * torch.where(scale > 0, v / scale, 0.0).round().clamp(-127, 127)
    return sent


# --- pruning ---------------------------------------------------------------------------------


def prune(share: float, scope: str = "global") -> Defence:
    """Zero the floor(share·n) smallest entries (gradient compression; Zhu et al. 2019, §5.3).

    The scope is "global" (ranked over all layers together) or "layer" (within each tensor).
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie between 0 and 1, got {share}: 20 % is prune(0.2)")
    choose("scope", scope, ("global", "layer"))
    where = "over all layers together" if scope == "global" else "within each tensor"
    return Defence(
        f"prune {100 * share:g} %" + (" per layer" if scope == "layer" else ""),
        f"the smallest {100 * share:g} % of the entries by magnitude set to zero, {where}",
        partial(_prune_all if scope == "global" else _prune_each, share=share),
    )


def _prune_each(update: Update, _: Generator, *, share: float) -> Update:
    return {name: _zero_smallest(_flat(v), share).view_as(v) for name, v in update.items()}


def _prune_all(update: Update, _: Generator, *, share: float) -> Update:
    flat = [_flat(v) for v in update.values()]
    parts = _zero_smallest(torch.cat(flat, 1), share).split([v.shape[1] for v in flat], 1)
    return {name: p.view_as(v) for (name, v), p in zip(update.items(), parts, strict=True)}


def _zero_smallest(flat: Tensor, share: float) -> Tensor:
    """Zero a share of each row of (T, n), exactly; of equal magnitudes the earlier goes first."""
    # In binary arithmetic 0.29 · 100 is 28.999…, so the share counts as the decimal it was typed.
    count = int(Decimal(repr(float(share))) * flat.shape[1])
    smallest = flat.abs().sort(dim=1, stable=True).indices[:, :count]
    return flat.scatter(1, smallest, 0.0)


def surviving(update: Update) -> dict[str, Tensor]:
    """Return which entries an attacker sees to have survived a pruning: those that are not zero."""
    return {name: v != 0 for name, v in update.items()}


class ErrorFeedback(Defence):
    """Add what a defence withheld to the next update (Lin et al. 2018; Karimireddy et al. 2019).

    It remembers from call to call: use one for each client, and `reset()` to start afresh.
    """

    def __init__(self, inner: Defence) -> None:
        words = f"{inner.describe()}; what is withheld is added to the next update"
        super().__init__(f"{inner.name} + feedback", words, self._feed_back)
        self.inner = inner
        self.residual: Update = {}

    def reset(self) -> None:
        """Forget what was withheld."""
        self.residual = {}

    def _feed_back(self, update: Update, generator: Generator) -> Update:
        kept = self.residual or {name: torch.zeros_like(v) for name, v in update.items()}
        if _shapes(kept) != _shapes(update):
            raise ValueError(
                f"error feedback remembers an update of shapes {_shapes(kept)}, got "
                f"{_shapes(update)}: call reset(), or use one ErrorFeedback for each client"
            )
        owed = {name: v + kept[name] for name, v in update.items()}
        sent = self.inner(owed, generator)
        self.residual = {name: v - sent[name] for name, v in owed.items()}
        return sent


# --- clipping and differential privacy -------------------------------------------------------


def clip(norm: float) -> Defence:
    """Scale each trial's update down to an ℓ2 norm of at most `norm`, all layers together."""
    if not (math.isfinite(norm) and norm > 0):
        raise ValueError(f"clip must be a positive number, got {norm}")
    words = f"scaled down to an ℓ2 norm of at most {norm:g} over all layers together"
    return Defence(f"clip {norm:g}", words, partial(_scale_down, norm=norm))


def _scale_down(update: Update, _: Generator, *, norm: float) -> Update:
    lengths = torch.stack([_flat(v).double().norm(dim=1) for v in update.values()])  # (layers, T)
    factor = (norm / lengths.norm(dim=0)).clamp(max=1.0)  # of a zero update: C/0 = inf, so 1
    return {name: v * _like(factor, v) for name, v in update.items()}


class DP(Defence):
    """Clipping to C, then Gaussian noise of standard deviation z·C: the Gaussian mechanism."""

    def __init__(self, clipping: float, noise_multiplier: float) -> None:
        z = noise_multiplier
        if not (math.isfinite(z) and z >= 0):
            raise ValueError(f"noise_multiplier must be a number ≥ 0, got {z}")
        both = clip(clipping) >> gaussian(std=z * clipping)
        words = f"differential privacy: {both.describe()}"
        super().__init__(f"DP C={clipping:g} z={z:g}", words, both.act)
        self.noise_multiplier = z

    def epsilon(self, delta: float, steps: int, sample_rate: float = 1.0) -> float:
        """Return the ε of (ε, δ)-DP after so many releases, by Rényi DP (Mironov 2017, Prop. 3).

        Neighbours differ by the presence of one participant, whose clipped update has norm ≤ C;
        replacing him moves it by up to 2C: halve the noise multiplier for that. Without sampling
        the best real order is known in closed form. With a `sample_rate` below 1 (Poisson) it is
        the best integer order up to 512 (Mironov et al. 2019, §3.3); sampling protects against
        those who see the sum only, not against a server that sees who takes part.
        """
        if not 0 < delta < 1:
            raise ValueError(f"delta must lie between 0 and 1, got {delta}: 1e-5 is usual")
        if steps < 0 or not 0 < sample_rate <= 1:
            raise ValueError(f"need steps ≥ 0, 0 < sample_rate ≤ 1, got {steps}, {sample_rate}")
        z, secret = self.noise_multiplier, math.log(1 / delta)
        if steps == 0 or z == 0:
            return 0.0 if steps == 0 else math.inf
        # The minimum over all real α > 1 of steps·α/2z² + log(1/δ)/(α-1).
        everyone = steps / (2 * z**2) + math.sqrt(2 * steps * secret) / z
        if sample_rate == 1:
            return everyone
        orders = range(2, 513)
        sampled = (steps * _sampled(a, z, sample_rate) + secret / (a - 1) for a in orders)
        return min(everyone, *sampled)


def dp(clip: float, noise_multiplier: float) -> DP:
    """Clip to `clip`, add Gaussian noise of std `noise_multiplier`·`clip`; see `DP.epsilon`."""
    return DP(clip, noise_multiplier)


def _sampled(order: int, z: float, q: float) -> float:
    """Return the Rényi divergence of the Poisson-sampled Gaussian mechanism, of integer order."""
    k = np.arange(order + 1)
    binomial = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    logs = binomial + (order - k) * np.log1p(-q) + k * np.log(q) + (k * k - k) / (2 * z**2)
    return float(np.asarray(logsumexp(logs))) / (order - 1)
