"""What the page computes, as functions of tensors: the client's gradient, and an attack's step.

Both are the library's own: the network, the loss, the distance, the penalties. The page only gets
their tapes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value

from gleak_core import models
from gleak_core.distances import DISTANCES
from gleak_core.lab.tape import Tape, lower, trace
from gleak_core.layers import Network, initialise
from gleak_core.objectives import soft_cross_entropy
from gleak_core.penalties import IMAGE_TERMS

__all__ = [
    "ATTACKS",
    "BATCHES",
    "CLASSES",
    "SIZE",
    "Attack",
    "gradient",
    "network",
    "open_network",
    "step",
]

CLASSES, SIZE, BATCHES = 10, 32, (1, 2, 3, 4)
_HIDDEN = 128


@dataclass(frozen=True)
class Attack:
    """What an attack minimises: a distance, penalties of the picture, and whether labels move."""

    title: str
    distance: str = "squared_l2"
    terms: tuple[str, ...] = ()  # of `penalties.IMAGE_TERMS`, each with a weight of its own
    joint: bool = False
    pull: bool = False  # CPL's loss term, with a weight of its own


ATTACKS: dict[str, Attack] = {
    "dlg": Attack("DLG: picture and label together", joint=True),
    "idlg": Attack("iDLG: the label is read, then the picture"),
    "cpl": Attack("CPL: the label is read, and pulls", pull=True),
    "cosine": Attack("the angle, and total variation", distance="cosine", terms=("tv_mean",)),
}
"""The attacks of the page. Fixed labels are unit vectors, joint ones the logits of them."""


def network() -> Network:
    """Return the network of the page: DLG's LeNet for pictures of 32×32 in ten classes."""
    return models.lenet(CLASSES, size=SIZE)


class _Open(nn.Module):
    """A network whose first layer is fully connected: it hands its pictures on as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.shape = (3, SIZE, SIZE)
        self.first = nn.Linear(3 * SIZE * SIZE, _HIDDEN)
        self.head = nn.Linear(_HIDDEN, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, K)."""
        return self.head(self.first(images.flatten(1)).relu())


def open_network(seed: int = 0) -> Any:
    """Return two fully connected layers, which a division reads (Phong et al. 2018)."""
    net = _Open()
    initialise(net, "pytorch", seed=seed)
    return net


def gradient(net: Network, batch: int) -> tuple[Tape, list[str]]:
    """Return the tape of what the client sends: from x, y and the weights to its gradient."""
    names = [name for name, _ in net.named_parameters()]

    def send(x: Tensor, y: Tensor, *weights: Tensor) -> list[Tensor]:
        update = grad(_loss(net, x, y))(dict(zip(names, weights, strict=True)))
        return [update[name] for name in names]

    x, y, weights = _examples(net, batch)
    tape = lower(trace(send, x, y, *weights), ["x", "y", *(f"w.{n}" for n in names)])
    return tape, names


def step(net: Network, attack: Attack, batch: int) -> Tape:
    """Return the tape of an attack's step: from x, y, g* and W to the loss and its slopes.

    The weights of the terms are inputs as well (`c.tv_mean`, `c.pull`), and so is a mask of the
    entries that count (`m.…`: 1 or 0), for an attacker who sees what was pruned away.
    """
    names = [name for name, _ in net.named_parameters()]
    far, knobs = DISTANCES[attack.distance], [*attack.terms, *(["pull"] if attack.pull else [])]

    def objective(x: Tensor, y: Tensor, rest: Sequence[Tensor]) -> Tensor:
        seen = dict(zip(names, rest, strict=False))
        weights = dict(zip(names, rest[len(names) :], strict=False))
        counts = dict(zip(names, rest[2 * len(names) :], strict=False))
        given = rest[3 * len(names) :]
        soft = y.softmax(-1) if attack.joint else y
        fake = grad(_loss(net, x, soft))(weights)
        left = {name: value * counts[name] for name, value in fake.items()}
        total = far(_trial(left), _trial(seen))[0]
        for term, weight in zip(attack.terms, given, strict=False):
            total = total + weight * IMAGE_TERMS[term](x[None])[0]
        if attack.pull:
            said = functional_call(net, weights, (x,)).softmax(-1)
            total = total + given[-1] * (said - soft).square().sum()
        return total

    def both(x: Tensor, y: Tensor, *rest: Tensor) -> list[Tensor]:
        moved = (0, 1) if attack.joint else (0,)
        slopes, value = grad_and_value(objective, argnums=moved)(x, y, rest)
        return [value, *slopes]

    x, y, weights = _examples(net, batch)
    knob = [torch.ones(()) for _ in knobs]
    each = [w.clone() for _ in "gwm" for w in weights]  # one tensor twice would be one input
    traced = trace(both, x, y, *each, *knob)
    labels = [f"{kind}.{n}" for kind in "gwm" for n in names] + [f"c.{k}" for k in knobs]
    return lower(traced, ["x", "y", *labels])


def _loss(net: Network, x: Tensor, soft: Tensor) -> Callable[[dict[str, Tensor]], Tensor]:
    def loss(weights: dict[str, Tensor]) -> Tensor:
        return soft_cross_entropy(functional_call(net, weights, (x,)), soft)

    return loss


def _trial(update: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value[None] for name, value in update.items()}


def _examples(net: Network, batch: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    x = torch.rand(batch, *net.shape)
    y = torch.full((batch, CLASSES), 1 / CLASSES)
    return x, y, [p.detach() for p in net.parameters()]
