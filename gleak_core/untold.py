"""Who was in which batch, where nobody says so, or not the truth: the messages tell.

While the model stands still, R messages of B items each are A G: who was there, in zeros and ones
(over B), times the items' own gradients. So the columns of A lie in the column space of the
messages, where few other vectors of zeros and ones do: complements, and sums of items that never
met. With batches drawn anew they are its skewed directions, which a fixed-point iteration finds
(FastICA, Hyvärinen 1999); rounding makes a direction zeros and ones, and projecting it back says
whether it may be one.

Where indices are told and some are wrong, the rounds that agree with each other are the true ones.
"""

import torch
from torch import Tensor

from gleak_core import cafe
from gleak_core.cafe import _of, _unmoved
from gleak_core.errors import GleakError
from gleak_core.observation import Observation

__all__ = ["agreeing", "batches"]

_BY = "reading who was in which batch"
_AT_ONCE = 64  # directions that are followed side by side
_STEPS = 60  # of each
_ROUNDED = 10  # times that it is rounded, and put back into the space
_CHUNK = 2**16  # numbers of each message that are compared at a time
_SAME = 1e-4  # of a row, between two messages of one batch
_WEIGHED = 60  # times that rounds are weighed anew
_ROUNDING = 1e-4  # of a message's size, which rounding does not reach
_EXACT = 1e-2  # of a vector of zeros and ones that may lie outside the messages' space


def batches(seen: Observation, *, tries: int = 100, seed: int = 0) -> Tensor:
    """Return who was in each round (R, B), under names from 0 to N - 1 that are made up.

    Rounds of one model, whose batches are drawn anew and of one size; some fifteen for each item,
    or more: with fewer this search finds too little, and says so. How many items there are follows
    as well: so many that every round has its number. A round may be the mean over several workers.
    `tries` is how often directions are drawn before the search gives up.
    """
    (size,) = seen.need("batch_size", by=_BY)
    if seen.trials != 1:
        raise ValueError(f"{_BY} takes one protocol at a time: pass seen.select([0])")
    if seen.given.weights:
        _unmoved(seen, seen)
    space = _space(seen)
    rounds, rank = space.shape
    if _distinct(space) <= rank:
        raise GleakError(
            f"only {rank} different messages come back, so nobody is told apart: wait for batches "
            "that are drawn anew"
        )
    if abs(size / rank - 0.5) < 0.1:
        raise GleakError(
            f"batches of {size} of {rank} items look like those who were not there: who was in "
            "which cannot be read where it is about half of them"
        )
    stream = torch.Generator().manual_seed(seed)
    # All rows of A sum to one, so the constant is in the space, and tells nobody apart.
    centred = space - space.mean(0)
    q = torch.linalg.svd(centred, full_matrices=False)[0][:, : rank - 1]
    found: dict[tuple[float, ...], None] = {}
    for _ in range(tries):
        way = torch.randn(q.shape[1], _AT_ONCE, dtype=q.dtype, generator=stream)
        for _ in range(_STEPS):
            way = q.T @ (q @ way).square()  # the slope of skewness
            way = way / way.norm(dim=0)
        y = (q @ way) * (1 if size < rank / 2 else -1)
        there = (y > (y.amin(0) + y.amax(0)) / 2).to(space)
        for _ in range(_ROUNDED):
            there = (space @ (space.T @ there) > 0.5).to(space)
        off = (there - space @ (space.T @ there)).norm(dim=0) / there.norm(dim=0).clamp(min=1)
        good = (off < _EXACT) & (there.sum(0) > 0) & (there.sum(0) < rounds)
        found |= {tuple(column): None for column in there[:, good].T.tolist()}
        columns = _whole(torch.tensor([*found], dtype=space.dtype).view(-1, rounds), size, rank)
        if len(columns) >= rank and bool((columns.sum(0) == size).all()):
            return torch.stack([row.nonzero()[:, 0] for row in columns.T])
    raise GleakError(
        f"the places of {len(found)} items could be read in {rounds} rounds, and there are more: "
        "wait for more rounds, fifteen or more for each item, in batches that are drawn anew"
    )


def _whole(found: Tensor, size: int, rank: int) -> Tensor:
    """Return the columns (N, R) without sums of others, and whoever is left to make up the number.

    Items that never meet have a sum of zeros and ones as well.
    """
    inside = found @ found.T  # (N, N): in how many rounds both are
    counts = found.sum(1)
    holds = (inside == counts) & (counts < counts[:, None])  # row k holds column j
    single = found[~holds.any(1)]
    rest = size - single.sum(0)
    if len(single) < rank - 1 or not bool(rest.any()):
        return single
    alone = bool(((rest == 0) | (rest == 1)).all()) and rest.sum() < 1.5 * single.sum(1).mean()
    return torch.cat([single, rest[None]]) if alone else single


def _distinct(space: Tensor) -> int:
    """Return how many different messages there are, from the rows of their space (R, rank)."""
    seen = space[:1]
    for row in space:
        if float((seen - row).norm(dim=1).min()) > _SAME * float(row.norm()):
            seen = torch.cat([seen, row[None]])
            if len(seen) > space.shape[1]:
                break
    return len(seen)


def agreeing(seen: Observation) -> Tensor:
    """Return which rounds' indices agree with the others' (R,), by the biases' gradients.

    Least squares in which a round counts the less the more it is off, so that few wrong ones do not
    bend it (iteratively reweighted, Daubechies et al. 2010). It needs many more right rounds than
    there are items, and messages that are no more than rounded; where too few agree to determine
    every item it refuses.
    """
    (indices,) = seen.need("batch_indices", by=_BY)
    if seen.trials != 1:
        raise ValueError(f"{_BY} takes one protocol at a time: pass seen.select([0])")
    if seen.given.weights:
        _unmoved(seen, seen)
    names = [name for name in seen.rounds[0].update if name.endswith(".bias")]
    sent = torch.stack(
        [torch.cat([_of(one, n).flatten() for n in names]).cpu().double() for one in seen.rounds]
    )
    if not torch.isfinite(sent).all():
        raise ValueError("the messages hold non-finite numbers: drop these rounds")
    matrix = cafe.shares(indices.cpu().long())
    weight = torch.ones(len(matrix), 1, dtype=sent.dtype)
    off = weight[:, 0]
    for _ in range(_WEIGHED):
        found = torch.linalg.lstsq(weight * matrix, weight * sent, driver="gelsd").solution
        off = (matrix @ found - sent).norm(dim=1)
        weight = (off[:, None] + 1e-9 * off.max() + 1e-30).rsqrt()
    # The better half is right, or nothing can be said: all are held against what it gives.
    best = off.argsort()
    rounds, items = matrix.shape
    half = max(rounds // 2, items + 1)
    while half < rounds and int(torch.linalg.matrix_rank(matrix[best[:half]])) < items:
        half += 1  # an item that few rounds have
    best = best[:half]
    found = torch.linalg.lstsq(matrix[best], sent[best], driver="gelsd").solution
    good = (matrix @ found - sent).norm(dim=1) <= _ROUNDING * sent.norm(dim=1)
    if int(good.sum()) <= items or int(torch.linalg.matrix_rank(matrix[good])) < items:
        raise GleakError(
            f"{int(good.sum())} of {rounds} rounds agree, which do not determine {items} items: "
            "most indices must be right, and the messages without noise"
        )
    return good


def _space(seen: Observation) -> Tensor:
    """Return an orthonormal basis (R, rank) of the column space of the messages (R, n)."""
    rounds = len(seen.rounds)
    gram = torch.zeros(rounds, rounds, dtype=torch.float64)
    for name in seen.rounds[0].update:
        parts = zip(*(r.update[name][0].flatten().split(_CHUNK) for r in seen.rounds), strict=True)
        for part in parts:
            each = torch.stack(part).cpu().double()
            gram += each @ each.T
    if not torch.isfinite(gram).all():
        raise ValueError("the messages hold non-finite numbers: drop these rounds")
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0).clamp(min=values[-1] * 1e-18), vectors.flip(1)
    rank = int((values[:-1] / values[1:]).argmax()) + 1
    if not 2 < rank < rounds - 1:
        raise GleakError(
            f"{rounds} rounds do not say how many items there are: wait for more, some fifteen "
            "for each item, in batches that are drawn anew"
        )
    return vectors[:, :rank]
