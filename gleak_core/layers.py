"""What all networks share: activations and weight initialisations by name, and a base class."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gleak_core.errors import choose

__all__ = ["ACTIVATIONS", "INITS", "SMOOTH", "Init", "Network", "activation", "initialise"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
}
# Smooth everywhere: matching gradients by gradients needs a second derivative worth having.
SMOOTH = frozenset({"sigmoid", "tanh", "softplus", "gelu", "silu"})


def activation(name: str) -> nn.Module:
    """Make an activation by name."""
    return ACTIVATIONS[choose("activation", name, ACTIVATIONS)]()


class Network(nn.Module):
    """A network that knows its input: images (N, C, H, W) of one `shape`.

    `spec` describes the architecture, which every attacker knows; `drawn` says how the weights
    came about, which is worth as much as the weights themselves.
    """

    spec: str = ""
    drawn: str = ""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape = shape  # (C, H, W)

    def check(self, images: Tensor) -> Tensor:
        """Return the images, or say which shape they should have had."""
        if images.ndim != 4 or tuple(images.shape[1:]) != self.shape:
            raise ValueError(
                f"this network takes images (N, {', '.join(map(str, self.shape))}), "
                f"got {tuple(images.shape)}: resize them, or build it with channels= and size="
            )
        return images


Layer = dict[str, nn.Parameter]  # the own parameters of one module, by name


@dataclass(frozen=True)
class Init:
    """A way to draw the parameters of one layer; `scale` is its default, None if it has none."""

    fill: Callable[[Layer, float, torch.Generator], None]
    scale: float | None
    words: str


def _uniform(layer: Layer, scale: float, generator: torch.Generator) -> None:
    # The published DLG code draws every parameter so, those of normalisation layers too.
    for parameter in layer.values():
        nn.init.uniform_(parameter, -scale, scale, generator=generator)


def _normal(layer: Layer, scale: float, generator: torch.Generator) -> None:
    for parameter in layer.values():
        nn.init.normal_(parameter, 0.0, scale, generator=generator)


def _pytorch(layer: Layer, _: float, generator: torch.Generator) -> None:
    weight = layer["weight"]
    if weight.ndim > 1:  # a normalisation layer keeps its weight 1 and bias 0, here and below
        _uniform(layer, weight[0].numel() ** -0.5, generator)


def _xavier(layer: Layer, scale: float, generator: torch.Generator) -> None:
    if layer["weight"].ndim > 1:
        nn.init.xavier_uniform_(layer["weight"], gain=scale, generator=generator)
        _no_bias(layer)


def _kaiming(layer: Layer, scale: float, generator: torch.Generator) -> None:
    weight = layer["weight"]
    if weight.ndim > 1:
        nn.init.normal_(weight, 0.0, scale * weight[0].numel() ** -0.5, generator=generator)
        _no_bias(layer)


def _no_bias(layer: Layer) -> None:
    if "bias" in layer:
        nn.init.zeros_(layer["bias"])


INITS: dict[str, Init] = {
    "uniform": Init(_uniform, 0.5, "U(±{:g})"),
    # By default the spread of U(±½), so that only the shape of the distribution differs.
    "normal": Init(_normal, 12**-0.5, "N(0, {:.3g}²)"),
    "pytorch": Init(_pytorch, None, "PyTorch's default U(±1/√fan-in)"),
    "xavier": Init(_xavier, 1.0, "Xavier uniform (gain {:.3g}, biases 0)"),
    "kaiming": Init(_kaiming, 2**0.5, "Kaiming normal (gain {:.3g}, biases 0)"),
}


def initialise(
    model: nn.Module, init: str = "uniform", *, scale: float | None = None, seed: int = 0
) -> str:
    """Draw all parameters of a model on the CPU in place; say in words what was done.

    The same seed gives the same weights. The global random state is neither read nor moved.
    """
    rule = INITS[choose("init", init, INITS)]
    if rule.scale is None and scale is not None:
        raise ValueError(f"init {init!r} has no scale to choose: leave scale= out")
    scale = rule.scale if scale is None else scale
    if scale is not None and not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be a positive number, got {scale}")
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if layer := dict(module.named_parameters(recurse=False)):
            with torch.no_grad():
                rule.fill(layer, scale or 0.0, generator)
    return f"weights {rule.words.format(scale)}, seed {seed}"
