"""Terms beside the distance: each against numbers worked out by hand, and what each must not do."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support import random_batch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from gleak_core import clients, models, penalties
from gleak_core.errors import GleakError
from gleak_core.objectives import GradientMatch, Repeated, Total
from gleak_core.observation import MissingCapability, Observation
from gleak_core.penalties import (
    IMAGE_TERMS,
    PENALTIES,
    Above,
    AwayFrom,
    GroupConsistency,
    Penalty,
    Statistics,
)

CLASSES, SIZE = 3, 6
ORACLES = ("oracle_logits", "oracle_inputs", "oracle_tv_level")


def pictures(*shape: int, seed: int = 1) -> Tensor:
    """Images that leave [0, 1] on both sides."""
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1


def variation(x: np.ndarray) -> tuple[float, int, float, int]:
    """Sums of both kinds of absolute differences in (B, C, H, W), and how many there are."""
    down = [
        abs(i[r + 1, c] - i[r, c]) for i in planes(x) for r, c in np.ndindex(rows(x) - 1, cols(x))
    ]
    over = [
        abs(i[r, c + 1] - i[r, c]) for i in planes(x) for r, c in np.ndindex(rows(x), cols(x) - 1)
    ]
    return math.fsum(down), len(down), math.fsum(over), len(over)


def planes(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, *x.shape[-2:])


def rows(x: np.ndarray) -> int:
    return x.shape[-2]


def cols(x: np.ndarray) -> int:
    return x.shape[-1]


def tv_sum(x: np.ndarray) -> float:
    down, _, over, _ = variation(x)
    return down + over


def tv_mean(x: np.ndarray) -> float:
    down, n, over, m = variation(x)
    return down / n + over / m


def outside(x: np.ndarray) -> list[float]:
    return [max(-v, 0) + max(v - 1, 0) for v in x.ravel().tolist()]


def unscaled(x: np.ndarray) -> list[float]:
    return [
        v - (v - image.min()) / (image.max() - image.min()) for image in x for v in image.ravel()
    ]


def mean_square(v: list[float]) -> float:
    return math.fsum(e * e for e in v) / len(v)


LOOPS: Mapping[str, Callable[[np.ndarray], float]] = {  # of one trial (B, C, H, W)
    "tv_sum": tv_sum,
    "tv_mean": tv_mean,
    "l2": lambda x: math.hypot(*x.ravel()),
    "clip": lambda x: math.hypot(*outside(x)),
    "clip_squared": lambda x: mean_square(outside(x)),
    "scale": lambda x: math.hypot(*unscaled(x)),
    "scale_squared": lambda x: mean_square(unscaled(x)),
}
EVERY = pytest.mark.parametrize("name", IMAGE_TERMS)


def slope_of(term: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(term(x).sum(), x)[0]


def differences(f: Callable[[Tensor], Tensor], z: Tensor, h: float = 1e-6) -> Tensor:
    """The slope of each trial's value by central differences, (T, n)."""
    out = torch.zeros_like(z)
    for at in range(z.shape[1]):
        nudge = torch.zeros_like(z)
        nudge[:, at] = h
        out[:, at] = (f(z + nudge) - f(z - nudge)) / (2 * h)
    return out


# --- of the images ----------------------------------------------------------------------------


def test_every_image_term_has_a_loop() -> None:
    assert set(LOOPS) == set(IMAGE_TERMS)


@EVERY
def test_an_image_term_is_what_its_loops_say(name: str) -> None:
    x = pictures(3, 2, 3, 4, 5)  # neither square nor one image
    wanted = torch.tensor([LOOPS[name](trial) for trial in x.numpy()], dtype=torch.float64)
    torch.testing.assert_close(IMAGE_TERMS[name](x), wanted, rtol=1e-12, atol=1e-14)


@EVERY
def test_the_slope_of_an_image_term(name: str) -> None:
    x = pictures(2, 2, 1, 3, 4)
    term = IMAGE_TERMS[name]
    wanted = differences(lambda z: term(z.view_as(x)), x.flatten(1))
    torch.testing.assert_close(slope_of(term, x).flatten(1), wanted, rtol=1e-6, atol=1e-7)


@EVERY
def test_trials_of_an_image_term_know_nothing_of_one_another(name: str) -> None:
    x = pictures(3, 2, 3, 4, 5)
    term = IMAGE_TERMS[name]
    other = x.clone()
    other[1] = torch.nan
    value, slope = term(other), slope_of(term, other)
    keep = torch.tensor([0, 2])
    assert torch.equal(value[keep], term(x)[keep]) and value[1].isnan()
    assert torch.equal(slope[keep], slope_of(term, x)[keep])


@EVERY
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0, 3.0])
def test_the_slope_at_a_picture_of_one_colour_is_finite(name: str, level: float) -> None:
    for dtype in (torch.float32, torch.float64):
        x = torch.full((2, 1, 3, 4, 4), level, dtype=dtype)
        value, slope = IMAGE_TERMS[name](x), slope_of(IMAGE_TERMS[name], x)
        assert value.isfinite().all() and slope.isfinite().all()
        assert slope.abs().max() <= 2 * max(1.0, level)


@pytest.mark.parametrize("name", ["clip", "clip_squared"])
def test_inside_the_box_clipping_says_nothing(name: str) -> None:
    x = pictures(2, 2, 3, 4, 4).clamp(0, 1)  # on the boundary too
    assert IMAGE_TERMS[name](x).max() <= 1e-10
    assert slope_of(IMAGE_TERMS[name], x).count_nonzero() == 0
    x[1, 0, 0, 0, 0] = 1.5
    slope = slope_of(IMAGE_TERMS[name], x)
    assert slope[0].count_nonzero() == 0 and slope[1].count_nonzero() == 1
    assert slope[1, 0, 0, 0, 0] > 0


@pytest.mark.parametrize("name", ["scale", "scale_squared"])
def test_an_image_of_full_range_needs_no_scaling(name: str) -> None:
    x = torch.rand((1, 2, 3, 4, 4), dtype=torch.float64)
    for image in x[0]:
        image.view(-1)[:2] = torch.tensor([0.0, 1.0])
    assert IMAGE_TERMS[name](x).max() <= 1e-10
    pale = 0.5 + x / 2  # the second image's range is not the first's
    pale[0, 0] = x[0, 0]
    assert IMAGE_TERMS[name](pale).min() > 1e-2


def test_the_mean_of_differences_is_the_sum_by_their_number() -> None:
    x = pictures(2, 3, 3, 32, 32)
    torch.testing.assert_close(penalties.tv_sum(x), 3 * 3 * 32 * 31 * penalties.tv_mean(x))
    one = penalties.tv_sum(x[:, :1]) / penalties.tv_mean(x[:, :1])
    torch.testing.assert_close(one, torch.full((2,), 2976.0).double())  # "about 3000"


def test_total_variation_of_a_ramp_and_of_one_colour() -> None:
    ramp = torch.arange(5.0).expand(1, 1, 1, 4, 5)  # 4 rows of 4 steps of 1, none downwards
    assert penalties.tv_sum(ramp).tolist() == [16.0] and penalties.tv_mean(ramp).tolist() == [1.0]
    assert penalties.tv_sum(ramp.transpose(-1, -2)).tolist() == [16.0]
    assert penalties.tv_sum(torch.full((1, 2, 3, 4, 4), 0.7)).tolist() == [0.0]


# --- terms with something to hold against -----------------------------------------------------


def test_above_counts_the_images_that_have_too_much() -> None:
    x = pictures(2, 3, 1, 4, 4)
    found = [[tv_sum(image) for image in trial] for trial in x.numpy()]
    each = torch.tensor(found, dtype=torch.float64)
    level = each.clone()
    level[0, 0] += 1e-6  # just enough
    level[1, 2] -= 1e-6  # just too much
    level[1, 0] = torch.inf
    # At the level itself an image counts: 1{TV − ξ ≥ 0}. Its sum may be rounded another way here.
    level[0, 1:] -= 1e-9
    level[1, 1] -= 1e-9
    wanted = torch.stack([each[0, 1] + each[0, 2], each[1, 1] + each[1, 2]])
    torch.testing.assert_close(Above(level)(x), wanted)
    slope = slope_of(Above(level), x)
    assert slope[0, 0].count_nonzero() == 0 and slope[1, 0].count_nonzero() == 0
    whole = slope_of(penalties.tv_sum, x)
    assert torch.equal(slope[0, 1:], whole[0, 1:]) and torch.equal(slope[1, 1:], whole[1, 1:])
    part = Above(level).compact(torch.tensor([1]))
    torch.testing.assert_close(part(x[1:]), wanted[1:])


def test_above_counts_an_image_at_its_level() -> None:
    ramp = torch.arange(5.0).expand(1, 1, 1, 4, 5)
    assert Above(torch.tensor([[16.0]]))(ramp).tolist() == [16.0]
    assert Above(torch.tensor([[16.5]]))(ramp).tolist() == [0.0]


def consensus(x: np.ndarray, group: list[int]) -> tuple[list[float], np.ndarray]:
    values, slopes = [], np.zeros_like(x)
    for t, g in enumerate(group):
        mine = [x[i] for i in range(len(x)) if group[i] == g]
        away = x[t] - sum(mine) / len(mine)
        values.append(float((away**2).sum()))
        slopes[t] = 2 * away  # the mean stands still
    return values, slopes


@pytest.mark.parametrize("group", [[0, 0, 0, 0], [0, 1, 0, 1], [2, 7, 7, 7], [0, 1, 2, 3]])
def test_a_group_pulls_to_its_consensus(group: list[int]) -> None:
    x = pictures(4, 2, 1, 3, 3)
    term = GroupConsistency(torch.tensor(group))
    values, slopes = consensus(x.numpy(), group)
    torch.testing.assert_close(
        term(x), torch.tensor(values, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(slope_of(term, x), torch.from_numpy(slopes), rtol=1e-12, atol=1e-12)


def test_some_of_a_group_agree_among_themselves() -> None:
    x, keep = pictures(5, 1, 1, 3, 3), torch.tensor([4, 0, 2])
    term = GroupConsistency(torch.tensor([0, 1, 1, 0, 1])).compact(keep)
    assert term.group.tolist() == [1, 0, 1]
    values, _ = consensus(x[keep].numpy(), [1, 0, 1])
    torch.testing.assert_close(term(x[keep]), torch.tensor(values, dtype=torch.float64))


@pytest.mark.parametrize("there", [torch.nan, torch.inf])
def test_a_trial_that_blew_up_takes_nobody_with_it(there: float) -> None:
    x = pictures(5, 1, 1, 3, 3)
    x[1, 0, 0, 1, 2] = there
    group = torch.tensor([0, 0, 0, 1, 1])
    value, slope = GroupConsistency(group)(x), slope_of(GroupConsistency(group), x)
    keep = torch.tensor([0, 2, 3, 4])  # the consensus is over those that still run
    values, slopes = consensus(x[keep].numpy(), group[keep].tolist())
    torch.testing.assert_close(value[keep], torch.tensor(values, dtype=torch.float64))
    torch.testing.assert_close(slope[keep], torch.from_numpy(slopes))
    assert not value[1].isfinite()


def test_away_from_a_goal() -> None:
    goal, found = torch.zeros(2, 2, 3), torch.zeros(2, 2, 3)
    goal[0, 1, 2], found[1] = 3, 2
    assert AwayFrom(goal)(found).tolist() == [9.0, 24.0]
    assert AwayFrom(goal).compact(torch.tensor([1]))(found[1:]).tolist() == [24.0]


def test_statistics_by_hand() -> None:
    x = pictures(2, 3, 2, 4, 5)
    known = {"a": (torch.tensor([0.1, 0.2]).double(), torch.tensor([1.5, 0.5]).double())}
    known["b"] = (known["a"][0] - 1, known["a"][1] * 2)
    wanted = []
    for trial in x.numpy():
        mean, variance = trial.mean((0, 2, 3)), trial.var((0, 2, 3))
        wanted.append(
            sum(math.hypot(*(mean - m.numpy())) + math.hypot(*(variance - v.numpy()))
                for m, v in known.values())
        )  # fmt: skip
    found = Statistics(known)({"a": x, "b": x})
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))
    exact = {"a": (x[0].mean((0, 2, 3)), x[0].var((0, 2, 3), correction=0))}
    assert Statistics(exact)({"a": x[:1]}).max() < 1e-9
    assert slope_of(lambda v: Statistics(exact)({"a": v}), x[:1]).isfinite().all()


# --- as objectives ----------------------------------------------------------------------------


def normed(seed: int = 0) -> nn.Module:
    """Two batch normalisations with running statistics, as a server hands out a trained model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, padding=1), nn.BatchNorm2d(4), nn.Sigmoid(),
            nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(2, CLASSES),
        ).double()  # fmt: skip
        for _ in range(3):
            net(torch.rand((8, 3, SIZE, SIZE), dtype=torch.float64))
    return net.eval()


def plain(seed: int = 0) -> nn.Module:
    return models.cafe_net(
        CLASSES, 3, SIZE, widths=[2], hidden=[4], kernel=3, init="uniform", seed=seed
    ).double()


def messages(net: nn.Module, how: str) -> Observation:
    """Three trials of one image, or one of two; `stacked` has weights for each trial."""
    batch = random_batch(3, classes=CLASSES, size=SIZE)
    give = (*clients.HONEST, *ORACLES)
    if how == "stacked":
        seen = clients.several(net, batch, updates=2, each=True, rate=2.0, give=give)
        seen = seen.message(1)
        return replace(seen, given=replace(seen.given, **oracles(net, seen, batch.images[:, None])))
    if how == "each":
        return clients.fedsgd(net, batch, each=True, give=give)
    return clients.fedsgd(net, batch, give=give)


def oracles(net: nn.Module, seen: Observation, x: Tensor) -> dict[str, Any]:
    """What the networks of the second message answer, one by one: a client gives the first's."""
    answers, inputs = zip(*(answer(net, seen, x.double(), t) for t in range(len(x))), strict=True)
    return {"oracle_logits": torch.stack(answers), "oracle_inputs": torch.stack(inputs)}


def answer(net: nn.Module, seen: Observation, x: Tensor, t: int) -> tuple[Tensor, Tensor]:
    """Logits (B, K) and inputs of the first linear layer (B, P) of one trial, by a plain hook."""
    held, shapes = seen.rounds[0].weights, dict(net.named_parameters())
    assert held is not None
    own = {n: w[t] if n in shapes and w.dim() > shapes[n].dim() else w for n, w in held.items()}
    first = next(m for m in net.modules() if isinstance(m, nn.Linear))
    caught: list[Tensor] = []
    hook = first.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    logits = functional_call(net, own, (x[t],))
    hook.remove()
    return logits, caught[0]


def matched(seen: Observation, *, joint: bool = False) -> GradientMatch:
    batch = seen.given.batch_size or 0
    labels = None if joint else torch.arange(seen.trials * batch).view(seen.trials, batch) % CLASSES
    return GradientMatch.of(seen, labels=labels, by="test")


def network(name: str) -> nn.Module:
    return normed() if name == "batch_norm" else plain()


def dummies(seen: Observation, seed: int = 4) -> Tensor:
    return pictures(seen.trials, seen.given.batch_size or 0, 3, SIZE, SIZE, seed=seed)


@pytest.mark.parametrize("how", ["one", "each", "stacked"])
@pytest.mark.parametrize("name", [n for n in PENALTIES if n != "group"])
def test_a_penalty_is_its_value_and_its_slope(name: str, how: str) -> None:
    net = network(name)
    seen = messages(net, how)
    penalty = penalties.build(name, seen, matched(seen))
    z = dummies(seen).flatten(1)
    value, slope = penalty.value_and_grad(z)
    assert value.shape == (seen.trials,) and slope.shape == z.shape
    assert not value.requires_grad and not slope.requires_grad
    some = torch.arange(0, z.shape[1], 7)  # of many unknowns a few will do
    nudged = torch.zeros(len(some), *z.shape, dtype=z.dtype)
    nudged[torch.arange(len(some)), :, some] = 1e-6
    wanted = [
        (penalty.value_and_grad(z + d)[0] - penalty.value_and_grad(z - d)[0]) / 2e-6 for d in nudged
    ]
    scale = float(slope.abs().max())
    torch.testing.assert_close(slope[:, some], torch.stack(wanted, 1), rtol=1e-5, atol=1e-6 * scale)
    assert scale > 1e-6


@pytest.mark.parametrize("how", ["one", "each", "stacked"])
@pytest.mark.parametrize("name", ["task_loss", "oracle_task_loss", "internal", "batch_norm"])
def test_what_the_network_makes_of_it_by_hand(name: str, how: str) -> None:
    net = network(name)
    seen, truth = messages(net, how), random_batch(3, classes=CLASSES, size=SIZE).images.double()
    truth = truth[None] if how == "one" else truth[:, None]
    match = matched(seen)
    x = dummies(seen).requires_grad_()
    values = []
    for t in range(seen.trials):
        logits, inner = answer(net, seen, x, t)
        if name == "task_loss":
            labels = match.dummies.labels
            assert labels is not None
            values.append((logits.softmax(1) - F.one_hot(labels[t], CLASSES)).pow(2).sum())
        elif name == "batch_norm":
            values.append(statistics(net, seen, x, t))
        else:
            at = name == "internal"
            values.append(((logits, inner)[at] - answer(net, seen, truth, t)[at]).pow(2).sum())
    wanted = torch.stack(values)
    slope = torch.autograd.grad(wanted.sum(), x)[0].flatten(1)
    found = penalties.build(name, seen, match).value_and_grad(x.detach().flatten(1))
    torch.testing.assert_close(found[0], wanted.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[1], slope, rtol=1e-10, atol=1e-12)


def statistics(net: nn.Module, seen: Observation, x: Tensor, t: int) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    held, shapes = seen.rounds[0].weights, dict(net.named_parameters())
    assert held is not None
    own = {n: w[t] if n in shapes and w.dim() > shapes[n].dim() else w for n, w in held.items()}
    first = F.conv2d(x[t], own["0.weight"], own["0.bias"], 2, 1)
    after = F.batch_norm(
        first, held["1.running_mean"], held["1.running_var"], own["1.weight"], own["1.bias"]
    ).sigmoid()
    second = F.conv2d(after, own["3.weight"], own["3.bias"])
    for name, at in (("1", first), ("4", second)):
        mean = at.mean((0, 2, 3))
        variance = (at - mean[:, None, None]).pow(2).mean((0, 2, 3))
        total = total + (mean - held[f"{name}.running_mean"]).norm()
        total = total + (variance - held[f"{name}.running_var"]).norm()
    return total


@pytest.mark.parametrize("how", ["one", "each", "stacked"])
@pytest.mark.parametrize("name", ["oracle_task_loss", "internal"])
def test_an_oracle_is_satisfied_by_the_private_image_alone(name: str, how: str) -> None:
    seen, truth = messages(plain(), how), random_batch(3, classes=CLASSES, size=SIZE).images
    z = truth.double().view(seen.trials, -1)
    penalty = penalties.build(name, seen, matched(seen))
    value, slope = penalty.value_and_grad(z)
    assert value.max() < 1e-25 and slope.abs().max() < 1e-12
    assert penalty.value_and_grad(z + 0.05)[0].min() > 1e-8


def test_the_private_image_is_at_its_own_level_of_variation() -> None:
    seen, truth = messages(plain(), "one"), random_batch(3, classes=CLASSES, size=SIZE).images
    penalty = penalties.build("tv_above_oracle", seen, matched(seen))
    z = truth.double()[None]
    assert penalty.value_and_grad((0.99 * z).flatten(1))[0].tolist() == [0.0]
    wilder = 1.01 * z.clone()
    wilder[:, 1] *= 0.5
    wanted = tv_sum(wilder[0, 0].numpy()) + tv_sum(wilder[0, 2].numpy())
    assert float(penalty.value_and_grad(wilder.flatten(1))[0]) == pytest.approx(wanted)


@pytest.mark.parametrize("name", [n for n in PENALTIES if n != "task_loss"])
def test_labels_feel_no_penalty_of_the_images(name: str) -> None:
    seen = messages(network(name), "each")
    match = matched(seen, joint=True)
    x = dummies(seen)
    z = match.dummies.pack(x, pictures(3, 1, CLASSES))
    value, slope = penalties.build(name, seen, match).value_and_grad(z)
    images, labels = slope.split([match.dummies.pixels, CLASSES], 1)
    fixed = penalties.build(name, seen, matched(seen)).value_and_grad(x.flatten(1))
    assert labels.count_nonzero() == 0
    torch.testing.assert_close(value, fixed[0])
    torch.testing.assert_close(images, fixed[1])


@pytest.mark.parametrize("how", ["each", "stacked"])
@pytest.mark.parametrize("name", [n for n in PENALTIES if n != "group"])
def test_a_penalty_for_some_of_the_trials(name: str, how: str) -> None:
    seen = messages(network(name), how)
    penalty = penalties.build(name, seen, matched(seen))
    z, keep = dummies(seen).flatten(1), torch.tensor([2, 0, 0])
    whole, part = penalty.value_and_grad(z), penalty.compact(keep).value_and_grad(z[keep])
    for w, p in zip(whole, part, strict=True):
        torch.testing.assert_close(p, w[keep], rtol=1e-11, atol=1e-13)
    wild = z.clone()
    wild[1] = torch.nan
    value, slope = penalty.value_and_grad(wild)
    torch.testing.assert_close(value[keep], whole[0][keep], rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(slope[keep], whole[1][keep], rtol=1e-11, atol=1e-13)


def test_a_group_is_made_of_the_trials_against_one_message() -> None:
    seen = messages(plain(), "each")
    match = matched(seen)
    repeated = Repeated(Total(((0.5, penalties.build("group", seen, match)),)), 2)
    x = pictures(6, 1, 3, SIZE, SIZE)
    value, slope = repeated.value_and_grad(x.flatten(1))
    values, slopes = consensus(x.numpy(), [0, 0, 1, 1, 2, 2])
    torch.testing.assert_close(value, torch.tensor(values, dtype=torch.float64) / 2)
    torch.testing.assert_close(slope, torch.from_numpy(slopes).flatten(1) / 2)


def test_the_internal_representation_of_several_parties_is_all_of_theirs() -> None:
    net = models.vertical_net(
        CLASSES, 3, 8, 4, widths=[2], hidden=[3], vector=2, kernel=3, init="uniform"
    ).double()
    batch = random_batch(2, classes=CLASSES)
    seen = clients.vertical(net, batch, give=(*clients.HONEST, "oracle_inputs"))
    match = GradientMatch.of(seen, labels=batch.labels[None], by="test")
    penalty = penalties.build("internal", seen, match)
    truth = batch.images.double().view(1, -1)
    assert float(penalty.value_and_grad(truth)[0]) < 1e-25
    for party in range(4):  # each has a patch of its own to answer for
        moved = truth.view(2, 3, 8, 8).clone()
        moved[:, :, 4 * (party // 2) :, 4 * (party % 2) :][:, :, :4, :4] += 0.1
        assert float(penalty.value_and_grad(moved.view(1, -1))[0]) > 1e-6


# --- refusals ---------------------------------------------------------------------------------


def test_an_unknown_penalty_is_refused_by_its_nearest_name() -> None:
    seen = messages(plain(), "one")
    with pytest.raises(ValueError, match="unknown penalty 'tv_men': did you mean 'tv_mean'"):
        penalties.build("tv_men", seen, matched(seen))


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("oracle_task_loss", "oracle_logits"),
        ("internal", "oracle_inputs"),
        ("tv_above_oracle", "oracle_tv_level"),
    ],
)
def test_an_oracle_must_be_granted(name: str, missing: str) -> None:
    seen = messages(plain(), "one")
    with pytest.raises(MissingCapability, match=rf"needs {missing}.*declare it with give="):
        penalties.build(name, seen.without(missing), matched(seen))


def test_the_task_loss_needs_a_label() -> None:
    seen = messages(plain(), "one")
    with pytest.raises(ValueError, match="recovered label: choose a label rule, not 'joint'"):
        penalties.build("task_loss", seen, matched(seen, joint=True))


@pytest.mark.parametrize("net", [plain(), models.resnet(1, CLASSES, 3, SIZE).double()])
def test_statistics_need_a_model_that_keeps_them(net: nn.Module) -> None:
    seen = clients.fedsgd(net, random_batch(2, classes=CLASSES, size=SIZE))
    with pytest.raises(GleakError, match=r"no running statistics.*leave batch_norm out"):
        penalties.build("batch_norm", seen, matched(seen))


def test_running_statistics_are_those_of_the_model() -> None:
    net = normed(3)
    for how in ("one", "stacked"):
        found = penalties.running_statistics(messages(net, how))
        assert list(found) == ["1", "4"]
        for name, (mean, variance) in found.items():
            module = net.get_submodule(name)
            assert torch.equal(mean, module.get_buffer("running_mean"))
            assert torch.equal(variance, module.get_buffer("running_var"))


def test_statistics_come_with_the_weights() -> None:
    seen = messages(normed(), "one")
    with pytest.raises(MissingCapability, match="the BatchNorm term needs weights"):
        penalties.build("batch_norm", seen.without("weights"), matched(seen))


def test_no_internal_representation_without_a_linear_layer() -> None:
    seen = messages(plain(), "one")
    bare = nn.Sequential(nn.Conv2d(3, CLASSES, SIZE), nn.Flatten()).to("meta")
    lost = replace(matched(seen), architecture=bare)
    with pytest.raises(GleakError, match="no fully connected layer"):
        Penalty(lost, AwayFrom(torch.zeros(1)), "internal").value_and_grad(dummies(seen).flatten(1))


@pytest.mark.parametrize("name", ["oracle_task_loss", "internal", "tv_above_oracle"])
@pytest.mark.parametrize("picked", [1, 2])
def test_an_oracle_of_other_images_than_the_batch_is_refused(name: str, picked: int) -> None:
    """Rounds pick from more items than a batch holds: one image would broadcast over all."""
    batch = random_batch(3, classes=CLASSES, size=SIZE)
    seen = clients.horizontal(
        plain(),
        [batch],
        picks=torch.arange(picked).view(1, 1, -1),
        give=(*clients.HONEST, "batch_indices", *ORACLES),
    )
    with pytest.raises(ValueError, match=rf"{name}.*3 images.*batch of {picked}"):
        penalties.build(name, seen, matched(seen))
