"""The client who trains on text: a paragraph, a BERT, and the gradient he shares."""

import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gleak_core.errors import GleakError, choose
from gleak_core.text_observation import MASK, WORDS, Encoder, TextObservation

__all__ = [
    "EMBEDDINGS",
    "PARAGRAPH",
    "SHARE",
    "SPECIALS",
    "accuracy",
    "bert",
    "cut",
    "encode",
    "fedsgd",
    "mask",
    "tokenise",
    "vocabulary",
]

SPECIALS = ("[PAD]", "[CLS]", "[SEP]", MASK, "[UNK]")
SHARE = 0.15  # of a sentence is masked (Devlin et al. 2019)
EMBEDDINGS = ("withheld", "shared")
"""Whether a client shares the gradient of the word embeddings, whose rows name his words."""
PARAGRAPH = """
Three hospitals and one bank agreed to train a language model together, and none of them wanted to
show its letters to the others. Every night each partner took a few pages from its own archive, hid
some of the words, and asked the model to guess them. The doctors wrote about fevers, broken bones
and children who could not sleep; the bank wrote about late loans, lost cards and a farmer who paid
his debt in apples. Nobody sent a page to anyone. Only small corrections left the building, long
lists of numbers that no nurse and no clerk could read. In the morning a server added the lists,
made the shared model a little better, and sent it back. The lawyers were content, since a number is
not a name. Then a student looked at one list and asked a simple question: which sentence would have
caused exactly these corrections? She wrote down a random sentence, compared its list with the one
she had seen, and changed her guess until both agreed. After some minutes her screen showed the
letter of a patient, word by word, and the room became very quiet.
"""


def tokenise(text: str) -> list[str]:
    """Return words in lower case; a punctuation mark is a word."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def vocabulary(size: int = 1000, *, name: str = "") -> tuple[str, ...]:
    """Return special tokens, the paragraph's words and fillers; or those of a model by name."""
    if name:
        table: dict[str, int] = _fetch(_transformers().AutoTokenizer, name).get_vocab()
        return tuple(sorted(table, key=table.__getitem__))
    words = (*SPECIALS, *dict.fromkeys(tokenise(PARAGRAPH)))
    if size < len(words):
        raise ValueError(f"the paragraph alone needs a vocabulary of {len(words)}, got {size}")
    return *words, *(f"word{i:04d}" for i in range(1, size - len(words) + 1))


def cut(length: int, *, seed: int, text: str = PARAGRAPH) -> list[str]:
    """Return `length` neighbouring tokens from a place in the text that the seed chooses.

    There is no [CLS] and no [SEP]: every token is private, and none is right for nothing.
    """
    words = tokenise(text)
    if not 1 <= length <= len(words):
        raise ValueError(f"the text has {len(words)} tokens: cut 1 to {len(words)}, not {length}")
    first = torch.randint(len(words) - length + 1, (1,), generator=_generator(seed)).item()
    return words[int(first) :][:length]


def encode(sentences: Sequence[Sequence[str]], words: Sequence[str]) -> Tensor:
    """Return the rows (T, L) of words in a vocabulary."""
    row = {word: i for i, word in enumerate(words)}
    for sentence in sentences:
        if unknown := [word for word in sentence if word not in row]:
            raise GleakError(
                f"the vocabulary has no {unknown[0]!r}: say it otherwise, or write [UNK]"
            )
        if len(sentence) != len(sentences[0]):
            raise ValueError("sentences of one message have one length: cut() them alike")
    return torch.tensor([[row[word] for word in sentence] for sentence in sentences])


def mask(trials: int, length: int, *, seeds: Sequence[int], share: float = SHARE) -> Tensor:
    """Return which places (T, M) are masked: a share of them, one at least, by each trial's seed.

    All become [MASK], where BERT's authors leave a tenth as it is and replace another by chance.
    """
    if not 0 < share <= 1 or len(seeds) != trials:
        raise ValueError(
            f"{trials} sentences need as many seeds and a share in (0, 1], "
            f"got {len(seeds)} and {share}"
        )
    count = max(1, round(share * length))
    drawn = [torch.randperm(length, generator=_generator(s))[:count] for s in seeds]
    return torch.stack(drawn).sort(1).values


def bert(
    layers: int = 2,
    width: int = 128,
    vocabulary: int = 1000,
    length: int = 16,
    *,
    init_range: float = 0.1,
    seed: int = 0,
    name: str = "",
) -> nn.Module:
    """Return a BERT for masked words, without dropout; weights by seed, or of a model by `name`.

    Heads have 64 features (a narrower model has one). Decoder and embedding share their weight.
    """
    module = _transformers()
    settings: dict[str, Any] = {
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "attn_implementation": "eager",  # the fused kernels cannot be differentiated twice
    }
    if name:
        return _fetch(module.BertForMaskedLM, name, **settings).eval()
    heads = max(1, width // 64)
    if min(layers, width, vocabulary, length) < 1 or width % heads or init_range <= 0:
        raise ValueError(
            f"a BERT has at least one layer, feature, word and place, a width of {heads} equal "
            f"heads and a positive init_range, got {layers}, {width}, {vocabulary}, {length} and "
            f"{init_range}"
        )
    config = module.BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=length,
        initializer_range=init_range,
        **settings,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return module.BertForMaskedLM(config).eval()


def fedsgd(
    models: Sequence[nn.Module],
    sentences: Sequence[Sequence[str]],
    words: Sequence[str],
    *,
    embeddings: str = "withheld",
    seeds: Sequence[int] | None = None,
    share: float = SHARE,
) -> TextObservation:
    """Return what is seen of one step on each sentence, with a model of its own each.

    The loss is the model's own: cross-entropy of the masked words, averaged. With `embeddings`
    "withheld" the gradient of the tied weight stays at the client: the embedding's rows and the
    decoder's alike.
    """
    choose("embeddings", embeddings, EMBEDDINGS)
    tokens = encode(sentences, words)  # (T, L)
    if len(models) != len(tokens):
        raise ValueError(f"{len(tokens)} sentences need as many models, got {len(models)}")
    encoder = _encoder(models, tokens.shape[1])
    places = mask(*tokens.shape, seeds=range(len(tokens)) if seeds is None else seeds, share=share)
    inputs = tokens.scatter(1, places, list(words).index(MASK))
    labels = torch.full_like(tokens, -100).scatter(1, places, tokens.gather(1, places))

    def gradient(model: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        own = list(model.parameters())
        at = own[0].device
        loss = model(input_ids=inputs[None].to(at), labels=labels[None].to(at)).loss
        return torch.autograd.grad(loss, own)

    names = [n for n, _ in models[0].named_parameters()]
    each = [gradient(*trial) for trial in zip(models, inputs, labels, strict=True)]
    update = {n: torch.stack(g) for n, g in zip(names, zip(*each, strict=True), strict=True)}
    if embeddings == "withheld":
        del update[WORDS]
    held = zip(*(model.parameters() for model in models), strict=True)
    return TextObservation(
        encoder=encoder,
        update=update,
        weights={n: torch.stack(w).detach() for n, w in zip(names, held, strict=True)},
        vocabulary=tuple(words),
        length=tokens.shape[1],
        masked=places.shape[1],
    )


def accuracy(found: Tensor, private: Tensor) -> Tensor:
    """Return the share (T,) of tokens (T, L) that are right, each at its place, in per cent.

    At a masked place the word that was masked is right, and [MASK] is not.
    """
    if found.shape != private.shape:
        raise ValueError(
            f"found {tuple(found.shape)} and private tokens {tuple(private.shape)} must match"
        )
    return 100 * (found.cpu() == private.cpu()).double().mean(1)


def _encoder(models: Sequence[nn.Module], length: int) -> Encoder:
    """Return the architecture of all models, or refuse one that `text.logits` does not compute."""
    known = {"hidden_act": "gelu", "tie_word_embeddings": True}
    read = ("num_hidden_layers", "hidden_size", "num_attention_heads", "layer_norm_eps")
    config: Any = models[0].config
    for other in models:
        mine: Any = other.config
        if any(getattr(mine, k) != getattr(config, k) for k in (*read, "vocab_size")):
            raise ValueError("the models of one message are of one size: make them with one call")
        if any(getattr(mine, key) != value for key, value in known.items()):
            raise GleakError(f"text knows BERTs with {known} only: make one with sentences.bert()")
        if length > mine.max_position_embeddings:
            raise GleakError(
                f"the model has {mine.max_position_embeddings} places and the sentence {length} "
                "tokens: cut it shorter, or make the model with length="
            )
    return Encoder(*(getattr(config, key) for key in read))


def _transformers() -> Any:
    """Return the library, which takes seconds to load and which only this room needs."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its dependencies' own, not ours to mend
            import transformers
    except ImportError:
        raise GleakError(
            "a BERT needs the library transformers, which is not installed: "
            "pip install -e '.[text]'"
        ) from None
    return transformers


def _fetch(kind: Any, name: str, **settings: Any) -> Any:
    try:
        return kind.from_pretrained(name, **settings)
    except (OSError, ValueError) as problem:
        raise GleakError(
            f"{name!r} is neither here nor to be had from the network: leave out name= for a "
            "model that needs none, or pass the folder of one that was saved"
        ) from problem


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
