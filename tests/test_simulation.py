"""Local training, redone: the change of the weights that dummies would have caused."""

import pytest
import torch
from support import random_batch
from torch.nn import functional as F

from gleak_core import attacks, clients, models
from gleak_core.data import Batch
from gleak_core.distances import cosine_per_layer, squared_l2
from gleak_core.errors import GleakError
from gleak_core.objectives import GradientMatch
from gleak_core.observation import Observation
from gleak_core.simulation import LocalTraining, redo_training
from gleak_core.studies.trials import side_by_side

RATE = 0.05


def seen_of(steps: int, *seeds: int, rate: float = RATE) -> tuple[list[Batch], Observation]:
    """Return batches of three, and what is seen after so many local steps on each."""
    net = models.lenet(5, size=8, seed=3).double()
    own = [random_batch(3, seed=seed) for seed in seeds]
    own = [Batch(b.images.double(), b.labels, b.classes, b.name, b.indices) for b in own]
    sent = [clients.fedavg(net, batch, epochs=steps, rate=rate) for batch in own]
    return own, side_by_side(sent)


def objective(seen: Observation, own: list[Batch], steps: int, distance=squared_l2):
    labels = torch.stack([batch.labels for batch in own])
    match = GradientMatch.of(seen, labels=labels, by="a test", distance=distance, evaluator="vmap")
    return LocalTraining(match, steps, RATE)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_private_pictures_cause_what_was_seen(steps: int) -> None:
    own, seen = seen_of(steps, 0, 1)
    local = objective(seen, own, steps)
    truth = torch.stack([batch.images for batch in own])
    value, slope = local.value_and_grad(local.match.dummies.pack(truth))
    assert (value < 1e-20 * local.match.scale).all()
    assert slope.abs().max() < 1e-8
    # The mean gradient at the first weights is another one, and does not explain it.
    average, _ = local.match.value_and_grad(local.match.dummies.pack(truth))
    assert (average < 1e-20).all() if steps == 1 else (average > 1e-8 * local.match.scale).all()


def test_the_change_is_that_of_plain_descent() -> None:
    own, seen = seen_of(4, 7)
    local = objective(seen, own, 4)
    net = models.lenet(5, size=8, seed=3).double()
    start = [p.detach().clone() for p in net.parameters()]
    for _ in range(4):
        loss = F.cross_entropy(net(own[0].images), own[0].labels)
        net.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in net.parameters():
                assert p.grad is not None
                p -= RATE * p.grad
    soft = F.one_hot(own[0].labels, 5).double()
    change = local.change(own[0].images, soft)
    for (name, after), before in zip(net.named_parameters(), start, strict=True):
        torch.testing.assert_close(change[name], (before - after.detach()) / (4 * RATE))


@pytest.mark.parametrize("distance", [squared_l2, cosine_per_layer])
def test_the_slope_is_that_of_differences(distance) -> None:
    own, seen = seen_of(3, 0, 1)
    local = objective(seen, own, 3, distance)
    z = local.match.dummies.pack(torch.rand(2, 3, 3, 8, 8, dtype=torch.float64))
    along = torch.randn(z.shape, dtype=z.dtype, generator=torch.Generator().manual_seed(1))
    _, slope = local.value_and_grad(z)
    step = 1e-6
    up, down = (local.value_and_grad(z + k * step * along)[0] for k in (1, -1))
    torch.testing.assert_close((slope * along).sum(1), (up - down) / (2 * step), rtol=1e-5, atol=0)


def test_trials_do_not_touch_each_other() -> None:
    own, seen = seen_of(2, 0, 1, 2)
    local = objective(seen, own, 2)
    z = local.match.dummies.pack(torch.rand(3, 3, 3, 8, 8, dtype=torch.float64))
    value, slope = local.value_and_grad(z)
    keep = torch.tensor([2])
    alone = local.compact(keep).value_and_grad(z[keep])
    torch.testing.assert_close(alone[0], value[keep])
    torch.testing.assert_close(alone[1], slope[keep])


def test_redoing_the_training_finds_what_the_average_does_not() -> None:
    own, seen = seen_of(3, 0, 1, rate=1.0)
    labels = torch.stack([batch.labels for batch in own])
    how = {"labels": labels, "steps": 120, "start": "uniform"}
    redone = redo_training(seen, weigh={"tv_mean": 0.0}, history=100, **how)
    average = attacks.general(seen, solver="plain_lbfgs", rate=0.5, penalties={}, **how)
    truth = torch.stack([batch.images for batch in own])

    def error(images: torch.Tensor) -> float:
        return float((images - truth).square().mean())

    assert error(redone.images) < 0.2 * error(average.images)
    assert redone.evaluations.tolist() == [121, 121]  # the start, and 120 steps
    assert redone.labels is not None and torch.equal(redone.labels, labels)


def test_a_gradient_is_refused() -> None:
    net = models.lenet(5, size=8, seed=3)
    seen = clients.fedsgd(net, random_batch(3))
    with pytest.raises(GleakError, match=r"use attacks\.general"):
        redo_training(seen)


def test_the_number_of_steps_must_be_known() -> None:
    net = models.lenet(5, size=8, seed=3)
    seen = clients.fedavg(net, random_batch(3), epochs=2, give=clients.HONEST)
    with pytest.raises(GleakError, match="local_steps"):
        redo_training(seen)


def test_an_unknown_rule_is_named() -> None:
    _, seen = seen_of(2, 0)
    with pytest.raises(ValueError, match="unknown label rule 'genral'"):
        redo_training(seen, labels="genral")
