"""The textbook attack, written out on its own: the unit that everything is measured in.

Nothing of the library's attacks is used here. It is Zhu et al.'s loop as it is published and
taught: `torch.optim.LBFGS` with its defaults, 300 steps of 20 iterations, one picture at a time.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Leak", "closure_of", "leak"]


class Leak(NamedTuple):
    """What one run of the loop came to."""

    image: Tensor  # (1, C, H, W)
    loss: float
    evaluations: int


def closure_of(
    net: nn.Module, target: Mapping[str, Tensor], x: Tensor, y: Tensor
) -> Callable[[], Tensor]:
    """Return DLG's closure for dummies x (B, C, H, W) and y (B, K): a loss, and its slopes set."""
    weights = [dict(net.named_parameters())[name] for name in target]

    def closure() -> Tensor:
        x.grad = y.grad = None
        loss = torch.mean(torch.sum(-y.softmax(-1) * F.log_softmax(net(x), -1), 1))
        fake = torch.autograd.grad(loss, weights, create_graph=True)
        apart = [((f - t) ** 2).sum() for f, t in zip(fake, target.values(), strict=True)]
        distance = torch.stack(apart).sum()
        distance.backward(inputs=[x, y])
        return distance

    return closure


def leak(
    net: nn.Module,
    target: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    *,
    steps: int,
    stop: float,
    search: str | None = None,
) -> Leak:
    """Run DLG from x and y until the loss is below `stop`, not a number, or the steps are over.

    `search="strong_wolfe"` is the line search that the optimiser has and DLG did not use.
    """
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    closure, counted = closure_of(net, target, x, y), 0

    def counting() -> Tensor:
        nonlocal counted
        counted += 1
        return closure().detach()

    optimiser = torch.optim.LBFGS([x, y], line_search_fn=search)
    best, lowest = x.detach().clone(), float("inf")
    for _ in range(steps):
        # The loss that `step` returns is the one before it moves.
        before = x.detach().clone()
        loss = float(optimiser.step(counting))  # pyright: ignore[reportArgumentType]
        if loss < lowest:
            best, lowest = before, loss
        if not loss >= stop:  # enough, or not a number
            break
    return Leak(best, lowest, counted)
