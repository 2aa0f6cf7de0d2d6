"""What crosses the wall: all an attacker may ever see, and what he makes of it.

Nothing in this module can hold a private picture. An `Observation` carries messages (tensors
shaped like the model's parameters), an architecture without weights, and the capabilities that
the client's protocol, or a paper, grants beside them.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal, get_args, get_type_hints

import torch
from torch import Tensor, nn

from gleak_core.errors import GleakError, choose

__all__ = [
    "CAPABILITIES",
    "Given",
    "History",
    "MissingCapability",
    "Observation",
    "Reconstruction",
    "Round",
    "Status",
    "Update",
    "Weights",
    "bare",
]

Update = dict[str, Tensor]  # parameter name -> (T, *shape), one message per trial
Weights = dict[str, Tensor]  # name -> (*shape), or (T, *shape) where trials moved apart
Status = Literal["solved", "failed", "diverged", "interrupted"]


class MissingCapability(GleakError):
    """An attack needs something that this observation does not grant."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the attacker holds beside the messages; `None` means: not given.

    Tensors have the trials axis first, but `batch_indices` the rounds. In a protocol with batch
    indices the oracles cover all items, in the order that the indices count.

    The names that begin with `oracle_` come from the private batch itself: no attacker has them,
    a paper may still grant them, and a result that used one says so.
    """

    weights: Annotated[bool | None, "the model's weights at the moment of each message"] = None
    image_shape: Annotated[
        tuple[int, int, int] | None, "the shape of a private image (C, H, W)"
    ] = None
    batch_size: Annotated[int | None, "the number of images behind each message"] = None
    learning_rate: Annotated[float | None, "the client's learning rate"] = None
    local_steps: Annotated[int | None, "the number of local steps behind each message"] = None
    batch_indices: Annotated[
        Tensor | None, "which items of the data each message was made from"
    ] = None
    oracle_labels: Annotated[Tensor | None, "the private labels"] = None
    oracle_tv_level: Annotated[Tensor | None, "the total variation of the private images"] = None
    oracle_inputs: Annotated[Tensor | None, "the inputs of the first fully connected layer"] = None
    oracle_logits: Annotated[Tensor | None, "the network's answers to the private images"] = None

    def __iter__(self) -> Iterator[str]:
        return (f.name for f in fields(self) if getattr(self, f.name) is not None)


CAPABILITIES: Mapping[str, str] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(Given, include_extras=True).items()
}


@dataclass(frozen=True)
class Round:
    """One message on the wire and, if granted, the weights it was computed at."""

    update: Update
    weights: Weights | None = None


@dataclass(frozen=True, repr=False)
class Observation:
    """All the attacker gets: `print` it to read the threat model in words.

    `architecture` lives on the meta device: it has shapes, and no weights to leak. `kind` says
    what the messages are: gradients, or the weights after local training.
    """

    architecture: nn.Module
    rounds: tuple[Round, ...]
    given: Given
    protocol: str
    kind: Literal["gradient", "weights"] = "gradient"
    defence: str = "none"

    def __post_init__(self) -> None:
        if self.given.weights is False:
            raise ValueError("weights are given (True) or not given (None), never False")
        if not self.rounds:
            raise ValueError("an observation needs at least one message: pass rounds=(Round(…),)")
        shapes = {name: p.shape for name, p in self.architecture.named_parameters()}
        if any(not p.is_meta for p in self.architecture.parameters()):
            raise ValueError("the architecture must carry no weights: pass observation.bare(model)")
        trials = self.trials
        for each in self.rounds:
            if bool(self.given.weights) != (each.weights is not None):
                raise ValueError("weights must come with a grant, and a grant with weights")
            for name, tensor in each.update.items():
                choose("parameter", name, shapes)
                if tensor.shape != (trials, *shapes[name]):
                    raise ValueError(
                        f"message {name!r} has shape {tuple(tensor.shape)}, expected "
                        f"{(trials, *shapes[name])}: trials first, then the parameter's own shape"
                    )

    @property
    def trials(self) -> int:
        """The number of independent private batches, each attacked on its own."""
        return next(iter(self.rounds[0].update.values())).shape[0]

    @property
    def device(self) -> torch.device:
        """Where the messages lie, and where the attack will run."""
        return next(iter(self.rounds[0].update.values())).device

    def need(self, *names: str, by: str) -> tuple[Any, ...]:
        """Return granted capabilities, or refuse with a sentence that names what is missing."""
        missing = [
            n for n in names if getattr(self.given, choose("capability", n, CAPABILITIES)) is None
        ]
        if missing:
            what = " and ".join(f"{n} ({CAPABILITIES[n]})" for n in missing)
            raise MissingCapability(
                f"{by} needs {what}, which this observation does not grant: "
                f"declare it with give=(…, {', '.join(map(repr, missing))}) at the client"
            )
        return tuple(getattr(self.given, n) for n in names)

    def weights(self, *, by: str, round: int = 0) -> Weights:
        """Return the weights a message was computed at, if the attacker has them."""
        self.need("weights", by=by)
        held = self.rounds[round].weights
        assert held is not None  # a grant comes with weights: checked on construction
        return held

    def gradient(self, round: int = 0, *, by: str = "the gradient") -> Update:
        """Return a message as a gradient: itself, or the fake one of Geng et al. 2021, Eq. 23."""
        update = self.rounds[round].update
        if self.kind == "gradient":
            return update
        before = self.weights(by=by, round=round)
        rate, steps = self.need("learning_rate", "local_steps", by=by)
        return {n: (before[n] - after) / (rate * steps) for n, after in update.items()}

    def head(self) -> tuple[str, str]:
        """Return the names of the last layer's weight and bias."""
        modules = reversed(list(self.architecture.named_modules()))
        last = next((name for name, module in modules if isinstance(module, nn.Linear)), "")
        names = f"{last}.weight", f"{last}.bias"
        if any(n not in self.rounds[0].update for n in names):
            raise GleakError(
                "the last fully connected layer, weight and bias, is not among the messages: "
                "this attack reads it"
            )
        return names

    def one_message(self, *, by: str) -> Round:
        """Return the only message, or refuse: using the first of several would mislead."""
        first, *others = self.rounds
        if others:
            raise GleakError(
                f"{by} matches one message, and this observation has {len(self.rounds)}: "
                "choose one with seen.message(0), or use an attack on several updates"
            )
        return first

    def one_batch(self, *, by: str) -> None:
        """Refuse messages that are known to be of different batches."""
        picks = self.given.batch_indices
        if picks is not None and bool((picks.sort(-1).values != picks[0].sort().values).any()):
            raise GleakError(
                f"{by} takes messages of one batch, and these {len(self.rounds)} messages are of "
                "different ones: choose one with seen.message(0)"
            )

    def message(self, index: int) -> "Observation":
        """Return the observation of one message out of several."""
        if not 0 <= index < len(self.rounds):
            raise ValueError(f"message must lie in 0…{len(self.rounds) - 1}, got {index}")
        indices = self.given.batch_indices
        given = self.given
        if indices is not None:
            given = replace(given, batch_indices=indices[index : index + 1])
        return replace(self, rounds=(self.rounds[index],), given=given)

    def only(self, *prefixes: str) -> "Observation":
        """Return what is left when only the layers named so are seen (per-layer access)."""

        def seen(name: str) -> bool:
            return any(name == p or name.startswith(f"{p}.") for p in prefixes)

        for prefix in prefixes:
            if not any(n == prefix or n.startswith(f"{prefix}.") for n in self.rounds[0].update):
                choose("layer", prefix, {n.rsplit(".", 1)[0] for n in self.rounds[0].update})
        rounds = tuple(
            replace(r, update={n: t for n, t in r.update.items() if seen(n)}) for r in self.rounds
        )
        return replace(
            self, rounds=rounds, protocol=f"{self.protocol}, layers {', '.join(prefixes)}"
        )

    def without(self, *names: str) -> "Observation":
        """Return the same messages with some capabilities withdrawn."""
        for name in names:
            choose("capability", name, CAPABILITIES)
        given = replace(self.given, **dict.fromkeys(names))
        rounds = self.rounds
        if "weights" in names:
            rounds = tuple(replace(r, weights=None) for r in rounds)
        return replace(self, given=given, rounds=rounds)

    def select(self, trials: Sequence[int] | Tensor) -> "Observation":
        """Return some of the trials; an index may repeat, which makes restarts."""
        index = torch.as_tensor(trials, device=self.device)
        total, shapes = self.trials, {n: p.shape for n, p in self.architecture.named_parameters()}
        if index.numel() == 0 or int(index.min()) < 0 or int(index.max()) >= total:
            raise ValueError(f"trials must lie in 0…{total - 1}, got {index.tolist()}")

        def weights(held: Weights | None) -> Weights | None:
            if held is None:
                return None
            stacked = {n: w.dim() > len(shapes[n]) for n, w in held.items() if n in shapes}
            return {n: w[index] if stacked.get(n) else w for n, w in held.items()}

        given = {
            f.name: value[index.to(value.device)]
            for f in fields(Given)
            # batch_indices belong to rounds; every other tensor has the trials axis first.
            if f.name != "batch_indices"
            and isinstance(value := getattr(self.given, f.name), Tensor)
        }
        return replace(
            self,
            rounds=tuple(
                Round({n: t[index] for n, t in r.update.items()}, weights(r.weights))
                for r in self.rounds
            ),
            given=replace(self.given, **given),
        )

    def restarts(self, times: int) -> "Observation":
        """Return every trial `times` over, next to each other: one call, many starts."""
        return self.select(torch.arange(self.trials).repeat_interleave(times))

    def __repr__(self) -> str:
        update = self.rounds[0].update
        entries = sum(t[0].numel() for t in update.values())
        what = "gradient" if self.kind == "gradient" else "weights after training"
        lines = [
            f"Threat model: {self.protocol}",
            f"  model      {getattr(self.architecture, 'spec', type(self.architecture).__name__)}",
            f"  shared     {_count(len(self.rounds), 'message')} per trial: {what}, "
            f"{entries:,} numbers in {_count(len(update), 'tensor')}",
            f"  trials     {self.trials} independent private "
            + ("batch" if self.trials == 1 else "batches"),
            f"  defence    {self.defence}",
        ]
        honest = [n for n in self.given if not n.startswith("oracle_")]
        oracle = [n for n in self.given if n.startswith("oracle_")]
        withheld = [n for n in CAPABILITIES if n not in (*honest, *oracle)]
        lines += [f"  given      {n}{self._value(n)}: {CAPABILITIES[n]}" for n in honest]
        lines += [
            f"  ORACLE     {n}: {CAPABILITIES[n]} (no real attacker has this)" for n in oracle
        ]
        lines += [f"  not given  {', '.join(withheld)}"]
        return "\n".join(lines)

    def _value(self, name: str) -> str:
        value = getattr(self.given, name)
        return "" if isinstance(value, bool | Tensor) else f" = {value}"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def bare(model: nn.Module) -> nn.Module:
    """Return the architecture alone: on the meta device, without numbers or how to draw them."""
    stripped = copy.deepcopy(model).to("meta")
    if hasattr(stripped, "drawn"):
        setattr(stripped, "drawn", "")  # noqa: B010 - no type checker knows that a Module has it
    return stripped


@dataclass(frozen=True)
class History:
    """What an attack left behind on its way.

    `loss` is recorded at every step, `frames` (F, T, B, C, H, W) at the steps in `frame_steps`.
    """

    steps: Tensor  # (S,)
    loss: Tensor  # (S, T); NaN after a trial has ended
    frame_steps: Tensor  # (F,)
    frames: Tensor  # (F, T, B, C, H, W)


@dataclass(frozen=True, repr=False)
class Reconstruction:
    """What the attacker ends up with: the best-loss iterate of each trial, unclipped.

    `status` is the attacker's own word, from the loss alone: he cannot see the private image.
    """

    images: Tensor  # (T, B, C, H, W)
    labels: Tensor | None  # (T, B)
    loss: Tensor  # (T,) the best loss reached
    status: tuple[Status, ...]
    history: History
    evaluations: Tensor  # (T,)
    seconds: float
    attack: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = set(self.status) - set(get_args(Status))
        if unknown or len(self.status) != self.images.shape[0]:
            raise ValueError(f"one status per trial out of {get_args(Status)}, got {self.status}")

    @property
    def trials(self) -> int:
        """The number of trials."""
        return self.images.shape[0]

    def best(self, restarts: int) -> "Reconstruction":
        """Return, of each `restarts` neighbouring trials, the one with the lowest loss."""
        if restarts < 1 or self.trials % restarts:
            raise ValueError(f"{self.trials} trials do not divide into groups of {restarts}")
        grouped = self.loss.nan_to_num(torch.inf, posinf=torch.inf).view(-1, restarts)
        pick = grouped.argmin(1) + torch.arange(grouped.shape[0], device=grouped.device) * restarts
        return replace(
            self,
            images=self.images[pick],
            labels=None if self.labels is None else self.labels[pick],
            loss=self.loss[pick],
            status=tuple(self.status[i] for i in pick.tolist()),
            history=replace(
                self.history,
                loss=self.history.loss[:, pick],
                frames=self.history.frames[:, pick],
            ),
            # The attacker paid for all restarts, not only for the one he kept.
            evaluations=self.evaluations.view(-1, restarts).sum(1),
            settings={**self.settings, "restarts": restarts},
        )

    def __repr__(self) -> str:
        counts = {s: self.status.count(s) for s in get_args(Status) if s in self.status}
        return (
            f"{self.attack}: {_count(self.trials, 'trial')} "
            f"of {_count(self.images.shape[1], 'image')}, "
            + ", ".join(f"{n} {s}" for s, n in counts.items())
            + f"; {int(self.evaluations.sum()):,} evaluations in {self.seconds:.1f} s"
        )
