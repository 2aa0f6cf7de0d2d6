"""What an attack minimises: every evaluator against plain autograd, and how objectives combine."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from support import random_batch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from gleak_core import clients, lanes, models, stacks
from gleak_core.distances import DISTANCES, Distance, Masked, squared_l2, surviving
from gleak_core.errors import GleakError
from gleak_core.objectives import Dummies, GradientMatch, Repeated, Total, some
from gleak_core.observation import (
    Given,
    MissingCapability,
    Observation,
    Round,
    Update,
    Weights,
    bare,
)
from gleak_core.pool import Objective

CLASSES = 3
Plain = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]


def flat(layers: Sequence[Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in layers])


def apart(f: Tensor, g: Tensor) -> Tensor:
    return (f - g).pow(2).sum()


def turned(f: Tensor, g: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(f.flatten(), g.flatten(), 0)


PLAIN: Mapping[str, Plain] = {  # of one trial, layer by layer
    "squared_l2": lambda f, g: apart(flat(f), flat(g)),
    "relative_l2": lambda f, g: flat(
        [apart(a, b) / b.pow(2).sum() for a, b in zip(f, g, strict=True)]
    ).sum(),
    "l2_per_layer": lambda f, g: flat(
        [apart(a, b).sqrt() for a, b in zip(f, g, strict=True)]
    ).sum(),
    "cosine": lambda f, g: turned(flat(f), flat(g)),
    "cosine_per_layer": lambda f, g: flat([turned(a, b) for a, b in zip(f, g, strict=True)]).sum(),
}


def uniform(shape: Sequence[int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(tuple(shape), generator=generator, dtype=torch.float64)


def normal(shape: Sequence[int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64)


def observed(
    net: nn.Module,
    trials: int,
    shape: tuple[int, int, int, int],
    *,
    stacked: bool = False,
    seed: int = 0,
    pruned: bool = False,
) -> Observation:
    """A message at random: no gradient of any batch, so that nothing cancels by accident."""
    update, weights = Update(), Weights()
    for i, (n, p) in enumerate(net.named_parameters()):
        update[n] = 0.3 * normal((trials, *p.shape), 100 * seed + i)
        if pruned:
            most = update[n].flatten(1).amax(1).view(-1, *[1] * p.dim())  # something is left
            update[n] *= (uniform(update[n].shape, seed + i) < 0.6) | (update[n] == most)
        own = p.detach().clone()
        weights[n] = own + 0.1 * normal((trials, *p.shape), 77 * seed + i) if stacked else own
    weights |= {n: b.clone() for n, b in net.named_buffers()}
    granted = Given(weights=True, image_shape=shape[1:], batch_size=shape[0])
    return Observation(bare(net), (Round(update, weights),), granted, "made up")


def reference(
    net: nn.Module,
    seen: Observation,
    x: Tensor,
    y: Tensor,
    labels: Tensor | None,
    plain: Plain,
    masked: bool = False,
) -> tuple[Tensor, Tensor, float]:
    """Zhu et al.'s closure for one trial after the other, with none of the library's code.

    Also the least max|p − y|: a gradient is made of p − y, which has lost figures where p ≈ y.
    """
    values, slopes, doubts = [], [], []
    own = dict(net.named_parameters())
    held = seen.rounds[0].weights
    assert held is not None
    for t in range(len(x)):
        weights = {
            n: (w[t] if n in own and w.dim() > own[n].dim() else w)
            .detach()
            .requires_grad_(n in own)
            for n, w in held.items()
        }
        dummy, guess = x[t].clone().requires_grad_(), y[t].clone().requires_grad_()
        target = guess.softmax(1) if labels is None else F.one_hot(labels[t], y.shape[2]).double()
        answer = functional_call(net, weights, (dummy,))
        loss = -(target * answer.log_softmax(1)).sum() / len(dummy)
        names = list(seen.rounds[0].update)
        fake = torch.autograd.grad(loss, [weights[n] for n in names], create_graph=True)
        true = [seen.rounds[0].update[n][t] for n in names]
        if masked:
            fake = [f * (g != 0) for f, g in zip(fake, true, strict=True)]
        value = plain(fake, true)
        wanted = [dummy, guess] if labels is None else [dummy]
        values.append(value.detach())
        slopes.append(flat(torch.autograd.grad(value, wanted)))
        doubts.append((answer.softmax(1) - target).detach().abs().max())
    return torch.stack(values), torch.stack(slopes), float(torch.stack(doubts).min())


def agree(
    net: nn.Module, seen: Observation, name: str, *, joint: bool, masked: bool = False
) -> None:
    """Every evaluator that takes this network gives the numbers of plain autograd."""
    batch, *image = (seen.given.batch_size or 0), *(seen.given.image_shape or ())
    x = 1.4 * uniform((seen.trials, batch, *image), 5) - 0.2
    y = normal((seen.trials, batch, CLASSES), 6)
    known = None if joint else torch.arange(seen.trials * batch).view(seen.trials, batch) % CLASSES
    wanted = reference(net, seen, x, y, known, PLAIN[name], masked)
    distance: Distance = DISTANCES[name]
    if masked:
        distance = Masked(distance, surviving(seen.gradient()))
    if wanted[2] < 1e-4:  # a network drawn so sure of itself that its gradient is rounding
        reject()
    exact = max(1e-10, 1e-14 / wanted[2])
    held = seen.rounds[0].weights
    assert held is not None
    shared = all(held[n].shape == p.shape for n, p in net.named_parameters())
    plain_stack = shared and stacks.read(seen.architecture) is not None
    for evaluator in (*(["closed_form"] if plain_stack else []), "vmap", "autograd", "auto"):
        match = GradientMatch.of(
            seen, labels=known, by="test", distance=distance, evaluator=evaluator
        )
        if evaluator != "auto":
            assert match.evaluator == evaluator
        value, slope = match.value_and_grad(match.dummies.pack(x, y))
        assert not value.requires_grad and not slope.requires_grad
        torch.testing.assert_close(value, wanted[0], rtol=exact, atol=1e-12)
        # Of a slope that cancels, what is left is as exact as the largest entry.
        atol = exact * float(wanted[1].abs().max() + 1e-3)
        torch.testing.assert_close(slope, wanted[1], rtol=exact, atol=atol)


def mixed_stack(act: Callable[[], nn.Module], channels: int = 2) -> nn.Sequential:
    """Kernels, strides and paddings that are not square, layers with and without bias."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(channels, 3, (3, 2), (2, 1), (1, 0), bias=False),
            act(),
            nn.Conv2d(3, 2, 3, (1, 3), (0, 2)),
            act(),
            nn.Flatten(),
            nn.LazyLinear(5, bias=False),
            act(),
            nn.Linear(5, CLASSES),
        ).double()


def ready(net: nn.Module, image: tuple[int, int, int]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        net(torch.zeros((1, *image), dtype=torch.float64))  # lazy layers learn their sizes
    return net


# --- the evaluators ---------------------------------------------------------------------------


@st.composite
def networks(draw: st.DrawFn) -> models.ConvNet:
    act = draw(st.sampled_from(sorted(models.ACTIVATIONS)))
    size, kernel = draw(st.integers(5, 13)), draw(st.sampled_from([3, 5]))
    width, depth = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    init = draw(st.sampled_from(["uniform", "pytorch", "normal"]))
    common = {"kernel": kernel, "activation": act, "init": init, "seed": draw(st.integers(0, 99))}
    if draw(st.booleans()):
        hidden = draw(st.lists(st.integers(2, 6), min_size=1, max_size=2))
        net = models.cafe_net(CLASSES, 2, size, widths=[width] * depth, hidden=hidden, **common)
    else:
        strides = draw(st.lists(st.integers(1, 3), min_size=depth, max_size=depth))
        net = models.lenet(CLASSES, 2, size, width=width, depth=depth, strides=strides, **common)
    return net.double()


@settings(max_examples=40, deadline=None)
@given(
    net=networks(),
    t=st.integers(1, 3),
    b=st.integers(1, 3),
    name=st.sampled_from(sorted(DISTANCES)),
    joint=st.booleans(),
    stacked=st.booleans(),
    part=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_evaluator_equals_the_closure(
    net: models.ConvNet,
    t: int,
    b: int,
    name: str,
    joint: bool,
    stacked: bool,
    part: bool,
    seed: int,
) -> None:
    seen = observed(net, t, (b, *net.shape), stacked=stacked, seed=seed)
    agree(net, seen.only("head", "features.0") if part else seen, name, joint=joint)


@pytest.mark.parametrize("act", stacks.SLOPES)
def test_every_activation_of_a_stack(act: str) -> None:
    net = ready(mixed_stack(getattr(nn, act)), (2, 7, 9))
    assert stacks.read(net) is not None
    for joint in (True, False):
        agree(net, observed(net, 2, (2, 2, 7, 9)), "squared_l2", joint=joint)


@pytest.mark.parametrize("act", models.ACTIVATIONS)
def test_every_activation_of_the_papers_networks_is_a_plain_stack(act: str) -> None:
    net = models.lenet(CLASSES, 2, 6, width=2, activation=act).double()
    agree(net, observed(net, 2, (1, 2, 6, 6)), "squared_l2", joint=False)
    seen = observed(net, 2, (1, 2, 6, 6))
    assert GradientMatch.of(seen, labels=None, by="test").stack


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("name", DISTANCES)
def test_every_distance(name: str, pruned: bool) -> None:
    net = models.cafe_net(CLASSES, 2, 6, widths=[2, 2], hidden=[4], kernel=3).double()
    seen = observed(net, 3, (2, 2, 6, 6), pruned=pruned)
    agree(net, seen, name, joint=True, masked=pruned)


@pytest.mark.parametrize("missing", [1, 2, 3, 4])
def test_with_one_layer_missing_from_the_message(missing: int) -> None:
    net = models.lenet(CLASSES, 2, 7, width=2).double()
    layers = ["features.0", "features.2", "features.4", "head"]
    left = [n for i, n in enumerate(layers, start=1) if i != missing]
    if missing < 4:
        agree(net, observed(net, 2, (2, 2, 7, 7)).only(*left), "squared_l2", joint=True)
    else:
        with pytest.raises(GleakError, match="last fully connected layer"):
            GradientMatch.of(observed(net, 2, (2, 2, 7, 7)).only(*left), labels=None, by="test")


def test_with_one_half_of_a_layer_missing_from_the_message() -> None:
    net = models.lenet(CLASSES, 2, 7, width=2).double()
    seen = observed(net, 2, (2, 2, 7, 7))
    for gone in ("features.2.weight", "features.2.bias", "features.0.weight"):
        left = {n: g for n, g in seen.rounds[0].update.items() if n != gone}
        part = replace(seen, rounds=(replace(seen.rounds[0], update=left),))
        agree(net, part, "squared_l2", joint=False)


def test_weights_that_moved_apart(tiny_net: nn.Module) -> None:
    """From a client itself: at the second message every trial has weights of its own."""
    batch = random_batch(3, classes=5)
    seen = clients.several(tiny_net, batch, updates=2, each=True, rate=0.5).message(1)
    truth = batch.images[:, None].double()
    own = batch.labels[:, None]
    for evaluator in ("auto", "vmap", "autograd"):
        match = GradientMatch.of(seen, labels=own, by="test", evaluator=evaluator)
        assert match.evaluator != "closed_form"
        value, slope = match.value_and_grad(match.dummies.pack(truth))
        assert value.max() < 1e-25 and slope.abs().max() < 1e-11
        # … and not with a neighbour's weights.
        turned = match.compact(torch.tensor([1, 2, 0])).value_and_grad(match.dummies.pack(truth))
        assert turned[0].min() > 1e-8


def test_the_second_of_several_messages(tiny_net: nn.Module) -> None:
    batch = random_batch(2, classes=5)
    seen = clients.several(tiny_net, batch, updates=2, rate=0.5)
    z = batch.images.double().flatten()[None]
    for round in (0, 1):
        match = GradientMatch.of(seen, labels=batch.labels[None], by="test", round=round)
        assert float(match.value_and_grad(z)[0]) < 1e-25
    mixed = replace(match, target=seen.gradient(0))
    assert float(mixed.value_and_grad(z)[0]) > 1e-8


def test_weights_as_a_message(tiny_net: nn.Module) -> None:
    batch = random_batch(2, classes=5)
    seen = clients.fedavg(tiny_net, batch, rate=0.1, batch_size=2)
    match = GradientMatch.of(seen, labels=batch.labels[None], by="test")
    assert float(match.value_and_grad(match.dummies.pack(batch.images[None].double()))[0]) < 1e-25


@pytest.mark.parametrize("norm", models.NORMS)
def test_a_residual_network(norm: str) -> None:
    net = models.resnet(1, CLASSES, 2, 5, norm=norm).double()
    seen = observed(net, 2, (2, 2, 5, 5))
    agree(net, seen, "squared_l2", joint=False)


NORMS: Mapping[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm2d(2, track_running_stats=False),
    "instance": lambda: nn.InstanceNorm2d(2, affine=True),
    "layer": lambda: nn.LayerNorm([2, 4, 4]),
    "group": lambda: nn.GroupNorm(1, 2),
    "running": lambda: nn.BatchNorm2d(2).eval(),
}


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_statistics_of_the_dummies_take_part_in_the_slope(norm: str, stacked: bool) -> None:
    """PyTorch's `vmap` inside an autograd graph loses their share; the values are right then."""
    net = nn.Sequential(nn.Conv2d(2, 2, 3), NORMS[norm](), nn.Tanh(), *head(32)).double()
    for i, p in enumerate(net.parameters()):
        p.data = 0.5 * normal(p.shape, i)
    agree(net, observed(net, 3, (2, 2, 6, 6), stacked=stacked), "squared_l2", joint=True)


def test_a_network_with_running_statistics_and_weights_that_moved_apart() -> None:
    net = normed(seed=2)
    batch = random_batch(2, classes=CLASSES, size=6)
    seen = clients.several(net, batch, updates=2, each=True, rate=0.5)
    for round in (0, 1):
        z = batch.images[:, None].double().flatten(1)
        for evaluator in ("vmap", "autograd"):
            match = GradientMatch.of(
                seen, labels=batch.labels[:, None], by="test", evaluator=evaluator, round=round
            )
            assert match.value_and_grad(z)[0].max() < 1e-25


def normed(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2),
            nn.BatchNorm2d(4),
            nn.Sigmoid(),
            nn.Flatten(),
            nn.Linear(16, CLASSES),
        ).double()
        net(torch.rand((8, 3, 6, 6), dtype=torch.float64))
    return net.eval()


# --- what is a stack, and what only looks like one --------------------------------------------


def head(width: int) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(width, CLASSES)]


NO_STACK: Mapping[str, Callable[[], nn.Module]] = {
    "pooling": lambda: nn.Sequential(nn.Conv2d(2, 2, 3), nn.MaxPool2d(2), *head(8)),
    "groups": lambda: nn.Sequential(nn.Conv2d(2, 2, 3, groups=2), nn.ReLU(), *head(32)),
    "dilation": lambda: nn.Sequential(nn.Conv2d(2, 2, 3, dilation=2), nn.ReLU(), *head(8)),
    "reflection": lambda: nn.Sequential(
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), *head(72)
    ),
    "padding by name": lambda: nn.Sequential(nn.Conv2d(2, 2, 3, padding="same"), *head(72)),
    "dropout": lambda: nn.Sequential(nn.Conv2d(2, 2, 3), nn.Dropout(), *head(32)),
    "two activations": lambda: nn.Sequential(nn.Conv2d(2, 2, 3), nn.Tanh(), nn.ReLU(), *head(32)),
    "an activation first": lambda: nn.Sequential(nn.Tanh(), nn.Conv2d(2, 2, 3), *head(32)),
    "an activation last": lambda: nn.Sequential(nn.Conv2d(2, 2, 3), *head(32), nn.ReLU()),
    "another slope": lambda: nn.Sequential(nn.Conv2d(2, 2, 3), nn.LeakyReLU(0.2), *head(32)),
    "no linear layer": lambda: nn.Sequential(nn.Conv2d(2, CLASSES, 6), nn.Flatten()),
    "other parts": lambda: nn.ModuleDict({"features": nn.Conv2d(2, 2, 3), "head": nn.Linear(2, 2)}),
    "resnet": lambda: models.resnet(1, CLASSES, 2, 6),
    "avgpool": lambda: models.cafe_net(CLASSES, 2, 8, widths=[2], hidden=[3], down="avgpool"),
    "vertical": lambda: models.vertical_net(CLASSES, 2, 8, 2, widths=[2], hidden=[3], vector=2),
}


@pytest.mark.parametrize("name", NO_STACK)
def test_what_is_no_stack_is_not_read_as_one(name: str) -> None:
    assert stacks.read(NO_STACK[name]()) is None


def test_a_stack_is_read_layer_by_layer() -> None:
    net = ready(mixed_stack(nn.Tanh), (2, 7, 9))
    assert stacks.read(net) == (
        stacks.Layer("0", "Tanh", False, (3, 2), (2, 1), (1, 0)),
        stacks.Layer("2", "Tanh", True, (3, 3), (1, 3), (0, 2)),
        stacks.Layer("5", "Tanh", False),
        stacks.Layer("7", "Identity", True),
    )
    read = stacks.read(models.cafe_net(CLASSES, 2, 8, widths=[2], hidden=[4]))
    assert read == (
        stacks.Layer("features.0", "Sigmoid", True, (5, 5), (2, 2), (2, 2)),
        stacks.Layer("hidden.0", "Sigmoid", True),
        stacks.Layer("head", "Identity", True),
    )


class Disguised(nn.Module):
    """Children like a plain stack's, and a forward of its own."""

    def __init__(
        self, act: Callable[[Tensor], Tensor], inner: int = 32, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Sigmoid())
        self.hidden = nn.Sequential()
        self.head = nn.Linear(inner, CLASSES)
        self.act = act
        models.initialise(self, "uniform", scale=scale / 2)


class Before(Disguised):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(self.act(x)).flatten(1))


class Between(Disguised):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.features(x)).flatten(1))


class After(Disguised):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.head(self.features(x).flatten(1)))


def own_sigmoid() -> nn.Module:
    class Sigmoid(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.square()

    return Sigmoid()


IN_DISGUISE: Mapping[str, Callable[[], nn.Module]] = {
    "clipped input": lambda: Before(lambda x: x.clamp(0, 1)),
    "centred input": lambda: Before(lambda x: x - x.mean(0)),
    "normalised input": lambda: Before(lambda x: (x - 0.5) / 0.25),
    "flipped input": lambda: Before(lambda x: x.flip(-1)),
    "clipped input, small weights": lambda: Before(lambda x: x.clamp(0, 1), scale=1e-3),
    "pooled": lambda: Between(lambda a: F.max_pool2d(a, 2), 8),
    "pooled without shrinking": lambda: Between(lambda a: F.avg_pool2d(a, 3, 1, 1)),
    "squared": lambda: Between(lambda a: a * a, scale=1e-3),
    "softmax": lambda: After(lambda a: a.softmax(1)),
    "scaled": lambda: After(lambda a: a * 1.01),
    "fewer answers": lambda: After(lambda a: a[:, :2]),
    "own sigmoid": lambda: nn.Sequential(nn.Conv2d(2, 2, 3), own_sigmoid(), *head(32)),
    "linear along rows": lambda: nn.Sequential(nn.Linear(6, 4), nn.Sigmoid(), *head(48)),
    "a layer used twice": lambda: (lambda c: nn.Sequential(c, nn.Tanh(), c, *head(8)))(
        nn.Conv2d(2, 2, 3)
    ),
}


@pytest.mark.parametrize("name", IN_DISGUISE)
def test_a_network_that_only_looks_like_a_stack_is_found_out(name: str) -> None:
    net = IN_DISGUISE[name]().double()
    assert stacks.read(net) is not None
    seen = observed(net, 2, (1, 2, 6, 6))
    match = GradientMatch.of(seen, labels=None, by="test")
    assert match._read() == () and match.stack == () and match.evaluator == "vmap"
    with pytest.raises(ValueError, match="'closed_form' is for stacks of convolutions"):
        GradientMatch.of(seen, labels=None, by="test", evaluator="closed_form")


def test_the_same_disguise_with_nothing_under_it_is_a_stack() -> None:
    for scale in (1.0, 1e-3, 10.0):
        net = Between(lambda a: a, scale=scale)
        for each in (net.double(), net.float()):
            seen = observed(each, 2, (1, 2, 6, 6))
            held = {n: p.detach() for n, p in each.named_parameters()}
            seen = replace(seen, rounds=(replace(seen.rounds[0], weights=held),))
            assert GradientMatch.of(seen, labels=None, by="test").stack


# --- which evaluator --------------------------------------------------------------------------


@pytest.mark.parametrize("evaluator", ["closed_form", "lanes"])
def test_what_needs_a_stack_refuses_anything_else(evaluator: str) -> None:
    net = models.resnet(1, CLASSES, 2, 6)
    apart = observed(models.lenet(CLASSES, 2, 6, width=2).double(), 2, (1, 2, 6, 6), stacked=True)
    for seen in (observed(net, 1, (1, 2, 6, 6)), apart):
        with pytest.raises(ValueError, match=rf"'{evaluator}'.*use evaluator='auto'"):
            GradientMatch.of(seen, labels=None, by="test", evaluator=evaluator)


def test_auto_goes_by_size_where_there_is_no_stack() -> None:
    net = models.resnet20(CLASSES, 1, 32)
    for batch, wanted in ((1, "vmap"), (8, "vmap"), (9, "autograd"), (64, "autograd")):
        seen = observed(net.double(), 1, (batch, 1, 32, 32))
        assert GradientMatch.of(seen, labels=None, by="test").evaluator == wanted
        for wish in ("vmap", "autograd"):
            match = GradientMatch.of(seen, labels=None, by="test", evaluator=wish)
            assert match.evaluator == wish


def of_lenet(trials: int, batch: int) -> Observation:
    net = models.lenet(CLASSES, 1, 32, width=1).double()
    return observed(net, trials, (batch, 1, 32, 32))


@pytest.mark.skipif(not lanes.available(), reason="numba is not installed")
@pytest.mark.parametrize(
    ("trials", "batch", "abreast", "wanted"),
    [
        (1, 1, None, "lanes"),
        (1, 4, None, "closed_form"),  # seven of eight lanes would be idle
        (2, 4, None, "lanes"),
        (1, 4, 2, "lanes"),  # two starts against one message
        (2, 16, None, "autograd"),
        (1, 16, 4, "lanes"),
        (4, 16, None, "lanes"),
        (4, 16, 1, "autograd"),  # four messages, one after the other
    ],
)
def test_auto_goes_by_trials_and_size_on_a_stack(
    trials: int, batch: int, abreast: int | None, wanted: str
) -> None:
    seen = of_lenet(trials, batch)
    assert GradientMatch.of(seen, labels=None, by="test", abreast=abreast).evaluator == wanted


@pytest.mark.parametrize(("batch", "wanted"), [(1, "closed_form"), (16, "autograd")])
def test_auto_without_numba(batch: int, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "available", lambda: False)
    seen = of_lenet(4, batch)
    assert GradientMatch.of(seen, labels=None, by="test").evaluator == wanted
    with pytest.raises(ValueError, match=r"pip install 'gleak\[fast\]'"):
        GradientMatch.of(seen, labels=None, by="test", evaluator="lanes")


def test_who_asks_for_lanes_gets_lanes_at_any_size() -> None:
    seen = of_lenet(1, 16)
    for wish in ("closed_form", *(["lanes"] if lanes.available() else [])):
        assert GradientMatch.of(seen, labels=None, by="test", evaluator=wish).evaluator == wish


def test_an_unknown_evaluator_is_refused_by_its_nearest_name(tiny_net, tiny_batch) -> None:
    with pytest.raises(ValueError, match="did you mean 'closed_form'"):
        GradientMatch.of(
            clients.fedsgd(tiny_net, tiny_batch), labels=None, by="test", evaluator="closedform"
        )


@pytest.mark.parametrize("missing", ["weights", "image_shape", "batch_size"])
def test_an_objective_needs_what_it_needs(tiny_net, tiny_batch, missing: str) -> None:
    blind = clients.fedsgd(tiny_net, tiny_batch).without(missing)
    with pytest.raises(MissingCapability, match=f"the test needs {missing}"):
        GradientMatch.of(blind, labels=None, by="the test")


# --- some of the trials -----------------------------------------------------------------------


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("joint", [False, True])
def test_compact_takes_some_of_the_trials(stacked: bool, joint: bool) -> None:
    net = models.lenet(CLASSES, 2, 6, width=2).double()
    seen = observed(net, 4, (2, 2, 6, 6), stacked=stacked, pruned=True)
    known = None if joint else torch.arange(8).view(4, 2) % CLASSES
    distance = Masked(DISTANCES["cosine"], surviving(seen.gradient()))
    keep = torch.tensor([3, 0, 3])
    for evaluator in ("vmap", "autograd", *([] if stacked else ["closed_form"])):
        match = GradientMatch.of(
            seen, labels=known, by="test", distance=distance, evaluator=evaluator
        )
        z = match.dummies.pack(uniform((4, 2, 2, 6, 6), 1), normal((4, 2, CLASSES), 2))
        whole, part = match.value_and_grad(z), match.compact(keep).value_and_grad(z[keep])
        for w, p in zip(whole, part, strict=True):
            torch.testing.assert_close(p, w[keep], rtol=1e-11, atol=1e-13)
        assert match.compact(keep).evaluator == evaluator
        torch.testing.assert_close(match.compact(keep).scale, match.scale[keep])


def test_trials_know_nothing_of_one_another() -> None:
    net = models.lenet(CLASSES, 2, 6, width=2).double()
    seen = observed(net, 3, (2, 2, 6, 6))
    z = uniform((3, 2 * 72), 3)
    wild = z.clone()
    wild[1] = torch.nan
    for evaluator in ("closed_form", "vmap", "autograd"):
        labels = torch.zeros(3, 2, dtype=torch.long)
        match = GradientMatch.of(seen, labels=labels, by="test", evaluator=evaluator)
        value, slope = match.value_and_grad(wild)
        calm = match.value_and_grad(z)
        assert value[1].isnan() and torch.equal(value[[0, 2]], calm[0][[0, 2]])
        assert torch.equal(slope[[0, 2]], calm[1][[0, 2]])


def test_some_of_anything() -> None:
    keep = torch.tensor([2, 0])
    tensor = torch.arange(6).view(3, 2)
    assert some(tensor, keep).tolist() == [[4, 5], [0, 1]]
    nested = some({"a": tensor, "b": {"c": tensor[:, 0]}}, keep)
    assert nested["a"].tolist() == [[4, 5], [0, 1]] and nested["b"]["c"].tolist() == [4, 0]
    assert some(squared_l2, keep) is squared_l2
    assert some(Masked(squared_l2, {"a": tensor > 2}), keep).mask["a"].tolist() == [
        [True, True],
        [False, False],
    ]


# --- sums and repetitions ---------------------------------------------------------------------


class Bowl:
    """c_t · ‖z − t‖², which knows its trial."""

    def __init__(self, steep: Tensor) -> None:
        self.steep = steep
        self.taken: list[list[int]] = []

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.steep * z.square().sum(1), 2 * self.steep[:, None] * z

    def compact(self, keep: Tensor) -> "Bowl":
        self.taken.append(keep.tolist())
        return Bowl(self.steep[keep])


def test_total_adds_values_and_gradients_by_weight() -> None:
    z = normal((2, 3), 1)
    one, two = Bowl(torch.tensor([1.0, 2.0]).double()), Bowl(torch.tensor([5.0, 7.0]).double())
    value, slope = Total(((0.5, one), (-3.0, two), (2.0, one))).value_and_grad(z)
    steep = torch.tensor([0.5 - 15 + 2, 1 - 21 + 4]).double()
    torch.testing.assert_close(value, steep * z.square().sum(1))
    torch.testing.assert_close(slope, 2 * steep[:, None] * z)
    keep = torch.tensor([1])
    part = Total(((0.5, one), (-3.0, two), (2.0, one))).compact(keep).value_and_grad(z[keep])
    torch.testing.assert_close(part[0], value[keep])
    torch.testing.assert_close(part[1], slope[keep])


def test_a_total_of_one_weighs_too() -> None:
    z = normal((1, 3), 1)
    value, slope = Total(((0.25, Bowl(torch.ones(1).double())),)).value_and_grad(z)
    torch.testing.assert_close(value, z.square().sum(1) / 4)
    torch.testing.assert_close(slope, z / 2)


def test_repeated_copies_nothing_before_some_are_taken() -> None:
    bowl = Bowl(torch.tensor([1.0, 10.0, 100.0]).double())
    repeated = Repeated(bowl, 4)
    assert bowl.taken == []
    part = repeated.compact(torch.tensor([0, 3, 4, 11, 7]))
    assert bowl.taken == [[0, 0, 1, 2, 1]]
    assert isinstance(part, Bowl) and part.steep.tolist() == [1, 1, 10, 100, 10]


@pytest.mark.parametrize("stacked", [False, True])
def test_repeated_is_the_objective_of_a_repeated_observation(stacked: bool) -> None:
    net = models.lenet(CLASSES, 2, 6, width=2).double()
    seen = observed(net, 2, (1, 2, 6, 6), stacked=stacked)
    labels = torch.tensor([[0], [2]])
    z = uniform((6, 72), 3)
    once: Objective = Total(((2.0, GradientMatch.of(seen, labels=labels, by="test")),))
    by_hand = GradientMatch.of(seen.restarts(3), labels=labels.repeat_interleave(3, 0), by="test")
    wanted = by_hand.value_and_grad(z)
    found = Repeated(once, 3).value_and_grad(z)
    for f, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(f, 2 * w, rtol=1e-11, atol=1e-13)


# --- beside the value -------------------------------------------------------------------------


def test_scale_is_how_far_no_gradient_is() -> None:
    net = models.lenet(CLASSES, 2, 6, width=2).double()
    seen = observed(net, 3, (1, 2, 6, 6))
    update = seen.rounds[0].update
    squares = [[float(g[t].square().sum()) for g in update.values()] for t in range(3)]
    wanted = {
        "squared_l2": [sum(s) for s in squares],
        "relative_l2": [len(update)] * 3,
        "l2_per_layer": [sum(math.sqrt(q) for q in s) for s in squares],
        "cosine": [1] * 3,
        "cosine_per_layer": [len(update)] * 3,
    }
    for name, distance in DISTANCES.items():
        match = GradientMatch.of(seen, labels=None, by="test", distance=distance)
        torch.testing.assert_close(match.scale, torch.tensor(wanted[name], dtype=torch.float64))


def test_floats_grow_with_all_that_grows() -> None:
    def floats(batch: int = 2, size: int = 8, width: int = 2, kernel: int = 3) -> int:
        net = models.lenet(CLASSES, 2, size, width=width, kernel=kernel).double()
        seen = observed(net, 1, (batch, 2, size, size))
        return GradientMatch.of(seen, labels=None, by="test").floats

    least = floats()
    assert least > 2 * 2 * 8 * 8  # more than the images alone
    assert floats(batch=4) > 1.5 * least and floats(size=16) > 3 * least
    assert floats(width=4) > 1.5 * least and floats(kernel=5) > least
    deep = observed(models.resnet20(CLASSES, 2, 8).double(), 1, (2, 2, 8, 8))
    match = GradientMatch.of(deep, labels=None, by="test")
    assert match.floats > 10 * least
    assert not any(m._forward_hooks for m in match.architecture.modules())
    assert match.floats == match.compact(torch.tensor([0, 0, 0])).floats  # one trial's


def test_answer_gives_logits_and_the_inputs_of_layers() -> None:
    net = models.cafe_net(CLASSES, 2, 6, widths=[2], hidden=[4]).double()
    x = uniform((3, 2, 2, 6, 6), 1)
    for stacked in (False, True):
        seen = observed(net, 3, (2, 2, 6, 6), stacked=stacked)
        match = GradientMatch.of(seen, labels=None, by="test")
        logits, inputs = match.answer(x, ("hidden.0", "head"))
        held = seen.rounds[0].weights
        assert held is not None
        for t in range(3):
            own = {n: w[t] if stacked else w for n, w in held.items()}
            inner = F.conv2d(x[t], own["features.0.weight"], own["features.0.bias"], 2, 2).sigmoid()
            torch.testing.assert_close(inputs["hidden.0"][t], inner.flatten(1))
            deep = F.linear(
                inner.flatten(1), own["hidden.0.weight"], own["hidden.0.bias"]
            ).sigmoid()
            torch.testing.assert_close(inputs["head"][t], deep)
            last = F.linear(deep, own["head.weight"], own["head.bias"])
            torch.testing.assert_close(logits[t], last)
        assert not any(m._forward_pre_hooks for m in match.architecture.modules())


# --- how dummies lie in z ---------------------------------------------------------------------


def test_packing_and_unpacking_are_inverse() -> None:
    images, logits = uniform((3, 2, 1, 4, 5), 1), normal((3, 2, 7), 2)
    joint = Dummies((2, 1, 4, 5), 7, None)
    z = joint.pack(images, logits)
    assert z.shape == (3, joint.unknowns) == (3, 40 + 14) and joint.pixels == 40
    assert torch.equal(joint.images(z), images)
    torch.testing.assert_close(joint.soft_labels(z), logits.softmax(-1))
    assert torch.equal(joint.images(z[None]), images[None])  # frames (F, T, n) too


def test_fixed_labels_take_no_place_in_z() -> None:
    images, logits = uniform((3, 2, 1, 4, 5), 1), normal((3, 2, 7), 2)
    labels = torch.tensor([[0, 6], [3, 3], [1, 2]])
    fixed = Dummies((2, 1, 4, 5), 7, labels)
    z = fixed.pack(images, logits)
    assert z.shape == (3, fixed.unknowns) == (3, 40)
    assert torch.equal(fixed.images(z), images)
    soft = fixed.soft_labels(z)
    assert soft.dtype == z.dtype and torch.equal(soft, F.one_hot(labels, 7).double())
    part = fixed.compact(torch.tensor([2, 2]))
    assert part.soft_labels(z).argmax(-1).tolist() == [[1, 2], [1, 2]]


def test_joint_dummies_need_a_start_for_their_labels() -> None:
    joint = Dummies((2, 1, 4, 5), 7, None)
    with pytest.raises(ValueError, match="joint labels need a start"):
        joint.pack(uniform((3, 2, 1, 4, 5), 1))


def test_labels_start_in_the_precision_of_the_images() -> None:
    joint = Dummies((2, 1, 4, 5), 7, None)
    z = joint.pack(uniform((3, 2, 1, 4, 5), 1).float(), normal((3, 2, 7), 2))
    assert z.dtype == torch.float32
