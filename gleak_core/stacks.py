"""Networks that are a plain stack, read off an architecture: affine layers, an activation each.

A stack can be differentiated twice by hand (`closed_form`, `lanes`) and inverted layer by layer
(`analytic`). A network that is none is not refused anywhere: it takes the general way.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["SLOPES", "Layer", "Slopes", "read"]

Slopes = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""z → (σ(z), σ′(z), σ″(z))."""


@dataclass(frozen=True)
class Layer:
    """An affine layer and the activation after it.

    A convolution has a `kernel`; a linear layer has none, and flattens its input.
    """

    name: str  # its parameters are name.weight and, if `bias`, name.bias
    act: str  # a key of SLOPES
    bias: bool
    kernel: tuple[int, int] | None = None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)


def _sigmoid(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a = z.sigmoid()
    slope = a * (1 - a)
    return a, slope, slope * (1 - 2 * a)


def _tanh(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a = z.tanh()
    slope = 1 - a * a
    return a, slope, -2 * a * slope


def _relu(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return z.relu(), (z > 0).to(z), torch.zeros_like(z)


def _leaky_relu(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return F.leaky_relu(z), torch.where(z > 0, torch.ones_like(z), 0.01), torch.zeros_like(z)


def _softplus(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    slope = torch.where(z > 20, torch.ones_like(z), z.sigmoid())  # PyTorch is linear from there on
    return F.softplus(z), slope, slope * (1 - slope)


def _elu(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rise = z.clamp(max=0).exp()
    return F.elu(z), rise, torch.where(z > 0, torch.zeros_like(z), rise)


def _silu(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    s = z.sigmoid()
    return z * s, s * (1 + z * (1 - s)), s * (1 - s) * (2 + z * (1 - 2 * s))


def _gelu(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    below = torch.special.ndtr(z)
    density = (-z * z / 2).exp() / math.sqrt(2 * math.pi)
    return z * below, below + z * density, density * (2 - z * z)


def _identity(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return z, torch.ones_like(z), torch.zeros_like(z)


SLOPES: Mapping[str, Slopes] = {
    "Sigmoid": _sigmoid,
    "Tanh": _tanh,
    "ReLU": _relu,
    "LeakyReLU": _leaky_relu,
    "Softplus": _softplus,
    "ELU": _elu,
    "SiLU": _silu,
    "GELU": _gelu,
    "Identity": _identity,
}
_DEFAULTS = {name: repr(getattr(nn, name)()) for name in SLOPES}


def read(architecture: nn.Module) -> tuple[Layer, ...] | None:
    """Return the layers of a conv-activation-linear stack, or None if it is anything else.

    It knows `nn.Sequential` and modules made of `features`, `hidden` and `head`. What `forward`
    does with them cannot be read: whoever relies on it compares one output (`same_as`).
    """
    parts = [architecture]
    if not isinstance(architecture, nn.Sequential):
        names = ("features", "hidden", "head")
        if [n for n, _ in architecture.named_children()] != list(names):
            return None
        parts = [getattr(architecture, n) for n in names]
    modules = [
        (name, module)
        for part in parts
        for module in part.modules()
        if not isinstance(module, nn.Sequential | nn.Flatten)
        for name in [next(n for n, m in architecture.named_modules() if m is module)]
    ]
    layers: list[Layer] = []
    flat = False
    for i, (name, module) in enumerate(modules):
        following = modules[i + 1][1] if i + 1 < len(modules) else None
        act = type(following).__name__ if _is_activation(following) else "Identity"
        if isinstance(module, nn.Linear):
            layers.append(Layer(name, act, module.bias is not None))
            flat = True
        elif isinstance(module, nn.Conv2d) and not flat and _is_plain(module):
            padding = module.padding
            assert not isinstance(padding, str)  # _is_plain
            layers.append(
                Layer(
                    name,
                    act,
                    module.bias is not None,
                    (module.kernel_size[0], module.kernel_size[1]),
                    (module.stride[0], module.stride[1]),
                    (padding[0], padding[1]),
                )
            )
        elif not (_is_activation(module) and i > 0 and not _is_activation(modules[i - 1][1])):
            return None
    return tuple(layers) if flat and layers[-1].act == "Identity" else None


def _is_activation(module: nn.Module | None) -> bool:
    return module is not None and _DEFAULTS.get(type(module).__name__) == repr(module)


def _is_plain(conv: nn.Conv2d) -> bool:
    return (
        conv.groups == 1
        and tuple(conv.dilation) == (1, 1)
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
    )
