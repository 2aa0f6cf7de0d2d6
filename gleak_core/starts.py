"""Where an attack begins: dummy images, by the name of their distribution."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from gleak_core.errors import choose

__all__ = ["STARTS", "make"]

Draw = Callable[[torch.Size, torch.Generator], Tensor]

STARTS: Mapping[str, Draw] = {
    "uniform": lambda shape, g: torch.rand(shape, generator=g, dtype=torch.float64),
    "normal": lambda shape, g: torch.randn(shape, generator=g, dtype=torch.float64),
}
"""`uniform` is U(0, 1); `normal` is N(0, 1), what DLG was published with."""


def make(name: str, shape: Sequence[int], *, seed: int | torch.Generator = 0) -> Tensor:
    """Draw dummy images (T, B, C, H, W) in float64, from a seed or a stream already begun.

    Always on the CPU, and in float64 before rounding: one seed is one start on every device and
    in every precision.
    """
    draw = STARTS[choose("start", name, STARTS)]
    stream = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    return draw(torch.Size(shape), stream)
