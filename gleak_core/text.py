"""Sentences out of gradients: the attack on a client who trains a masked-language model.

Words have no pixels, so the dummy is a row of embeddings, and each is read as the nearest word
(Zhu et al. 2019). Nothing here can hold a private word: the client is `gleak_core.sentences`.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from gleak_core.errors import choose
from gleak_core.observation import Status, Update, Weights
from gleak_core.solvers import Progress, Solution, method, minimise
from gleak_core.text_observation import (
    BIAS,
    MASK,
    POSITIONS,
    WORDS,
    Encoder,
    TextObservation,
    masked_words,
    tokens_in,
)

__all__ = [
    "DISTANCES",
    "MASK",
    "SOLVED",
    "WORDS",
    "Encoder",
    "Recovered",
    "SentenceMatch",
    "TextObservation",
    "logits",
    "masked_words",
    "recover",
    "tokens_in",
]

SOLVED = 1e-8
"""Of a right sentence, ‖g′ − g‖² / ‖g‖² is rounding alone; one wrong word leaves far more."""
DISTANCES: Mapping[str, str] = {
    "squared_l2": "‖∇W′ − ∇W‖² / ‖∇W‖², DLG's",
    "relative_l2": "the same for each tensor on its own, averaged: small gradients count as much",
}
_ATTENTION = ("query", "key", "value")


def logits(encoder: Encoder, weights: Weights, x: Tensor) -> Tensor:
    """Return BERT's answers (T, L, V) to word embeddings x (T, L, D), trial by trial.

    Devlin et al. 2019, written out because every trial has its own weights: the library that the
    client uses knows no such axis.
    """

    def linear(name: str, x: Tensor) -> Tensor:
        return torch.baddbmm(weights[f"{name}.bias"][:, None], x, weights[f"{name}.weight"].mT)

    def norm(name: str, x: Tensor) -> Tensor:
        x = F.layer_norm(x, x.shape[-1:], eps=encoder.eps)
        return x * weights[f"{name}.weight"][:, None] + weights[f"{name}.bias"][:, None]

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (encoder.heads, -1)).transpose(1, 2)  # (T, H, L, D/H)

    here = "bert.embeddings"
    x = x + weights[f"{here}.position_embeddings.weight"][:, : x.shape[1]]
    x = norm(f"{here}.LayerNorm", x + weights[f"{here}.token_type_embeddings.weight"][:, :1])
    for i in range(encoder.layers):
        here = f"bert.encoder.layer.{i}"
        q, k, v = (split(linear(f"{here}.attention.self.{n}", x)) for n in _ATTENTION)
        mixed = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
        mixed = linear(f"{here}.attention.output.dense", mixed.transpose(1, 2).flatten(2))
        x = norm(f"{here}.attention.output.LayerNorm", x + mixed)
        wide = F.gelu(linear(f"{here}.intermediate.dense", x))
        x = norm(f"{here}.output.LayerNorm", x + linear(f"{here}.output.dense", wide))
    here = "cls.predictions.transform"
    x = norm(f"{here}.LayerNorm", F.gelu(linear(f"{here}.dense", x)))
    return torch.baddbmm(weights[BIAS][:, None], x, weights[WORDS].mT)


@dataclass(frozen=True)
class SentenceMatch:
    """How far the gradient of a dummy sentence in z (T, n) is from the message.

    The embeddings come first, in units of the deviation of the model's own; then, for each masked
    word, logits of the place where it is masked. DLG optimises labels as well: here these are read
    off the message, and only their places are unknown. The word embedding's gradient is left out.
    """

    encoder: Encoder
    weights: Weights
    target: Update
    share: dict[str, Tensor]  # name -> (T,), what a squared difference there counts
    labels: Tensor  # (T, M)
    length: int
    mask: int  # the row of [MASK]

    @classmethod
    def of(cls, seen: TextObservation, distance: str = "squared_l2") -> "SentenceMatch":
        """Take from an observation what it grants."""
        target = {n: g for n, g in seen.update.items() if n != WORDS}
        return cls(
            encoder=seen.encoder,
            weights=seen.weights,
            target=target,
            share=_shares(target, choose("distance", distance, DISTANCES)),
            labels=masked_words(seen),
            length=seen.length,
            mask=seen.vocabulary.index(MASK),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of unknowns in z: of embeddings, and of places."""
        return self.length * self.encoder.width, self.length * self.labels.shape[1]

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss (T,) and its gradient (T, n).

        Where the sentence that z reads as makes the very same message, the loss is that sentence's:
        it is found, however far z still is from the middle of its words.
        """
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            value = self.distance(*self._unpack(z))
            (down,) = torch.autograd.grad(value.sum(), z)
        found = self.echo(z.detach())
        return torch.where(found < SOLVED, found, value.detach()), down

    def distance(self, x: Tensor, places: Tensor) -> Tensor:
        """Return how far (T,) embeddings (T, L, D) and places (T, M, L) are from the message."""
        own = {n: self.weights[n].detach().requires_grad_() for n in self.target}
        with torch.enable_grad():
            loss = self.loss(self.weights | own, x, places)
            fake = torch.autograd.grad(loss.sum(), list(own.values()), create_graph=True)
        parts = [
            self.share[n] * (g - self.target[n]).square().flatten(1).sum(1)
            for n, g in zip(own, fake, strict=True)
        ]
        return torch.stack(parts).sum(0)

    def echo(self, z: Tensor) -> Tensor:
        """Return how far (T,) the gradient is that the sentence read off z makes at each place.

        That of the position embedding tells any two sentences apart, and costs a fifth of them all.
        """
        inputs, places, _ = self._round(z)
        x = self.weights[WORDS].gather(1, inputs[..., None].expand(-1, -1, self.encoder.width))
        own = self.weights[POSITIONS].detach().requires_grad_()
        with torch.enable_grad():
            loss = self.loss({**self.weights, POSITIONS: own}, x, places)
            (fake,) = torch.autograd.grad(loss.sum(), own)
        wish = self.target[POSITIONS].flatten(1)
        return (fake.flatten(1) - wish).square().sum(1) / wish.square().sum(1)

    def loss(self, weights: Weights, x: Tensor, places: Tensor) -> Tensor:
        """Return the client's loss (T,): the mean over masked words, each at its likely places."""
        log_p = logits(self.encoder, weights, x).log_softmax(-1)  # (T, L, V)
        of_word = log_p.gather(2, self.labels[:, None].expand(-1, self.length, -1))  # (T, L, M)
        return -(of_word.mT * places).sum(2).mean(1)

    def read(self, z: Tensor) -> Tensor:
        """Return the sentences (T, L) that z stands for, the masked words at their places."""
        return self._round(z)[2]

    def compact(self, keep: Tensor) -> "SentenceMatch":
        """Return the same objective for some of the trials only."""
        keep = keep.to(self.labels.device)
        return replace(
            self,
            weights={n: w[keep] for n, w in self.weights.items()},
            target={n: g[keep] for n, g in self.target.items()},
            share={n: c[keep] for n, c in self.share.items()},
            labels=self.labels[keep],
        )

    def _unpack(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings (T, L, D) and the probabilities of places (T, M, L)."""
        x, places = z.split(self.shape, 1)
        unit = self.weights[WORDS].flatten(1).std(1)[:, None, None]
        x = x.unflatten(1, (self.length, -1)) * unit
        return x, places.unflatten(1, (-1, self.length)).softmax(-1)

    def _round(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the nearest words by cosine, with [MASK]s (T, L); places (T, M, L); and filled."""
        x, places = self._unpack(z)
        # The cosine but for the dummy's own norm, which favours no word. [PAD] is all zeros.
        near = (x @ F.normalize(self.weights[WORDS], dim=-1).mT).argmax(-1)  # (T, L)
        place = places.argmax(2)  # (T, M)
        sure = (torch.arange(self.length, device=z.device) == place[..., None]).to(z)
        masked = near.scatter(1, place, torch.full_like(place, self.mask))
        return masked, sure, near.scatter(1, place, self.labels)


def _shares(target: Update, distance: str) -> dict[str, Tensor]:
    """Return weights with which the distance of no gradient at all is 1."""
    size = {n: g.square().flatten(1).sum(1) for n, g in target.items()}
    total = torch.stack(list(size.values())).sum(0)  # (T,)
    if distance == "squared_l2":
        return dict.fromkeys(target, 1 / total)
    # A key's bias moves all scores alike, so its gradient is zero but for rounding.
    heard = {n: torch.maximum(s, 1e-6 * total) for n, s in size.items()}
    return {n: 1 / (s * len(heard)) for n, s in heard.items()}


@dataclass(frozen=True, repr=False)
class Recovered:
    """What the attacker ends up with. `status` is his own word: he cannot see the private text."""

    tokens: Tensor  # (T, L)
    loss: Tensor  # (T,) the lowest
    status: tuple[Status, ...]
    solved_at: Tensor  # (T,) the iteration that found it, −1 where none did
    evaluations: Tensor  # (T,)
    seconds: float
    frame_steps: Tensor  # (F,)
    frames: Tensor  # (F, T, L)
    vocabulary: tuple[str, ...]

    def words(self, trial: int = 0) -> str:
        """Return a sentence."""
        return self._say(self.tokens[trial])

    def film(self, trial: int = 0) -> list[tuple[int, str]]:
        """Return how a sentence came to be: iterations, and what was read then."""
        films = zip(self.frame_steps.tolist(), self.frames[:, trial], strict=True)
        return [(step, self._say(frame)) for step, frame in films]

    def _say(self, tokens: Tensor) -> str:
        return " ".join(self.vocabulary[i] for i in tokens.tolist())

    def __repr__(self) -> str:
        return (
            f"{len(self.status)} sentences of {self.tokens.shape[1]} tokens, "
            f"{self.status.count('solved')} solved; {int(self.evaluations.sum()):,} evaluations "
            f"in {self.seconds:.1f} s"
        )


def recover(
    seen: TextObservation,
    *,
    steps: int = 800,
    start: float = 0.1,
    distance: Literal["squared_l2", "relative_l2"] = "squared_l2",
    solver: Literal["lbfgs", "plain_lbfgs"] = "lbfgs",
    history: int = 100,
    seeds: Sequence[int] | None = None,
    every: int = 5,
    width: int = 16,
    progress: Progress | None = None,
    on_interrupt: str = "raise",
) -> Recovered:
    """Recover sentences from gradients without those of the word embeddings (Zhu et al. 2019).

    Dummies start at N(0, `start`) in units of the word embeddings' deviation: from short ones, all
    directions are near. A trial ends when the sentence it reads as makes the message (`SOLVED`), or
    after `steps` iterations. `width` trials are optimised at a time; frames are kept every `every`.
    A start depends on its own seed alone, whatever trials are beside it.
    """
    choose("solver", solver, ("lbfgs", "plain_lbfgs"))
    if start <= 0:
        raise ValueError(f"start must be positive, got {start}: at zero no word is nearest")
    began = time.perf_counter()
    match = SentenceMatch.of(seen, distance)
    like = seen.weights[WORDS]
    seeds = range(seen.trials) if seeds is None else seeds
    if len(seeds) != seen.trials:
        raise ValueError(f"{seen.trials} trials need as many seeds, got {len(seeds)}")
    z = start * torch.stack([_noise(sum(match.shape), seed) for seed in seeds]).to(like.dtype)
    found = minimise(
        match,
        z.to(like.device),
        method(solver, steps=steps, rate=1.0, history=history),
        steps=steps,
        every=every,
        stop=SOLVED,
        width=width,
        progress=progress,
        on_interrupt=on_interrupt,
    )
    below = found.curve < SOLVED  # (S, T)
    return Recovered(
        tokens=match.read(found.z).cpu(),
        loss=found.loss,
        status=_status(found),
        solved_at=torch.where(below.any(0), below.int().argmax(0), -1),
        evaluations=found.evaluations,
        seconds=time.perf_counter() - began,
        frame_steps=found.frame_steps,
        frames=torch.stack([match.read(f.to(like.device)).cpu() for f in found.frames]),
        vocabulary=seen.vocabulary,
    )


def _noise(n: int, seed: int) -> Tensor:
    """Return a start that no client's seed gives: his embeddings were drawn by small numbers."""
    return torch.randn(n, generator=torch.Generator().manual_seed(2**40 + seed))


def _status(found: Solution) -> tuple[Status, ...]:
    def word(cut: bool, loss: float, finite: bool) -> Status:
        if loss < SOLVED:
            return "solved"
        return "interrupted" if cut else "failed" if finite else "diverged"

    told = (found.interrupted.tolist(), found.loss.tolist(), found.finite.tolist())
    return tuple(word(*each) for each in zip(*told, strict=True))
