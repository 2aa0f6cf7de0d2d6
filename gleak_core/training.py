"""Federated training, to the end: what a defence costs, and how a network fares in its life.

Each round every client computes the gradient of a few pictures of its own and defends it, as in
`clients.fedsgd`; the server averages the messages and takes a step.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gleak_core.data import Batch
from gleak_core.defences import Defence
from gleak_core.errors import GleakError

__all__ = ["Stage", "accuracy", "split", "train"]

_AT_ONCE = 500  # pictures that are classified together


@dataclass(frozen=True)
class Stage:
    """A network at one moment of its training: its weights, and how well it does."""

    epoch: int
    loss: float  # the mean over the epoch's rounds; NaN before the first
    accuracy: float  # per cent of the test pictures
    weights: dict[str, Tensor]


def train(
    model: nn.Module,
    pictures: Batch,
    test: Batch,
    *,
    epochs: int = 30,
    clients: int = 4,
    batch_size: int = 16,
    rate: float = 0.05,
    momentum: float = 0.9,
    decay: float = 5e-4,
    defence: Callable[[], Defence] | None = None,
    keep: Sequence[int] = (),
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Stage]:
    """Train a copy of the weights and return the stages in `keep`, and the last one.

    SGD with momentum; the rate falls to zero along a cosine. The pictures are dealt out anew in
    every epoch; what is left over sits the epoch out. `defence` makes the defence, which treats
    the clients' messages as its trials: error feedback remembers each client's own debt.
    """
    for name, number in {"epochs": epochs, "clients": clients, "batch_size": batch_size}.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    if (together := clients * batch_size) > len(pictures):
        raise ValueError(
            f"{clients} clients with {batch_size} pictures each need {together} pictures, got "
            f"{len(pictures)}: take fewer clients, a smaller batch_size, or more pictures"
        )
    if unknown := [epoch for epoch in keep if not 0 <= epoch <= epochs]:
        raise ValueError(f"keep must name epochs from 0 to {epochs}, got {unknown}")
    like = next(model.parameters())
    guard = defence() if defence else None
    deal, noise = (torch.Generator().manual_seed(seed + k) for k in (0, 2**40))
    images, labels = pictures.images.to(like), pictures.labels.to(like.device)
    weights = {n: p.detach().clone() for n, p in model.state_dict().items()}
    trainable = [n for n, _ in model.named_parameters()]
    speed = {n: torch.zeros_like(weights[n]) for n in trainable}
    rounds, stages, done = len(pictures) // together, [], 0

    def stage(epoch: int, loss: float) -> Stage:
        held = {n: w.clone() for n, w in weights.items()}
        return Stage(epoch, loss, accuracy(model, test, held), held)

    if 0 in keep:
        stages.append(stage(0, math.nan))
    for epoch in range(1, epochs + 1):
        order = torch.randperm(len(pictures), generator=deal)[: rounds * together]
        total = 0.0
        for pick in order.view(rounds, clients, batch_size):
            found = [_gradient(model, weights, trainable, images[own], labels[own]) for own in pick]
            total += sum(loss for loss, _ in found) / clients
            update = {n: torch.stack([g[n] for _, g in found]) for n in trainable}  # (M, …)
            sent = guard(update, noise) if guard else update
            now = rate * (1 + math.cos(math.pi * done / (epochs * rounds))) / 2
            for n in trainable:
                speed[n] = momentum * speed[n] + sent[n].mean(0) + decay * weights[n]
                weights[n] = weights[n] - now * speed[n]
            done += 1
        if not (math.isfinite(total) and all(bool(weights[n].isfinite().all()) for n in trainable)):
            raise GleakError(
                f"the training has diverged in epoch {epoch}: use a rate= below {rate:g}"
            )
        if epoch in keep or epoch == epochs:
            stages.append(stage(epoch, total / rounds))
        if progress:
            progress(epoch, epochs)
    return stages


def _gradient(
    model: nn.Module, weights: dict[str, Tensor], names: list[str], images: Tensor, labels: Tensor
) -> tuple[float, dict[str, Tensor]]:
    """Return a client's loss and gradient."""
    own = {n: weights[n].detach().requires_grad_() for n in names}
    answer = torch.func.functional_call(model, {**weights, **own}, (images,))
    loss = F.cross_entropy(answer, labels)
    slopes = torch.autograd.grad(loss, [*own.values()])
    return float(loss.detach()), dict(zip(names, slopes, strict=True))


def accuracy(model: nn.Module, test: Batch, weights: dict[str, Tensor] | None = None) -> float:
    """Return the share of pictures that a network classifies rightly, in per cent."""
    weights = dict(model.state_dict()) if weights is None else weights
    like = next(w for w in weights.values() if w.is_floating_point())
    right = 0
    with torch.no_grad():
        for images, labels in zip(
            test.images.split(_AT_ONCE), test.labels.split(_AT_ONCE), strict=True
        ):
            answer = torch.func.functional_call(model, weights, (images.to(like),))
            right += int((answer.argmax(-1).cpu() == labels.cpu()).sum())
    return 100 * right / len(test)


def split(pictures: Batch, test: int, *, seed: int = 0) -> tuple[Batch, Batch]:
    """Return pictures to train on, and `test` others, drawn by a seed."""
    if not 0 < test < len(pictures):
        raise ValueError(
            f"test must leave pictures to train on: between 1 and {len(pictures) - 1}, got {test}"
        )
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed)).tolist()
    return pictures[order[test:]], pictures[order[:test]]
