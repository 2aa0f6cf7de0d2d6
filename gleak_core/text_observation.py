"""What a client of a masked-language model sends, and what it says before any optimiser has run."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gleak_core.errors import GleakError, choose
from gleak_core.observation import Update, Weights

__all__ = [
    "BIAS",
    "MASK",
    "POSITIONS",
    "WORDS",
    "Encoder",
    "TextObservation",
    "masked_words",
    "tokens_in",
]

MASK = "[MASK]"
WORDS = "bert.embeddings.word_embeddings.weight"  # the decoder has the same weight: BERT ties them
POSITIONS = "bert.embeddings.position_embeddings.weight"
BIAS = "cls.predictions.bias"


@dataclass(frozen=True)
class Encoder:
    """The architecture, without weights."""

    layers: int
    width: int
    heads: int
    eps: float = 1e-12


@dataclass(frozen=True, repr=False)
class TextObservation:
    """All that an attacker on text gets: `print` it to read the threat model in words."""

    encoder: Encoder
    update: Update  # name -> (T, *shape), gradients
    weights: Weights  # name -> (T, *shape): each trial has a model of its own
    vocabulary: tuple[str, ...]  # as the rows of the word embedding
    length: int  # tokens in a sentence
    masked: int  # and how many of them are masked: 15 % is the protocol's

    def __post_init__(self) -> None:
        for name, g in self.update.items():
            choose("parameter", name, self.weights)
            if g.shape != (shape := self.weights[name].shape):
                raise ValueError(
                    f"message {name!r} has shape {tuple(g.shape)}, expected {tuple(shape)}: "
                    "trials first, then the parameter's own shape"
                )
            if not g.isfinite().all():
                raise GleakError(
                    f"the gradient is not finite in {name!r}: the client's training has diverged, "
                    "begin again from smaller weights (init_range=)"
                )
        if len(self.vocabulary) != (rows := self.weights[WORDS].shape[1]):
            raise ValueError(
                f"{len(self.vocabulary)} words cannot name {rows} rows of the word embedding: "
                "give model and vocabulary the same size"
            )

    @property
    def trials(self) -> int:
        """The number of sentences, each attacked on its own."""
        return len(self.weights[WORDS])

    def __repr__(self) -> str:
        entries = sum(g[0].numel() for g in self.update.values())
        hidden = "the words, their order, which places are masked"
        if WORDS not in self.update:
            hidden += ", the gradient of the word embeddings (which is the decoder's too)"
        lines = [
            "Threat model: FedSGD of one sentence on a masked-language model",
            f"  model      BERT: {self.encoder.layers} layers of {self.encoder.width} features, "
            f"{self.encoder.heads} heads, {len(self.vocabulary)} words",
            f"  shared     1 gradient per trial: {entries:,} numbers in {len(self.update)} tensors",
            f"  trials     {self.trials} independent private sentences",
            "  given      weights: the model's weights at the moment of each message",
            "  given      vocabulary: which word each row of the embedding stands for",
            f"  given      length = {self.length}: the number of tokens in a sentence",
            f"  given      masked = {self.masked}: how many of them are masked",
            f"  not given  {hidden}",
        ]
        return "\n".join(lines)


def masked_words(seen: TextObservation) -> Tensor:
    """Return the masked words (T, M), not their places: iDLG's rule (Zhao et al. 2020).

    The gradient of the decoder's bias is p − y, averaged over the masked places.
    """
    if BIAS not in seen.update:
        raise GleakError(f"the masked words are read off {BIAS!r}, which was not shared: share it")
    rest, words = seen.update[BIAS].clone(), []  # (T, V)
    for _ in range(seen.masked):  # a word may be masked twice: its share is given back each time
        words.append(rest.argmin(1))
        rest.scatter_add_(1, words[-1][:, None], torch.full_like(rest[:, :1], 1 / seen.masked))
    return torch.stack(words, 1)


def tokens_in(seen: TextObservation, *, above: float = 1e-4) -> list[frozenset[str]]:
    """Return the words of each sentence, without their order, off a shared embedding gradient.

    Were it the embedding's alone, the rows that are not zero would name the input. BERT's decoder
    has the same weight and moves every row, but by Σ (p − y)h over the masked places only: in no
    more directions than these are. We keep that tie, since real models have it, and take its
    directions out of all rows: those of which a share `above` of the largest is left were put in.
    The masked words come from the bias. No optimiser runs.
    """
    if WORDS not in seen.update:
        raise GleakError(
            "the gradient of the word embeddings, whose rows name the tokens, was withheld: "
            "recover(seen) does without it"
        )
    found = []
    for rows, masked in zip(seen.update[WORDS].double(), masked_words(seen), strict=True):
        size = rows.norm(dim=1)  # (V,)
        # A word that was put in has a large row: the smaller half holds the decoder's part alone.
        alone = F.normalize(rows[size.argsort()[: len(rows) // 2]], dim=1)
        span = torch.linalg.svd(alone, full_matrices=False).Vh[: seen.masked]  # (M, D)
        left = (rows - rows @ span.mT @ span).norm(dim=1)
        named = (left > above * left.max()).nonzero()[:, 0]
        words = {seen.vocabulary[i] for i in (*named.tolist(), *masked.tolist())}
        found.append(frozenset(words - {MASK}))
    return found
