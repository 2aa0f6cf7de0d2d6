"""The analytic recursion: exact where it says so, refusing where it must, and never silent."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from measure import noisy
from support import random_batch
from torch import Tensor, nn
from torch.nn import functional as F

from gleak_core import analytic, clients, data, defences, metrics, models, preimage, stacks
from gleak_core.analytic import INVERSES, Recursion, recover
from gleak_core.data import Batch
from gleak_core.errors import GleakError
from gleak_core.observation import MissingCapability, Observation
from gleak_core.stacks import SLOPES, Layer

ACTS = {"sigmoid": "Sigmoid", "tanh": "Tanh", "elu": "ELU", "softplus": "Softplus"}


def observe(net: nn.Module, batch: Batch, **options) -> Observation:
    return clients.fedsgd(net, batch, each=True, **options)


def error(found: Tensor, batch: Batch) -> float:
    return float((found[:, 0] - batch.images.double()).abs().max())


def wide(batch: Batch) -> Batch:
    return dataclasses.replace(batch, images=batch.images.double())


# --- exact -----------------------------------------------------------------------------------


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(
    channels=st.sampled_from([1, 3]),
    size=st.integers(6, 12),
    kernel=st.sampled_from([2, 3, 4, 5]),
    strides=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    width=st.integers(5, 14),
    act=st.sampled_from([*ACTS, "leaky_relu"]),
    seed=st.integers(0, 3),
)
def test_an_exact_gradient_gives_the_image_or_the_network_is_refused(
    channels: int, size: int, kernel: int, strides: list[int], width: int, act: str, seed: int
) -> None:
    net = models.lenet(
        7,
        channels,
        size,
        width=width,
        depth=len(strides),
        kernel=kernel,
        strides=strides,
        activation=act,
        init="xavier",
        seed=seed,
    ).double()
    images = torch.rand(3, channels, size, size, generator=torch.Generator().manual_seed(seed))
    batch = dataclasses.replace(random_batch(3), images=images.double())
    try:
        found = recover(observe(net, batch))
    except GleakError as refusal:
        assert "leave some of the" in str(refusal)
        return
    assert error(found.images, batch) < 1e-4
    assert found.residual.max() < 1e-6
    assert torch.equal(found.labels[:, 0], batch.labels)


CASES = {
    "by classes, gradient alone": {"size": 8, "width": 24},
    "by classes, some left free": {"size": 16, "width": 10},
    "together": {"size": 16, "width": 12},
    "odd size": {"size": 13, "width": 12},
    "stride 3": {"size": 12, "width": 32, "depth": 1, "strides": (3,)},
}


@pytest.mark.parametrize("case", CASES)
def test_every_way_of_solving_is_exact(case: str) -> None:
    options = {"depth": 2, "activation": "sigmoid", **CASES[case]}
    net = models.lenet(5, 3, seed=1, **options).double()
    batch = wide(random_batch(4, size=options["size"]))
    found = recover(observe(net, batch))
    assert error(found.images, batch) < 1e-8
    assert found.residual.max() < 1e-9
    assert found.layers.shape == (4, options["depth"] + 1)
    assert torch.equal(found.residual, found.layers.amax(1))
    assert found.images.shape == (4, 1, 3, options["size"], options["size"])


def test_the_cases_take_the_ways_they_name() -> None:
    def first(**options) -> preimage.Conv:
        net = models.lenet(5, 3, **{"depth": 2, **options})
        weights = {n: p.detach() for n, p in net.named_parameters()}
        layers = stacks.read(net)
        assert layers is not None
        conv = Recursion(layers, weights, net.shape).maps[0]
        assert isinstance(conv, preimage.Conv)
        return conv

    def few(conv: preimage.Conv) -> bool:
        return any(c.rows(conv.out[0]) < len(c.pixels) for c in conv.classes)

    alone, free, together = (first(**case) for case in list(CASES.values())[:3])
    assert not alone.together and not few(alone)
    assert not free.together and few(free)
    assert together.together


def test_hidden_linear_layers_are_passed_with_and_without_a_bias() -> None:
    net = models.cafe_net(4, 3, 12, widths=(16, 24), hidden=(20, 11), seed=2).double()
    batch = wide(random_batch(3, classes=4, size=12))
    seen = observe(net, batch)
    found = recover(seen)
    assert error(found.images, batch) < 1e-8 and found.residual.max() < 1e-9
    plain = nn.Sequential(nn.Flatten(), nn.Linear(27, 9, bias=False), nn.Tanh(), nn.Linear(9, 5))
    batch = wide(random_batch(3, size=3))
    assert error(recover(observe(plain.double(), batch)).images, batch) < 1e-8


def test_kernels_strides_and_paddings_may_differ_between_the_axes() -> None:
    torch.manual_seed(0)
    for stride, padding in [((2, 1), (1, 2)), ((1, 2), (2, 0)), ((2, 2), (0, 1))]:
        net = nn.Sequential(
            nn.Conv2d(2, 14, (4, 3), stride, padding), nn.Tanh(), nn.Flatten(), nn.LazyLinear(6)
        ).double()
        images = torch.rand(3, 2, 10, 7, dtype=torch.double)
        net(images)
        batch = dataclasses.replace(random_batch(3), images=images)
        found = recover(observe(net, batch))
        assert error(found.images, batch) < 1e-8


def test_a_dense_solver_of_all_equations_agrees() -> None:
    """The oracle writes both sets of equations of one layer as a matrix, column by column."""
    draw = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.double)

    for maps, together in [(6, False), (16, True)]:
        weights = {"weight": normal(maps, 2, 3, 3), "bias": normal(maps)}
        layer = Layer("conv", "Tanh", True, (3, 3), (2, 2), (1, 1))
        conv = preimage.Conv(layer, weights, (2, 7, 6))
        assert conv.together is together
        a, delta = normal(1, 2, 7, 6), normal(1, maps, 4, 3)
        unit = torch.eye(84, dtype=torch.double).view(84, 2, 7, 6)

        def gradient(x: Tensor, delta: Tensor = delta, maps: int = maps) -> Tensor:
            w = torch.zeros(maps, 2, 3, 3, dtype=torch.double, requires_grad=True)
            (G,) = torch.autograd.grad((F.conv2d(x, w, None, 2, 1) * delta).sum(), w)
            return G

        A = F.conv2d(unit, weights["weight"], None, 2, 1).flatten(1).T
        M = torch.stack([gradient(x[None]).flatten() for x in unit], 1)
        G, y = gradient(a)[None], F.conv2d(a, weights["weight"], None, 2, 1)
        both = torch.linalg.lstsq(torch.cat([A, M]), torch.cat([y.flatten(), G.flatten()]))
        assert torch.allclose(both.solution, a.flatten())
        assert torch.allclose(conv.solve(G, delta, y, 1e-16), a, atol=1e-9)
        # The pieces, too.
        assert torch.allclose(conv.gradient(a, delta), G.flatten(2))
        up, across = conv.both(a, delta.flatten(2))
        assert torch.allclose(up, y.flatten(2)) and torch.allclose(across, G.flatten(2))
        back = conv.both_transpose(up, across, delta.flatten(2)).flatten()
        assert torch.allclose(back, A.T @ y.flatten() + M.T @ G.flatten())
        assert torch.allclose(conv.transpose(y).flatten(), A.T @ y.flatten())


@pytest.mark.parametrize(
    ("kernel", "stride"), [((5, 5), (2, 2)), ((3, 2), (1, 2)), ((1, 1), (1, 1))]
)
def test_the_factor_inverts_the_forward_equations(
    kernel: tuple[int, int], stride: tuple[int, int]
) -> None:
    weight = torch.randn(14, 2, *kernel, generator=torch.Generator().manual_seed(0)).double()
    padding = kernel[0] // 2, kernel[1] // 2
    layer = Layer("conv", "Tanh", False, kernel, stride, padding)
    conv = preimage.Conv(layer, {"weight": weight}, (2, 11, 6))
    if not conv.together:
        conv.factor = preimage._Factor(conv)
    A = conv.forward(torch.eye(132, dtype=torch.double).view(132, 2, 11, 6)).flatten(1).T
    N = A.T @ A
    N.diagonal().add_(preimage._RIDGE * N.diagonal().mean())
    v = torch.randn(3, 2, 11, 6, generator=torch.Generator().manual_seed(1)).double()
    expected = torch.linalg.solve(N, v.flatten(1).T).T
    # In strips that do not divide the height, the mean is taken over the filling, too: hence rtol.
    assert torch.allclose(conv.factor.solve(v).flatten(1), expected, rtol=1e-2, atol=1e-2)


def test_the_steps_are_few_because_the_factor_stands_in_front(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    solve = preimage._Factor.solve
    monkeypatch.setattr(preimage._Factor, "solve", lambda f, v: calls.append(1) or solve(f, v))
    net = models.lenet(5, 3, 16, depth=2, seed=1).double()
    recover(observe(net, wide(random_batch(2, size=16))))
    assert 3 < len(calls) < 120


@pytest.mark.parametrize("act", sorted(INVERSES))
def test_each_inverse_undoes_its_activation(act: str) -> None:
    inverse, low, high = INVERSES[act]
    z = torch.linspace(-12, 12, 241, dtype=torch.double)
    a = SLOPES[act](z)[0]
    assert (a > low).all() and (a < high).all()
    assert torch.allclose(inverse(a), z, rtol=1e-4)


# --- all at once -----------------------------------------------------------------------------


def test_one_at_a_time_is_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # In doubles: what rounding adds is the processor's affair.
    net = models.lenet(5, 3, 16, depth=2, seed=1).double()
    seen = observe(net, wide(random_batch(5, size=16)))
    whole = recover(seen)
    for t in range(5):
        alone = recover(seen.select([t]))
        assert torch.allclose(alone.images[0], whole.images[t], atol=1e-9, rtol=0)
        assert torch.equal(alone.labels[0], whole.labels[t])
    monkeypatch.setattr(analytic, "_TRIALS", 2)
    assert torch.allclose(recover(seen).images, whole.images, atol=1e-9, rtol=0)
    monkeypatch.setattr(analytic, "_BYTES", 1)
    assert torch.allclose(recover(seen).residual, whole.residual, rtol=1e-2)


def test_a_recursion_is_built_once_for_many_messages() -> None:
    net = models.lenet(5, 3, 8, width=16, depth=2, seed=1).double()
    layers = stacks.read(net)
    assert layers is not None
    weights = {n: p.detach() for n, p in net.named_parameters()}
    recursion = Recursion(layers, weights, (3, 8, 8))
    batch = wide(random_batch(3))
    for seed in range(2):
        batch = wide(random_batch(3, seed=seed))
        assert error(recursion(observe(net, batch).gradient()).images.detach(), batch) < 1e-8
    assert torch.allclose(recursion.forward(batch.images), net(batch.images))


def test_float32_gradients_of_the_textbook_lenet_leak() -> None:
    batch = data.sample("photographs", n=16, balanced=False, seed=1)
    found = recover(observe(models.lenet(100, 3, 32), batch))
    psnr = metrics.psnr(found.images[:, 0].float().clamp(0, 1), batch.images)
    assert int((psnr >= 30).sum()) >= 15
    assert torch.equal(found.labels[:, 0], batch.labels)
    assert found.residual.max() < 1e-2


# --- inexact ---------------------------------------------------------------------------------


def test_noise_shows_in_the_residual_and_in_the_image() -> None:
    net = models.lenet(5, 3, 16, depth=2, seed=1).double()
    batch = wide(random_batch(4, size=16))
    seen = observe(net, batch)
    found = [recover(noisy(seen, share)) for share in (0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)]
    residuals = [float(f.residual.median()) for f in found]
    assert residuals[0] < 1e-10
    assert all(b > 2 * a for a, b in itertools.pairwise(residuals[:5])), residuals
    assert residuals[5] > 1e-2
    assert error(found[-1].images, batch) > 0.1 > 1e-4 > error(found[0].images, batch)
    assert all(f.images.isfinite().all() for f in found)


def test_each_kind_of_layer_notices_a_message_that_was_changed() -> None:
    net = models.cafe_net(4, 3, 12, widths=(16, 24), hidden=(20,), seed=2).double()
    seen = observe(net, wide(random_batch(2, classes=4, size=12)))
    for at, name in enumerate(["features.0", "features.2", "hidden.0", "head"]):
        update = dict(seen.rounds[0].update)
        G = update[f"{name}.weight"]
        bump = torch.randn(G.shape, generator=torch.Generator().manual_seed(0), dtype=G.dtype)
        update[f"{name}.weight"] = G + 0.1 * G.std() * bump
        bent = dataclasses.replace(seen.rounds[0], update=update)
        found = recover(dataclasses.replace(seen, rounds=(bent,)))
        assert (found.layers[:, at] > 1e-2).all(), name
        assert (found.layers[:, at + 1 :] < 1e-9).all()


def test_the_mean_gradient_of_two_images_contradicts_itself() -> None:
    net = models.lenet(5, 3, 8, width=16, depth=2, seed=1).double()
    seen = clients.fedsgd(net, wide(random_batch(2)))
    lie = dataclasses.replace(seen, given=dataclasses.replace(seen.given, batch_size=1))
    assert recover(lie).residual.min() > 1e-2


def test_clipping_protects_nothing() -> None:
    net = models.lenet(5, 3, 16, depth=2, seed=1).double()
    batch = wide(random_batch(3, size=16))
    assert error(recover(observe(net, batch, defence=defences.clip(1e-6))).images, batch) < 1e-6


def test_weights_after_one_local_step_are_a_gradient() -> None:
    net = models.lenet(5, 3, 8, width=16, depth=2, seed=1).double()
    batch = wide(random_batch(3))
    once = recover(clients.fedavg(net, batch, each=True, rate=0.5))
    assert error(once.images, batch) < 1e-6
    twice = recover(clients.fedavg(net, batch, each=True, rate=0.5, epochs=2))
    assert twice.residual.min() > 1e3 * once.residual.max()


@pytest.mark.parametrize("what", [float("nan"), float("inf"), 0.0])
@pytest.mark.parametrize(
    "name", ["head.bias", "head.weight", "features.0.weight", "features.2.weight"]
)
def test_a_trial_without_a_solution_is_grey_and_says_so(name: str, what: float) -> None:
    net = models.lenet(5, 3, 16, depth=2, seed=1).double()
    batch = wide(random_batch(3, size=16))
    seen = observe(net, batch)
    update = {n: g.clone() for n, g in seen.rounds[0].update.items()}
    update[name][1] = what
    found = recover(
        dataclasses.replace(seen, rounds=(dataclasses.replace(seen.rounds[0], update=update),))
    )
    assert found.images.isfinite().all() and not found.residual.isnan().any()
    assert found.residual[1] == torch.inf and (found.images[1] == 0.5).all()
    assert error(found.images[[0, 2]], batch[[0, 2]]) < 1e-6


# --- refusals --------------------------------------------------------------------------------


def refusal(seen: Observation) -> str:
    with pytest.raises(GleakError) as caught:
        recover(seen)
    sentence = str(caught.value)
    assert "\n" not in sentence and ": " in sentence  # what is wrong: what to do
    return sentence


def test_more_than_one_image_is_refused(tiny_net: nn.Module, tiny_batch: Batch) -> None:
    assert "each=True" in refusal(clients.fedsgd(tiny_net, wide(tiny_batch)))


@pytest.mark.parametrize("name", ["weights", "image_shape", "batch_size"])
def test_a_missing_capability_is_refused(name: str, tiny_net: nn.Module, tiny_batch) -> None:
    seen = observe(tiny_net, wide(tiny_batch)).without(name)
    with pytest.raises(MissingCapability, match=name):
        recover(seen)


@pytest.mark.parametrize(
    "net",
    [
        models.resnet(1, 5, 3, 8),
        models.cafe_net(5, 3, 8, widths=(4, 4), hidden=(6,), down="maxpool"),
    ],
    ids=["resnet", "pooling"],
)
def test_other_networks_are_refused(net: nn.Module, tiny_batch: Batch) -> None:
    assert "plain stacks" in refusal(observe(net.double(), wide(tiny_batch)))


def test_a_stack_whose_forward_does_something_else_is_refused(tiny_batch: Batch) -> None:
    class Doubled(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    net = Doubled(nn.Flatten(), nn.Linear(192, 20), nn.Tanh(), nn.Linear(20, 5)).double()
    assert "plain stacks" in refusal(observe(net, wide(tiny_batch)))


@pytest.mark.parametrize("act", ["relu", "gelu", "silu"])
def test_an_activation_that_loses_something_is_refused(act: str, tiny_batch: Batch) -> None:
    net = models.lenet(5, 3, 8, activation=act, width=16).double()
    assert "Sigmoid" in refusal(observe(net, wide(tiny_batch)))


def test_an_underdetermined_layer_is_refused_by_name(tiny_batch: Batch) -> None:
    net = models.lenet(5, 3, 8, width=4, kernel=3, depth=2, seed=1).double()
    assert "'features.0'" in refusal(observe(net, wide(tiny_batch)))
    skips = nn.Sequential(nn.Conv2d(3, 40, 1, 2), nn.Tanh(), nn.Flatten(), nn.Linear(640, 5))
    assert "192 numbers" in refusal(observe(skips.double(), wide(tiny_batch)))


def test_layers_that_were_not_seen_are_refused(tiny_batch: Batch) -> None:
    net = models.lenet(5, 3, 8, width=16, depth=2).double()
    seen = observe(net, wide(tiny_batch))
    assert "'features.2.weight'" in refusal(seen.only("features.0", "head"))
    assert "'head.weight'" in refusal(seen.only("features"))


def test_a_head_without_bias_is_refused(tiny_batch: Batch) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5, bias=False)).double()
    assert "no bias" in refusal(observe(net, wide(tiny_batch)))


def test_several_messages_are_refused_and_weights_apart_are_taken_one_by_one() -> None:
    net = models.lenet(5, 3, 8, width=16, depth=2, seed=1).double()
    batch = wide(random_batch(3))
    seen = clients.several(net, batch, updates=2, each=True)
    assert "seen.message(0)" in refusal(seen)
    second = seen.message(1)
    assert "seen.select([t])" in refusal(second)
    assert error(recover(second.select([2])).images, batch[2:]) < 1e-8
