"""Which images a seed chooses.

Only the raw 64-bit words of NumPy's PCG64 are used: NumPy promises that those stay (NEP 19), which
it does not promise of `shuffle` or `choice`. Sorting them shuffles alike on every machine.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

__all__ = ["pick", "pick_labels", "shuffled", "uniform"]


_ITEMS, _CLASSES, _CROPS = range(3)  # streams that have nothing to do with each other


def uniform(count: int, seed: int = 0) -> np.ndarray:
    """Return `count` numbers in [0, 1) that depend on the seed alone."""
    return (np.random.PCG64([seed, _CROPS]).random_raw(count) >> np.uint64(11)) * 2.0**-53


def shuffled(count: int, seed: int, stream: int = _ITEMS) -> np.ndarray:
    """Return 0 … `count` - 1 in an order that depends on the seed alone."""
    return np.argsort(np.random.PCG64([seed, stream]).random_raw(count), kind="stable")


def pick(labels: np.ndarray, n: int, seed: int, balanced: bool) -> np.ndarray:
    """Choose `n` positions of `labels`; the first ones are the same for a smaller `n`.

    Balanced means in rounds: every class gives one image before any gives its second.
    """
    order = shuffled(len(labels), seed)
    if balanced:
        classes, member = np.unique(labels[order], return_inverse=True)
        rank = shuffled(len(classes), seed, _CLASSES)[
            member
        ]  # the place of each image's class in a round
        by_class = np.argsort(member, kind="stable")
        starts = np.concatenate([[0], np.bincount(member).cumsum()[:-1]])
        turn = np.empty_like(order)  # the round in which each image's turn comes
        turn[by_class] = np.arange(len(order)) - starts[member[by_class]]
        order = order[np.lexsort((rank, turn))]
    return order[:n]


def pick_labels(labels: np.ndarray, wanted: Sequence[int], seed: int) -> np.ndarray:
    """Choose different images with exactly the `wanted` labels, in that order."""
    order = shuffled(len(labels), seed)
    for label, count in Counter(wanted).items():
        there = int((labels == label).sum())
        if count > there:
            raise ValueError(
                f"labels= asks for {count} images of label {label} but there are {there}: "
                "ask for fewer, or choose another label"
            )
    queues = {label: iter(order[labels[order] == label]) for label in set(wanted)}
    return np.array([next(queues[label]) for label in wanted])
