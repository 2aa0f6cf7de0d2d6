"""Batches that nobody names: read off the messages where they can be, or refused."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import random_batch
from torch import Tensor

from gleak_core import aggregated, cafe, clients, defences, models, samplers, untold
from gleak_core.data import Batch
from gleak_core.errors import GleakError
from gleak_core.observation import MissingCapability, Observation

CLASSES, SIZE, ITEMS, EACH = 5, 8, 12, 3
NET = models.cafe_net(CLASSES, size=SIZE, widths=(4, 6), hidden=(16, 12), activation="relu")


def pool(count: int = ITEMS) -> Batch:
    return random_batch(count, size=SIZE, classes=CLASSES)


def rounds(
    times: int, *, sampler: str = "independent", seed: int = 0, **options: object
) -> tuple[Observation, Tensor]:
    """One worker's rounds, and who was in them."""
    picks = samplers.SAMPLERS[sampler](ITEMS, EACH, times * ITEMS, seed=seed)
    return clients.horizontal(NET, [pool()], picks=picks[:, None], **options), picks  # type: ignore[arg-type]


def columns(indices: Tensor, count: int) -> list[list[float]]:
    """Who was where, one column for each item, in an order that does not depend on names."""
    there = torch.zeros(len(indices), count).scatter_(1, indices, 1)
    return sorted(there.T.tolist())


@settings(deadline=None, max_examples=3)
@given(st.integers(0, 99))
def test_every_place_in_every_batch_is_read(seed: int) -> None:
    seen, picks = rounds(20, seed=seed)
    found = untold.batches(seen.without("batch_indices"), seed=seed)
    assert found.shape == picks.shape
    assert columns(found, ITEMS) == columns(picks, ITEMS)


def test_what_is_read_is_as_good_as_what_is_told() -> None:
    seen, _ = rounds(15)
    blind = seen.without("batch_indices")
    named = replace(blind, given=replace(blind.given, batch_indices=untold.batches(blind)))
    one, other = cafe.items(named), cafe.items(seen)
    order = torch.cdist(other.inputs, one.inputs).argmin(1)
    assert sorted(order.tolist()) == list(range(ITEMS))
    assert torch.allclose(one.inputs[order], other.inputs, rtol=1e-3, atol=1e-4)
    assert torch.equal(one.labels[order], other.labels)


def test_of_means_over_workers_as_well() -> None:
    every = pool()
    own = [every[[*range(6)]], every[[*range(6, 12)]]]
    picks = torch.stack([samplers.independent(6, 1, 300, seed=m) for m in range(2)], 1)
    seen = clients.horizontal(NET, own, picks=picks)
    told = seen.given.batch_indices
    assert told is not None
    blind = seen.without("batch_indices")
    found = untold.batches(blind)
    assert columns(found, ITEMS) == columns(told, ITEMS)
    named = replace(blind, given=replace(blind.given, batch_indices=found))
    one, other = aggregated.items(named), aggregated.items(seen)
    assert float(torch.cdist(other.inputs, one.inputs).amin(1).max()) < 1e-2


@pytest.mark.parametrize(
    ("times", "options", "words"),
    [
        (3, {}, "wait for more rounds, fifteen or more for each item"),
        (10, {"sampler": "fixed"}, "only 4 different messages"),
        (15, {"defence": defences.gaussian(std=1.0)}, "wait for more"),
        (15, {"rate": 0.5}, "the model moved"),
    ],
)
def test_what_cannot_be_read_is_not_guessed(
    times: int, options: dict[str, object], words: str
) -> None:
    seen, _ = rounds(times, **options)  # type: ignore[arg-type]
    with pytest.raises(GleakError, match=words):
        untold.batches(seen, tries=5)


@pytest.mark.parametrize(("items", "each"), [(20, 4), (9, 3), (8, 2), (14, 1)])
def test_a_partition_is_no_place_for_an_item(items: int, each: int) -> None:
    """Its batches look like items: there are as many different messages as the rank is."""
    picks = samplers.fixed(items, each, 12 * items)
    seen = clients.horizontal(NET, [pool(items)], picks=picks[:, None])
    with pytest.raises(GleakError, match="different messages come back"):
        untold.batches(seen)


@pytest.mark.parametrize(("items", "each"), [(12, 2), (16, 2)])
def test_items_that_never_meet_are_not_one(items: int, each: int) -> None:
    """Of batches of one, and of pairs that seldom meet, sums are zeros and ones as well."""
    picks = samplers.independent(items, each, 15 * items)
    seen = clients.horizontal(NET, [pool(items)], picks=picks[:, None])
    assert columns(untold.batches(seen), items) == columns(picks, items)


def test_half_of_the_items_look_like_the_other_half() -> None:
    picks = samplers.independent(ITEMS, ITEMS // 2, 15 * ITEMS)
    seen = clients.horizontal(NET, [pool()], picks=picks[:, None])
    with pytest.raises(GleakError, match="about half of them"):
        untold.batches(seen)


def test_batches_that_leave_few_out_are_read_as_well() -> None:
    picks = samplers.independent(ITEMS, ITEMS - 2, 20 * ITEMS)
    seen = clients.horizontal(NET, [pool()], picks=picks[:, None])
    assert columns(untold.batches(seen), ITEMS) == columns(picks, ITEMS)


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 4), st.integers(0, 99))
def test_rounds_that_lie_are_found(wrong: int, seed: int) -> None:
    seen, picks = rounds(3, seed=seed)
    stream = torch.Generator().manual_seed(seed)
    said = picks.clone()
    some = torch.randperm(len(picks), generator=stream)[:wrong]
    said[some] = said[some.roll(1)]
    true = alike(said, picks)
    told = replace(seen, given=replace(seen.given, batch_indices=said))
    assert torch.equal(untold.agreeing(told), true)


@pytest.mark.parametrize("case", ["half wrong", "all wrong", "noise"])
def test_too_few_that_agree_are_no_majority(case: str) -> None:
    defence = defences.gaussian(std=1e-2) if case == "noise" else None
    picks = samplers.independent(ITEMS, EACH, 3 * ITEMS)
    seen = clients.horizontal(NET, [pool()], picks=picks[:, None], defence=defence)
    said = picks.clone()
    some = slice(0, {"half wrong": len(picks) // 2, "all wrong": len(picks), "noise": 0}[case])
    said[some] = said[some].roll(1, 0)
    with pytest.raises(GleakError, match="rounds agree, which do not determine 12 items"):
        untold.agreeing(replace(seen, given=replace(seen.given, batch_indices=said)))


def alike(said: Tensor, picks: Tensor) -> Tensor:
    """Return in which rounds the same items are named (R,), whatever their order."""
    return (said.sort(1).values == picks.sort(1).values).all(1)


def test_numbers_that_are_none_and_what_is_not_given() -> None:
    seen, _ = rounds(15)
    with pytest.raises(MissingCapability, match="batch_size"):
        untold.batches(seen.without("batch_size"))
    with pytest.raises(MissingCapability, match="batch_indices"):
        untold.agreeing(seen.without("batch_indices"))
    hole = seen.rounds[0].update["head.bias"].clone()
    hole[0, 0] = torch.nan
    broken = replace(seen.rounds[0], update={**seen.rounds[0].update, "head.bias": hole})
    seen = replace(seen, rounds=(broken, *seen.rounds[1:]))
    for read in (untold.batches, untold.agreeing):
        with pytest.raises(ValueError, match="non-finite"):
            read(seen)
