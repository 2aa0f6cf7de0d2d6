"""Gradient distances: each against loops over trials and entries, and what must not matter."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from gleak_core.distances import (
    DISTANCES,
    Distance,
    Masked,
    cosine,
    cosine_per_layer,
    l2_per_layer,
    relative_l2,
    slope,
    squared_l2,
    surviving,
)
from gleak_core.errors import GleakError
from gleak_core.observation import Update

SHAPES = {"conv.weight": (2, 1, 2, 2), "conv.bias": (3,), "head.weight": (3, 2)}
Layers = Sequence[Sequence[float]]  # the entries of one trial, layer by layer


def updates(trials: int = 3, *, seed: int = 0, size: float = 1.0) -> Update:
    generator = torch.Generator().manual_seed(seed)
    return {
        n: size * torch.randn((trials, *s), generator=generator, dtype=torch.float64)
        for n, s in SHAPES.items()
    }


def entries(update: Update, trial: int, names: Sequence[str] = tuple(SHAPES)) -> Layers:
    return [update[n][trial].flatten().tolist() for n in names]


def gap(f: Sequence[float], g: Sequence[float]) -> float:
    return math.fsum((x - y) ** 2 for x, y in zip(f, g, strict=True))


def length(g: Sequence[float]) -> float:
    return math.hypot(*g)


def angle(f: Sequence[float], g: Sequence[float]) -> float:
    inner = math.fsum(x * y for x, y in zip(f, g, strict=True))
    return 1 - inner / (length(f) * length(g))


def joined(layers: Layers) -> list[float]:
    return [x for layer in layers for x in layer]


LOOPS: dict[str, Callable[[Layers, Layers], float]] = {
    "squared_l2": lambda f, g: gap(joined(f), joined(g)),
    "relative_l2": lambda f, g: sum(gap(a, b) / length(b) ** 2 for a, b in zip(f, g, strict=True)),
    "l2_per_layer": lambda f, g: sum(math.sqrt(gap(a, b)) for a, b in zip(f, g, strict=True)),
    "cosine": lambda f, g: angle(joined(f), joined(g)),
    "cosine_per_layer": lambda f, g: sum(angle(a, b) for a, b in zip(f, g, strict=True)),
}
EVERY = pytest.mark.parametrize("name", DISTANCES)


def close(found: Tensor, wanted: Sequence[float], rtol: float = 1e-12) -> None:
    expected = torch.tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-14)


def halved(update: Update, seed: int = 9) -> Update:
    """A message pruned at random: in every layer and trial something is left."""
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for n, g in update.items():
        gone = torch.rand(g.shape, generator=generator) < 0.5
        gone.flatten(1)[:, 0], gone.flatten(1)[:, 1] = False, True
        out[n] = torch.where(gone, 0, g)
    return out


def differences(distance: Distance, fake: Update, seen: Update) -> Update:
    """∂D/∂∇W′ by central differences, entry by entry."""
    out, h = {}, 1e-6
    for n, g in fake.items():
        flat = torch.zeros_like(g).flatten(1)
        for at in range(flat.shape[1]):
            nudge = torch.zeros_like(flat)
            nudge[:, at] = h
            nudge = nudge.view_as(g)
            up, down = (distance({**fake, n: g + s * nudge}, seen) for s in (1, -1))
            flat[:, at] = (up - down) / (2 * h)
        out[n] = flat.view_as(g)
    return out


def test_every_distance_has_a_loop() -> None:
    assert set(LOOPS) == set(DISTANCES)


@EVERY
def test_a_distance_is_what_its_loops_say(name: str) -> None:
    fake, seen = updates(seed=1), updates(seed=2)
    found = DISTANCES[name](fake, seen)
    close(found, [LOOPS[name](entries(fake, t), entries(seen, t)) for t in range(3)])


@EVERY
def test_only_what_was_seen_counts(name: str) -> None:
    fake, seen = updates(seed=1), updates(seed=2)
    part = {n: seen[n] for n in ("head.weight", "conv.bias")}
    found = DISTANCES[name](fake, part)
    pairs = [(entries(fake, t, tuple(part)), entries(seen, t, tuple(part))) for t in range(3)]
    close(found, [LOOPS[name](f, g) for f, g in pairs])


@EVERY
def test_a_distance_vanishes_at_equality_with_its_slope(name: str) -> None:
    seen = updates(seed=3)
    value, slopes = slope(DISTANCES[name], {n: g.clone() for n, g in seen.items()}, seen)
    assert value.abs().max() < 1e-14
    assert all(s.isfinite().all() and s.abs().max() < 1e-14 for s in slopes.values())


@EVERY
def test_a_distance_is_positive_elsewhere(name: str) -> None:
    seen = updates(seed=3)
    away = {n: g + 0.1 * updates(seed=4)[n] for n, g in seen.items()}
    assert DISTANCES[name](away, seen).min() > 1e-4


@EVERY
def test_trials_know_nothing_of_one_another(name: str) -> None:
    fake, seen = updates(4, seed=1), updates(4, seed=2)
    whole, _ = slope(DISTANCES[name], fake, seen)
    other = {n: g.clone() for n, g in fake.items()}
    for g in other.values():
        g[2] = torch.nan
    value, slopes = slope(DISTANCES[name], other, seen)
    keep = torch.tensor([0, 1, 3])
    assert torch.equal(value[keep], whole[keep]) and value[2].isnan()
    assert all(s[keep].isfinite().all() for s in slopes.values())
    alone = DISTANCES[name](*({n: g[3:] for n, g in u.items()} for u in (fake, seen)))
    torch.testing.assert_close(alone, whole[3:], rtol=1e-13, atol=0)


@pytest.mark.parametrize("factor", [1e-9, 1e-3, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_angle_does_not_change_with_scale(factor: float, dtype: torch.dtype) -> None:
    fake, seen = ({n: g.to(dtype) for n, g in updates(seed=s).items()} for s in (1, 2))
    rtol = 1e-5 if dtype == torch.float32 else 1e-10
    for distance in (cosine, cosine_per_layer):
        wanted = distance(fake, seen)
        for a, b in ((factor, 1.0), (1.0, factor), (factor, factor)):
            found = distance(
                {n: a * g for n, g in fake.items()}, {n: b * g for n, g in seen.items()}
            )
            torch.testing.assert_close(found, wanted, rtol=rtol, atol=0)


def test_only_the_angle_of_each_layer_bears_a_scale_of_its_own() -> None:
    fake, seen = updates(seed=1), updates(seed=2)
    scaled = {n: g * 10.0**i for i, (n, g) in enumerate(fake.items())}
    torch.testing.assert_close(cosine_per_layer(scaled, seen), cosine_per_layer(fake, seen))
    assert (cosine(scaled, seen) - cosine(fake, seen)).abs().max() > 1e-2


def test_opposite_and_orthogonal_gradients() -> None:
    seen = updates(seed=2)
    torch.testing.assert_close(
        cosine({n: -g for n, g in seen.items()}, seen), torch.full((3,), 2.0).double()
    )
    first = {n: torch.zeros_like(g) for n, g in seen.items()} | {"conv.bias": seen["conv.bias"]}
    other = {**seen, "conv.bias": torch.zeros_like(seen["conv.bias"])}
    torch.testing.assert_close(cosine(first, other), torch.ones(3).double())


def test_a_layer_of_zeros_has_no_angle() -> None:
    """A layer pruned away, or behind dead units, must not keep the right answer from zero."""
    seen = updates(seed=2)
    seen["conv.bias"][1] = 0
    value, slopes = slope(cosine_per_layer, {n: g.clone() for n, g in seen.items()}, seen)
    assert value.abs().max() < 1e-14
    assert all(s.isfinite().all() for s in slopes.values())
    moved = {**seen, "conv.bias": seen["conv.bias"] + 1}
    found = cosine_per_layer(moved, seen)
    assert found[1].abs() < 1e-14 and found[0] > 1e-3


def test_relative_l2_gives_every_layer_the_same_say() -> None:
    fake, seen = updates(seed=1), updates(seed=2)
    factors = {n: 10.0 ** (3 * i - 4) for i, n in enumerate(SHAPES)}
    found = relative_l2(*({n: factors[n] * g for n, g in u.items()} for u in (fake, seen)))
    torch.testing.assert_close(found, relative_l2(fake, seen), rtol=1e-12, atol=0)
    # Twice the gradient is ‖∇W_l‖² away from it in every layer: one for each.
    twice = {n: 2 * g for n, g in seen.items()}
    close(relative_l2(twice, seen), [len(SHAPES)] * 3)


def test_l2_per_layer_has_slope_one_until_equality() -> None:
    seen = updates(seed=2)
    for distance in (1e-2, 1e-6, 1e-10):
        fake = {n: g.clone() for n, g in seen.items()}
        fake["conv.bias"][:, 1] += distance
        _, slopes = slope(l2_per_layer, fake, seen)
        torch.testing.assert_close(
            slopes["conv.bias"][:, 1], torch.ones(3).double(), rtol=1e-4, atol=0
        )
        assert slopes["head.weight"].abs().max() == 0


def test_no_gradient_at_all_is_one_away_in_angle() -> None:
    seen = updates(seed=2)
    nothing = {n: torch.zeros_like(g) for n, g in seen.items()}
    close(cosine(nothing, seen), [1.0] * 3)
    close(cosine_per_layer(nothing, seen), [len(SHAPES)] * 3)
    _, slopes = slope(cosine, nothing, seen)
    assert all(s.isfinite().all() for s in slopes.values())


@pytest.mark.parametrize("masked", [False, True])
@EVERY
def test_slope_is_the_slope(name: str, masked: bool) -> None:
    fake, seen = updates(seed=5), updates(seed=6)
    distance: Distance = DISTANCES[name]
    if masked:
        seen = halved(seen)
        distance = Masked(distance, surviving(seen))
    before = {n: g.clone() for n, g in fake.items()}
    value, slopes = slope(distance, fake, seen)
    torch.testing.assert_close(value, distance(fake, seen), rtol=1e-14, atol=0)
    wanted = differences(distance, fake, seen)
    assert list(slopes) == list(seen)
    for n, s in slopes.items():
        torch.testing.assert_close(s, wanted[n], rtol=1e-6, atol=1e-7)
    assert all(torch.equal(fake[n], before[n]) for n in fake)  # it may be needed again
    assert not value.requires_grad and not any(s.requires_grad for s in slopes.values())


@EVERY
def test_slope_leaves_out_what_was_not_seen(name: str) -> None:
    fake, seen = updates(seed=5), updates(seed=6)
    part = {"conv.bias": seen["conv.bias"]}
    with torch.no_grad():  # where the written-out evaluators call it
        _, slopes = slope(DISTANCES[name], fake, part)
    assert list(slopes) == ["conv.bias"]
    wanted = differences(DISTANCES[name], fake, part)
    torch.testing.assert_close(slopes["conv.bias"], wanted["conv.bias"], rtol=1e-6, atol=1e-7)


def test_slope_of_a_distance_that_looks_at_one_layer_is_zero_at_the_others() -> None:
    def head(fake: Update, seen: Update) -> Tensor:
        return squared_l2(fake, {"head.weight": seen["head.weight"]})

    fake, seen = updates(seed=5), updates(seed=6)
    _, slopes = slope(head, fake, seen)
    torch.testing.assert_close(
        slopes["head.weight"], 2 * (fake["head.weight"] - seen["head.weight"])
    )
    assert slopes["conv.bias"].shape == fake["conv.bias"].shape
    assert slopes["conv.bias"].count_nonzero() == 0


@EVERY
def test_masked_is_the_distance_on_what_survived(name: str) -> None:
    fake, seen = updates(seed=7), halved(updates(seed=8))
    masked = Masked(DISTANCES[name], surviving(seen))
    wanted = []
    for t in range(3):
        pairs = [
            [(x, y) for x, y in zip(f, g, strict=True) if y != 0]
            for f, g in zip(entries(fake, t), entries(seen, t), strict=True)
        ]
        f, g = ([[pair[k] for pair in layer] for layer in pairs] for k in (0, 1))
        wanted.append(LOOPS[name](f, g))
    close(masked(fake, seen), wanted)
    assert (masked(fake, seen) - DISTANCES[name](fake, seen)).abs().max() > 1e-3


@pytest.mark.parametrize("there", [1e6, torch.nan, torch.inf])
@EVERY
def test_masked_ignores_the_fake_where_the_message_was_pruned(name: str, there: float) -> None:
    fake, seen = updates(seed=7), halved(updates(seed=8))
    masked = Masked(DISTANCES[name], surviving(seen))
    wild = {n: torch.where(seen[n] == 0, there, g) for n, g in fake.items()}
    value, slopes = slope(masked, wild, seen)
    calm_value, calm_slopes = slope(masked, fake, seen)
    assert torch.equal(value, calm_value)
    for n, s in slopes.items():
        assert torch.equal(s, calm_slopes[n]) and s[seen[n] == 0].count_nonzero() == 0


@EVERY
def test_masked_for_some_of_the_trials(name: str) -> None:
    fake, seen = updates(4, seed=7), halved(updates(4, seed=8))
    masked = Masked(DISTANCES[name], surviving(seen))
    keep = torch.tensor([3, 1, 1])
    some = masked.compact(keep)(*({n: g[keep] for n, g in u.items()} for u in (fake, seen)))
    assert torch.equal(some, masked(fake, seen)[keep])


def test_surviving_reads_the_mask_off_the_message() -> None:
    seen = {"a": torch.tensor([[0.0, -2.0, 1e-30]]), "b": torch.tensor([[[0.0], [3.0]]])}
    mask = surviving(seen)
    assert mask["a"].tolist() == [[False, True, True]] and mask["b"].tolist() == [[[False], [True]]]
    assert all(m.dtype == torch.bool for m in mask.values())


def test_surviving_refuses_a_message_of_zeros() -> None:
    nothing = {n: torch.zeros_like(g) for n, g in updates().items()}
    with pytest.raises(GleakError, match=r"nothing of this gradient survived.*prune less"):
        surviving(nothing)
    nothing["conv.bias"][1, 2] = 1e-30  # one entry of one trial is something
    assert surviving(nothing)["conv.bias"].sum() == 1


@EVERY
def test_a_distance_needs_every_layer_that_was_seen(name: str) -> None:
    fake, seen = updates(seed=1), updates(seed=2)
    del fake["conv.bias"]
    with pytest.raises(KeyError, match=r"conv\.bias"):
        DISTANCES[name](fake, seen)
