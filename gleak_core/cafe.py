"""Index alignment: what each item of a data set gave, out of means over batches (CAFE).

As long as the model stands still, the gradient of a batch is the mean of its items' own gradients.
A server that knows which items are in which batch has, after R rounds, R linear equations in N
unknowns, A g = ḡ: A (R, N) says who was there. If A has rank N, every item's own gradient follows.

Only the bias gradients are needed. With the slopes δ of the first fully connected layer known, the
inputs Z of a batch follow from the gradient of that layer's weights, ∂W = δᵀZ/B, as long as no
slope is a mix of the others'. CAFE as published later (Jin et al. 2021) solves these two systems by
gradient descent.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gleak_core.errors import GleakError
from gleak_core.observation import Given, Observation, Round

__all__ = [
    "Items",
    "Ledger",
    "System",
    "apart",
    "first_layers",
    "inputs_of",
    "items",
    "residual",
    "shares",
    "solve",
    "system",
]

_BY = "index alignment"
_DENSE = 1024  # items up to which the equations are solved directly
_EXACT = 1e-6  # of a random vector that A maps and the solution must give back
_STEPS = 8  # of conjugate gradients, at most and for each item
_LARGEST = 4096  # items whose rank is found by an SVD
_NUMBERS = 2**26  # of all messages that are solved at a time


@dataclass(frozen=True)
class System:
    """What the rounds determine: `rank` of `items` unknowns, and how stably."""

    rounds: int
    items: int
    rank: int
    unseen: int  # items that are in no batch
    condition: float  # largest over smallest singular value; ∞ if the rank is short

    @property
    def solvable(self) -> bool:
        """Whether every item's own gradient follows."""
        return self.rank == self.items


@dataclass(frozen=True)
class Items:
    """What index alignment recovers of each item."""

    inputs: Tensor  # (N, P) of the first fully connected layer, all parties' side by side
    labels: Tensor  # (N,)
    slopes: dict[str, Tensor]  # layer -> (N, O), ∂ℓ/∂b of each item
    residual: float  # relative: what the equations leave unexplained, of the bias gradients


def shares(indices: Tensor, count: int | None = None) -> Tensor:
    """Return A (R, N): the share of each item in the mean of each round, from indices (R, B)."""
    return _shares(indices, count).to_dense()


def system(indices: Tensor, count: int | None = None) -> System:
    """Say what rounds with these indices (R, B) determine, before anything is solved."""
    sparse = _shares(indices, count)
    if sparse.shape[1] > _LARGEST:
        raise ValueError(
            f"the rank for {sparse.shape[1]} items takes an SVD that is too large: `solve` tells "
            f"whether they are determined, and `system` does up to {_LARGEST}"
        )
    matrix = sparse.to_dense()
    values = torch.linalg.svdvals(matrix)
    rounds, many = matrix.shape
    rank = int((values > values[0] * max(matrix.shape) * torch.finfo(values.dtype).eps).sum())
    return System(
        rounds=rounds,
        items=many,
        rank=rank,
        unseen=many - len(indices.unique()),
        condition=float(values[0] / values[many - 1]) if rank == many else float("inf"),
    )


def solve(indices: Tensor, means: Tensor, count: int | None = None) -> Tensor:
    """Return each item's own values (N, …), from the means (R, …) over rounds.

    More rounds than items are solved in the sense of least squares, which averages noise away.
    """
    if len(means) != len(indices):
        raise ValueError(f"{len(indices)} rounds of indices, but {len(means)} of means: one each")
    if not torch.isfinite(means).all():
        raise ValueError("the means hold non-finite numbers: drop these rounds and their indices")
    matrix = _shares(indices, count)
    rounds, many = matrix.shape
    unseen = many - len(indices.unique())
    if rounds < many or unseen:
        raise _short(rounds, many, unseen)
    right = means.detach().cpu().double().flatten(1)
    # An attacker can test whether his equations determine anything: with values he made up.
    probe = torch.randn(many, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    both = torch.cat([right, matrix @ probe], 1)
    if many <= _DENSE:
        found, settled = torch.linalg.lstsq(matrix.to_dense(), both, driver="gelsd").solution, True
    else:
        found, settled = _conjugate(matrix, both)
    off = (found[:, -1:] - probe).norm() / probe.norm()
    if not off < _EXACT:
        if not settled:
            raise GleakError(
                f"{rounds} rounds tell {many} items apart too poorly to be solved: wait for a "
                "few more rounds, a fifth of the items'"
            )
        raise _short(rounds, many, unseen)
    return found[:, :-1].unflatten(1, means.shape[1:] or (1,)).view(many, *means.shape[1:])


def residual(indices: Tensor, means: Tensor, found: Tensor) -> float:
    """Return the share of the means (R, …) that items' own values (N, …) do not explain.

    Rounding leaves some 1e-7. Noise leaves more, and so do indices of other rounds.
    """
    matrix, right = _shares(indices, len(found)), means.detach().cpu().double().flatten(1)
    rest = (matrix @ found.flatten(1) - right).norm()
    return float(rest / right.norm().clamp(min=torch.finfo(right.dtype).tiny))


def inputs_of(slopes: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return a batch's inputs Z (B, P), from its slopes (B, O) and the layer's gradient (O, P).

    ∂W = δᵀZ/B, with the mean over the batch in it. Beside them stands by how much noise in the
    gradient is magnified in each item's inputs (B,): slopes that are nearly mixes of others' are
    hard to tell apart. The slopes of an untrained network nearly are where there are more items
    than classes.
    """
    found = _unmixed(slopes, gradient)
    if found is None:
        raise GleakError(
            f"the {len(slopes)} slopes of a layer with {slopes.shape[1]} outputs do not tell the "
            "inputs of the batch apart: attack smaller batches, or a wider layer"
        )
    return found


def _unmixed(slopes: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor] | None:
    batch, outputs = slopes.shape
    u, values, vh = torch.linalg.svd(slopes.double().T / batch, full_matrices=False)
    # The slopes are no more exact than the messages they were solved from.
    eps = torch.finfo(gradient.dtype).eps
    if batch > outputs or not values[-1] > values[0] * max(batch, outputs) * eps:
        return None
    inverse = (vh.T / values) @ u.T  # (B, O)
    return inverse @ gradient.double(), inverse.norm(dim=1)


class Ledger:
    """What a server writes down, round by round, and what follows from it.

    At first the bias gradients, a few numbers of each round; once they determine every item's
    slopes (`solve`), the inputs of each further batch as it comes, of which those of an item that
    comes again are averaged by how sure they are. No round need be kept.
    """

    def __init__(self) -> None:
        self.slopes: dict[str, Tensor] = {}
        self.residual = 0.0
        self._first: Observation | None = None
        self._indices: list[Tensor] = []
        self._biases: dict[str, list[Tensor]] = {}
        self._inputs: dict[str, Tensor] = {}
        self._trust: dict[str, Tensor] = {}

    @property
    def seen(self) -> Observation:
        """The first observation: architecture, weights and what is granted."""
        if self._first is None:
            raise GleakError("nothing was written down yet: add an observation first")
        return self._first

    @property
    def indices(self) -> Tensor:
        """Who was in which round (R, B), of the rounds that the slopes are solved from."""
        _ = self.seen
        return torch.cat(self._indices)

    @property
    def missing(self) -> int:
        """How many items' inputs are not known yet."""
        if not self._trust:
            return int(self.indices.max()) + 1
        return int(torch.stack(list(self._trust.values())).eq(0).any(0).sum())

    def add(self, seen: Observation) -> None:
        """Write down rounds of the same model."""
        indices, _ = seen.need("batch_indices", "weights", by=_BY)
        if seen.trials != 1:
            raise ValueError(f"{_BY} takes one protocol at a time: pass seen.select([0])")
        _unmoved(self._first or seen, seen)
        first, last = _layers(seen.architecture)
        members = indices.cpu().long()
        if self.slopes:
            for some, each in zip(members, seen.rounds, strict=True):
                self._open(some, each, first)
            return
        names = dict.fromkeys([*first, last])
        new = {n: [_of(each, f"{n}.bias").cpu() for each in seen.rounds] for n in names}
        self._indices.append(members)
        for name, biases in new.items():
            self._biases.setdefault(name, []).extend(biases)
        self._first = self._first or replace(seen, rounds=seen.rounds[:1])

    def solve(self) -> None:
        """Find every item's slopes; refuse while the rounds do not determine them."""
        _ = self.seen
        means = {name: torch.stack(biases) for name, biases in self._biases.items()}
        found = {name: solve(self.indices, mean) for name, mean in means.items()}
        self.residual = max([0.0, *(residual(self.indices, m, found[n]) for n, m in means.items())])
        self.slopes = found

    def items(self) -> Items:
        """Return what is known of each item."""
        first, last = _layers(self.seen.architecture)
        if not self.slopes or self.missing:
            raise GleakError(
                f"the inputs of {self.missing} items are not known yet: "
                + (
                    "add rounds with them, in which no two items are alike"
                    if self.slopes
                    else "solve, then add further rounds"
                )
            )
        # p − y is negative at the label alone.
        labels = self.slopes[last].argmin(1)
        inputs = [self._inputs[n] / self._trust[n][:, None] for n in first]
        return Items(torch.cat(inputs, 1), labels, self.slopes, self.residual)

    def _open(self, members: Tensor, each: Round, first: list[str]) -> None:
        """Read the inputs of a batch off its weight gradients, if its slopes tell them apart."""
        many = len(next(iter(self.slopes.values())))
        if many <= int(members.max()):
            raise GleakError(
                f"item {int(members.max())} was in no round that the slopes were solved from: "
                "start a new ledger with its rounds"
            )
        new = {}
        for name in first:
            gradient = _of(each, f"{name}.weight").cpu()
            new[name] = _unmixed(self.slopes[name][members], gradient)
        for name, found in new.items():
            if found is None:
                continue
            inputs, noise = found
            if name not in self._inputs:
                shape = (many, inputs.shape[1])
                self._inputs[name] = torch.zeros(shape, dtype=torch.float64)
            self._inputs[name].index_add_(0, members, noise[:, None] ** -2 * inputs)
        for name, found in new.items():
            trust = self._trust.setdefault(name, torch.zeros(many, dtype=torch.float64))
            if found is not None:
                trust.index_add_(0, members, found[1] ** -2)


def items(seen: Observation) -> Items:
    """Return what each item gave, from rounds of one model that all lie in memory."""
    ledger = Ledger()
    ledger.add(seen)
    ledger.solve()
    ledger.add(seen)
    return ledger.items()


def apart(seen: Observation) -> Observation:
    """Return what every item would have sent alone: one message with a trial for each item.

    All parameters' gradients are solved, not the biases' alone. Then batches are no more, and any
    attack on a single picture has as many of them as there are items.
    """
    indices, _ = seen.need("batch_indices", "weights", by=_BY)
    if seen.trials != 1:
        raise ValueError(f"{_BY} takes one protocol at a time: pass seen.select([0])")
    _unmoved(seen, seen)
    members = indices.cpu().long()
    shapes = {name: update.shape[1:] for name, update in seen.rounds[0].update.items()}
    means = torch.stack([torch.cat([_of(e, n).flatten() for n in shapes]) for e in seen.rounds])
    some = max(1, _NUMBERS // len(members))
    found = torch.cat([solve(members, part) for part in means.split(some, 1)], 1)  # (N, n)
    each = found.split([shape.numel() for shape in shapes.values()], 1)
    update = {n: one.view(-1, *shapes[n]) for n, one in zip(shapes, each, strict=True)}
    weights = {name: w.double() for name, w in seen.weights(by=_BY).items()}
    kept = {n: getattr(seen.given, n) for n in ("weights", "image_shape")}
    return replace(seen, rounds=(Round(update, weights),), given=Given(**kept, batch_size=1))


def first_layers(seen: Observation) -> tuple[str, ...]:
    """Return the layers whose inputs `items` recovers, one for each party."""
    return tuple(_layers(seen.architecture)[0])


def _shares(indices: Tensor, count: int | None) -> Tensor:
    """Return A, sparse."""
    if indices.dim() != 2 or indices.numel() == 0 or int(indices.min()) < 0:
        raise ValueError(f"indices must be (rounds, batch) from 0, got {tuple(indices.shape)}")
    known = int(indices.max()) + 1
    if count is not None and count < known:
        raise ValueError(f"indices reach {known - 1}, which {count} items do not have")
    rounds, batch = indices.shape
    rows = torch.arange(rounds).repeat_interleave(batch)
    each = torch.full((indices.numel(),), 1 / batch, dtype=torch.float64)
    place = torch.stack([rows, indices.cpu().long().flatten()])
    shape = (rounds, count or known)
    return torch.sparse_coo_tensor(place, each, shape, check_invariants=True).coalesce()


def _short(rounds: int, many: int, unseen: int) -> GleakError:
    why = f" ({unseen} of them in no batch)" if unseen else ""
    return GleakError(
        f"{rounds} rounds do not determine {many} items{why}: wait for more rounds, in batches "
        "that are drawn anew (a partition that never changes cannot be solved), and take each "
        "client's own message; of a mean of several, `aggregated.items` reads what there is"
    )


def _conjugate(matrix: Tensor, right: Tensor) -> tuple[Tensor, bool]:
    """Solve AᵀA x = Aᵀb by conjugate gradients, all columns at once (Hestenes & Stiefel 1952).

    Tell as well whether they settled.
    """
    back = matrix.T.coalesce()
    x = torch.zeros(matrix.shape[1], right.shape[1], dtype=right.dtype)
    rest = right.clone()  # b − A x
    slope = back @ rest
    way, size = slope.clone(), slope.square().sum(0)
    goal = size * (_EXACT * 1e-3) ** 2
    for _ in range(_STEPS * len(x)):
        if bool((size <= goal).all()):
            return x, True
        mapped = matrix @ way
        step = size / mapped.square().sum(0).clamp(min=torch.finfo(right.dtype).tiny)
        x += step * way
        rest -= step * mapped
        slope = back @ rest
        new = slope.square().sum(0)
        way = slope + new / size.clamp(min=torch.finfo(right.dtype).tiny) * way
        size = new
    return x, False


def _unmoved(first: Observation, seen: Observation) -> None:
    start = first.weights(by=_BY)
    for number, each in enumerate(seen.rounds):
        assert each.weights is not None
        moved = [
            n for n, w in each.weights.items() if w is not start[n] and not torch.equal(w, start[n])
        ]
        if moved:
            raise GleakError(
                f"the model moved before round {number} ({moved[0]}): its items' gradients are no "
                "longer the same unknowns; align the rounds of one model only"
            )


def _of(each: Round, name: str) -> Tensor:
    if name not in each.update:
        raise GleakError(
            f"{_BY} needs the gradient of {name}, which a round does not hold: give the layer a "
            "bias, or let the attacker see it"
        )
    return each.update[name][0]


def _layers(architecture: nn.Module) -> tuple[list[str], str]:
    """Return the first fully connected layer of every party, and the last of all."""
    linear = [name for name, m in architecture.named_modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise GleakError("this network has no fully connected layer, so nothing to align")
    workers = getattr(architecture, "workers", None)
    if not isinstance(workers, nn.ModuleList):
        return linear[:1], linear[-1]
    parties = [f"workers.{number}." for number, _ in workers.named_children()]
    first = [next((n for n in linear if n.startswith(party)), "") for party in parties]
    if not all(first):
        raise GleakError("a party's network has no fully connected layer, so nothing to align")
    return first, linear[-1]
