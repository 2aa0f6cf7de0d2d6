"""The papers' networks: images (N, C, H, W) in, logits (N, K) out, every weight fixed by a seed.

Nothing here knows of attacks. There is no dropout and no state beside the parameters: a network
answers the same in `train()` and `eval()`. The softmax belongs to the loss, as always in PyTorch.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gleak_core.errors import choose
from gleak_core.layers import ACTIVATIONS, INITS, SMOOTH, Network, activation, initialise
from gleak_core.resnet import NORMS, ResNet
from gleak_core.vertical import VerticalNet, grid, join, split

__all__ = [
    "ACTIVATIONS",
    "DOWNS",
    "INITS",
    "MODELS",
    "NORMS",
    "SMOOTH",
    "ConvNet",
    "Network",
    "ResNet",
    "VerticalNet",
    "build",
    "cafe_net",
    "cpl_lenet",
    "initialise",
    "join",
    "lenet",
    "resnet",
    "resnet20",
    "resnet56",
    "split",
    "vertical_net",
]

N = TypeVar("N", bound=Network)
# How a convolution makes its image smaller: by its own stride, or by a pool after its activation.
DOWNS: dict[str, Callable[[int], nn.Module] | None] = {
    "stride": None,
    "maxpool": nn.MaxPool2d,
    "avgpool": nn.AvgPool2d,
}


class ConvNet(Network):
    """Convolutions, then fully connected layers: `features` → flatten → `hidden` → `head`.

    An activation follows every layer but the head. LeNet has no `hidden` layer. Without `classes`
    there is no head, and the network is an embedding.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        widths: Sequence[int],
        strides: Sequence[int],
        classes: int | None,
        *,
        kernel: int = 5,
        act: str = "sigmoid",
        down: str = "stride",
        hidden: Sequence[int] = (),
    ) -> None:
        super().__init__(shape)
        pool = DOWNS[choose("down", down, DOWNS)]
        into, *sides = shape
        features: list[nn.Module] = []
        for width, step in zip(widths, strides, strict=True):
            stride, window = (step, 1) if pool is None else (1, step)
            features += [
                nn.Conv2d(into, width, kernel, stride, padding=kernel // 2),
                activation(act),
            ]
            if pool is not None and window > 1:
                features.append(pool(window))
            sides = [((s + kernel // 2 * 2 - kernel) // stride + 1) // window for s in sides]
            into = width
        if min(sides) < 1:
            raise ValueError(
                f"an image of {shape[1]}×{shape[2]} pixels shrinks to nothing under {down} "
                f"{_dashed(strides)}: use larger images, smaller strides or down='stride'"
            )
        self.features = nn.Sequential(*features)
        into *= sides[0] * sides[1]
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(into, width), activation(act)]
            into = width
        self.hidden = nn.Sequential(*layers)
        self.head = nn.Identity() if classes is None else nn.Linear(into, classes)

    def internal_of(self, images: Tensor) -> Tensor:
        """Return the input of the first fully connected layer, CAFE's internal representation Z."""
        return self.features(self.check(images)).flatten(1)

    def features_of(self, images: Tensor) -> Tensor:
        """Return the input of the head: O in Geng et al. 2021, Eq. 14; in a LeNet it equals Z."""
        return self.hidden(self.internal_of(images))

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, K)."""
        return self.head(self.features_of(images))


def lenet(
    classes: int = 100,
    channels: int = 3,
    size: int = 32,
    *,
    width: int = 12,
    depth: int = 3,
    kernel: int = 5,
    strides: Sequence[int] | None = None,
    activation: str = "sigmoid",
    init: str = "uniform",
    scale: float | None = None,
    seed: int = 0,
) -> ConvNet:
    """Build the LeNet of DLG: conv 5×5 of 12-12-12 channels, strides 2-2-1, then one linear layer.

    Published with sigmoids and all weights and biases from U(±½) (Zhu et al. 2019, §4.1, and its
    code). `strides` defaults to 2-2-1-1-…; `scale` to the default of the named `init`.
    """
    _positive(
        classes=classes, channels=channels, size=size, width=width, depth=depth, kernel=kernel
    )
    strides = tuple((2, 2, *[1] * depth)[:depth] if strides is None else strides)
    if len(strides) != depth:
        raise ValueError(
            f"depth {depth} needs {depth} strides, got {len(strides)}: "
            "pass one stride for each convolution, or leave strides= out"
        )
    _positive(strides=strides)
    shape = (channels, size, size)
    return _finish(
        lambda: ConvNet(shape, [width] * depth, strides, classes, kernel=kernel, act=activation),
        f"LeNet: conv {kernel}×{kernel} {_dashed([width] * depth)} strides {_dashed(strides)}, "
        f"{activation}, linear to {classes} classes; images {_times(shape)}",
        init,
        scale,
        seed,
    )


def cpl_lenet(
    classes: int = 100, channels: int = 3, size: int = 32, *, depth: int = 4, **options: Any
) -> ConvNet:
    """Build the LeNet of CPL (Wei et al. 2020): DLG's with a fourth convolution, strides 2-2-1-1.

    Takes the options of `lenet`.
    """
    return lenet(classes, channels, size, depth=depth, **options)


def cafe_net(
    classes: int = 10,
    channels: int = 3,
    size: int = 32,
    *,
    widths: Sequence[int] = (64, 128),
    hidden: Sequence[int] = (512, 256),
    kernel: int = 5,
    activation: str = "sigmoid",
    down: str = "stride",
    init: str = "pytorch",
    scale: float | None = None,
    seed: int = 0,
) -> ConvNet:
    """Build the network of CAFE: conv64, conv128, fc512, fc256 and the softmax layer (§4.2).

    The paper leaves kernel, activation and down-sampling open: ours are 5×5, and a factor of 2
    after each convolution by `down`: "stride" (smooth throughout), "maxpool" or "avgpool".
    """
    _positive(classes=classes, channels=channels, size=size, kernel=kernel)
    _positive(widths=widths, hidden=hidden)
    shape, strides = (channels, size, size), [2] * len(widths)
    return _finish(
        lambda: ConvNet(
            shape, widths, strides, classes, kernel=kernel, act=activation, down=down, hidden=hidden
        ),
        f"CAFE: conv {kernel}×{kernel} {_dashed(widths)} with {down} 2, fc {_dashed(hidden)}, "
        f"{activation}, linear to {classes} classes; images {_times(shape)}",
        init,
        scale,
        seed,
    )


def vertical_net(
    classes: int = 10,
    channels: int = 3,
    size: int = 32,
    workers: int = 4,
    *,
    widths: Sequence[int] = (64, 128),
    hidden: Sequence[int] = (512, 256),
    vector: int = 64,
    kernel: int = 5,
    activation: str = "sigmoid",
    down: str = "stride",
    init: str = "pytorch",
    scale: float | None = None,
    seed: int = 0,
) -> VerticalNet:
    """Build CAFE's vertical network: a patch, 2 conv and 3 fc layers per worker, a server (§4.3).

    The width of the third fully connected layer, a worker's `vector`, is not published; 64 is ours.
    """
    _positive(classes=classes, channels=channels, size=size, kernel=kernel, vector=vector)
    _positive(workers=workers, widths=widths, hidden=hidden)
    rows, columns = grid(workers)
    if size % rows or size % columns:
        raise ValueError(
            f"images of {size}×{size} pixels do not divide among {workers} workers in a "
            f"{rows}×{columns} grid: use a size that is a multiple of both"
        )
    shape, patch = (channels, size, size), (channels, size // rows, size // columns)
    strides, layers = [2] * len(widths), (*hidden, vector)

    def worker() -> ConvNet:
        return ConvNet(
            patch, widths, strides, None, kernel=kernel, act=activation, down=down, hidden=layers
        )

    return _finish(
        lambda: VerticalNet(shape, [worker() for _ in range(workers)], vector, classes),
        f"CAFE, vertical: {workers} workers with a patch {_times(patch)} each, conv "
        f"{kernel}×{kernel} {_dashed(widths)} with {down} 2, fc {_dashed(layers)}, {activation}; "
        f"server linear to {classes} classes",
        init,
        scale,
        seed,
    )


def resnet20(classes: int = 100, channels: int = 3, size: int = 32, **options: Any) -> ResNet:
    """Build ResNet-20 (He et al. 2016, §4.2: 0.27 M parameters); takes the options of `resnet`."""
    return resnet(3, classes, channels, size, **options)


def resnet56(classes: int = 100, channels: int = 3, size: int = 32, **options: Any) -> ResNet:
    """Build ResNet-56 (He et al. 2016, §4.2: 0.85 M parameters); takes the options of `resnet`."""
    return resnet(9, classes, channels, size, **options)


def resnet(
    n: int,
    classes: int = 100,
    channels: int = 3,
    size: int = 32,
    *,
    activation: str = "sigmoid",
    stride: bool = True,
    norm: str = "batch",
    init: str = "pytorch",
    scale: float | None = None,
    seed: int = 0,
) -> ResNet:
    """Build a ResNet of 6n+2 layers with parameter-free shortcuts (option A).

    DLG attacked it with sigmoids and `stride=False`, which keeps every feature map at the image's
    size (Zhu et al. 2019, §4.1). `norm` is "batch" (statistics of the batch at hand), "group" or
    "none".
    """
    _positive(n=n, classes=classes, channels=channels, size=size)
    shape = (channels, size, size)
    return _finish(
        lambda: ResNet(n, classes, shape, activation, norm, stride),
        f"ResNet-{6 * n + 2}: stages 16-32-64 {'with' if stride else 'without'} stride, "
        f"{activation}, {norm} norm, option-A shortcuts, linear to {classes} classes; "
        f"images {_times(shape)}",
        init,
        scale,
        seed,
    )


MODELS: dict[str, Callable[..., Network]] = {
    "lenet": lenet,
    "cpl_lenet": cpl_lenet,
    "cafe_net": cafe_net,
    "vertical_net": vertical_net,
    "resnet20": resnet20,
    "resnet56": resnet56,
}


def build(name: str, *args: int, **options: Any) -> Network:
    """Build a network by name, for notebooks and commands that take it as a parameter."""
    return MODELS[choose("model", name, MODELS)](*args, **options)


def _finish(make: Callable[[], N], words: str, init: str, scale: float | None, seed: int) -> N:
    """Make a network on the CPU without moving the global random state, and describe it."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        model = make()
    model.drawn = initialise(model, init, scale=scale, seed=seed)
    model.spec = f"{words}; {sum(p.numel() for p in model.parameters()):,} parameters"
    return model


def _positive(**numbers: int | Sequence[int]) -> None:
    for name, given in numbers.items():
        for number in given if isinstance(given, Sequence) else [given]:
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} must be a positive whole number, got {given!r}")


def _dashed(numbers: Sequence[int]) -> str:
    return "-".join(map(str, numbers))


def _times(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))
