"""Index alignment: exact where the equations determine the items, and refused where they do not."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import random_batch
from torch import Tensor
from torch.nn import functional as F

from gleak_core import attacks, cafe, clients, metrics, models, samplers
from gleak_core.data import Batch
from gleak_core.errors import GleakError
from gleak_core.observation import MissingCapability, Observation

CLASSES, SIZE = 5, 8


def small(**options: object) -> models.ConvNet:
    """CAFE's network with few channels, in float64."""
    net = models.cafe_net(CLASSES, size=SIZE, widths=(4, 6), hidden=(16, 12), **options)  # type: ignore[arg-type]
    return net.double()


def pool(count: int, seed: int = 0) -> Batch:
    batch = random_batch(count, size=SIZE, classes=CLASSES, seed=seed)
    return replace(batch, images=batch.images.double())


def protocol(
    count: int, batch: int, rounds: int, *, sampler: str = "independent", seed: int = 0
) -> tuple[Batch, Observation]:
    """One worker's rounds on a network that stands still."""
    own = pool(count, seed)
    picks = samplers.SAMPLERS[sampler](count, batch, rounds, seed=seed)
    return own, clients.horizontal(small(seed=seed), [own], picks=picks[:, None])


# --- the samplers --------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 20), st.integers(0, 5))
def test_no_item_is_twice_in_a_batch(items: int, batch: int, rounds: int, seed: int) -> None:
    batch = min(batch, items)
    for name, sampler in samplers.SAMPLERS.items():
        picks = sampler(items, batch, rounds, seed=seed)
        assert picks.shape == (rounds, batch), name
        assert int(picks.min()) >= 0 and int(picks.max()) < items
        assert all(len(set(row)) == batch for row in picks.tolist())
        assert torch.equal(picks, sampler(items, batch, rounds, seed=seed))


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 5))
def test_an_epoch_sees_every_item_once(batch: int, each: int, seed: int) -> None:
    picks = samplers.epochs(batch * each, batch, 3 * each, seed=seed)
    for epoch in picks.split(each):
        assert sorted(epoch.flatten().tolist()) == list(range(batch * each))


def test_a_fixed_partition_comes_back() -> None:
    picks = samplers.fixed(12, 3, 10)
    assert torch.equal(picks[:4], picks[4:8])
    assert torch.equal(picks[:2], picks[8:])


@pytest.mark.parametrize(("items", "batch", "rounds"), [(3, 4, 1), (3, 0, 1), (3, 1, 0)])
def test_a_batch_that_cannot_be_drawn_is_refused(items: int, batch: int, rounds: int) -> None:
    for sampler in samplers.SAMPLERS.values():
        with pytest.raises(ValueError, match="cannot be drawn"):
            sampler(items, batch, rounds)


# --- the equations -------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(2, 20), st.integers(1, 6), st.integers(0, 99))
def test_items_follow_from_means(items: int, batch: int, seed: int) -> None:
    batch = min(batch, items - 1)  # the whole set in every batch is one equation
    picks = samplers.independent(items, batch, 8 * items, seed=seed)
    own = torch.randn(items, 2, 3, dtype=torch.float64)
    means = own[picks].mean(1)
    if cafe.system(picks, items).solvable:
        assert torch.allclose(cafe.solve(picks, means, items), own, atol=1e-9)
    else:
        with pytest.raises(GleakError, match="do not determine"):
            cafe.solve(picks, means, items)


@pytest.mark.parametrize("rounds", [60, 90, 300])
def test_both_solvers_agree(monkeypatch: pytest.MonkeyPatch, rounds: int) -> None:
    picks = samplers.independent(60, 5, rounds, seed=1)
    means = torch.randn(60, 4, dtype=torch.float64)[picks].mean(1)
    direct = cafe.solve(picks, means)
    monkeypatch.setattr(cafe, "_DENSE", 0)
    assert torch.allclose(cafe.solve(picks, means), direct, atol=1e-5)


def test_more_rounds_average_noise_away() -> None:
    own = torch.randn(30, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    off = []
    for rounds in (60, 960):
        picks = samplers.independent(30, 5, rounds)
        noise = torch.Generator().manual_seed(1)
        means = own[picks].mean(1)
        means += 0.01 * torch.randn(means.shape, dtype=means.dtype, generator=noise)
        off.append(float((cafe.solve(picks, means) - own).norm()))
    assert off[1] < off[0] / 3  # the root of 16 is 4


def test_an_item_may_count_twice() -> None:
    indices = torch.tensor([[0, 0, 1], [1, 1, 0]])
    assert cafe.shares(indices).tolist() == [[2 / 3, 1 / 3], [1 / 3, 2 / 3]]


@pytest.mark.parametrize(("items", "batch"), [(12, 3), (20, 4), (30, 5)])
def test_what_a_partition_determines(items: int, batch: int) -> None:
    each = items // batch
    fixed = cafe.system(samplers.fixed(items, batch, 5 * items), items)
    assert (fixed.rank, fixed.solvable, fixed.condition) == (each, False, float("inf"))
    for many in range(1, 4):  # the batches of every epoch have the same sum
        found = cafe.system(samplers.epochs(items, batch, many * each), items)
        assert found.rank == many * (each - 1) + 1
    enough = -(-(items - 1) // (each - 1))
    assert cafe.system(samplers.epochs(items, batch, (enough + 2) * each), items).solvable


def test_as_many_independent_rounds_as_items_are_enough() -> None:
    ranks = [cafe.system(samplers.independent(100, 10, 100, seed=s)).rank for s in range(10)]
    assert sum(rank == 100 for rank in ranks) >= 8
    assert not cafe.system(samplers.independent(100, 10, 99, seed=0), 100).solvable


@pytest.mark.parametrize("dense", [0, 1024])
@pytest.mark.parametrize(
    "picks",
    [
        samplers.independent(12, 3, 11),
        samplers.fixed(12, 3, 60),
        samplers.epochs(12, 3, 12),
        samplers.independent(11, 3, 60),
    ],
    ids=["too few", "fixed", "three epochs", "an item in no batch"],
)
def test_what_is_not_determined_is_not_guessed(
    monkeypatch: pytest.MonkeyPatch, picks: Tensor, dense: int
) -> None:
    monkeypatch.setattr(cafe, "_DENSE", dense)
    means = torch.randn(12, 2, dtype=torch.float64)[picks].mean(1)
    with pytest.raises(GleakError, match=r"do not determine 12 items.*wait for more rounds"):
        cafe.solve(picks, means, 12)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda i, m: (i, m[1:]), "one each"),
        (lambda i, m: (i - 1, m), "from 0"),
        (lambda i, m: (i + 1, m), "which 6 items do not have"),
        (lambda i, m: (i[:, 0], m), "rounds, batch"),
        (lambda i, m: (i, m * float("nan")), "non-finite"),
    ],
)
def test_a_system_that_is_none_is_refused(change: object, words: str) -> None:
    picks = samplers.independent(6, 2, 20)
    with pytest.raises(ValueError, match=words):
        cafe.solve(*change(picks, torch.zeros(20, 3)), 6)  # type: ignore[operator]


# --- the network ---------------------------------------------------------------------------------


def test_every_input_label_and_slope_of_each_worker() -> None:
    net = small()
    give = (*clients.HONEST, "batch_indices", "oracle_inputs")
    for m in range(2):
        own = pool(8, seed=m)
        picks = samplers.independent(8, 2, 60, seed=m)
        seen = clients.horizontal(net, [own], picks=picks[:, None], give=give)
        found = cafe.items(seen)
        (true,) = seen.need("oracle_inputs", by="the test")
        assert torch.allclose(found.inputs, true[0], atol=1e-9)
        assert torch.equal(found.labels, own.labels)
        for name, slopes in found.slopes.items():
            for k, (image, label) in enumerate(zip(own.images, own.labels, strict=True)):
                net.zero_grad()
                F.cross_entropy(net(image[None]), label[None]).backward()
                slope = net.get_parameter(f"{name}.bias").grad
                assert slope is not None
                assert torch.allclose(slopes[k], slope, atol=1e-10)


def test_the_mean_over_workers_leaves_one_unknown_for_each_but_one() -> None:
    """Each always gives as many items, so what moves all items of one moves with another's."""
    workers = [pool(6, seed=m) for m in range(3)]
    picks = torch.stack([samplers.independent(6, 2, 90, seed=m) for m in range(3)], 1)
    seen = clients.horizontal(small(), workers, picks=picks)
    (indices,) = seen.need("batch_indices", by="the test")
    assert cafe.system(indices).rank == 18 - 2
    with pytest.raises(GleakError, match="each client's own message"):
        cafe.items(seen)


def test_every_input_of_every_party_of_a_vertical_protocol() -> None:
    own = pool(10)
    net = models.vertical_net(CLASSES, size=SIZE, widths=(4, 6), hidden=(16, 12), vector=8).double()
    give = (*clients.HONEST, "batch_indices", "oracle_inputs")
    seen = clients.vertical(net, own, picks=samplers.epochs(10, 2, 40), give=give)
    found = cafe.items(seen)
    (true,) = seen.need("oracle_inputs", by="the test")
    assert torch.allclose(found.inputs, true[0], atol=1e-9)
    assert torch.equal(found.labels, own.labels)
    assert len(found.slopes) == 5  # four parties' and the server's


def test_one_picture_is_a_system_of_its_own_and_one_batch_is_none() -> None:
    """ "Z can be directly derived from the gradients": of one picture, not of a batch."""
    own, seen = protocol(1, 1, 1)
    with torch.no_grad():
        true = small().features(own.images).flatten(1)
    assert torch.allclose(cafe.items(seen).inputs, true, atol=1e-9)
    with pytest.raises(GleakError, match="1 rounds do not determine 4 items"):
        cafe.items(protocol(4, 4, 1)[1])


def test_a_batch_larger_than_the_layer_is_refused() -> None:
    with pytest.raises(GleakError, match="20 slopes of a layer with 16 outputs"):
        cafe.inputs_of(torch.randn(20, 16), torch.randn(16, 9))
    same = torch.randn(1, 16).repeat(2, 1)
    with pytest.raises(GleakError, match="attack smaller batches"):
        cafe.inputs_of(same, torch.randn(16, 9))


def test_two_items_that_are_alike_are_not_guessed_apart() -> None:
    """In float32, where their slopes differ by rounding alone; a round with one of them helps."""
    own = random_batch(8, size=SIZE, classes=CLASSES)
    own = replace(
        own,
        images=own.images[[0, 0, 2, 3, 4, 5, 6, 7]],
        labels=own.labels[[0, 0, 2, 3, 4, 5, 6, 7]],
    )
    net = models.cafe_net(CLASSES, size=SIZE, widths=(4, 6), hidden=(16, 12))
    ledger = cafe.Ledger()
    picks = samplers.independent(8, 2, 40)
    ledger.add(clients.horizontal(net, [own], picks=picks[:, None]))
    ledger.solve()
    cover = torch.tensor([[0, 1], [2, 3], [4, 5], [6, 7]])
    ledger.add(clients.horizontal(net, [own], picks=cover[:, None]))
    assert ledger.missing == 2
    with pytest.raises(GleakError, match="in which no two items are alike"):
        ledger.items()
    ledger.add(clients.horizontal(net, [own], picks=torch.tensor([[[0, 5]], [[1, 4]]])))
    with torch.no_grad():
        true = net.features(own.images).flatten(1).double()
    assert torch.allclose(ledger.items().inputs, true, rtol=1e-2)


def test_a_round_that_cannot_be_read_leaves_the_ledger_as_it_was() -> None:
    ledger = cafe.Ledger()
    for act in (ledger.solve, ledger.items):
        with pytest.raises(GleakError, match="nothing was written down yet"):
            act()
    own = pool(6)
    net = models.vertical_net(CLASSES, size=SIZE, widths=(4, 6), hidden=(16, 12), vector=8).double()
    seen = clients.vertical(net, own, picks=samplers.independent(6, 2, 30))
    lame = replace(seen.rounds[0], update={k: v for k, v in seen.rounds[0].update.items()
                                           if k != "workers.2.hidden.0.bias"})  # fmt: skip
    with pytest.raises(GleakError, match="give the layer a bias"):
        ledger.add(replace(seen, rounds=(lame, *seen.rounds[1:])))
    with pytest.raises(GleakError, match="nothing was written down yet"):
        ledger.solve()
    ledger.add(seen)
    ledger.solve()
    blind = replace(seen.rounds[0], update={k: v for k, v in seen.rounds[0].update.items()
                                            if k != "workers.2.hidden.0.weight"})  # fmt: skip
    with pytest.raises(GleakError, match=r"workers\.2\.hidden\.0\.weight"):
        ledger.add(replace(seen, rounds=(blind, *seen.rounds[1:])))
    assert ledger.missing == 6
    ledger.add(seen)
    assert torch.equal(ledger.items().labels, own.labels)


def test_indices_of_other_rounds_leave_a_residual() -> None:
    _, seen = protocol(8, 3, 60)
    assert cafe.items(seen).residual < 1e-10
    (indices,) = seen.need("batch_indices", by="the test")
    other = replace(seen, given=replace(seen.given, batch_indices=indices.flip(0)))
    assert cafe.items(other).residual > 0.1


def test_a_rank_that_would_take_for_ever_is_refused() -> None:
    with pytest.raises(ValueError, match="up to 4096"):
        cafe.system(torch.arange(5000)[None])


def test_equations_that_do_not_settle_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cafe, "_DENSE", 0)
    monkeypatch.setattr(cafe, "_STEPS", 0)
    picks = samplers.independent(12, 3, 60)
    with pytest.raises(GleakError, match="too poorly to be solved: wait for a few more rounds"):
        cafe.solve(picks, torch.randn(60, 2), 12)


def test_a_model_that_moves_is_refused() -> None:
    own = pool(6)
    picks = samplers.independent(6, 2, 20)
    seen = clients.horizontal(small(), [own], picks=picks[:, None], rate=0.1)
    with pytest.raises(GleakError, match="the model moved before round 1"):
        cafe.items(seen)


def test_who_is_not_told_the_indices_aligns_nothing() -> None:
    _, seen = protocol(4, 2, 12)
    with pytest.raises(MissingCapability, match="index alignment needs batch_indices"):
        cafe.items(seen.without("batch_indices"))


def test_an_item_that_comes_again_is_known_better() -> None:
    """In float32 the messages are rounded, and hard batches magnify that: trust decides."""
    own = random_batch(24, size=SIZE, classes=CLASSES)
    net = models.cafe_net(CLASSES, size=SIZE, widths=(4, 6), hidden=(16, 12))
    with torch.no_grad():
        true = net.features(own.images).flatten(1).double()
    off = []
    for more in (24 // 8, 40):
        ledger = cafe.Ledger()
        picks = samplers.independent(24, 8, 96)
        ledger.add(clients.horizontal(net, [own], picks=picks[:, None]))
        ledger.solve()
        picks = samplers.epochs(24, 8, more, seed=1)
        ledger.add(clients.horizontal(net, [own], picks=picks[:, None]))
        off.append(float((ledger.items().inputs - true).norm() / true.norm()))
    assert off[1] < off[0] / 2 < 0.05


def test_the_surer_estimate_counts_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    own = random_batch(24, size=SIZE, classes=CLASSES)
    net = models.cafe_net(CLASSES, size=SIZE, widths=(4, 6), hidden=(16, 12))
    with torch.no_grad():
        true = net.features(own.images).flatten(1).double()
    picks = samplers.independent(24, 8, 96)
    seen = clients.horizontal(net, [own], picks=picks[:, None])

    def off() -> float:
        return float((cafe.items(seen).inputs - true).norm())

    trusted, unmixed = off(), cafe._unmixed

    def alike(slopes: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor] | None:
        found = unmixed(slopes, gradient)
        return found and (found[0], torch.ones_like(found[1]))

    monkeypatch.setattr(cafe, "_unmixed", alike)
    assert trusted < off() / 2


# --- every parameter's gradient ------------------------------------------------------------------


def test_every_item_s_own_message_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    own, seen = protocol(9, 3, 30, seed=2)
    alone = clients.fedsgd(small(seed=2), own, each=True)
    for numbers in (cafe._NUMBERS, 30):  # all at once, or parameter by parameter
        monkeypatch.setattr(cafe, "_NUMBERS", numbers)
        found = cafe.apart(seen)
        assert (found.trials, len(found.rounds), found.given.batch_size) == (9, 1, 1)
        for name, update in alone.rounds[0].update.items():
            torch.testing.assert_close(found.rounds[0].update[name], update, rtol=1e-9, atol=1e-11)


def test_what_was_granted_of_the_batches_is_not_passed_on() -> None:
    own = pool(4)
    everything = (*clients.HONEST, "batch_indices", "oracle_labels", "oracle_inputs")
    picks = samplers.independent(4, 2, 12)
    seen = clients.horizontal(small(), [own], picks=picks[:, None], give=everything)
    assert set(cafe.apart(seen).given) == {"weights", "image_shape", "batch_size"}


def test_the_recursion_opens_a_whole_pool() -> None:
    own = pool(20, 4)
    net = models.lenet(CLASSES, size=SIZE, seed=4)  # in float32, as messages are
    own = replace(own, images=own.images.float())
    picks = samplers.independent(20, 4, 40, seed=4)
    seen = clients.horizontal(net, [own], picks=picks[:, None])
    found = attacks.analytic(cafe.apart(seen))
    assert found.labels is not None and torch.equal(found.labels[:, 0], own.labels)
    assert metrics.psnr(found.images[:, 0].float(), own.images).min() > 60


@pytest.mark.parametrize("rounds", [8, 40])
def test_batches_that_stay_the_same_hold_together(rounds: int) -> None:
    own = pool(8)
    picks = samplers.fixed(8, 2, rounds)
    seen = clients.horizontal(small(), [own], picks=picks[:, None])
    with pytest.raises(GleakError, match=f"{rounds} rounds do not determine 8 items"):
        cafe.apart(seen)


def test_messages_of_a_model_that_moves_are_not_solved() -> None:
    own, picks = pool(4), samplers.independent(4, 2, 12)
    seen = clients.horizontal(small(), [own], picks=picks[:, None], rate=0.1)
    with pytest.raises(GleakError, match="the model moved before round 1"):
        cafe.apart(seen)
