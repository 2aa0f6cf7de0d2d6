"""Means over workers: differences are determined, and rank one gives the rest."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import random_batch
from torch.nn import functional as F

from gleak_core import aggregated, aligned, cafe, clients, metrics, models, samplers
from gleak_core.data import Batch
from gleak_core.errors import GleakError
from gleak_core.observation import MissingCapability, Observation

CLASSES, SIZE = 5, 8
GIVE = (*clients.HONEST, "batch_indices", "oracle_inputs")


def small(**options: object) -> models.ConvNet:
    options = {"activation": "relu"} | options
    net = models.cafe_net(CLASSES, size=SIZE, widths=(4, 6), hidden=(16, 12), **options)  # type: ignore[arg-type]
    return net.double()


def pool(count: int, seed: int = 0) -> Batch:
    batch = random_batch(count, size=SIZE, classes=CLASSES, seed=seed)
    return replace(batch, images=batch.images.double())


def mean_over(
    workers: int, count: int = 6, rounds: int = 60, *, net: models.ConvNet | None = None
) -> tuple[Batch, Observation]:
    """What a server sees that is sent nothing but the mean over some workers."""
    every = pool(workers * count)
    own = [every[[*range(m * count, (m + 1) * count)]] for m in range(workers)]
    picks = torch.stack([samplers.independent(count, 2, rounds, seed=m) for m in range(workers)], 1)
    return every, clients.horizontal(net or small(), own, picks=picks, give=GIVE)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3), st.integers(3, 6), st.integers(0, 99))
def test_a_workers_items_form_a_group(workers: int, count: int, seed: int) -> None:
    picks = torch.stack(
        [samplers.independent(count, 2, 99, seed=seed + m) + m * count for m in range(workers)], 1
    ).flatten(1)
    found = aggregated.groups(picks)
    assert found == [[*range(m * count, (m + 1) * count)] for m in range(workers)]


def test_a_partition_that_stays_tells_no_difference() -> None:
    assert aggregated.groups(samplers.fixed(6, 2, 30)) == [[k] for k in range(6)]
    assert aggregated.groups(torch.tensor([[0, 1]]), count=3) == [[0], [1], [2]]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_input_label_and_slope_behind_a_mean_over_workers(workers: int) -> None:
    net = small()
    own, seen = mean_over(workers, net=net)
    found = aggregated.items(seen)
    (true,) = seen.need("oracle_inputs", by="the test")
    assert torch.allclose(found.inputs, true[0], atol=1e-8)
    assert torch.equal(found.labels, own.labels)
    assert found.residual < 1e-9
    assert set(found.slopes) == {"hidden.0"}
    for k, (image, label) in enumerate(zip(own.images, own.labels, strict=True)):
        net.zero_grad()
        F.cross_entropy(net(image[None]), label[None]).backward()
        slope = net.get_parameter("hidden.0.bias").grad
        assert slope is not None
        assert torch.allclose(found.slopes["hidden.0"][k], slope, atol=1e-9)


def test_the_pictures_follow() -> None:
    net = models.cafe_net(CLASSES, size=SIZE, widths=(16, 64), hidden=(16, 12)).double()
    own, seen = mean_over(2, net=net)
    with pytest.raises(GleakError, match=r"aggregated\.items"):
        aligned.recover(seen)
    leaked = aligned.recover(seen, known=aggregated.items(seen), steps=200)
    assert metrics.psnr(leaked.images[:, 0], own.images).min() > 30


def test_every_party_of_a_vertical_protocol() -> None:
    own = pool(12)
    net = models.vertical_net(CLASSES, size=SIZE, widths=(4, 6), hidden=(16, 12), vector=8).double()
    half = [samplers.independent(6, 2, 40, seed=m) + 6 * m for m in range(2)]
    seen = clients.vertical(net, own, picks=torch.cat(half, 1), give=GIVE)
    found = aggregated.items(seen)
    (true,) = seen.need("oracle_inputs", by="the test")
    assert torch.allclose(found.inputs, true[0], atol=1e-7)
    assert torch.equal(found.labels, own.labels)
    assert len(found.slopes) == 4


def test_where_each_item_is_determined_both_ways_agree() -> None:
    own = pool(8)
    picks = samplers.independent(8, 2, 40)
    seen = clients.horizontal(small(), [own], picks=picks[:, None])
    one, other = cafe.items(seen), aggregated.items(seen)
    assert torch.allclose(one.inputs, other.inputs, atol=1e-8)
    assert torch.equal(one.labels, other.labels)


@settings(deadline=None, max_examples=30)
@given(st.integers(3, 9), st.integers(4, 9), st.integers(0, 999))
def test_three_matrices_of_rank_one_follow_from_their_differences(
    o: int, p: int, seed: int
) -> None:
    stream = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(3, n, dtype=torch.float64, generator=stream) for n in (o, p))
    constant = torch.randn(o, p, dtype=torch.float64, generator=stream)
    true = torch.einsum("no,np->nop", left, right)
    (ways, first), rest = aggregated._third(true + constant)
    worst = max(float(torch.linalg.cond(left)), float(torch.linalg.cond(right)))
    assert (first - true[0]).norm() <= 1e-11 * worst**4 * true.norm()
    along = (ways * left).sum(1).abs() / left.norm(dim=1)
    assert (along - 1).abs().max() <= 1e-11 * worst**4
    assert rest <= 1e-9 * worst**5


@pytest.mark.parametrize("which", ["slopes", "inputs"])
def test_dependent_slopes_or_inputs_are_not_certain(which: str) -> None:
    """Three directions in a plane leave rank one with other summands, too."""
    stream = torch.Generator().manual_seed(0)
    left, right = (torch.randn(3, 8, dtype=torch.float64, generator=stream) for _ in range(2))
    flat = left if which == "slopes" else right
    flat[2] = flat[0] - 2 * flat[1]
    three = torch.einsum("no,np->nop", left, right)
    assert aggregated._third(three + 1)[1] > aggregated._LEFT
    flat[2] += torch.randn(8, dtype=torch.float64, generator=stream)
    assert aggregated._third(torch.einsum("no,np->nop", left, right) + 1)[1] < 1e-9


@pytest.mark.parametrize("count", [2, 6])
def test_too_little_is_not_guessed(count: int) -> None:
    """Two items of a worker have one difference; and a partition that stays has none."""
    if count == 2:
        _, seen = mean_over(2, 2, 9)
    else:
        seen = clients.horizontal(
            small(), [pool(6)], picks=samplers.fixed(6, 2, 30)[:, None], give=GIVE
        )
    with pytest.raises(GleakError, match="do not determine the differences between three items"):
        aggregated.items(seen)


def test_items_that_are_alike_have_no_difference() -> None:
    own = pool(6)[[0] * 6]
    picks = samplers.independent(6, 2, 30)
    seen = clients.horizontal(small(), [own], picks=picks[:, None])
    with pytest.raises(GleakError, match="no three items"):
        aggregated.items(seen)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_softmax_of_few_classes_has_dependent_slopes(classes: int) -> None:
    """Slopes that sum to zero in three classes lie in a plane; a hidden layer's need not."""
    own = random_batch(12, size=SIZE, classes=classes)
    halves = [own[[*range(6)]], own[[*range(6, 12)]]]
    net = models.cafe_net(classes, size=SIZE, widths=(4, 6), hidden=())
    picks = torch.stack([samplers.independent(6, 2, 60, seed=m) for m in range(2)], 1)
    with pytest.raises(GleakError, match="no three items"):
        aggregated.items(clients.horizontal(net, halves, picks=picks))


def test_a_rare_class_is_among_the_items_that_are_tried() -> None:
    """Of twenty items eighteen have one label: three with three labels are found all the same."""
    own = pool(20)
    own = replace(own, labels=torch.tensor([0] * 18 + [1, 2]))
    picks = samplers.independent(20, 4, 80)
    seen = clients.horizontal(small(), [own], picks=picks[:, None], give=GIVE)
    (true,) = seen.need("oracle_inputs", by="the test")
    assert torch.allclose(aggregated.items(seen).inputs, true[0], atol=1e-6)


def test_an_item_without_a_trace_is_said_to_have_none() -> None:
    net = small()
    own = pool(8)
    with torch.no_grad():  # all units of the first hidden layer are off for the last picture
        net.get_parameter("hidden.0.bias").copy_(
            -(net.features(own.images).flatten(1) @ net.get_parameter("hidden.0.weight").T)[-1]
        )
        live = net.features(own.images).flatten(1) @ net.get_parameter("hidden.0.weight").T
        assert ((live + net.get_parameter("hidden.0.bias"))[-1].abs() < 1e-12).all()
        net.get_parameter("hidden.0.bias").sub_(1e-9)
    picks = samplers.independent(8, 2, 60)
    seen = clients.horizontal(net, [own], picks=picks[:, None], give=GIVE)
    with pytest.raises(GleakError, match="leave no trace in hidden"):
        aggregated.items(seen)


def test_what_does_not_belong_is_refused() -> None:
    _, seen = mean_over(2)
    hole = seen.rounds[3].update["hidden.0.weight"].clone()
    hole[0, 0, 0] = torch.nan
    broken = replace(seen.rounds[3], update={**seen.rounds[3].update, "hidden.0.weight": hole})
    with pytest.raises(ValueError, match="non-finite"):
        aggregated.items(replace(seen, rounds=(*seen.rounds[:3], broken, *seen.rounds[4:])))
    with pytest.raises(MissingCapability, match="batch_indices"):
        aggregated.items(seen.without("batch_indices"))
    own = pool(6)
    moved = clients.horizontal(
        small(), [own], picks=samplers.independent(6, 2, 30)[:, None], rate=0.1
    )
    with pytest.raises(GleakError, match="the model moved"):
        aggregated.items(moved)
