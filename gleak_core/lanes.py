"""The gradient distance of a plain stack again, with a trial in every lane of a register.

`closed_form` spends its time in many small products. Here independent trials lie side by side in
memory, [..., lanes], so one instruction does the same step for 8 of them (4 in float64), and every
sum of a layer is one kernel whose geometry is tables of offsets (`lane_maps`, `lane_kernels`). The
recursion, its letters and its oracle are `closed_form`'s. Needs numba (optional), a CPU, the
distance ‖∇W′ − ∇W‖² and one set of weights for all trials.
"""

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from gleak_core.distances import Distance, squared_l2
from gleak_core.lane_maps import Map, One, flat, lanes_of, names_of
from gleak_core.observation import Update, Weights
from gleak_core.stacks import SLOPES, Layer

__all__ = ["Lanes", "available", "supports"]


def available() -> bool:
    """Say whether numba is there, without importing it."""
    return find_spec("numba") is not None


def supports(
    stack: Sequence[Layer],
    weights: Weights,
    target: Update,
    distance: Distance,
    images_shape: Sequence[int],
) -> bool:
    """Say whether `Lanes` can do this: images (T, B, C, H, W), one set of weights, every message.

    Fewer trials than lanes would leave some of the machine idle, and are no error.
    """
    names = [name for at in stack for name in names_of(at)]
    like = target.get(names[0])
    return (
        distance is squared_l2
        and len(images_shape) == 5
        and like is not None
        and like.device.type == "cpu"
        and like.dtype in (torch.float32, torch.float64)
        and set(names) == set(target)
        and all(
            n in weights
            and weights[n].dtype == like.dtype
            and target[n].shape == (images_shape[0], *weights[n].shape)
            for n in names
        )
    )


class Lanes:
    """D and its slopes for fixed targets and weights: lay them out once, call often.

    Trial t lies in lane t % lanes of group t // lanes. One group at a time passes through all
    layers, in a workspace that about fits the second cache. The idle lanes of the last group hold
    zeros, or what an earlier group left there: no other lane sees it. What `compact` makes shares
    the workspace with its origin, so use them from one thread.
    """

    def __init__(self, stack: Sequence[Layer], weights: Weights, target: Update) -> None:
        like = target[names_of(stack[0])[0]]
        self._stack, self._weights = tuple(stack), weights
        self._trials, self._dtype, self._lanes = len(like), like.dtype, lanes_of(like.dtype)
        self._maps: list[Map] = []  # the first call makes them: it knows the images' size
        # −G*, the weights' entries and then the bias's: (groups, n, lanes) for each layer
        self._seen = [
            self._lay(torch.cat([target[n].flatten(1) for n in names_of(at)], 1).neg())
            for at in stack
        ]

    def compact(self, keep: Tensor) -> "Lanes":
        """Return the same for some of the trials only."""
        new = object.__new__(Lanes)
        vars(new).update(vars(self), _trials=len(torch.arange(self._trials)[keep]))
        new._seen = [self._lay(self._rows(seen)[keep]) for seen in self._seen]
        return new

    def _lay(self, rows: Tensor) -> Tensor:
        """Lay rows (T, n) out as (groups, n, lanes)."""
        laid = rows.new_zeros(-(-len(rows) // self._lanes), rows.shape[1], self._lanes)
        for group, some in zip(laid, rows.split(self._lanes), strict=False):  # none of no trials
            group[:, : len(some)] = some.T
        return laid

    def _rows(self, laid: Tensor) -> Tensor:
        """Undo `_lay`."""
        return laid.transpose(1, 2).flatten(0, 1)[: self._trials]

    @torch.no_grad()
    def __call__(self, images: Tensor, soft: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return D (T,), ∂D/∂images (T, B, C, H, W) and ∂D/∂labels (T, B, K)."""
        if len(images) != self._trials:
            raise ValueError(f"set up for {self._trials} trials, called with {len(images)} images")
        if images.dtype != self._dtype or soft.dtype != self._dtype:
            raise ValueError(f"set up in {self._dtype}: convert the dummies with .to() first")
        self._prepare(tuple(images.shape[1:]))
        q = self._lay(soft.flatten(1)).unflatten(1, soft.shape[1:])  # (groups, B, K, lanes)
        values, slopes = q.new_zeros(len(q), 1, self._lanes), torch.empty_like(images)
        wishes = torch.empty_like(q)
        for group, begin in enumerate(range(0, self._trials, self._lanes)):
            some = slice(begin, begin + self._lanes)
            arriving, wishes[group] = self._group(
                images[some], q[group], [seen[group] for seen in self._seen], flat(values[group])
            )
            slopes[some] = arriving.movedim(-1, 0)[: len(slopes[some])]
        by_label = self._rows(wishes.flatten(1, 2)).neg_()
        return self._rows(values)[:, 0], slopes, by_label.view_as(soft)

    def _prepare(self, side: tuple[int, ...]) -> None:
        """Make the workspace for images (B, C, H, W)."""
        if self._maps and self._maps[0].arriving.tensor.shape[:-1] == side:
            return
        self._maps = []
        for at in self._stack:
            kind = One if at.kernel is None and side[0] == 1 else Map
            self._maps.append(kind(at, self._weights, side, self._dtype))
            side = tuple(self._maps[-1].z.tensor.shape[:-1])

    def _group(
        self, images: Tensor, q: Tensor, seen: list[Tensor], value: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Do one group: add to D, return what D wants of the images and of δ_L, lanes last.

        The letters and the order are those of `closed_form.value_and_grad`.
        """
        maps, last, batch = self._maps, len(self._maps) - 1, len(q)
        first, second = [], []  # σ′(z_l), and σ″(z_l), which becomes σ″(z_l) e_l t_l

        maps[0].a.inner[..., : len(images)] = images.movedim(0, -1)
        for at in range(last):
            a, one, two = SLOPES[self._stack[at].act](maps[at].forward())
            maps[at + 1].a.inner.copy_(a)
            first.append(one)
            second.append(two)
        logits = maps[last].forward()
        p = logits.view_as(q).softmax(1)  # (B, K, lanes)

        maps[last].delta.inner.copy_(((p - q) / batch).view_as(logits))
        for at in range(last, 0, -1):
            torch.mul(first[at - 1], maps[at].backward(), out=maps[at - 1].delta.inner)

        for at, m in enumerate(maps):
            wish = m.match(seen[at], value, lowest=at == 0)
            if at < last:
                torch.mul(first[at], wish, out=maps[at + 1].up.inner)
                second[at].mul_(maps[at + 1].error.tensor).mul_(wish)

        t = maps[last].wish.tensor.view_as(q) / batch
        softmax = p * (t - (p * t).sum(1, keepdim=True))
        maps[last].down.inner.copy_(softmax.view_as(logits))
        for at in range(last, 0, -1):
            down = maps[at - 1].down.inner
            torch.addcmul(second[at - 1], first[at - 1], maps[at].descend(), out=down)
        return maps[0].descend(), t
