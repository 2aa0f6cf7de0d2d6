"""Items behind sums: what follows where the rounds determine differences, and no item itself.

A mean over M workers, who always give as many items each, leaves M - 1 unknowns: a constant may be
added to all items of one worker and taken from those of another. It is the *same* constant for all
of a worker's items, so differences between them are determined. And an item's gradient of a fully
connected layer, δzᵀ, has rank one. The columns of δ₁z₁ᵀ - δ₂z₂ᵀ span δ₁ and δ₂, those of
δ₁z₁ᵀ - δ₃z₃ᵀ span δ₁ and δ₃: they meet in the line of δ₁, and the rows in that of z₁. How much of
the one times the other is in the difference then follows as well (Wedderburn 1934).
"""

from collections.abc import Callable
from itertools import combinations

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from gleak_core import cafe
from gleak_core.cafe import _layers, _of, _unmoved
from gleak_core.errors import GleakError
from gleak_core.observation import Observation

__all__ = ["groups", "items"]

_BY = "index alignment of sums"
_ALIKE = 1e-6  # between rows of an orthonormal basis
_FEW = 7  # items of a group, as unlike as can be, whose threes are tried
_LEFT = 0.05  # of a gradient that should have rank one, magnified by how alike the items are
_TRACE = 1e3  # roundings of the largest slope, below which a slope is none
_LARGEST = 4096  # items whose null space is found by an SVD


def groups(indices: Tensor, count: int | None = None) -> list[list[int]]:
    """Return the items whose differences rounds with these indices (R, B) determine, by group.

    Two items are in one group if every vector that A maps to zero has the same entry for both. If
    A has full rank there is no such vector but zero, and all items are in one.
    """
    return _known(cafe.shares(indices, count))[0]


def _known(matrix: Tensor) -> tuple[list[list[int]], Tensor]:
    """Return the groups, and A's pseudo-inverse (N, R)."""
    rounds, many = matrix.shape
    if many > _LARGEST:
        raise ValueError(f"{many} items take an SVD that is too large: up to {_LARGEST} are done")
    u, values, rows = torch.linalg.svd(matrix, full_matrices=True)
    rank = int((values > values[0] * max(rounds, many) * torch.finfo(values.dtype).eps).sum())
    null = rows[rank:].T  # (N, N - rank)
    found: list[list[int]] = []
    for item, row in enumerate(null):
        for group in found:
            if (null[group[0]] - row).norm() < _ALIKE:
                group.append(item)
                break
        else:
            found.append([item])
    return found, (rows[:rank].T / values[:rank]) @ u[:, :rank].T


def items(seen: Observation) -> cafe.Items:
    """Return what each item gave, from rounds of one model that tell the items of a group apart.

    Every message's gradient of the first fully connected layers is read, so all of them must lie in
    memory; `cafe.items` needs less where each item itself is determined. The label of an item is
    the one with which the rest of the network turns its inputs into its slopes.
    """
    indices, _ = seen.need("batch_indices", "weights", by=_BY)
    if seen.trials != 1:
        raise ValueError(f"{_BY} takes one protocol at a time: pass seen.select([0])")
    _unmoved(seen, seen)
    members = indices.cpu().long()
    apart, inverse = _known(cafe.shares(members))
    if min(map(len, apart)) < 3:
        raise GleakError(
            f"{len(members)} rounds do not determine the differences between three items of each "
            "group: wait for more rounds, with every item in some, in batches that are drawn anew "
            "(a partition that never changes tells nothing of the items in a batch)"
        )
    slopes: dict[str, Tensor] = {}
    inputs: dict[str, Tensor] = {}
    left = 0.0
    for name in _layers(seen.architecture)[0]:
        sent = [_of(each, f"{name}.weight").cpu() for each in seen.rounds]  # R × (O, P)
        bias = torch.stack([_of(each, f"{name}.bias").cpu().double() for each in seen.rounds])
        if not (bias.isfinite().all() and all(one.isfinite().all() for one in sent)):
            raise ValueError(
                "the messages hold non-finite numbers: drop these rounds and their indices"
            )
        slopes[name] = torch.zeros(len(inverse), bias.shape[1], dtype=bias.dtype)
        inputs[name] = torch.zeros(len(inverse), sent[0].shape[1], dtype=bias.dtype)
        for group in apart:
            slopes[name][group], inputs[name][group] = _opened(inverse[group], sent, bias, name)
        left = max(left, cafe.residual(members, bias, slopes[name]))
    labels, off = _labels(seen, slopes, inputs)
    return cafe.Items(torch.cat([*inputs.values()], 1), labels, slopes, max(left, off))


def _labels(
    seen: Observation, slopes: dict[str, Tensor], inputs: dict[str, Tensor]
) -> tuple[Tensor, float]:
    """Return the labels (N,) that give the slopes of the first layers, their inputs being known.

    Tell as well how far off, relative, the slopes are that they give.
    """
    weights = {n: w.cpu() for n, w in seen.weights(by=_BY).items()}
    like = next(iter(weights.values()))
    (shape,) = seen.need("image_shape", by=_BY)
    found: dict[str, Tensor] = {}

    def enter(name: str) -> Callable[..., Tensor]:
        return lambda *_: inputs[name].to(like)

    def leave(name: str) -> Callable[..., Tensor]:
        return lambda _, __, answer: found.setdefault(name, answer.detach().requires_grad_())

    layers = [(name, seen.architecture.get_submodule(name)) for name in slopes]
    hooks = [layer.register_forward_pre_hook(enter(name)) for name, layer in layers]
    hooks += [layer.register_forward_hook(leave(name)) for name, layer in layers]
    try:
        blank = torch.zeros(len(next(iter(inputs.values()))), *shape).to(like)
        logits = functional_call(seen.architecture, weights, (blank,))
    finally:
        for hook in hooks:
            hook.remove()
    off = []
    for label in range(logits.shape[1]):
        loss = F.cross_entropy(logits, torch.full((len(logits),), label), reduction="sum")
        wanted = torch.autograd.grad(loss, [*found.values()], retain_graph=True)
        off.append(sum((w - slopes[n]).square().sum(1) for n, w in zip(found, wanted, strict=True)))
    least = torch.stack(off, 1).min(1)
    size = sum(s.square().sum() for s in slopes.values())
    return least.indices, float((least.values.sum() / size).sqrt())


def _opened(
    inverse: Tensor, sent: list[Tensor], biases: Tensor, name: str
) -> tuple[Tensor, Tensor]:
    """Return slopes (n, O) and inputs (n, P) of a group's items.

    Its rows of A's pseudo-inverse (n, R) give each item's gradient but for a summand in common;
    the messages are gradients of weights R × (O, P) and of biases (R, O).
    """
    bias = inverse @ biases
    few = _unlike(bias)
    weight = sum(
        column[:, None, None] * one.double()
        for column, one in zip(inverse[few].T, sent, strict=True)
    )  # (f, O, P)
    assert isinstance(weight, Tensor)
    tried = [
        (*_third(weight[list(three)]), [few[k] for k in three], weight[three[0]])
        for three in combinations(range(len(few)), 3)
    ]
    ways, left, chosen, first = min(tried, key=lambda one: one[1])
    if not left < _LEFT:
        raise GleakError(
            f"no three items that were tried have slopes and inputs in {name} that differ enough: "
            "wait for more rounds, or take a group with more classes and a layer that is wider"
        )
    # δ₁ - δ₂ and δ₁ - δ₃ are known, and each δ but for its length.
    one, two, three = ways[0]
    zero = torch.zeros_like(one)
    pairs = [(one, one), (-two, zero), (zero, -three)]
    system = torch.stack([torch.cat(pair) for pair in pairs], 1)  # (2 O, 3)
    right = torch.cat([bias[chosen[0]] - bias[chosen[k]] for k in (1, 2)])
    length = torch.linalg.lstsq(system, right[:, None], driver="gelsd").solution[0]
    slopes = bias + (length * one - bias[chosen[0]])
    size = slopes.square().sum(1, keepdim=True)
    if bool((size <= size.max() * (_TRACE * torch.finfo(sent[0].dtype).eps) ** 2).any()):
        raise GleakError(
            f"some items leave no trace in {name}: their slopes are zero there, and their inputs "
            "cannot be known"
        )
    # zₖ = (what is known of its gradient, and what all lack)ᵀ δₖ / ‖δₖ‖²
    inputs = slopes @ (ways[1] - first)
    for column, one in zip(inverse.T, sent, strict=True):
        inputs += column[:, None] * (slopes @ one.double())
    return slopes, inputs / size


def _unlike(bias: Tensor) -> list[int]:
    """Return a few items whose slopes (n, O), but for a constant, lie farthest apart."""
    apart = torch.cdist(bias, bias)
    few = [int(apart.sum(1).argmax())]
    while len(few) < min(_FEW, len(bias)):
        few.append(int(apart[few].amin(0).argmax()))
    return few


def _third(three: Tensor) -> tuple[tuple[Tensor, Tensor], float]:
    """Return the slopes' directions (3, O) and the first gradient (O, P), out of differences.

    `three` (3, O, P) has rank one each, but for a summand in common. Beside them stands what is
    left of their second singular values over the first, magnified by how nearly the slopes, or
    the inputs, depend on each other: then another summand would do as well.
    """
    nothing = (three[0], three[0]), torch.inf
    u, s, v = _leading(three[0] - three[1])
    other_u, other, other_v = _leading(three[0] - three[2])
    if len(three[0]) < 3 or min(float(s[-1]), float(other[-1])) <= 0:
        return nothing
    column = u @ torch.linalg.svd(u.T @ other_u)[0][:, 0]
    row = v @ torch.linalg.svd(v.T @ other_v)[0][:, 0]
    # D - α column rowᵀ has rank one for one α alone, the inverse of rowᵀ D⁺ column.
    inverse = (row @ v / s) @ (u.T @ column)
    if not abs(float(inverse)) > 0:
        return nothing
    first = torch.outer(column, row) / inverse
    whole = [_leading(one) for one in three + (first - three[0])]
    slopes, inputs = (torch.stack([one[k][:, 0] for one in whole]) for k in (0, 2))
    left = max(float(one[1][1] / one[1][0]) for one in whole)
    apart = min(float(torch.linalg.svdvals(part)[-1]) for part in (slopes, inputs))
    left = left / apart if apart > 0 else torch.nan
    return (slopes, first), left if left == left else torch.inf


def _leading(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two leading singular vectors and values of a matrix of hardly more rank."""
    stream = torch.Generator().manual_seed(0)
    probe = torch.randn(matrix.shape[1], 4, dtype=matrix.dtype, generator=stream)
    basis = torch.linalg.qr(matrix @ (matrix.T @ (matrix @ probe)))[0]
    u, s, vh = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ u[:, :2], s[:2], vh[:2].T
