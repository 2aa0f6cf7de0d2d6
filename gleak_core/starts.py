"""Where an attack begins: dummy images by name, `PATTERN:RANGE` or one of the plain `STARTS`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gleak_core.errors import choose

__all__ = ["PATTERNS", "RANGES", "STARTS", "Start", "find", "make"]

Draw = Callable[[Sequence[int], torch.Generator], Tensor]


@dataclass(frozen=True)
class Start:
    """Numbers from a distribution, repeated in `folds` generations of quadrants."""

    draw: Draw
    words: str
    folds: int = 0

    def __call__(self, shape: Sequence[int], stream: torch.Generator) -> Tensor:
        """Draw one trial (…, H, W); the shape may be any where nothing is repeated."""
        return _fold(self.draw, tuple(shape), stream, self.folds)


def _uniform(low: float) -> Draw:
    return lambda shape, g: torch.rand(shape, generator=g, dtype=torch.float64) + low


def _normal(mean: float, deviation: float) -> Draw:
    return lambda shape, g: mean + deviation * torch.randn(shape, generator=g, dtype=torch.float64)


def _flat(value: float) -> Draw:
    return lambda shape, _: torch.full(shape, value, dtype=torch.float64)


RANGES: Mapping[str, Start] = {
    "uniform": Start(_uniform(0.0), "U(0, 1), the range of a picture (Geng et al. 2021, Alg. 2)"),
    "normal": Start(_normal(0.0, 1.0), "N(0, 1), what DLG was published with (Zhu et al. 2019)"),
    "normal_half": Start(_normal(0.5, 1.0), "N(½, 1) (Geng et al. 2021, Fig. 3)"),
    "uniform_centred": Start(_uniform(-0.5), "U(−½, ½) (Geng et al. 2021, Fig. 3)"),
    "grey": Start(_normal(0.5, 0.2), "mid-grey with a little noise, N(½, 0.2²) (ours)"),
}
PATTERNS: Mapping[str, tuple[int, str]] = {
    "random": (0, "no pattern"),
    "level-1": (1, "all four quadrants alike (Wei et al. 2020)"),
    "level-2": (2, "all quadrants alike, and the quadrants within each (Wei et al. 2020)"),
}


def _compose(pattern: str, span: str) -> Start:
    folds, words = PATTERNS[pattern]
    return Start(RANGES[span].draw, f"{words}, of numbers from {RANGES[span].words}", folds)


STARTS: Mapping[str, Start] = {
    **RANGES,
    "flat_grey": Start(_flat(0.5), "every pixel ½ (ours)"),
    "black": Start(_flat(0.0), "every pixel 0 (Wei et al. 2020)"),
    "white": Start(_flat(1.0), "every pixel 1 (Wei et al. 2020)"),
    # CPL's authors draw their patterns from U(0, 1), and the random start beside them from N(0, 1).
    "level-1": _compose("level-1", "uniform"),
    "level-2": _compose("level-2", "uniform"),
}


def find(name: str) -> Start:
    """Return a start by its plain name, or by pattern and range apart: `level-2:normal`."""
    pattern, colon, span = name.partition(":")
    if name == "random":
        raise ValueError("a 'random' start needs its range: 'random:normal' is CPL's and DLG's")
    if not colon:
        return STARTS[choose("start", name, STARTS)]
    return _compose(choose("pattern", pattern, PATTERNS), choose("range", span, RANGES))


def make(name: str, shape: Sequence[int], *, seed: int | torch.Generator = 0) -> Tensor:
    """Draw dummy images (T, B, C, H, W) in float64, from a seed or a stream already begun.

    Always on the CPU, and in float64 before rounding: one seed is one start on every device and
    in every precision. Trial t is the same however many trials follow it.
    """
    start, (trials, *each) = find(name), shape
    if start.folds and len(shape) != 5:
        raise ValueError(
            f"start {name!r} repeats quadrants, and shape {tuple(shape)} has none: "
            "pass (T, B, C, H, W)"
        )
    stream = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    drawn = torch.empty(tuple(shape), dtype=torch.float64)
    for t in range(trials):  # one draw of all would depend on T: N(0, 1) comes in blocks of 16
        drawn[t] = start(each, stream)
    return drawn


def _fold(draw: Draw, shape: tuple[int, ...], stream: torch.Generator, folds: int) -> Tensor:
    """Draw one quadrant, rounded up, and repeat it; the quadrant itself may be made so."""
    if folds == 0:
        return draw(shape, stream)
    *rest, h, w = shape
    quadrant = _fold(draw, (*rest, -(-h // 2), -(-w // 2)), stream, folds - 1)
    tall = torch.cat([quadrant, quadrant], -2)
    return torch.cat([tall, tall], -1)[..., :h, :w]
