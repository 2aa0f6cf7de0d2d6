"""Lanes against the closed form (itself equal to autograd), and no trial sees its neighbours."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gleak_core import closed_form, lanes, models, stacks
from gleak_core.device import tolerance
from gleak_core.distances import cosine, squared_l2
from gleak_core.observation import Update, Weights

pytest.importorskip("numba")
SMOOTH = ("Sigmoid", "Tanh", "Softplus", "ELU", "SiLU", "GELU", "Identity")


def stack_of(net: nn.Module) -> tuple[stacks.Layer, ...]:
    stack = stacks.read(net)
    assert stack is not None
    return stack


def problem(
    net: nn.Module, shape: tuple[int, ...], soft: bool = True, dtype: torch.dtype = torch.float64
) -> tuple[Weights, Update, Tensor, Tensor]:
    """Return weights, targets of a gradient's size, dummies (T, B, C, H, W) and dummy labels."""
    generator = torch.Generator().manual_seed(7)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    weights = {n: p.detach().to(dtype) for n, p in net.named_parameters()}
    target = {n: 0.1 * normal(shape[0], *w.shape) for n, w in weights.items()}
    classes = len(list(weights.values())[-1])
    labels = normal(*shape[:2], classes)
    labels = labels.softmax(-1) if soft else (labels == labels.amax(-1, keepdim=True)).to(dtype)
    return weights, target, normal(*shape), labels


def agree(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...], rtol: float) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=rtol, atol=rtol * float(other.abs().max()))


def check(net: nn.Module, shape: tuple[int, ...], soft: bool = True) -> None:
    stack, (weights, target, x, q) = stack_of(net), problem(net, shape, soft)
    assert lanes.supports(stack, weights, target, squared_l2, x.shape)
    wanted = closed_form.value_and_grad(stack, weights, target, squared_l2, x, q)
    evaluate = lanes.Lanes(stack, weights, target)
    agree(evaluate(x, q), wanted, 1e-10)
    agree(evaluate(x, q), wanted, 1e-10)  # nothing of the first call is left in the second


@settings(max_examples=40, deadline=None)
@given(
    sides=st.tuples(st.integers(5, 17), st.integers(5, 17)),
    convolutions=st.lists(
        st.tuples(
            st.integers(1, 5),  # channels
            st.tuples(st.sampled_from([1, 2, 3, 5]), st.sampled_from([1, 3, 5])),  # kernel
            st.tuples(st.integers(1, 3), st.integers(1, 3)),  # stride
            st.tuples(st.integers(0, 2), st.integers(0, 2)),  # padding
            st.booleans(),  # bias
        ),
        max_size=3,
    ),
    hidden=st.lists(st.integers(1, 9), max_size=1),
    classes=st.integers(2, 11),
    act=st.sampled_from(SMOOTH),
    batch=st.integers(1, 3),
    trials=st.integers(1, 10),
    soft=st.booleans(),
    bias=st.booleans(),
)
@example((17, 16), [(3, (2, 5), (3, 2), (0, 2), True)] * 2, [8], 9, "SiLU", 1, 9, True, False)
def test_lanes_equal_the_closed_form(
    sides, convolutions, hidden, classes, act, batch, trials, soft, bias
) -> None:
    layers: list[nn.Module] = []
    channels, (high, wide) = 2, sides
    for width, kernel, stride, padding, own in convolutions:
        if high + 2 * padding[0] < kernel[0] or wide + 2 * padding[1] < kernel[1]:
            break
        layers += [nn.Conv2d(channels, width, kernel, stride, padding, bias=own)]
        layers += [getattr(nn, act)()]
        channels = width
        high = (high + 2 * padding[0] - kernel[0]) // stride[0] + 1
        wide = (wide + 2 * padding[1] - kernel[1]) // stride[1] + 1
    layers += [nn.Flatten()]
    features = channels * high * wide
    for width in hidden:
        layers += [nn.Linear(features, width), getattr(nn, act)()]
        features = width
    with torch.random.fork_rng():
        torch.manual_seed(trials)
        net = nn.Sequential(*layers, nn.Linear(features, classes, bias=bias))
        check(net, (trials, batch, 2, *sides), soft)


@pytest.mark.parametrize("act", sorted(stacks.SLOPES))
def test_every_activation(act: str) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), getattr(nn, act)(), nn.Flatten(), nn.Linear(64, 5)
    )
    check(net, (5, 1, 3, 8, 8))


@pytest.mark.parametrize("batch", [1, 2])
def test_the_published_lenet_in_single_precision(batch: int) -> None:
    net = models.lenet(seed=1)
    shape = (9, batch, 3, 32, 32)
    weights, target, x, q = problem(net, shape, dtype=torch.float32)
    found = lanes.Lanes(stack_of(net), weights, target)(x, q)
    exact = closed_form.value_and_grad(
        stack_of(net),
        {n: w.double() for n, w in weights.items()},
        {n: g.double() for n, g in target.items()},
        squared_l2,
        x.double(),
        q.double(),
    )
    agree(tuple(f.double() for f in found), exact, tolerance(torch.float32).rtol / 10)


def test_hidden_layers_and_every_row_of_a_long_sum() -> None:
    """Sums longer than a chunk, rows that fill no tile, an odd number of classes."""
    check(models.cafe_net(classes=7, size=12, widths=(7, 13), hidden=(10, 17)), (6, 1, 3, 12, 12))
    check(models.cafe_net(classes=7, size=12, widths=(7, 13), hidden=(10, 17)), (6, 2, 3, 12, 12))


TINY = models.lenet(classes=5, size=8, width=4, seed=1)
STACK = stack_of(TINY)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_trial_does_not_depend_on_its_neighbours(dtype: torch.dtype, batch: int) -> None:
    weights, target, x, q = problem(TINY, (20, batch, 3, 8, 8), dtype=dtype)
    many = lanes.Lanes(STACK, weights, target)(x, q)
    few = lanes.Lanes(STACK, weights, {n: g[:3] for n, g in target.items()})(x[:3], q[:3])
    assert all(torch.equal(f, m[:3]) for f, m in zip(few, many, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_trial_that_blew_up_says_so_and_spoils_no_other(bad: float, batch: int) -> None:
    net = models.lenet(classes=5, size=8, width=4, seed=1, activation="softplus")
    weights, target, x, q = problem(net, (11, batch, 3, 8, 8))
    evaluate = lanes.Lanes(stack_of(net), weights, target)
    clean = evaluate(x, q)
    broken = x.clone()
    broken[5, 0, 0, 3, 3] = bad
    spoilt = evaluate(broken, q)
    others = torch.arange(11) != 5
    assert not spoilt[0][5].isfinite() and not spoilt[1][5].isfinite().any(0).all()
    assert all(torch.equal(s[others], c[others]) for s, c in zip(spoilt, clean, strict=True))
    again = evaluate(x, q)  # and nothing of it stays behind
    assert all(torch.equal(a, c) for a, c in zip(again, clean, strict=True))


@pytest.mark.parametrize("keep", [[0, 3, 4, 17], [19, 2], list(range(1, 20)), []])
def test_compact_equals_a_fresh_set_up(keep: list[int]) -> None:
    weights, target, x, q = problem(TINY, (20, 1, 3, 8, 8), dtype=torch.float32)
    whole = lanes.Lanes(STACK, weights, target)
    before = whole(x, q)
    some = torch.tensor(keep, dtype=torch.long)
    fresh = lanes.Lanes(STACK, weights, {n: g[some] for n, g in target.items()})(x[some], q[some])
    mask = torch.zeros(20, dtype=torch.bool)
    mask[some] = True
    parts = [(whole.compact(some), some), (whole.compact(mask), mask.nonzero()[:, 0])]
    for part, which in [*parts, (parts[0][0].compact(some.argsort()), some[some.argsort()])]:
        found = part(x[which], q[which])
        assert all(torch.equal(f, b[which]) for f, b in zip(found, before, strict=True))
    assert all(torch.equal(f, b[some]) for f, b in zip(fresh, before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole(x, q), before, strict=True))


def test_another_size_of_images_makes_another_workspace() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 5))
    weights, target, *_ = problem(net, (3, 1, 3, 8, 8))
    evaluate = lanes.Lanes(stack_of(net), weights, target)
    for shape in [(3, 1, 3, 8, 8), (3, 2, 3, 8, 8), (3, 1, 3, 5, 14), (3, 1, 3, 8, 8)]:
        _, _, x, q = problem(net, shape)
        wanted = closed_form.value_and_grad(stack_of(net), weights, target, squared_l2, x, q)
        agree(evaluate(x, q), wanted, 1e-10)


def test_it_leaves_what_it_was_given() -> None:
    weights, target, x, q = problem(TINY, (9, 1, 3, 8, 8))
    given = [*weights.values(), *target.values(), x.requires_grad_(), q]
    copies = [t.detach().clone() for t in given]
    evaluate = lanes.Lanes(STACK, weights, target)
    first = evaluate(x, q)
    kept = [t.clone() for t in first]
    evaluate(x + 1, q)
    assert all(torch.equal(a, b) for a, b in zip(given, copies, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))  # results are its own
    assert not any(t.requires_grad for t in first)


def test_what_it_cannot_do_is_declined() -> None:
    weights, target, x, _ = problem(TINY, (3, 1, 3, 8, 8))
    name = next(iter(weights))
    stacked = {**weights, name: weights[name].expand(3, *weights[name].shape)}
    partial = {n: g for n, g in target.items() if n != name}
    half = {n: g.half() for n, g in target.items()}
    assert lanes.supports(STACK, weights, target, squared_l2, x.shape)
    assert not lanes.supports(STACK, weights, target, cosine, x.shape)
    assert not lanes.supports(STACK, stacked, target, squared_l2, x.shape)
    assert not lanes.supports(STACK, weights, partial, squared_l2, x.shape)
    assert not lanes.supports(STACK, weights, {**target, "more": x}, squared_l2, x.shape)
    assert not lanes.supports(STACK, weights, half, squared_l2, x.shape)
    assert not lanes.supports(STACK, weights, target, squared_l2, (4, *x.shape[1:]))
    with pytest.raises(ValueError, match="3 trials, called with 2"):
        lanes.Lanes(STACK, weights, target)(x[:2], x[:2])
    with pytest.raises(ValueError, match=r"set up in torch\.float64"):
        lanes.Lanes(STACK, weights, target)(x.float(), x.float())
