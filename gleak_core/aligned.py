"""CAFE, in two ways: all pictures of a pool together as published, or each alone by linear algebra.

CAFE matches fake batches to real ones for hundreds of epochs, knowing which items are in each
(`together`). With the inputs Z of the first fully connected layer known item by item
(`cafe.items`), no item needs the others any more: its picture is the one that the network's first
part maps to Z (`recover`).
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gleak_core import cafe, solvers, starts
from gleak_core.distances import DISTANCES
from gleak_core.engine import SOLVED as SOLVED_MATCH
from gleak_core.engine import _status
from gleak_core.errors import choose
from gleak_core.objectives import GradientMatch, Total
from gleak_core.observation import History, Observation, Reconstruction, Weights
from gleak_core.penalties import Above, AwayFrom, Penalty
from gleak_core.pool import Objective, Progress

__all__ = ["Behind", "follow", "recover", "together"]

SOLVED = 1e-8  # of ‖Z‖²: some 37 dB
STOP = 1e-12  # and where no step is worth its cost
_BY = "CAFE by linear algebra"
_TOGETHER = "CAFE's Algorithm 1"


class _Enough(Exception):
    """All that is asked for has been seen: the rest of the network need not run."""


@dataclass(frozen=True, eq=False)
class Behind:
    """‖f(x) − Z‖² of pictures x: f is the network up to its first fully connected layer."""

    architecture: nn.Module
    weights: Weights
    layers: tuple[str, ...]  # whose inputs f is, one for each party
    goal: Tensor  # (T, P)
    shape: tuple[int, int, int]

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distances (T,) and their slopes (T, n)."""
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            value = (self.inputs(z) - self.goal).square().sum(1)
            (slope,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), slope

    def compact(self, keep: Tensor) -> "Behind":
        """Return the same for some of the pictures."""
        return replace(self, goal=self.goal[keep])

    def inputs(self, z: Tensor) -> Tensor:
        """Return f(x) (T, P), all parties' side by side."""
        caught: list[Tensor] = []

        def catch(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            caught.append(args[0].flatten(1))
            if len(caught) == len(self.layers):
                raise _Enough

        hooks = [
            self.architecture.get_submodule(name).register_forward_pre_hook(catch)
            for name in self.layers
        ]
        try:
            functional_call(self.architecture, self.weights, (z.view(-1, *self.shape),))
        except _Enough:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat(caught, 1)


def recover(
    seen: Observation | cafe.Ledger,
    *,
    known: cafe.Items | None = None,
    only: Sequence[int] | None = None,
    start: str | Tensor = "grey",
    solver: str = "lbfgs",
    steps: int = 300,
    rate: float = 1.0,
    history: int = 20,
    seed: int = 0,
    every: int = 0,
    progress: Progress | None = None,
) -> Reconstruction:
    """Rebuild the pictures of a pool, each a trial, from rounds of one model with known batches.

    Args:
        seen: Rounds of `clients.horizontal` with one worker, or of `clients.vertical`; or the
            ledger of more rounds than memory holds.
        known: What was found of each item (default: what `cafe.items` finds).
        only: The items to rebuild (default: all); labels and inputs are found for all.
        start: A name of `starts`, or images (T, 1, C, H, W).
        solver: A method of `solvers`.
        steps: Its evaluations.
        rate: Its rate.
        history: The pairs that L-BFGS keeps.
        seed: Draws the start.
        every: Keep a frame every so many evaluations; 0: the first and the last.
        progress: Called with the steps done, the steps in all, and the best loss.
    """
    began = time.perf_counter()
    if known is None:
        known = seen.items() if isinstance(seen, cafe.Ledger) else cafe.items(seen)
    seen = seen.seen if isinstance(seen, cafe.Ledger) else seen
    (shape,) = seen.need("image_shape", by=_BY)
    chosen = list(range(len(known.labels))) if only is None else list(only)
    weights = seen.weights(by=_BY)
    like = next(iter(seen.rounds[0].update.values()))
    goal = known.inputs[chosen].to(like)
    behind = Behind(seen.architecture, weights, cafe.first_layers(seen), goal, tuple(shape))
    images = (
        start
        if isinstance(start, Tensor)
        else starts.make(start, (len(chosen), 1, *shape), seed=seed)
    )
    solution = solvers.minimise(
        behind,
        images.to(like).flatten(1),
        solvers.method(solver, steps=steps, rate=rate, history=history),
        steps=steps,
        every=every,
        stop=STOP * goal.square().sum(1),
        progress=progress,
    )
    size = goal.square().sum(1).cpu().double()
    return Reconstruction(
        images=solution.z.view(-1, 1, *shape),
        labels=known.labels[chosen][:, None],
        loss=solution.loss,
        status=_status(solution, solution.loss.cpu().double() <= SOLVED * size),
        history=History(
            solution.steps,
            solution.curve,
            solution.frame_steps,
            solution.frames.view(*solution.frames.shape[:2], 1, *shape),
        ),
        evaluations=solution.evaluations,
        seconds=time.perf_counter() - began,
        attack="CAFE, by linear algebra",
    )


def together(
    seen: Observation,
    labels: Tensor,
    *,
    epochs: int = 100,
    inner: int = 1,
    start: str | Tensor = "uniform",
    direction: str = "adam",
    rate: float = 0.05,
    distance: str = "squared_l2",
    smooth: float = 0.0,
    level: Tensor | None = None,
    internal: float = 0.0,
    inputs: Tensor | None = None,
    seed: int = 0,
    every: int = 0,
    progress: Progress | None = None,
) -> Reconstruction:
    """Match the pictures of a pool together, batch by batch (CAFE, Algorithm 1 and Eq. 8).

    Where the model moves between the rounds, each is matched at its own weights. The last pictures
    are returned, not the best ones: no loss tells which were these, item by item. The history has
    the loss of each item's round at its start, and before the last step of every epoch.

    Args:
        seen: Rounds with known batches.
        labels: Of every item (N,).
        epochs: How often all rounds are gone through.
        inner: Steps on a round before the next one.
        start: A name of `starts`, or images (N, 1, C, H, W).
        direction: Of `descent.DIRECTIONS`, each picture by itself. The paper says "normalised
            gradient descent", and no more.
        rate: About how far a step moves a pixel.
        distance: Between gradients, a name of `distances`.
        smooth: β, of the total variation of pictures that have more than `level`.
        level: ξ, of every item (N,) (default: 0, total variation counts always).
        internal: γ, of the distance of the inputs of the first fully connected layer.
        inputs: These inputs (N, P), as `cafe.items` finds them.
        seed: Draws the start.
        every: Keep a frame every so many epochs; 0: the first and the last.
        progress: Called with the rounds done, the rounds in all, and the loss.
    """
    began = time.perf_counter()
    if min(epochs, inner) < 1 or every < 0 or not rate > 0:
        raise ValueError("epochs, inner and rate must be positive, and every not negative")
    indices, shape = _members(seen, labels)
    many = len(labels)
    if internal and inputs is None:
        raise ValueError("the internal representation needs inputs=: take those of cafe.items")
    xi = torch.zeros(many) if level is None else level
    parts = [
        _round(seen.message(r), members, labels, distance, (smooth, xi), (internal, inputs))
        for r, members in enumerate(indices)
    ]
    like = next(iter(seen.rounds[0].update.values()))
    first = start if isinstance(start, Tensor) else starts.make(start, (many, 1, *shape), seed=seed)
    fakes = _Fakes(first.to(like).flatten(1), solvers.Descent(rate, epochs, direction))
    loss = torch.full((many,), torch.nan, dtype=like.dtype)
    solved = torch.zeros(many, dtype=torch.bool)
    curve, frames = [loss.clone()], [fakes.x.cpu().clone()]
    for epoch in range(epochs):
        for r, (members, (objective, _, _)) in enumerate(zip(indices, parts, strict=True)):
            before, value = fakes.match(members, objective, inner)
            new = members[curve[0][members].isnan()]
            curve[0][new] = before
            loss[members] = value
            if progress is not None:
                progress(epoch * len(parts) + r + 1, epochs * len(parts), value)
        curve.append(loss.clone())
        if epoch == epochs - 1 or (every and (epoch + 1) % every == 0):
            frames.append(fakes.x.cpu().clone())
    x = fakes.x
    for members, (_, match, enough) in zip(indices, parts, strict=True):
        apart, _ = match.value_and_grad(x[members].flatten()[None])
        solved[members] = bool(apart[0] < enough)
    marks = [*(range(every, epochs, every) if every else ()), epochs]
    finite = x.isfinite().all(1).cpu()
    return Reconstruction(
        images=x.view(many, 1, *shape),
        labels=labels[:, None],
        loss=loss,
        status=tuple(
            "diverged" if not whole else "solved" if good else "failed"
            for whole, good in zip(finite.tolist(), solved.tolist(), strict=True)
        ),
        history=History(
            steps=torch.arange(epochs + 1),
            loss=torch.stack(curve),
            frame_steps=torch.tensor([0, *marks]),
            frames=torch.stack(frames).view(len(frames), many, 1, *shape),
        ),
        evaluations=torch.bincount(indices.flatten(), minlength=many) * inner * epochs,
        seconds=time.perf_counter() - began,
        attack="CAFE",
    )


def follow(
    stream: Iterable[Observation],
    labels: Tensor,
    *,
    inner: int = 10,
    start: str | Tensor = "uniform",
    direction: str = "adam",
    rate: float = 0.05,
    distance: str = "squared_l2",
    seed: int = 0,
) -> Iterator[Tensor]:
    """Match rounds as they come and never again; yield the pictures (N, C, H, W) after each part.

    CAFE while the model learns: each round is matched at its own weights, and need not be kept. The
    arguments are those of `together`; they are looked at when the first pictures are asked for.
    """
    if inner < 1 or not rate > 0:
        raise ValueError("inner and rate must be positive")
    fakes: _Fakes | None = None
    for seen in stream:
        indices, shape = _members(seen, labels)
        like = next(iter(seen.rounds[0].update.values()))
        if fakes is None:
            given = (
                start
                if isinstance(start, Tensor)
                else starts.make(start, (len(labels), 1, *shape), seed=seed)
            )
            fakes = _Fakes(given.to(like).flatten(1), solvers.Descent(rate, 1, direction))
        none = (0.0, torch.zeros(len(labels))), (0.0, None)
        for r, members in enumerate(indices):
            objective, _, _ = _round(seen.message(r), members, labels, distance, *none)
            fakes.match(members, objective, inner)
        yield fakes.x.view(-1, *shape).clone()
    if fakes is None:
        raise ValueError("there is no round to match: the stream is empty")


def _members(seen: Observation, labels: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Return who is in each round (R, B), and the shape of a picture."""
    indices, shape = seen.need("batch_indices", "image_shape", by=_TOGETHER)
    indices = indices.cpu().long()
    if int(indices.max()) >= len(labels):
        raise ValueError(f"the rounds are of items up to {int(indices.max())}: give all a label")
    if any(len(members.unique()) < len(members) for members in indices):
        raise ValueError("an item is twice in a batch: pass rounds of different items")
    return indices, tuple(shape)


class _Fakes:
    """The fake pictures of a pool (N, n), each with moments of its own."""

    def __init__(self, x: Tensor, method: solvers.Descent) -> None:
        self.x, self.method = x.clone(), method
        self._moments = {name: torch.zeros_like(x) for name in ("mean", "spread")}
        self._count = x.new_zeros(len(x))

    def match(self, members: Tensor, objective: Objective, inner: int) -> tuple[float, float]:
        """Take some steps on a round; return the values before the first and the last of them."""
        values = []
        for _ in range(inner):
            value, slope = objective.value_and_grad(self.x[members].flatten()[None])
            self.step(members, slope.view(len(members), -1))
            values.append(float(value[0]))
        return values[0], values[-1]

    def step(self, members: Tensor, g: Tensor) -> None:
        """Move some of them against their slopes (B, n)."""
        at = members.to(g.device)
        self._count[at] += 1
        state = {name: moment[at] for name, moment in self._moments.items()}
        # Its own `advance` evaluates after the step, which is the next round's batch here.
        way, moments = self.method._direction(state, g, self._count[at])
        for name, moment in moments.items():
            self._moments[name][at] = moment
        self.x[at] -= self.method.rate * way


def _round(
    seen: Observation,
    members: Tensor,
    labels: Tensor,
    distance: str,
    smooth: tuple[float, Tensor],
    internal: tuple[float, Tensor | None],
) -> tuple[Objective, GradientMatch, float]:
    """Return what is minimised in one round, and the match and value by which it is solved."""
    like = next(iter(seen.rounds[0].update.values()))
    known = labels[members][None].to(like.device)
    match = GradientMatch.of(
        seen,
        labels=known,
        by=_TOGETHER,
        distance=DISTANCES[choose("distance", distance, DISTANCES)],
    )
    parts: list[tuple[float, Objective]] = [(1.0, match)]
    if smooth[0]:
        parts.append((smooth[0], Penalty(match, Above(smooth[1][members][None].to(like)))))
    if internal[0] and internal[1] is not None:
        goal = internal[1][members][None].to(like)
        parts.append((internal[0], Penalty(match, AwayFrom(goal), "internal")))
    return Total(tuple(parts)), match, SOLVED_MATCH * float(match.scale[0])
