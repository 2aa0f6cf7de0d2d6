"""Federated training: against PyTorch's own optimiser, and by what it must leave alone."""

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import random_batch
from torch import Tensor, nn
from torch.nn import functional as F

from gleak_core import defences, models, training
from gleak_core.data import Batch
from gleak_core.defences import Defence, ErrorFeedback
from gleak_core.errors import GleakError
from gleak_core.training import Stage

ALL: dict[str, Any] = {"clients": 2, "batch_size": 4}  # eight pictures in one round
Weights = dict[str, Tensor]


@pytest.fixture
def eight() -> Batch:
    return random_batch(8).to(dtype=torch.float64)


@pytest.fixture
def test() -> Batch:
    return random_batch(6, seed=1).to(dtype=torch.float64)


def by_torch(
    model: nn.Module, batch: Batch, rounds: int, *, rate: float, slope: bool = True
) -> tuple[Weights, list[float]]:
    """Train on the whole batch by `torch.optim`: SGD, momentum, weight decay and a cosine."""
    model = copy.deepcopy(model)
    sgd = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=rounds)
    losses = []
    for _ in range(rounds):
        sgd.zero_grad()
        loss = F.cross_entropy(model(batch.images), batch.labels)
        (loss if slope else 0 * loss).backward()
        sgd.step()
        cosine.step()
        losses.append(loss.item())
    return {n: w.detach() for n, w in model.state_dict().items()}, losses


def close(a: Weights, b: Weights, tolerance: float = 1e-11) -> None:
    assert list(a) == list(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance)


def equal(a: Weights, b: Weights) -> bool:
    return list(a) == list(b) and all(torch.equal(a[n], b[n]) for n in a)


def flat(update: Weights) -> Tensor:
    return torch.cat([v.reshape(len(v), -1) for v in update.values()], 1)


class Spy(Defence):
    """Another defence, watched: what it was given and what it sent."""

    def __init__(self, inner: Defence) -> None:
        super().__init__("spy", "a spy", self._watch)
        self.inner = inner
        self.given: list[Weights] = []
        self.sent: list[Weights] = []

    def _watch(self, update: Weights, generator: torch.Generator) -> Weights:
        self.given.append({n: v.clone() for n, v in update.items()})
        self.sent.append(self.inner(update, generator))
        return self.sent[-1]


# --- the steps --------------------------------------------------------------------------------


def test_one_round_is_a_step_along_the_pooled_gradient(
    tiny_net: nn.Module, eight: Batch, test: Batch
) -> None:
    loss = F.cross_entropy(tiny_net(eight.images), eight.labels)
    slopes = torch.autograd.grad(loss, list(tiny_net.parameters()))
    by_hand = {
        n: w.detach() - 0.1 * (g + 0.01 * w.detach())
        for (n, w), g in zip(tiny_net.named_parameters(), slopes, strict=True)
    }
    [end] = training.train(tiny_net, eight, test, epochs=1, rate=0.1, decay=0.01, **ALL)
    close(end.weights, by_hand)
    assert end.loss == pytest.approx(loss.item(), rel=1e-12)
    assert end.epoch == 1


def test_rounds_follow_momentum_and_the_cosine(
    tiny_net: nn.Module, eight: Batch, test: Batch
) -> None:
    """Against `torch.optim`; the order of the pictures does not count where all are pooled."""
    expected, losses = by_torch(tiny_net, eight, 4, rate=0.3)
    stages = training.train(tiny_net, eight, test, epochs=4, rate=0.3, keep=range(1, 5), **ALL)
    close(stages[-1].weights, expected)
    assert [stage.loss for stage in stages] == pytest.approx(losses, rel=1e-11)
    two, _ = by_torch(tiny_net, eight, 2, rate=0.3)
    [second] = training.train(tiny_net, eight, test, epochs=2, rate=0.3, **ALL)
    close(second.weights, two)
    assert (second.weights["head.weight"] - stages[1].weights["head.weight"]).abs().max() > 1e-4


def test_the_cosine_counts_rounds_and_not_epochs(tiny_net: nn.Module, test: Batch) -> None:
    """Two epochs of two rounds on copies of one picture are four rounds on that picture."""
    four = random_batch(4).to(dtype=torch.float64)
    copies = four[[0, 0, 0, 0]]
    expected, _ = by_torch(tiny_net, four[[0]], 4, rate=0.2)
    [end] = training.train(tiny_net, copies, test, epochs=2, rate=0.2, clients=2, batch_size=1)
    close(end.weights, expected)


def test_every_picture_is_dealt_once_in_an_epoch(
    tiny_net: nn.Module, eight: Batch, test: Batch
) -> None:
    """Nothing moves at a rate of 0, and a loss tells which pictures were seen."""
    alone = F.cross_entropy(tiny_net(eight.images), eight.labels, reduction="none").tolist()
    still: dict[str, Any] = {"rate": 0.0, "epochs": 5, "keep": range(1, 6)}
    stages = training.train(tiny_net, eight, test, clients=2, batch_size=1, **still)
    assert [s.loss for s in stages] == pytest.approx([math.fsum(alone) / 8] * 5, rel=1e-12)

    stages = training.train(tiny_net, eight, test, clients=2, batch_size=3, **still)
    sets = {
        pick: math.fsum(alone[k] for k in pick) / 6 for pick in itertools.combinations(range(8), 6)
    }
    found = []
    for stage in stages:
        [pick] = [p for p, mean in sets.items() if abs(mean - stage.loss) < 1e-12]
        found.append(pick)
    assert len(set(found)) > 1  # who sits out is drawn anew


# --- what is kept, and what is left alone -----------------------------------------------------


def test_the_stages_asked_for_are_kept(tiny_net: nn.Module, eight: Batch, test: Batch) -> None:
    told: list[tuple[int, int]] = []
    before = {n: w.clone() for n, w in tiny_net.state_dict().items()}
    stages = training.train(
        tiny_net, eight, test, epochs=3, keep=(2, 0), progress=lambda *at: told.append(at), **ALL
    )
    assert [stage.epoch for stage in stages] == [0, 2, 3]
    first, *rest = stages
    assert math.isnan(first.loss)
    assert equal(first.weights, before)
    assert first.accuracy == training.accuracy(tiny_net, test)
    for stage in rest:
        assert not equal(stage.weights, before)
        assert stage.accuracy == training.accuracy(tiny_net, test, stage.weights)
    assert not equal(rest[0].weights, rest[1].weights)
    assert told == [(1, 3), (2, 3), (3, 3)]
    [only] = training.train(tiny_net, eight, test, epochs=3, keep=(3,), **ALL)
    assert equal(only.weights, stages[-1].weights)


def test_the_model_is_not_changed(test: Batch, eight: Batch) -> None:
    """Not its weights, not their gradients, and not the statistics of a normalisation."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.BatchNorm1d(6), nn.Linear(6, 5))
    model = model.double()
    before = copy.deepcopy(model.state_dict())
    stages = training.train(model, eight, test, epochs=2, keep=(0,), **ALL)
    assert equal(dict(model.state_dict()), dict(before))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    for stage in stages:
        assert not any(w.requires_grad for w in stage.weights.values())
        model.load_state_dict(stage.weights)


def test_the_seed_decides(tiny_net: nn.Module, test: Batch) -> None:
    pictures = random_batch(12).to(dtype=torch.float64)

    def end(seed: int, defence: Callable[[], Defence] | None = None) -> Weights:
        [last] = training.train(tiny_net, pictures, test, epochs=2, seed=seed, defence=defence,
                                clients=2, batch_size=2)  # fmt: skip
        return last.weights

    def noisy() -> Defence:
        return defences.gaussian(std=0.1)

    assert equal(end(0), end(0))
    assert not equal(end(0), end(1))
    assert equal(end(0, noisy), end(0, noisy))
    assert not equal(end(0, noisy), end(1, noisy))
    assert equal(end(0, defences.none), end(0))
    state = torch.get_rng_state()
    end(0, noisy)
    assert torch.equal(torch.get_rng_state(), state)


# --- defences ---------------------------------------------------------------------------------


def test_each_client_s_message_is_defended(tiny_net: nn.Module, eight: Batch, test: Batch) -> None:
    made: list[Spy] = []

    def factory() -> Defence:
        made.append(Spy(defences.none()))
        return made[-1]

    [end] = training.train(tiny_net, eight, test, epochs=1, defence=factory, clients=4,
                           batch_size=2)  # fmt: skip
    [spy] = made
    [update] = spy.given
    assert list(update) == [n for n, _ in tiny_net.named_parameters()]
    assert all(len(g) == 4 for g in update.values())
    # Every message is the gradient of two of the pictures, and all of them share none.
    net = tiny_net
    names = [n for n, _ in net.named_parameters()]
    pairs = {}
    for pick in itertools.combinations(range(8), 2):
        some = eight[list(pick)]
        loss = F.cross_entropy(net(some.images), some.labels)
        slopes = torch.autograd.grad(loss, list(net.parameters()))
        pairs[pick] = flat({n: g[None] for n, g in zip(names, slopes, strict=True)})[0]
    seen = []
    for message in flat(update):
        [pick] = [p for p, g in pairs.items() if torch.allclose(g, message, rtol=1e-9, atol=1e-12)]
        seen += pick
    assert sorted(seen) == list(range(8))
    [plain] = training.train(tiny_net, eight, test, epochs=1, clients=4, batch_size=2)
    assert equal(end.weights, plain.weights)


def test_where_nothing_is_sent_only_the_decay_is_left(
    tiny_net: nn.Module, eight: Batch, test: Batch
) -> None:
    expected, _ = by_torch(tiny_net, eight, 3, rate=0.3, slope=False)
    [end] = training.train(tiny_net, eight, test, epochs=3, rate=0.3,
                           defence=lambda: defences.prune(1.0), **ALL)  # fmt: skip
    close(end.weights, expected)
    [still] = training.train(tiny_net, eight, test, epochs=3, decay=0.0,
                             defence=lambda: defences.prune(1.0), **ALL)  # fmt: skip
    assert equal(still.weights, dict(tiny_net.state_dict()))


def test_feedback_is_one_for_a_training_and_remembers_each_client(
    tiny_net: nn.Module, test: Batch
) -> None:
    pictures = random_batch(12).to(dtype=torch.float64)
    made: list[Spy] = []

    def factory() -> Defence:
        made.append(Spy(ErrorFeedback(defences.prune(0.9))))
        return made[-1]

    def train() -> Stage:
        [end] = training.train(tiny_net, pictures, test, epochs=2, rate=0.1, decay=0.0,
                               momentum=0.0, defence=factory, clients=3, batch_size=2)  # fmt: skip
        return end

    end, again = train(), train()
    assert len(made) == 2  # a training each, and neither owes what the other withheld
    assert equal(end.weights, again.weights)
    spy = made[0]
    assert len(spy.given) == 4
    inner = spy.inner
    assert isinstance(inner, ErrorFeedback)
    given, sent = (torch.stack([flat(u) for u in us]) for us in (spy.given, spy.sent))
    assert sent.shape[1] == 3
    torch.testing.assert_close(sent.sum(0) + flat(inner.residual), given.sum(0))
    assert (sent.ne(0).sum(-1) <= 0.1 * sent.shape[-1] + 1).all()
    # The server moves by the mean of what was sent, at a rate that falls: 1, 0.85…, ½, 0.15….
    rates = torch.tensor([0.05 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]).double()
    moved = (rates[:, None] * sent.mean(1)).sum(0)
    start = flat({n: w.detach()[None] for n, w in tiny_net.named_parameters()})[0]
    torch.testing.assert_close(flat({n: w[None] for n, w in end.weights.items()})[0], start - moved)


# --- how well it does -------------------------------------------------------------------------


def test_accuracy_is_the_share_of_right_answers(
    tiny_net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = random_batch(11)  # in single precision: the weights decide
    answers = tiny_net(pictures.images.double()).argmax(1)
    labels = torch.where(torch.arange(11) < 4, answers, (answers + 1) % 5)
    pictures = replace(pictures, labels=labels)
    for at_once in (1, 4, 11, 500):
        monkeypatch.setattr(training, "_AT_ONCE", at_once)
        assert training.accuracy(tiny_net, pictures) == pytest.approx(400 / 11, rel=1e-12)
    other = {n: torch.zeros_like(w) for n, w in tiny_net.state_dict().items()}
    other["head.bias"][3] = 1.0
    threes = replace(pictures, labels=torch.tensor([3] * 5 + [2] * 6))
    assert training.accuracy(tiny_net, threes, other) == pytest.approx(500 / 11, rel=1e-12)


def test_what_is_easy_is_learnt() -> None:
    """Dark and bright pictures, half the pixels noise."""

    def pictures(n: int, seed: int) -> Batch:
        batch = random_batch(n, classes=2, seed=seed)
        return replace(batch, images=0.5 * batch.images + 0.5 * batch.labels[:, None, None, None])

    net = models.lenet(2, 3, 8, width=4, activation="relu", init="kaiming", seed=0)
    stages = training.train(net, pictures(64, 0), pictures(50, 1), epochs=10, keep=(1,),
                            batch_size=4)  # fmt: skip
    assert [stage.epoch for stage in stages] == [1, 10]
    assert stages[0].loss > 0.5
    assert stages[1].loss < 0.2
    assert stages[1].accuracy == 100


@settings(max_examples=60, deadline=None)
@given(data=st.data(), n=st.integers(2, 40), seed=st.integers(0, 10**6))
def test_a_split_shares_nothing_and_loses_nothing(data, n: int, seed: int) -> None:
    count = data.draw(st.integers(1, n - 1))
    pictures = random_batch(n, size=1)
    train, test = training.split(pictures, count, seed=seed)
    assert (len(train), len(test)) == (n - count, count)
    both = torch.cat([train.indices, test.indices])
    assert sorted(both.tolist()) == list(range(n))
    for part in (train, test):
        assert torch.equal(part.images, pictures.images[part.indices])
        assert torch.equal(part.labels, pictures.labels[part.indices])
    again, _ = training.split(pictures, count, seed=seed)
    assert torch.equal(again.indices, train.indices)


def test_a_split_is_drawn_by_its_seed() -> None:
    pictures = random_batch(40, size=1)
    tests = [set(training.split(pictures, 10, seed=s)[1].indices.tolist()) for s in range(4)]
    assert all(tests[i] != tests[j] for i in range(4) for j in range(i))


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["epochs", "clients", "batch_size"])
@pytest.mark.parametrize("number", [0, -2])
def test_counts_begin_at_one(
    tiny_net: nn.Module, tiny_batch: Batch, name: str, number: int
) -> None:
    options: dict[str, Any] = {"clients": 1, "batch_size": 1, name: number}
    with pytest.raises(ValueError, match=rf"^{name} must be at least 1, got {number}$"):
        training.train(tiny_net, tiny_batch, tiny_batch, **options)


def test_too_few_pictures_are_refused(tiny_net: nn.Module, eight: Batch, test: Batch) -> None:
    words = "3 clients with 3 pictures each need 9 pictures, got 8: take fewer clients, a smaller"
    with pytest.raises(ValueError, match=words):
        training.train(tiny_net, eight, test, clients=3, batch_size=3)


def test_unknown_stages_are_refused(tiny_net: nn.Module, eight: Batch, test: Batch) -> None:
    with pytest.raises(ValueError, match=r"^keep must name epochs from 0 to 3, got \[-1, 4\]$"):
        training.train(tiny_net, eight, test, epochs=3, keep=(-1, 0, 3, 4), **ALL)


@pytest.mark.parametrize("count", [0, -1, 8, 9])
def test_a_split_leaves_pictures_on_both_sides(eight: Batch, count: int) -> None:
    with pytest.raises(ValueError, match=rf"train on: between 1 and 7, got {count}$"):
        training.split(eight, count)


def test_a_training_that_diverges_ends_in_a_sentence(eight: Batch, test: Batch) -> None:
    net = models.lenet(5, 3, 8, width=4, activation="relu", init="kaiming", seed=0).double()
    words = r"^the training has diverged in epoch \d+: use a rate= below 1e\+100$"
    with pytest.raises(GleakError, match=words):
        training.train(net, eight, test, epochs=9, rate=1e100, **ALL)
