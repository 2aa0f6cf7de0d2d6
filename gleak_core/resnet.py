"""Residual networks for small images, in the form that gradient matching can differentiate twice.

Shortcuts carry no parameters (option A: every second pixel, new channels filled with zeros).
Batch normalisation keeps no running averages: it always uses the statistics of the batch at hand,
as a client in training does, so that `train()` and `eval()` answer alike and an update moves
nothing but parameters.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from gleak_core.errors import choose
from gleak_core.layers import Network, activation

__all__ = ["NORMS", "Block", "ResNet"]

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": lambda width: nn.BatchNorm2d(width, track_running_stats=False),
    "group": lambda width: nn.GroupNorm(8, width),
    "none": lambda width: nn.Identity(),
}


def _conv(into: int, out: int, stride: int, norm: str) -> nn.Conv2d:
    # A normalisation layer subtracts any bias before it and brings its own.
    return nn.Conv2d(into, out, 3, stride, padding=1, bias=norm == "none")


class Block(nn.Module):
    """Two 3×3 convolutions with a shortcut around them (He et al. 2016, §4.2)."""

    def __init__(self, into: int, out: int, stride: int, act: str, norm: str) -> None:
        super().__init__()
        self.conv1 = _conv(into, out, stride, norm)
        self.norm1 = NORMS[norm](out)
        self.act1 = activation(act)
        self.conv2 = _conv(out, out, 1, norm)
        self.norm2 = NORMS[norm](out)
        self.act2 = activation(act)
        self.stride, self.grown = stride, out - into

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, into, H, W) to (N, out, H/stride, W/stride), rounded up."""
        shortcut = F.pad(
            x[:, :, :: self.stride, :: self.stride],
            (0, 0, 0, 0, self.grown // 2, self.grown - self.grown // 2),
        )
        x = self.act1(self.norm1(self.conv1(x)))
        return self.act2(self.norm2(self.conv2(x)) + shortcut)


class ResNet(Network):
    """The 6n+2-layer network of He et al. 2016, §4.2: three stages of n blocks, 16-32-64 wide."""

    def __init__(
        self, n: int, classes: int, shape: tuple[int, int, int], act: str, norm: str, stride: bool
    ) -> None:
        super().__init__(shape)
        choose("norm", norm, NORMS)
        widths = (16, 32, 64)
        self.stem = nn.Sequential(
            _conv(shape[0], widths[0], 1, norm), NORMS[norm](widths[0]), activation(act)
        )
        blocks, into = [], widths[0]
        for stage, width in enumerate(widths):
            for place in range(n):
                step = 2 if stride and stage > 0 and place == 0 else 1
                blocks.append(Block(into, width, step, act, norm))
                into = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(into, classes)

    def features_of(self, images: Tensor) -> Tensor:
        """Return the input of the head: the last stage averaged over the image, (N, 64)."""
        return self.blocks(self.stem(self.check(images))).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, K)."""
        return self.head(self.features_of(images))
