import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gleak_core import models
from gleak_core.models import ConvNet
from gleak_core.resnet import Block


def images(n: int, channels: int = 3, size: int = 32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((n, channels, size, size), generator=generator, dtype=torch.float64)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def squared(gradient: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([g.flatten() for g in gradient]).square().sum()


# --- the LeNets ------------------------------------------------------------------------------


def test_lenet_has_the_published_shapes() -> None:
    shapes = {name: tuple(p.shape) for name, p in models.lenet().named_parameters()}
    assert shapes == {
        "features.0.weight": (12, 3, 5, 5),
        "features.0.bias": (12,),
        "features.2.weight": (12, 12, 5, 5),
        "features.2.bias": (12,),
        "features.4.weight": (12, 12, 5, 5),
        "features.4.bias": (12,),
        "head.weight": (100, 768),
        "head.bias": (100,),
    }
    assert count(models.lenet()) == 912 + 3612 + 3612 + 76900


def test_lenet_is_introspectable() -> None:
    net = models.cpl_lenet()
    convolutions = [m for m in net.features if isinstance(m, nn.Conv2d)]
    assert [c.stride for c in convolutions] == [(2, 2), (2, 2), (1, 1), (1, 1)]
    assert [c.out_channels for c in convolutions] == [12] * 4
    assert len(net.hidden) == 0
    assert isinstance(net.head, nn.Linear) and net.head.in_features == 768
    assert sum(isinstance(m, nn.Sigmoid) for m in net.features) == 4


def by_hand(net: ConvNet, x: Tensor, strides: list[int]) -> Tensor:
    """LeNet by unfolding into matrix products: no convolution, no module is called."""
    state = net.state_dict()
    for i, stride in enumerate(strides):
        kernel, bias = state[f"features.{2 * i}.weight"], state[f"features.{2 * i}.bias"]
        side = (x.shape[-1] + 4 - 5) // stride + 1
        columns = F.unfold(x, 5, padding=2, stride=stride)
        z = torch.einsum("ok,nkp->nop", kernel.flatten(1), columns) + bias[:, None]
        x = (1 / (1 + torch.exp(-z))).reshape(len(x), -1, side, side)
    return x.reshape(len(x), -1) @ state["head.weight"].T + state["head.bias"]


@pytest.mark.parametrize(
    ("net", "strides"), [(models.lenet(), [2, 2, 1]), (models.cpl_lenet(), [2, 2, 1, 1])]
)
def test_lenet_equals_an_independent_forward_pass(net: ConvNet, strides: list[int]) -> None:
    net, x = net.double(), images(3)
    torch.testing.assert_close(net(x), by_hand(net, x, strides), rtol=1e-12, atol=1e-12)


def test_representations_of_lenet_and_cafe() -> None:
    x = images(2)
    net = models.lenet().double()
    assert torch.equal(net.internal_of(x), net.features_of(x))
    assert torch.equal(net.head(net.features_of(x)), net(x))
    cafe = models.cafe_net().double()
    assert cafe.internal_of(x).shape == (2, 128 * 8 * 8)
    assert torch.equal(cafe.hidden(cafe.internal_of(x)), cafe.features_of(x))
    assert torch.equal(cafe.head(cafe.features_of(x)), cafe(x))


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 40),
    channels=st.integers(1, 4),
    width=st.integers(1, 5),
    kernel=st.integers(1, 6),
    strides=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    classes=st.integers(1, 7),
)
def test_lenet_of_any_size(
    size: int, channels: int, width: int, kernel: int, strides: list[int], classes: int
) -> None:
    net = models.lenet(
        classes, channels, size, width=width, depth=len(strides), kernel=kernel, strides=strides
    )
    assert net(images(2, channels, size).float()).shape == (2, classes)
    convolutions = kernel**2 * width * (channels + width * (len(strides) - 1))
    features = net.features_of(images(1, channels, size).float()).numel()
    biases = width * len(strides)
    assert count(net) == convolutions + biases + classes * (features + 1)


# --- CAFE ------------------------------------------------------------------------------------


@pytest.mark.parametrize("down", models.DOWNS)
def test_cafe_layers(down: str) -> None:
    net = models.cafe_net(10, activation="relu", down=down)
    weights = [tuple(p.shape) for name, p in net.named_parameters() if name.endswith("weight")]
    assert weights == [(64, 3, 5, 5), (128, 64, 5, 5), (512, 8192), (256, 512), (10, 256)]
    assert sum(isinstance(m, nn.ReLU) for m in net.modules()) == 4
    assert net(images(2).float()).shape == (2, 10)


def test_cafe_pools_after_the_activation() -> None:
    net, x = models.cafe_net(activation="tanh", down="maxpool").double(), images(2)
    state = net.state_dict()
    for place in ("features.0", "features.3"):
        x = F.conv2d(x, state[f"{place}.weight"], state[f"{place}.bias"], padding=2).tanh()
        x = x.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).amax((3, 5))
    torch.testing.assert_close(net.internal_of(images(2)), x.flatten(1), rtol=1e-12, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    side=st.integers(1, 4),
    workers=st.sampled_from([1, 2, 3, 4, 6, 8, 9]),
    lead=st.lists(st.integers(1, 3), max_size=2),
)
def test_join_undoes_split(side: int, workers: int, lead: list[int]) -> None:
    rows = {1: 1, 2: 1, 3: 1, 4: 2, 6: 2, 8: 2, 9: 3}[workers]
    columns = workers // rows
    x = torch.randn(*lead, 3, rows * side, columns * (side + 1))
    patches = models.split(x, workers)
    assert patches.shape == (workers, *lead, 3, side, side + 1)
    assert torch.equal(models.join(patches), x)
    for m in range(workers):
        r, c = divmod(m, columns)
        rectangle = x[..., r * side : (r + 1) * side, c * (side + 1) : (c + 1) * (side + 1)]
        assert torch.equal(patches[m], rectangle)


def test_vertical_net_equals_a_loop_over_patches() -> None:
    net, x = models.vertical_net(vector=7, workers=4).double(), images(3)
    state, vectors = net.state_dict(), []
    corners = [(0, 0), (0, 16), (16, 0), (16, 16)]
    for m, (top, left) in enumerate(corners):
        z = x[:, :, top : top + 16, left : left + 16]
        for place in ("features.0", "features.2"):
            kernel, bias = (state[f"workers.{m}.{place}.{p}"] for p in ("weight", "bias"))
            z = torch.sigmoid(F.conv2d(z, kernel, bias, stride=2, padding=2))
        z = z.reshape(3, -1)
        for place in ("hidden.0", "hidden.2", "hidden.4"):
            weight, bias = (state[f"workers.{m}.{place}.{p}"] for p in ("weight", "bias"))
            z = torch.sigmoid(z @ weight.T + bias)
        vectors.append(z)
    logits = torch.cat(vectors, 1) @ state["server.weight"].T + state["server.bias"]
    assert [v.shape for v in vectors] == [(3, 7)] * 4
    torch.testing.assert_close(net(x), logits, rtol=1e-12, atol=1e-12)


def test_a_worker_sees_only_its_patch() -> None:
    net, x = models.vertical_net(workers=4, vector=5).double(), images(1)
    changed = x.clone()
    changed[:, :, :16, 16:] += 1  # patch 1 in reading order
    moved = (net.features_of(x) != net.features_of(changed)).unflatten(1, (4, 5)).any(2)
    assert moved.tolist() == [[False, True, False, False]]


def test_workers_differ() -> None:
    first, second = (models.vertical_net().workers[m].state_dict() for m in (0, 1))
    assert not torch.equal(first["features.0.weight"], second["features.0.weight"])


# --- ResNet ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("build", "known"), [("resnet20", 269_722), ("resnet56", 853_018)])
def test_resnet_has_the_known_number_of_parameters(build: str, known: int) -> None:
    net = models.build(build, 10)
    assert count(net) == known
    depth = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules())
    assert depth == int(build.removeprefix("resnet"))


@pytest.mark.parametrize("norm", models.NORMS)
@pytest.mark.parametrize("stride", [True, False])
def test_resnet_feature_maps(norm: str, stride: bool) -> None:
    net = models.resnet20(7, 1, 13, norm=norm, stride=stride)
    x = images(2, 1, 13).float()
    assert net.blocks(net.stem(x)).shape == (2, 64, *([4, 4] if stride else [13, 13]))
    assert net(x).shape == (2, 7)


def test_a_resnet_block_by_hand() -> None:
    net = models.resnet20(norm="none", stride=True, activation="softplus").double()
    block, x = net.blocks[3], torch.randn(2, 16, 8, 8, dtype=torch.float64)  # 16 -> 32, halved
    assert isinstance(block, Block)
    z = F.softplus(F.conv2d(x, block.conv1.weight, block.conv1.bias, stride=2, padding=1))
    z = F.conv2d(z, block.conv2.weight, block.conv2.bias, padding=1)
    z[:, 8:24] += x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), F.softplus(z))


@pytest.mark.parametrize("name", models.MODELS)
def test_train_and_eval_agree_and_leave_no_state(name: str) -> None:
    net, x = models.build(name, 10), images(3).float()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    assert torch.equal(net.train()(x), net.eval()(x))
    assert not list(net.buffers())
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


def test_batch_norm_uses_the_batch_at_hand() -> None:
    net, x = models.resnet20(10, norm="batch").double(), images(4)
    assert not torch.allclose(net(x)[:1], net(x[:1]))
    net = models.resnet20(10, norm="group").double()
    torch.testing.assert_close(net(x)[:1], net(x[:1]))


# --- weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", models.MODELS)
def test_weights_are_fixed_by_the_seed_alone(name: str) -> None:
    torch.manual_seed(123)
    state = torch.random.get_rng_state()
    first = models.build(name, 10, seed=4)
    assert torch.equal(torch.random.get_rng_state(), state), "the global random state was moved"
    torch.manual_seed(321)
    again, other = models.build(name, 10, seed=4), models.build(name, 10, seed=5)
    same = zip(first.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    assert not any(
        torch.equal(a, b)
        for a, b in zip(first.parameters(), other.parameters(), strict=True)
        if a.ndim > 1
    )


def test_golden_weights() -> None:
    first = models.lenet(seed=0).state_dict()["features.0.weight"].flatten()[:4]
    golden = torch.tensor([0.4963, 0.7682, 0.0885, 0.1320]) - 0.5  # torch.rand(4) at seed 0
    torch.testing.assert_close(first, golden, rtol=0, atol=5e-5)
    total = sum(p.double().sum().item() for p in models.lenet(seed=7).parameters())
    assert total == pytest.approx(-36.6454491, abs=1e-6)
    last = models.lenet(seed=7).state_dict()["head.bias"][:3]
    golden = torch.tensor([-0.32015657, 0.16917461, -0.24990207])
    torch.testing.assert_close(last, golden, rtol=0, atol=1e-7)


def test_pytorch_init_is_what_pytorch_does() -> None:
    net = models.lenet(init="pytorch", seed=11)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        theirs = nn.Conv2d(3, 12, 5)
    torch.testing.assert_close(net.features[0].weight, theirs.weight)
    torch.testing.assert_close(net.features[0].bias, theirs.bias)


@pytest.mark.parametrize(
    ("init", "scale", "std", "bias_std"),
    [
        ("uniform", None, 12**-0.5, 12**-0.5),
        ("uniform", 0.25, 0.5 * 12**-0.5, 0.5 * 12**-0.5),
        ("normal", None, 12**-0.5, 12**-0.5),
        ("normal", 0.02, 0.02, 0.02),
        ("pytorch", None, (3 * 768) ** -0.5, (3 * 768) ** -0.5),
        ("xavier", None, math.sqrt(2 / (768 + 900)), 0.0),
        ("xavier", 2.0, 2 * math.sqrt(2 / (768 + 900)), 0.0),
        ("kaiming", None, math.sqrt(2 / 768), 0.0),
        ("kaiming", 1.0, 768**-0.5, 0.0),
    ],
)
def test_initialisations_have_their_spread(
    init: str, scale: float | None, std: float, bias_std: float
) -> None:
    head = models.lenet(900, init=init, scale=scale).head
    assert isinstance(head, nn.Linear)
    assert head.weight.mean().item() == pytest.approx(0, abs=0.01 * std)
    assert head.weight.std().item() == pytest.approx(std, rel=0.01)
    assert head.bias.std().item() == pytest.approx(bias_std, rel=0.1)
    if init in ("uniform", "pytorch", "xavier"):
        assert head.weight.abs().max().item() == pytest.approx(math.sqrt(3) * std, rel=1e-3)
        assert head.weight.abs().max().item() <= math.sqrt(3) * std * (1 + 1e-6)


@pytest.mark.parametrize("init", models.INITS)
def test_normalisation_layers_start_as_the_identity_except_in_dlg(init: str) -> None:
    norms = [m for m in models.resnet20(init=init).modules() if isinstance(m, nn.BatchNorm2d)]
    untouched = all(bool((m.weight == 1).all() and (m.bias == 0).all()) for m in norms)
    assert len(norms) == 19
    assert untouched == (init not in ("uniform", "normal"))


# --- twice differentiable --------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(models.ACTIVATIONS))
def test_second_derivatives_are_those_of_finite_differences(name: str) -> None:
    # Softplus etc. on a random net: the double gradient that gradient matching needs.
    net = models.lenet(3, 1, 4, width=2, depth=2, strides=(1, 2), activation=name).double()
    x = images(1, 1, 4, seed=3).requires_grad_()
    parameters = tuple(net.parameters())

    def leak(x: Tensor) -> Tensor:
        loss = F.cross_entropy(net(x), torch.tensor([1]))
        return squared(torch.autograd.grad(loss, parameters, create_graph=True))

    assert torch.autograd.gradcheck(leak, (x,))
    assert torch.autograd.grad(leak(x), x)[0].abs().max() > 1e-8


@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.parametrize("act", ["sigmoid", "softplus"])
def test_every_model_is_twice_differentiable(name: str, act: str) -> None:
    net = models.build(name, 4, 3, 8, activation=act)
    x = images(2, 3, 8).float().requires_grad_()
    loss = F.cross_entropy(net(x), torch.tensor([1, 3]))
    gradient = torch.autograd.grad(loss, tuple(net.parameters()), create_graph=True)
    pulled = torch.autograd.grad(squared(gradient), x)[0]
    assert torch.isfinite(pulled).all() and pulled.abs().max() > 0


# --- words -----------------------------------------------------------------------------------


def test_spec_is_one_line_of_words() -> None:
    net = models.lenet(seed=3, scale=0.25)
    spec = net.spec
    assert "12-12-12" in spec and "2-2-1" in spec and "sigmoid" in spec
    assert "85,036 parameters" in spec
    assert "U(±0.25)" in net.drawn and "seed 3" in net.drawn
    assert "seed" not in spec  # whoever knows the seed has the weights
    for name in models.MODELS:
        assert "\n" not in models.build(name).spec


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"activation": "sigmiod"}, "did you mean 'sigmoid'"),
        ({"init": "unifrom"}, "did you mean 'uniform'"),
        ({"init": "pytorch", "scale": 0.5}, "leave scale= out"),
        ({"scale": float("nan")}, "scale must be a positive number"),
        ({"scale": -1.0}, "scale must be a positive number"),
        ({"depth": 4, "strides": (2, 2)}, "depth 4 needs 4 strides, got 2"),
        ({"strides": (2, 0, 1)}, "strides must be a positive whole number"),
        ({"width": 0}, "width must be a positive whole number, got 0"),
        ({"size": -3}, "size must be a positive whole number"),
        ({"classes": 2.5}, "classes must be a positive whole number"),
    ],
)
def test_wrong_arguments_are_refused_with_a_sentence(arguments: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(")):
        models.lenet(**arguments)


def test_other_refusals() -> None:
    with pytest.raises(ValueError, match="3×3 pixels shrinks to nothing under maxpool 2-2"):
        models.cafe_net(size=3, down="maxpool")
    with pytest.raises(ValueError, match="did you mean 'maxpool'"):
        models.cafe_net(down="max_pool")
    with pytest.raises(ValueError, match="widths must be"):
        models.cafe_net(widths=(64, 0))
    with pytest.raises(ValueError, match="33×33 pixels do not divide among 4 workers"):
        models.vertical_net(size=33)
    with pytest.raises(ValueError, match="cannot be cut into 2×2 equal patches"):
        models.split(torch.zeros(3, 5, 4), 4)
    with pytest.raises(ValueError, match="workers must be a positive"):
        models.split(torch.zeros(3, 4, 4), 0)
    with pytest.raises(ValueError, match="unknown norm 'layer'"):
        models.resnet20(norm="layer")
    with pytest.raises(ValueError, match="did you mean 'resnet20'"):
        models.build("resnet2")


@pytest.mark.parametrize("name", models.MODELS)
def test_images_of_another_shape_are_refused(name: str) -> None:
    net = models.build(name, 10)
    with pytest.raises(ValueError, match=r"takes images \(N, 3, 32, 32\), got \(2, 1, 32, 32\)"):
        net(torch.rand(2, 1, 32, 32))
    with pytest.raises(ValueError, match=r"got \(3, 32, 32\)"):
        net(torch.rand(3, 32, 32))
