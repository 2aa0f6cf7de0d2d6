"""Sentences out of BERT: what a critique of DLG says of text, measured."""

from collections.abc import Iterator, Sequence

from gleak_core import sentences, text
from gleak_core.errors import choose
from gleak_core.studies.study import Cell, Row

__all__ = ["BUDGET", "sentence"]

BUDGET = 800  # iterations


def sentence(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Each seed is another sentence on another BERT that nobody has trained.

    Where the embedding's gradient is shared, words are read off its rows: without their order,
    without an iteration, and `token_accuracy` counts the tokens whose word is named. An attack
    that never has all tokens right is given one iteration more than the budget.
    """
    choose("model", str(cell["model"]), ("BERT",))
    layers, width, size, length = (
        int(cell[key]) for key in ("layers", "width", "vocabulary", "length")
    )
    words = sentences.vocabulary(size)
    private = [sentences.cut(length, seed=seed) for seed in seeds]
    scale = float(cell["init_range"])
    models = [
        sentences.bert(layers, width, size, length, init_range=scale, seed=seed).to(device)
        for seed in seeds
    ]
    shared = str(cell["embeddings"])
    seen = sentences.fedsgd(models, private, words, embeddings=shared, seeds=seeds)
    if shared == "shared":
        for tokens, named in zip(private, text.tokens_in(seen), strict=True):
            yield _row(100 * sum(t in named for t in tokens) / length, iterations=0, evaluations=1)
        return
    found = text.recover(seen, steps=BUDGET, seeds=seeds, every=0)
    right = sentences.accuracy(found.tokens, sentences.encode(private, words)).tolist()
    for trial, accuracy in enumerate(right):
        at = int(found.solved_at[trial]) if accuracy == 100 else -1
        row = _row(
            accuracy,
            iterations=at if at >= 0 else BUDGET + 1,
            evaluations=int(found.evaluations[trial]),
        )
        yield row | {"status": found.status[trial]}


def _row(accuracy: float, *, iterations: int, evaluations: int) -> Row:
    return {
        "token_accuracy": accuracy,
        "iterations": iterations,
        "status": "solved" if accuracy == 100 else "failed",
        "evaluations": evaluations,
    }
