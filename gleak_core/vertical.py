"""CAFE's vertical protocol: an image cut into patches, a network for each, a server on top."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gleak_core.layers import Network

__all__ = ["VerticalNet", "grid", "join", "split"]


def grid(workers: int) -> tuple[int, int]:
    """Return the rows and columns of the most nearly square grid of so many patches."""
    if workers < 1:
        raise ValueError(f"workers must be a positive whole number, got {workers}")
    rows = max(r for r in range(1, int(workers**0.5) + 1) if workers % r == 0)
    return rows, workers // rows


def split(images: Tensor, workers: int = 4) -> Tensor:
    """Cut images (…, C, H, W) into equal patches (workers, …, C, h, w), in reading order."""
    rows, columns = grid(workers)
    *_, height, width = images.shape
    if images.ndim < 3 or height % rows or width % columns:
        raise ValueError(
            f"images of shape {tuple(images.shape)} cannot be cut into {rows}×{columns} equal "
            f"patches: pass (…, C, H, W) with H a multiple of {rows} and W of {columns}"
        )
    cut = images.unflatten(-1, (columns, -1)).unflatten(-3, (rows, -1))  # (…, C, r, h, c, w)
    return cut.movedim((-4, -2), (0, 1)).flatten(0, 1)


def join(patches: Tensor) -> Tensor:
    """Put patches (workers, …, C, h, w) together again into images (…, C, H, W)."""
    rows, columns = grid(patches.shape[0])
    cut = patches.unflatten(0, (rows, columns)).movedim((0, 1), (-4, -2))  # (…, C, r, h, c, w)
    return cut.flatten(-2).flatten(-3, -2)


class VerticalNet(Network):
    """The workers' networks and the server's softmax layer in one module (CAFE, §4.3).

    `workers.m` sees patch m only and answers with a vector; the server concatenates the vectors.
    """

    def __init__(
        self, shape: tuple[int, int, int], workers: Iterable[nn.Module], width: int, classes: int
    ) -> None:
        super().__init__(shape)
        self.workers = nn.ModuleList(workers)
        self.server = nn.Linear(len(self.workers) * width, classes)

    def features_of(self, images: Tensor) -> Tensor:
        """Return the input of the server: all workers' vectors side by side, (N, workers·width)."""
        patches = split(self.check(images), len(self.workers))
        return torch.cat([net(x) for net, x in zip(self.workers, patches, strict=True)], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, K)."""
        return self.server(self.features_of(images))
