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
_TRIPLES = 24  # that are tried; the one that leaves the least counts
_LEFT = 0.05  # second over first singular value, beyond which nothing has rank one


def groups(indices: Tensor, count: int | None = None) -> list[list[int]]:
    """Return the items whose differences rounds with these indices (R, B) determine, by group.

    Two items are in one group if every vector that A maps to zero has the same entry for both. If
    A has full rank there is no such vector but zero, and all items are in one.
    """
    matrix = cafe.shares(indices, count)
    rounds, many = matrix.shape
    _, values, rows = torch.linalg.svd(matrix, full_matrices=True)
    least = values[0] * max(rounds, many) * torch.finfo(values.dtype).eps
    null = rows[int((values > least).sum()) :].T  # (N, N - rank)
    found: list[list[int]] = []
    for item, row in enumerate(null):
        for group in found:
            if (null[group[0]] - row).norm() < _ALIKE:
                group.append(item)
                break
        else:
            found.append([item])
    return found


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
    apart = groups(members)
    if min(map(len, apart)) < 3:
        raise GleakError(
            f"{len(members)} rounds determine no differences between three items or more of each "
            "group: wait for more rounds, in batches that are drawn anew (a partition that never "
            "changes tells nothing of the items in a batch)"
        )
    inverse = torch.linalg.pinv(cafe.shares(members), rtol=1e-10)  # (N, R)
    slopes: dict[str, Tensor] = {}
    inputs: dict[str, Tensor] = {}
    left = 0.0
    for name in _layers(seen.architecture)[0]:
        weight, bias = (
            torch.stack([_of(each, f"{name}.{part}").cpu().double() for each in seen.rounds])
            for part in ("weight", "bias")
        )
        slopes[name] = torch.zeros(len(inverse), weight.shape[1], dtype=weight.dtype)
        inputs[name] = torch.zeros(len(inverse), weight.shape[2], dtype=weight.dtype)
        for group in apart:
            some = torch.tensordot(inverse[group], weight, 1)  # (n, O, P), but for a constant
            slopes[name][group], inputs[name][group] = _opened(some, inverse[group] @ bias, name)
        left = max(left, cafe.residual(members, bias, slopes[name]))
    labels = _labels(seen, slopes, inputs)
    return cafe.Items(torch.cat([*inputs.values()], 1), labels, slopes, left)


def _labels(seen: Observation, slopes: dict[str, Tensor], inputs: dict[str, Tensor]) -> Tensor:
    """Return the labels (N,) that give the slopes of the first layers, their inputs being known."""
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
    return torch.stack(off, 1).argmin(1)


def _opened(weight: Tensor, bias: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return slopes (n, O) and inputs (n, P) of items of which a constant is unknown.

    `weight` (n, O, P) and `bias` (n, O) are their gradients, each but for the same summand.
    """
    triples = list(combinations(range(len(weight)), 3))
    order = torch.randperm(len(triples), generator=torch.Generator().manual_seed(0))
    found = [_third(weight[list(triples[t])]) for t in order[:_TRIPLES]]
    least = min(range(len(found)), key=lambda t: found[t][1])
    whole, left = found[least]
    if not left < _LEFT:
        raise GleakError(
            f"no three items have slopes and inputs that differ enough in {name}: wait for more "
            "rounds, or take a group with more classes in it"
        )
    chosen = list(triples[int(order[least])])
    # δ₁ - δ₂ and δ₁ - δ₃ are known, and each δ but for its length.
    ways = [_leading(one)[0][:, 0] for one in whole]
    zero = torch.zeros_like(ways[0])
    columns = [(ways[0], ways[0]), (-ways[1], zero), (zero, -ways[2])]
    system = torch.stack([torch.cat(pair) for pair in columns], 1)  # (2 O, 3)
    right = torch.cat([bias[chosen[0]] - bias[chosen[1]], bias[chosen[0]] - bias[chosen[2]]])
    length = torch.linalg.lstsq(system, right[:, None], driver="gelsd").solution[0]
    slopes = bias + (length * ways[0] - bias[chosen[0]])
    missing = whole[0] - weight[chosen[0]]
    inputs = torch.einsum("nop,no->np", weight, slopes) + slopes @ missing
    return slopes, inputs / slopes.square().sum(1, keepdim=True)


def _third(three: Tensor) -> tuple[Tensor, float]:
    """Return three gradients (3, O, P) of rank one, of which a summand in common is unknown.

    Tell as well what is left of their second singular value, over the first.
    """
    u, s, v = _leading(three[0] - three[1])
    other_u, _, other_v = _leading(three[0] - three[2])
    column = u @ torch.linalg.svd(u.T @ other_u)[0][:, 0]
    row = v @ torch.linalg.svd(v.T @ other_v)[0][:, 0]
    # D - α column rowᵀ has rank one for one α alone, the inverse of rowᵀ D⁺ column.
    share = 1 / ((row @ v / s) @ (u.T @ column))
    whole = three + (share * torch.outer(column, row) - three[0])
    left = max(float(values[1] / values[0]) for _, values, _ in map(_leading, whole))
    return whole, left if left == left else torch.inf


def _leading(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two leading singular vectors and values of a matrix of hardly more rank."""
    stream = torch.Generator().manual_seed(0)
    probe = torch.randn(matrix.shape[1], 4, dtype=matrix.dtype, generator=stream)
    basis = torch.linalg.qr(matrix @ (matrix.T @ (matrix @ probe)))[0]
    u, s, vh = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ u[:, :2], s[:2], vh[:2].T
