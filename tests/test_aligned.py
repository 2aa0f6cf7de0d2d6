"""CAFE by linear algebra: every picture of a pool, one by one."""

from dataclasses import replace

import pytest
import torch
from support import random_batch

from gleak_core import cafe, clients, metrics, models, samplers
from gleak_core.aligned import Behind, recover, together
from gleak_core.data import Batch
from gleak_core.errors import GleakError

CLASSES, SIZE, ITEMS = 5, 8, 10
SMALL = {"widths": (16, 32), "hidden": (12, 8)}  # 128 inputs behind 64 pixels of one channel


def pool(seed: int = 0) -> Batch:
    batch = random_batch(ITEMS, size=SIZE, classes=CLASSES, seed=seed)
    return replace(batch, images=batch.images[:, :1].double())


def network(kind: str) -> models.Network:
    if kind == "vertical":
        return models.vertical_net(CLASSES, 1, SIZE, vector=8, **SMALL).double()  # type: ignore[arg-type]
    return models.cafe_net(CLASSES, 1, SIZE, **SMALL).double()  # type: ignore[arg-type]


def rounds(kind: str, own: Batch, picks: torch.Tensor) -> clients.Observation:
    net = network(kind)
    if kind == "vertical":
        return clients.vertical(net, own, picks=picks)
    return clients.horizontal(net, [own], picks=picks[:, None])


@pytest.mark.parametrize("kind", ["horizontal", "vertical"])
def test_every_picture_and_label_of_a_pool(kind: str) -> None:
    own = pool()
    found = recover(rounds(kind, own, samplers.independent(ITEMS, 3, 40)))
    assert found.trials == ITEMS
    assert set(found.status) == {"solved"}
    assert found.labels is not None and torch.equal(found.labels[:, 0], own.labels)
    assert metrics.psnr(found.images[:, 0].clamp(0, 1), own.images).min() > 60


def test_some_pictures_only() -> None:
    own = pool(1)
    found = recover(rounds("horizontal", own, samplers.epochs(ITEMS, 2, 40)), only=[7, 2])
    assert metrics.psnr(found.images[:, 0].clamp(0, 1), own.images[[7, 2]]).min() > 60


def test_a_ledger_needs_no_round_twice() -> None:
    own, ledger = pool(2), cafe.Ledger()
    for picks in samplers.independent(ITEMS, 3, 40).split(7):
        ledger.add(rounds("horizontal", own, picks))
    assert ledger.missing == ITEMS
    with pytest.raises(GleakError, match="solve, then add further rounds"):
        ledger.items()
    ledger.solve()
    half = torch.tensor([[0, 1, 2], [3, 4, 5]])
    ledger.add(rounds("horizontal", own, half))
    assert ledger.missing == ITEMS - 6
    with pytest.raises(GleakError, match="the inputs of 4 items are not known yet: add rounds"):
        recover(ledger)
    ledger.add(rounds("horizontal", own, torch.tensor([[6, 7, 8], [8, 9, 0]])))
    found = recover(ledger)
    assert metrics.psnr(found.images[:, 0].clamp(0, 1), own.images).min() > 60


def test_a_ledger_refuses_what_does_not_belong() -> None:
    own, ledger = pool(), cafe.Ledger()
    with pytest.raises(GleakError, match="nothing was written down yet"):
        _ = ledger.seen
    ledger.add(rounds("horizontal", own, samplers.independent(6, 3, 3)))
    other = clients.horizontal(
        models.cafe_net(CLASSES, 1, SIZE, seed=1, **SMALL).double(),  # type: ignore[arg-type]
        [own],
        picks=torch.tensor([[[0, 1, 2]]]),
    )
    with pytest.raises(GleakError, match="the model moved"):
        ledger.add(other)
    with pytest.raises(GleakError, match="3 rounds do not determine 6 items"):
        ledger.solve()
    ledger.add(rounds("horizontal", own, samplers.independent(6, 3, 30, seed=1)))
    ledger.solve()
    with pytest.raises(GleakError, match="item 9 was in no round"):
        ledger.add(rounds("horizontal", own, torch.tensor([[0, 1, 9]])))


def test_the_slope_is_that_of_the_value_and_no_hook_stays() -> None:
    net = network("vertical")
    weights = {n: p.detach() for n, p in net.named_parameters()}
    first = tuple(f"workers.{m}.hidden.0" for m in range(4))
    goal = torch.randn(2, 128, dtype=torch.float64)
    behind = Behind(net, weights, first, goal, (1, SIZE, SIZE))
    z = torch.rand(2, SIZE * SIZE, dtype=torch.float64)
    value, slope = behind.value_and_grad(z)
    way = torch.randn_like(z)
    ahead, back = (behind.value_and_grad(z + s * 1e-5 * way)[0] for s in (1, -1))
    assert torch.allclose((ahead - back) / 2e-5, (slope * way).sum(1), rtol=1e-6)
    alone = behind.compact(torch.tensor([1])).value_and_grad(z[1:])
    assert torch.allclose(alone[0], value[1:]) and torch.allclose(alone[1], slope[1:])
    assert not any(m._forward_pre_hooks for m in net.modules())


# --- all together, as published ------------------------------------------------------------------


def fixed(own: Batch, batch: int = 2, rate: float = 0.0) -> clients.Observation:
    picks = samplers.fixed(ITEMS, batch, ITEMS // batch)
    return clients.horizontal(network("horizontal"), [own], picks=picks[:, None], rate=rate)


@pytest.mark.parametrize("direction", ["adam", "normalised"])
def test_aligned_batches_come_clear_together(direction: str) -> None:
    own = pool()
    pace = {"adam": 0.05, "normalised": 0.02}[direction]
    found = together(fixed(own), own.labels, epochs=60, rate=pace, direction=direction)
    first, last = found.history.loss[0], found.history.loss[-1]
    assert (last < first / 10).all()
    start = metrics.mse(found.history.frames[0, :, 0], own.images)
    end = metrics.mse(found.images[:, 0], own.images)
    assert end.median() < start.median() / 3
    assert found.evaluations.tolist() == [60] * ITEMS


def test_a_round_moves_its_own_pictures_and_no_others() -> None:
    own = pool()
    seen = fixed(own).message(1)
    (indices,) = seen.need("batch_indices", by="the test")
    found = together(seen, own.labels, epochs=2, inner=3)
    moved = (found.history.frames[-1] != found.history.frames[0]).flatten(1).any(1)
    assert set(moved.nonzero()[:, 0].tolist()) == set(indices[0].tolist())
    assert found.evaluations.tolist() == [6 if m else 0 for m in moved.tolist()]
    assert found.history.loss[-1].isnan().tolist() == (~moved).tolist()


def test_the_true_inputs_help() -> None:
    own = pool(3)
    seen = clients.horizontal(
        network("horizontal"),
        [own],
        picks=samplers.fixed(ITEMS, 5, 2)[:, None],
        give=(*clients.HONEST, "batch_indices", "oracle_inputs"),
    )
    (inputs,) = seen.need("oracle_inputs", by="the test")
    off = [
        metrics.mse(found.images[:, 0], own.images).median()
        for found in (
            together(seen, own.labels, epochs=40),
            together(seen, own.labels, epochs=40, internal=1.0, inputs=inputs[0]),
        )
    ]
    assert off[1] < off[0] / 3


def test_pictures_that_are_smooth_enough_are_left_alone() -> None:
    own, seen = pool(), fixed(pool())
    rough = torch.full((ITEMS,), 1e9)
    plain = together(seen, own.labels, epochs=5)
    assert torch.equal(
        together(seen, own.labels, epochs=5, smooth=1.0, level=rough).images, plain.images
    )
    smoothed = together(seen, own.labels, epochs=5, smooth=1.0).images
    assert smoothed.diff(dim=-1).abs().sum() < plain.images.diff(dim=-1).abs().sum()


def test_a_smooth_start_at_the_truth_is_solved_all_the_same() -> None:
    own = pool()
    at = own.images[:, None]
    found = together(fixed(own), own.labels, epochs=1, start=at, rate=1e-9, smooth=1e-3)
    assert set(found.status) == {"solved"}  # by the match, whatever the other terms say


def test_an_item_twice_in_a_batch_is_refused() -> None:
    own = pool()
    seen = clients.horizontal(network("horizontal"), [own], picks=torch.tensor([[[0, 0, 1]]]))
    with pytest.raises(ValueError, match="twice in a batch"):
        together(seen, own.labels)


def test_a_model_that_moves_is_matched_at_its_weights_of_the_round() -> None:
    own = pool()
    seen = fixed(own, rate=0.5)
    at = own.images[:, None]
    found = together(seen, own.labels, epochs=1, start=at, rate=1e-9)
    assert set(found.status) == {"solved"}  # the true pictures match every round
    assert (found.history.loss < 1e-20).all()


def test_frames_are_kept_where_asked() -> None:
    own = pool()
    found = together(fixed(own), own.labels, epochs=5, every=2)
    assert found.history.frame_steps.tolist() == [0, 2, 4, 5]
    assert found.history.frames.shape == (4, ITEMS, 1, 1, SIZE, SIZE)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "must be positive"),
        ({"rate": -1.0}, "must be positive"),
        ({"direction": "adm"}, "did you mean 'adam'"),
        ({"distance": "angle"}, "unknown distance"),
        ({"internal": 1.0}, "take those of cafe.items"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, object], words: str) -> None:
    own = pool()
    with pytest.raises(ValueError, match=words):
        together(fixed(own), own.labels, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give all a label"):
        together(fixed(own), own.labels[:3])
