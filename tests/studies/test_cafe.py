"""The measurements of CAFE: pools of pictures, what equations say of them, what a model hides."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import measures_what_it_names
from torch.nn import functional as F

from gleak_core import cafe, data, samplers
from gleak_core.aligned import Behind, follow, together
from gleak_core.data import Batch
from gleak_core.observation import History, Reconstruction
from gleak_core.studies import cafe as grids
from gleak_core.studies import (
    cafe_attacks,
    cafe_counters,
    cafe_early,
    cafe_ends,
    cafe_learning,
    cafe_learnt,
    cafe_longer,
    cafe_pools,
    cafe_rates,
    cafe_taught,
    cafe_thousands,
    kept,
)
from gleak_core.studies.cafe_attacks import LOSSES, VARIANTS
from gleak_core.studies.cafe_pools import HORIZONTAL, OURS, PUBLISHED, VERTICAL, Loss, Pool
from gleak_core.studies.study import Cell, Study

SIDE = 12
NET = {
    "activation": "tanh",
    "init": "uniform",
    "scale": 0.1,
    "widths": (32, 64),
    "hidden": (48, 32),
}


def drawn(dataset: str, items: int, seed: int) -> Batch:
    """Return soft pictures of their own for every seed."""
    stream = torch.Generator().manual_seed(seed)
    coarse = torch.rand((items, 3, 4, 4), generator=stream)
    images = F.interpolate(coarse, (SIDE, SIDE), mode="bilinear")
    labels = torch.randint(10, (items,), generator=stream)
    return Batch(images, labels, tuple("0123456789"), "soft", torch.arange(items))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small pictures and networks, for whatever a cell names."""
    pools = {
        "SIDE": SIDE, "NET": NET, "EPOCHS": 60, "JOINT": 20, "SHORT": 10, "SINGLE": 20, "KNOWN": 5,
    }  # fmt: skip
    studies = {"BATCH": 8, "MANY": 4, "SPARSE": 20, "WHOLE": {HORIZONTAL: 20, VERTICAL: 20}}
    whole = {"SIDE": SIDE, "BATCH": 8, "STEPS": 60, "AT_ONCE": 7}
    counters = {"SIDE": SIDE, "HIDDEN": (48, 32), "EPOCHS": 150, "JOINT": 10}
    learning = {"ITEMS": 12, "EACH": 4, "ROUNDS": 30, "EPOCHS": 60, "_LAST": 6, "SHOWN": (3, 30)}
    taught = {"ITEMS": 12, "EACH": 4, "ROUNDS": 30, "SHOWN": (3, 30)}
    longer = {"STEPS": (10, 20), "MANY": 4}
    learnt = {"ITEMS": 12, "EACH": 4, "ROUNDS": 30, "JUDGED": 4}
    for module, constants in (
        (cafe_pools, pools), (cafe_attacks, studies), (cafe_learning, learning),
        (cafe_thousands, whole), (cafe_counters, counters), (cafe_learnt, learnt),
        (cafe_longer, longer), (cafe_taught, taught),
    ):  # fmt: skip
        for name, value in constants.items():
            monkeypatch.setattr(module, name, value)
    for module in (cafe_pools, cafe_learning, cafe_taught):
        monkeypatch.setattr(module, "drawn", drawn)
    monkeypatch.setattr(cafe_pools, "_others", lambda pool, own: torch.tensor(20.0))
    monkeypatch.setattr(kept, "FOLDER", tmp_path)


def rows(measure: Any, seeds: int = 2, **cell: Any) -> list[dict[str, Any]]:
    return list(measure(cell, range(seeds), "cpu"))


def test_a_pool_larger_than_its_set_goes_on_with_mirrored_pictures() -> None:
    there = len(data.load("photographs"))
    few, many = (cafe_pools.drawn("photographs", n, 3) for n in (10, 2 * there + 10))
    assert torch.equal(few.images, many.images[:10])
    assert torch.equal(many.images[there : there + 10], few.images.flip(-1))
    assert torch.equal(many.images[2 * there :], few.images.rot90(1, (-2, -1)))
    assert torch.equal(many.labels[there : there + 10], few.labels)
    assert len(many.images.flatten(1).unique(dim=0)) == len(many) == len(many.labels)


def test_where_linnaeus_is_missing_the_photographs_stand_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = {"linnaeus5": "absent"}
    monkeypatch.setattr(data, "fingerprint", lambda name: seen.get(name, "there"))
    cells: list[Cell] = [{"dataset": "Linnaeus"}, {"dataset": "CIFAR-100"}, {"batch": 1}]
    assert [*map(cafe_pools.reads, cells)] == [("photographs",), ("cifar100",), ("cifar10",)]
    seen.clear()
    assert cafe_pools.reads(cells[0]) == ("linnaeus5",)


@pytest.mark.parametrize("protocol", [HORIZONTAL, VERTICAL])
def test_pictures_come_out_of_known_batches(small: None, protocol: str) -> None:
    pool = Pool(protocol, "photographs", 20, 4, 0)
    own, found = cafe_pools.shots(pool, (0, 7), "cpu", 200)
    assert torch.equal(own.images, pool.own(1)[0].images[[0, 7]])
    assert found.labels is not None
    assert torch.equal(found.labels[:, 0], own.labels)
    assert (cafe_pools.decibel(found.images[:, 0], own.images) > 25).all()


def test_a_picture_starts_alike_whoever_else_is_asked_for(small: None) -> None:
    pool = Pool(HORIZONTAL, "photographs", 20, 4, 0)
    _, both = cafe_pools.shots(pool, (3, 7), "cpu", 2)
    _, one = cafe_pools.shots(pool, (7,), "cpu", 2)
    assert torch.equal(both.history.frames[0, 1], one.history.frames[0, 0])


def test_where_nothing_can_be_solved_the_start_is_the_result(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    partition = SimpleNamespace(epochs=samplers.fixed, independent=samplers.fixed)
    monkeypatch.setattr(cafe_pools, "samplers", partition)
    found = rows(cafe_attacks.by_method, method="CAFE", attack=OURS)
    assert [row["status"] for row in found] == ["failed"] * 2
    assert all(row["psnr"] < 15 and row["evaluations"] == 0 for row in found)


@pytest.mark.parametrize("protocol", [HORIZONTAL, VERTICAL])
def test_what_is_matched_is_the_mean_over_all_workers(small: None, protocol: str) -> None:
    pool = Pool(protocol, "photographs", 8, 4, 0)
    own, found = cafe_pools.matched(pool, Loss(internal=0), "cpu", 10)
    assert len(own) == pool.workers * 8 == len(found.images)
    assert torch.equal(own.images[:8], pool.own(1)[0].images)
    assert found.history.frame_steps.tolist() == [0, 10]
    assert found.history.steps.tolist() == [0, 5, 10]
    assert set(found.evaluations.tolist()) == {10}


def test_one_gradient_tells_one_picture_s_inputs_and_no_batch_s(small: None) -> None:
    def errors(batch: int, updates: str) -> list[float]:
        found = rows(cafe_attacks.inputs, batch=batch, updates=updates)
        return [row["z_error"] for row in found]

    assert max(errors(1, "one")) < 1e-4
    assert min(errors(4, "one")) > 0.02  # tanh: no unit is on for one picture alone
    assert max(errors(1, "many") + errors(4, "many")) < 1e-3


def test_every_term_begins_with_the_share_it_is_given(small: None) -> None:
    pool = Pool(HORIZONTAL, "photographs", 16, 8, 0)
    (own,) = pool.own(1)
    net = pool.network(own, "cpu")
    seen = pool.share(net, [own], torch.arange(16).view(2, 1, 8))
    inputs = cafe_pools.inputs_of(seen, own.images)[0].flatten(1)
    begun = torch.rand(16, 1, 3, SIDE, SIDE)
    first = begun[:8, 0]
    off = (cafe_pools.inputs_of(seen, first)[0].flatten(1) - inputs[:8]).square().sum()
    for loss in (Loss("squared_l2", 0.1, True, 2.0), Loss("cosine", 0.1, True, 2.0)):
        smooth, internal = cafe_pools.weights(seen, own, begun, inputs, loss)
        variation = cafe_pools.variation(first).sum()
        assert float(internal * off / (smooth * variation)) == pytest.approx(20, rel=1e-4)
    fake = pool.share(net, [replace(own[[*range(8)]], images=first)], torch.arange(8)[None, None])
    pairs = zip(seen.rounds[0].update.values(), fake.rounds[0].update.values(), strict=True)
    apart = sum(float((a - b).square().sum()) for a, b in pairs)
    _, internal = cafe_pools.weights(seen, own, begun, inputs, Loss(internal=2))
    assert float(internal * off) == pytest.approx(2 * apart, rel=1e-4)
    assert cafe_pools.weights(seen, own, begun, None, Loss(smooth=0)) == (0, 0)


def test_tiny_batches_are_dealt_as_often_as_memory_bears() -> None:
    def deals(items: int, batch: int) -> int:
        return Pool(VERTICAL, "photographs", items, batch, 0).deals

    assert [deals(80, 40), deals(200, 20), deals(200, 4), deals(100, 1)] == [5, 5, 2, 1]


def test_the_pictures_of_one_message_are_among_those_of_two(small: None) -> None:
    """So that what is judged is the same: every fourth of the one, every eighth of the other."""
    two, one = (Pool(HORIZONTAL, "photographs", n, 2, 3, thin) for n, thin in ((4, 1), (2, 2)))
    both = [torch.cat([own.images for own in pool.own(4)]) for pool in (two, one)]
    assert torch.equal(both[0][::2], both[1])
    own, _ = cafe_pools.dlg(one, 4, "cpu")
    assert torch.equal(own.images, both[1])


def test_methods_are_judged_by_the_same_pictures(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[torch.Tensor] = []
    real = cafe_attacks.decibel

    def spy(found: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        judged.append(true)
        return real(found, true)

    monkeypatch.setattr(cafe_attacks, "decibel", spy)
    methods = ("CAFE", cafe_attacks.WITHOUT_Z, cafe_attacks.ONE, "DLG", cafe_attacks.GRANTED)
    for method in methods:
        found = rows(cafe_attacks.by_method, 4, method=method, attack=PUBLISHED)
        assert len({row["psnr"] for row in found}) == 4
    assert len(judged) > len(methods)
    assert all(torch.equal(true, judged[0]) for true in judged)


def test_a_trial_that_is_over_keeps_its_last_loss() -> None:
    own = drawn("", 2, 0)
    frames = torch.rand(3, 2, 1, 3, SIDE, SIDE)
    history = History(
        steps=torch.arange(5),
        loss=torch.tensor([[4.0, 8], [2, 4], [1, 2], [math.nan, 2], [math.nan, 1]]),
        frame_steps=torch.tensor([0, 2, 4]),
        frames=frames,
    )
    found = Reconstruction(
        images=frames[-1], labels=None, loss=torch.tensor([0.5, 1]), status=("solved", "failed"),
        history=history, evaluations=torch.tensor([2, 4]), seconds=0.0, attack="made up",
    )  # fmt: skip
    scores = cafe_attacks._scores(found, own, [0, 1])
    assert [score["loss"] for score in scores] == [[1, 0.25, 0.125], [1, 0.25, 0.125]]


def test_where_one_message_is_the_pool_its_inputs_are_granted(small: None) -> None:
    pool = Pool(HORIZONTAL, "photographs", 4, 4, 0)
    own = pool.own(4)
    net = pool.network(own[0], "cpu")
    seen = pool.share(net, own, torch.arange(4).expand(1, 4, 4))
    granted = cafe_pools._inputs(pool, net, seen, own)
    assert granted.shape[0] == 16
    [second] = cafe_pools.inputs_of(seen, own[1].images)
    assert torch.equal(granted[4:8], second.flatten(1))


def test_variation_is_the_paper_s() -> None:
    image = torch.tensor([[0.0, 1, 0], [0, 0, 0]]).expand(3, 2, 3)
    assert float(cafe_pools.variation(image)) == 3 * 3


def test_a_loss_without_a_term_is_one_variant_of_another() -> None:
    assert VARIANTS["full"] == LOSSES["CAFE"]
    assert LOSSES["CAFE with cosine similarity"] == replace(Loss(), distance="cosine")
    for name, field in {"no TV": "smooth", "no internal representation": "internal"}.items():
        assert VARIANTS[name] == replace(Loss(), **{field: 0})


def test_what_is_known_of_the_inputs_helps_the_matching(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cafe_pools, "JOINT", 40)
    monkeypatch.setattr(cafe_pools, "SHORT", 40)
    known, without = (
        rows(cafe_attacks.ablated, 8, variant=name)
        for name in ("full", "no internal representation")
    )
    gains = [a["psnr"] - b["psnr"] for a, b in zip(known, without, strict=True)]
    assert sorted(gains)[1] > 1


def test_a_row_costs_what_its_run_takes_up_to_there(small: None) -> None:
    half, whole = (rows(cafe_rates.by_epoch, 1, epoch=n, attack=PUBLISHED)[0] for n in (10, 20))
    assert (half["evaluations"], whole["evaluations"]) == (10, 20)
    assert half["seconds"] == pytest.approx(whole["seconds"] / 2)


def test_linear_algebra_is_ahead_of_dlg(small: None) -> None:
    ours = rows(cafe_attacks.by_method, 4, method="CAFE", attack=OURS)
    theirs = rows(cafe_attacks.by_method, 4, method="DLG", attack=PUBLISHED)
    assert min(a["psnr"] - b["psnr"] for a, b in zip(ours, theirs, strict=True)) > 3


def test_a_table_reads_a_run_at_its_own_step() -> None:
    score = {
        "steps": [0, 10, 20, 30], "psnr": [5.0, 29.0, 31.0, 40.0], "ssim": [0.1, 0.2, 0.3, 0.4],
        "loss": [1.0, 0.5, 0.2, 0.1], "status": "failed", "evaluations": 30, "seconds": 1.5,
    }  # fmt: skip
    about = {"status": "failed", "seconds": 1.5}
    at_the_end = {"psnr": 40.0, "loss": 0.1, "success_rate": 1.0, "evaluations": 30}
    assert cafe_attacks._named(score, "psnr", "loss", "success_rate") == about | at_the_end
    about["seconds"] = 1.5 * 19 / 30
    before = {"psnr": 29.0, "ssim": 0.2, "success_rate": 0.0, "evaluations": 19}
    assert cafe_attacks._named(score, "psnr", "ssim", "success_rate", at=19) == about | before
    assert cafe_attacks._named(score, "psnr", at=99)["psnr"] == 40
    assert cafe_attacks._clear(score, 4)["iterations"] == 20 / 4
    assert cafe_attacks._clear({**score, "psnr": [5.0] * 4}, 4)["iterations"] == 601
    assert cafe_attacks._clear({**score, "psnr": [5.0] * 4}, 4)["success_rate"] == 0


def test_runs_go_to_their_end_where_a_table_shows_it() -> None:
    def steps(protocol: str, items: int, batch: int, **loss: Any) -> int:
        return cafe_attacks._steps(Pool(protocol, "photographs", items, batch, 0), Loss(**loss))

    assert steps(HORIZONTAL, 20, 10) == steps(HORIZONTAL, 10, 10) == steps(VERTICAL, 80, 40) == 600
    assert steps(HORIZONTAL, 20, 10, internal=0) == 600
    assert steps(HORIZONTAL, 20, 10, smooth=0) == steps(HORIZONTAL, 40, 20) == 300
    assert steps(VERTICAL, 400, 40) == steps(VERTICAL, 160, 80) == 300


def test_the_first_loss_is_that_of_the_start(small: None) -> None:
    pool = Pool(HORIZONTAL, "photographs", 8, 4, 0)
    (own,) = pool.own(1)
    seen = pool.share(pool.network(own, "cpu"), [own], samplers.epochs(8, 4, 2)[:, None])
    start = torch.rand(8, 1, 3, SIDE, SIDE)
    once, often = (together(seen, own.labels, epochs=1, inner=n, start=start) for n in (1, 3))
    first = once.history.loss[0]
    assert torch.equal(first, often.history.loss[0])
    assert torch.equal(first, once.history.loss[1])  # no step was taken before the only look
    assert (often.history.loss[1] < first).all()


def test_iterations_are_shared_by_the_batch(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    how = {"method": "CAFE", "batch": 8, "dataset": "CIFAR-10", "attack": OURS}
    monkeypatch.setattr(cafe_attacks, "CLEAR", 15.0)
    found = rows(cafe_attacks.speed, **how)
    assert all(0 < row["iterations"] <= 60 / 8 and row["success_rate"] == 1 for row in found)
    monkeypatch.setattr(cafe_attacks, "CLEAR", 200.0)  # a picture that never leaks shares nothing
    assert [row["iterations"] for row in rows(cafe_attacks.speed, **how)] == [21] * 2
    alone = rows(cafe_attacks.speed, **{**how, "method": "DLG", "batch": 1, "attack": PUBLISHED})
    assert [row["iterations"] for row in alone] == [21.0] * 2


def test_tables_that_ask_for_the_same_runs_show_the_same_runs(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"dataset": "CIFAR-10", "attack": OURS}
    first = rows(cafe_attacks.by_method, 2, method="CAFE", **how)
    monkeypatch.setattr(cafe_pools, "shots", None)  # nobody attacks again
    again = rows(cafe_attacks.batches_horizontal, 2, batch=2, **how)
    assert again == first
    assert all(row["seconds"] > 0 for row in again)
    with pytest.raises(TypeError):
        rows(cafe_attacks.batches_horizontal, 2, batch=3, **how)


def test_where_a_table_shows_the_end_the_descent_is_slow(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables of the same end show the same run; what is not matched has no rate."""
    asked, real = [], cafe_pools.matched

    def spy(pool: Pool, loss: Loss, *rest: Any) -> Any:
        asked.append((pool, loss, rest[-1]))
        return real(pool, loss, *rest)

    monkeypatch.setattr(cafe_pools, "matched", spy)
    published: dict[str, Any] = {"dataset": "CIFAR-10", "attack": PUBLISHED}
    ends = rows(cafe_rates.ended, protocol=HORIZONTAL, **published)
    figure = rows(cafe_rates.by_method, method="CAFE", **published)
    slow = rows(cafe_rates.slower, dataset="CIFAR-10", rate=0.02, tv=Loss().smooth)
    assert [r["psnr"] for r in ends] == [r["psnr"] for r in figure] == [r["psnr"] for r in slow]
    pool = Pool(HORIZONTAL, "CIFAR-10", 4, 2, 0)
    assert asked == [(pool, Loss(rate=0.02), cafe_pools.JOINT)]
    asked.clear()
    rows(cafe_rates.by_method, method=cafe_attacks.WITHOUT_Z, **published)
    rows(cafe_rates.by_method, method=cafe_attacks.ONE, **published)
    rows(cafe_rates.slower, dataset="CIFAR-10", rate=0.01, tv=0.0)
    rows(cafe_rates.ended, protocol=VERTICAL, **published)
    rows(cafe_rates.by_epoch, epoch=10, attack=PUBLISHED)
    for name in ("CAFE", cafe_attacks.WITHOUT_Z, cafe_attacks.ONE):
        there = rows(cafe_rates.by_method, method=name, **published)
        here = rows(cafe_rates.helped, method=name, rate=0.02)
        assert [r["psnr"] for r in here] == [r["psnr"] for r in there]
    assert asked == [
        (pool, Loss(rate=0.02, internal=0), 20),
        (replace(pool, items=2, thin=2), Loss(rate=0.02), 20),
        (pool, Loss(rate=0.01, smooth=0.0), 20),
        (Pool(VERTICAL, "CIFAR-10", 16, 8, 0), Loss(rate=0.02), 20),
        (replace(pool, dataset="Linnaeus"), Loss(rate=0.02), 20),
    ]
    solved: dict[str, dict[str, Any]] = {
        "by_method": {"method": "CAFE", "dataset": "CIFAR-10"},
        "ended": {"protocol": HORIZONTAL, "dataset": "CIFAR-10"},
        "by_epoch": {"epoch": 10},
    }
    for name, how in solved.items():
        here, there = (
            rows(getattr(module, name), attack=OURS, **how) for module in (cafe_rates, cafe_attacks)
        )
        assert here == there
    assert len(asked) == 5


def test_a_longer_run_begins_as_that_of_the_table(small: None) -> None:
    def ends(epoch: int, rate: float = cafe_pools.RATE) -> list[float]:
        found = rows(cafe_longer.longer, 5, batch=8, rate=rate, epoch=epoch)
        assert {row["evaluations"] for row in found} == {epoch}
        return [row["psnr"] for row in found]

    there: dict[str, Any] = {"batch": 8, "dataset": "CIFAR-10", "attack": PUBLISHED}
    table = [row["psnr"] for row in rows(cafe_attacks.batches_vertical, 5, **there)]
    assert ends(10) == table
    assert sum(ends(20)) > sum(table) != sum(ends(10, 0.02))


def test_rounds_that_come_one_by_one_are_matched_as_if_they_lay_there(small: None) -> None:
    pool = Pool(HORIZONTAL, "photographs", 8, 4, 0)
    (own,) = pool.own(1)
    seen = pool.share(pool.network(own, "cpu"), [own], samplers.epochs(8, 4, 6)[:, None])
    whole = together(seen, own.labels, epochs=1, inner=2, seed=3)
    members = seen.given.batch_indices
    assert members is not None
    halves = (
        replace(seen, rounds=seen.rounds[k], given=replace(seen.given, batch_indices=members[k]))
        for k in (slice(2), slice(2, None))
    )
    first, last = follow(halves, own.labels, inner=2, seed=3)
    assert torch.equal(last, whole.images[:, 0])
    assert not torch.equal(first, last)  # and it does not change behind one's back
    with pytest.raises(ValueError, match="the stream is empty"):
        next(follow([], own.labels))


# --- while the model learns ---------------------------------------------------------------------


@pytest.mark.parametrize("drift", [False, True])
def test_slopes_that_stand_still_or_move_along_a_line_are_found(drift: bool) -> None:
    stream = torch.Generator().manual_seed(0)
    items = cafe_learning.ITEMS
    picks = samplers.independent(items, 10, 3 * items, seed=0)
    still, moving = torch.randn(2, items, 4, dtype=torch.float64, generator=stream)
    time = torch.linspace(-1, 1, len(picks), dtype=torch.float64)
    true = still + drift * time[:, None, None] * moving
    biases = torch.einsum("rn,rno->ro", cafe.shares(picks, items), true)
    found = cafe_learning._slopes(picks, biases, drift)
    assert torch.allclose(found, true, atol=1e-9)


@pytest.mark.parametrize("attack", cafe_learning.ATTACKS)
def test_a_model_that_hardly_moves_leaks_and_one_that_learns_leaks_less(
    small: None, attack: str
) -> None:
    how = {"attack": attack, "inner_steps": 4, "rounds": 30}
    slow, fast = (rows(cafe_learning.learning, 3, rate=rate, **how) for rate in (1e-7, 0.3))
    assert all(row["loss"] == pytest.approx(1, abs=1e-3) for row in slow)
    assert len({row["loss"] for row in fast}) == 1
    assert abs(fast[0]["loss"] - 1) > 0.02
    if attack == cafe_learning.ATTACKS[0]:
        assert all(row["evaluations"] == 4 * 30 * 4 // 12 for row in slow)
        return
    better = [a["psnr"] - b["psnr"] for a, b in zip(slow, fast, strict=True)]
    assert min(better) > 5, (slow, fast)
    assert min(row["psnr"] for row in slow) > 20


def test_a_warm_start_is_looked_at_with_the_model_of_that_moment(small: None) -> None:
    how = {"attack": cafe_learning.ATTACKS[0], "inner_steps": 2, "rate": 0.3}
    early, late = (rows(cafe_learning.learning, 2, rounds=n, **how) for n in (3, 30))
    net, own, picks = cafe_learning._begun(0, "cpu")
    losses = [F.cross_entropy(net(own.images), own.labels)]
    for members in picks[:3]:
        loss = F.cross_entropy(net(own.images[members]), own.labels[members])
        slopes = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for weight, slope in zip(net.parameters(), slopes, strict=True):
                weight -= 0.3 * slope
    losses.append(F.cross_entropy(net(own.images), own.labels))
    assert early[0]["loss"] == pytest.approx(losses[1].item() / losses[0].item(), rel=1e-4)
    assert late[0]["loss"] != early[0]["loss"]
    assert [row["psnr"] for row in late] != [row["psnr"] for row in early]
    assert (early[0]["evaluations"], late[0]["evaluations"]) == (2, 20)


def test_a_warm_start_begins_as_follow_does(small: None) -> None:
    # In the first epoch no picture has moments from another round.
    net, own, picks = cafe_learning._begun(0, "cpu")
    stream = cafe_learning._rounds(net, own, picks, 0.1)
    first = next(follow(stream, own.labels, inner=3, rate=0.02, seed=0))
    (shown, _), _ = cafe_learning.followed(0.1, 3, 0.02, 0, "cpu", granted=False, learnt=False)
    assert shown[0] == pytest.approx(cafe_pools.decibel(first, own.images).tolist(), rel=1e-4)


def test_the_oracle_says_what_each_item_was_at_the_weights_of_its_own_round(small: None) -> None:
    net, own, picks = cafe_learning._begun(0, "cpu")
    (seen,) = cafe_learning._rounds(net, own, picks[:3], 0.5)
    told = cafe_learning._inputs(seen, own)
    for r, members in enumerate(picks[:3]):
        weights = seen.rounds[r].weights
        assert weights is not None
        behind = Behind(seen.architecture, weights, ("hidden.0",), told[members], (3, SIDE, SIDE))
        off, _ = behind.value_and_grad(own.images[members].flatten(1))
        assert off.max() < 1e-8
        assert r == 0 or behind.inputs(own.images.flatten(1)).sub(told).abs().max() > 1e-4


def test_who_has_learnt_stands_still_and_z_helps_against_a_model_that_learns(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (cafe_learnt.LEARNS, cafe_learnt.LEARNT):
        monkeypatch.setitem(cafe_learnt._MODELS[name], "rate", 0.3)
    found = {
        (model, z): rows(cafe_learnt.why, 5, model=model, z=z, step=0.05)
        for model in (cafe_learnt.FRESH, cafe_learnt.LEARNS, cafe_learnt.LEARNT)
        for z in (cafe_learnt.NO_Z, cafe_learnt.WITH_Z)
    }
    losses = {model: [row["loss"] for row in some] for (model, _), some in found.items()}
    assert losses[cafe_learnt.FRESH] == [1.0] * 5
    assert losses[cafe_learnt.LEARNS] == pytest.approx(losses[cafe_learnt.LEARNT], rel=1e-5)
    assert len(set(losses[cafe_learnt.LEARNT])) == 2, "two networks of four pictures"
    assert all(abs(loss - 1) > 0.02 for loss in losses[cafe_learnt.LEARNT])
    for (model, z), some in found.items():
        if z == cafe_learnt.WITH_Z:
            pairs = zip(some, found[model, cafe_learnt.NO_Z], strict=True)
            assert sum(a["psnr"] - b["psnr"] for a, b in pairs) > len(some), model


def test_a_model_that_learns_from_others_goes_the_way_of_one_that_learns_from_these(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cafe_taught, "RATE", 0.3)
    apart = [cafe_taught._apart(moves, 0, "cpu")[0] for moves in (True, False)]
    monkeypatch.setattr(cafe_taught, "_others", lambda _: cafe_learning._begun(0, "cpu")[1])
    monkeypatch.setattr(kept, "FOLDER", kept.FOLDER / "these")
    for k, moves in enumerate((True, False)):
        same, _ = cafe_taught._apart(moves, 0, "cpu")
        there, _ = cafe_learning.followed(
            0.3, cafe_taught.INNER, cafe_taught.STEP, 0, "cpu", granted=False, learnt=not moves
        )
        for (psnr, loss), (other, too) in zip(same, there, strict=True):
            assert psnr == pytest.approx(other, rel=1e-3)
            assert loss == pytest.approx(too, rel=1e-4)
        assert apart[k][-1][1] != pytest.approx(same[-1][1], rel=1e-3), "others teach another loss"


def test_all_rounds_are_the_first_of_a_figure_that_has_no_more(small: None) -> None:
    how = {"attack": cafe_early.STATIC, "rate": 0.3}
    there = rows(cafe_learning.learning, 5, inner_steps=10, rounds=30, **how)
    every = rows(cafe_early.early, 5, rounds=30, **how)
    for row, other in zip(every, there, strict=True):
        assert {k: row[k] for k in ("psnr", "loss", "status")} == pytest.approx(
            {k: other[k] for k in ("psnr", "loss", "status")}
        )
    first = rows(cafe_early.early, 5, rounds=15, **how)
    assert sum(row["psnr"] for row in first) > sum(row["psnr"] for row in every)
    assert abs(first[0]["loss"] - 1) < abs(every[0]["loss"] - 1)


def test_others_are_nobody_who_is_attacked() -> None:
    # Of the real pictures: made-up ones differ from any others.
    own, others = cafe_learning._begun(0, "cpu")[1], cafe_taught._others(0)
    assert len(others) == len(own) == cafe_learning.ITEMS
    assert not set(own.indices.tolist()) & set(others.indices.tolist())


# --- the grids ----------------------------------------------------------------------------------

SHRUNK = {"batch": 8, "pictures": 24, "batch_ratio": 0.4, "epoch": 10, "rounds": 30}


def shrunk(study: Study) -> Study:
    """Return the first and last cell of a study, in numbers that a test can pay for."""
    ends = [study.cells[0], study.cells[-1]]
    cells = [
        {k: SHRUNK[k] if k in SHRUNK and cell[k] != 1 else v for k, v in cell.items()}
        for cell in ends
    ]
    some = cells[:1] if cells[0] == cells[1] else cells
    return replace(study, cells=tuple(some), reading={})


@pytest.mark.parametrize(
    "study",
    (
        *grids.STUDIES,
        *cafe_rates.STUDIES,
        *cafe_longer.STUDIES,
        *cafe_ends.STUDIES,
        *cafe_learnt.STUDIES,
        *cafe_taught.STUDIES,
        *cafe_early.STUDIES,
    ),
    ids=lambda study: study.id,
)
def test_every_study_measures_what_it_names(
    study: Study, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (cafe_pools, cafe_learning):
        monkeypatch.setattr(module, "EPOCHS", 4)
    limits = {"psnr": (-20, math.inf), "success_rate": (0, 1), "ssim": (-1, 1)}
    measures_what_it_names(shrunk(study), limits)


# --- whole pools --------------------------------------------------------------------------------


def test_the_recursion_leaks_every_picture_of_a_pool(small: None) -> None:
    cell = {"attack": cafe_thousands.RECURSION, "pictures": 40}
    found = rows(cafe_thousands.whole, 21, **cell)
    assert min(row["psnr"] for row in found) >= min(row["lowest"] for row in found) > 50
    assert {row["status"] for row in found} == {"solved"}
    first, second = found[:20], found[20:]  # two pools, each with a cost of its own
    for name in ("lowest", "minutes", "memory"):
        assert len({row[name] for row in first}) == 1, name
    assert first[0]["minutes"] != second[0]["minutes"]


def test_a_trial_is_one_picture_of_its_pool(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def made_up(pool: Pool, own: Batch, device: str) -> torch.Tensor:
        off = 10.0 ** -torch.arange(len(own))  # each picture is 20 dB better than the last
        return own.images + off[:, None, None, None]

    monkeypatch.setattr(cafe_thousands, "_fitted", made_up)
    monkeypatch.setattr(cafe_thousands, "decibel", lambda a, b: 20 * torch.arange(len(b)))
    cell = {"attack": cafe_thousands.INPUTS, "pictures": 40}
    found = rows(cafe_thousands.whole, 20, **cell)
    assert [row["psnr"] for row in found] == [40 * k for k in range(20)]
    assert {row["lowest"] for row in found} == {0}
    assert [row["status"] for row in found][:2] == ["failed", "solved"]


def test_fits_come_in_parts_and_in_order(small: None) -> None:
    pool = Pool(VERTICAL, "CIFAR-10", 16, 8, 1)
    [own] = pool.own(1)
    found = cafe_thousands._fitted(pool, own, "cpu")
    apart = torch.cdist(found.flatten(1).cpu(), own.images.flatten(1))
    assert apart.argmin(1).tolist() == list(range(16))


def test_a_peak_is_of_what_was_held_since_it_was_forgotten() -> None:
    torch.zeros(2**28).add_(1)  # a GB, given back at once
    cafe_thousands.forget_peak()
    before = cafe_thousands.peak()
    held = torch.zeros(2**27).add_(1)
    assert cafe_thousands.peak() - before > 0.4 and held.numel()


# --- counter-measures ---------------------------------------------------------------------------


def countered(counter: str, attack: str = OURS) -> tuple[list[dict[str, Any]], float, float]:
    """Return four pictures' rows, and the medians of quality and of the inputs' error."""
    found = rows(cafe_counters.countered, 4, counter=counter, attack=attack)
    quality, error = (
        float(torch.tensor([row[name] for row in found]).median()) for name in ("psnr", "z_error")
    )
    return found, quality, error


@pytest.mark.parametrize(
    "counter",
    [
        "none",
        "only the mean of four workers",
        "indices are not told, 15 rounds for each item",
        "wrong indices, 1 round in 10",
        "dropout, an item's own",
    ],
)
def test_what_leaves_the_equations_a_solution_protects_nothing(small: None, counter: str) -> None:
    found, quality, error = countered(counter)
    assert quality > 30 and error < 1e-3
    assert [row["leaked"] for row in found] == [float(row["psnr"] >= 30) for row in found]
    assert {row["evaluations"] for row in found} == {150}


@pytest.mark.parametrize(
    "counter", ["a fixed partition", "indices are not told, 2 rounds for each item"]
)
def test_what_leaves_them_none_leaves_the_start(small: None, counter: str) -> None:
    found, quality, error = countered(counter)
    assert quality < 15 and error > 0.1
    assert {row["status"] for row in found} == {"failed"}
    assert {row["evaluations"] for row in found} == {0}


def test_what_makes_them_wrong_makes_the_inputs_wrong(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cafe_counters, "EPOCHS", 2)  # inputs come before any fit
    errors = {name: countered(name)[2] for name in cafe_counters.COUNTERS if "noise" in name}
    assert 1e-4 < errors["noise, 0.01"] < errors["noise, 0.1"] < errors["noise, 1"]
    patient = errors["noise, 1, 16 rounds for each item"]
    assert patient < 0.7 * errors["noise, 1"], "more rounds average noise away"
    assert countered("wrong indices, every round")[2] > 0.1
    assert countered("dropout, drawn anew")[2] > 0.01


def test_matching_needs_no_rank(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins where the other attack is left, and comes nearer; redrawn batches help it."""
    start = countered("a fixed partition")[1]
    monkeypatch.setattr(cafe_counters, "JOINT", 40)
    found, quality, _ = countered("a fixed partition", PUBLISHED)
    _, redrawn, _ = countered("none", PUBLISHED)
    assert start + 1 < quality < redrawn
    assert {row["evaluations"] for row in found} == {40}


def test_dropout_is_the_client_s_own(small: None) -> None:
    """The masks act on the messages of the rounds, and no hook stays behind."""
    sent = cafe_counters._pool(1, 0, "cpu")
    picks = sent.rounds()
    plain, dropped = sent.share(picks), cafe_counters._dropped(sent, anew=False)
    assert not sent.net.hidden[1]._forward_hooks
    for name, gradient in plain.rounds[0].update.items():
        other = dropped.rounds[0].update[name]
        assert other.shape == gradient.shape
        assert not torch.allclose(other, gradient)
    assert dropped.given.batch_indices is not None
    assert torch.equal(dropped.given.batch_indices, picks[:, 0])
