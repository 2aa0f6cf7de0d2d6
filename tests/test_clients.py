"""Every protocol against an oracle that shares no code with it: loops, finite differences, sums."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import random_batch
from torch import Tensor, nn
from torch.nn import functional as F

from gleak_core import clients, defences, models
from gleak_core.data import Batch
from gleak_core.device import tolerance
from gleak_core.observation import Update

CLOSE = tolerance(torch.float64)


def backward(net: nn.Module, images: Tensor, labels: Tensor) -> Update:
    """Return the gradient by `loss.backward()`: the way any training loop gets it."""
    net = copy.deepcopy(net)
    net.zero_grad()
    F.cross_entropy(net(images.double()), labels).backward()
    return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


def train(net: nn.Module, images: Tensor, labels: Tensor, turns: list[Tensor], rate: float):
    """Return the network after torch.optim.SGD has taken the turns, and each turn's gradient."""
    net = copy.deepcopy(net)
    optimiser = torch.optim.SGD(net.parameters(), lr=rate)
    gradients = []
    for pick in turns:
        optimiser.zero_grad()
        F.cross_entropy(net(images[pick].double()), labels[pick]).backward()
        gradients.append({n: p.grad.clone() for n, p in net.named_parameters()})  # pyright: ignore
        optimiser.step()
    return net, gradients


def same(update: Update, expected: Update, trial: int = 0) -> None:
    assert update.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            update[name][trial], tensor, rtol=CLOSE.rtol, atol=CLOSE.atol, msg=name
        )


def test_fedsgd_is_the_mean_of_the_micro_batches(tiny_net: nn.Module, tiny_batch: Batch) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch).rounds[0].update
    singles = [
        backward(tiny_net, tiny_batch.images[i : i + 1], tiny_batch.labels[i : i + 1])
        for i in range(len(tiny_batch))
    ]
    same(seen, {n: torch.stack([s[n] for s in singles]).mean(0) for n in singles[0]})


def test_fedsgd_agrees_with_finite_differences(tiny_net: nn.Module, tiny_batch: Batch) -> None:
    update = clients.fedsgd(tiny_net, tiny_batch).rounds[0].update
    generator = torch.Generator().manual_seed(3)
    direction = {n: torch.randn(p.shape, generator=generator).double()
                 for n, p in tiny_net.named_parameters()}  # fmt: skip

    def loss(t: float) -> float:
        net = copy.deepcopy(tiny_net)
        with torch.no_grad():
            for name, p in net.named_parameters():
                p += t * direction[name]
        return F.cross_entropy(net(tiny_batch.images.double()), tiny_batch.labels).item()

    h = 1e-5
    slope = sum(float((update[n][0] * d).sum()) for n, d in direction.items())
    assert slope == pytest.approx((loss(h) - loss(-h)) / (2 * h), rel=1e-7)


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(1, 5), seed=st.integers(0, 99), activation=st.sampled_from(["sigmoid", "relu"])
)
def test_each_stacks_one_gradient_per_image(n: int, seed: int, activation: str) -> None:
    net = models.lenet(classes=5, size=8, width=3, activation=activation, seed=seed).double()
    batch = random_batch(n, seed=seed)
    seen = clients.fedsgd(net, batch, each=True)
    assert seen.trials == n and seen.given.batch_size == 1
    for t in range(n):
        alone = backward(net, batch.images[t : t + 1], batch.labels[t : t + 1])
        same(seen.rounds[0].update, alone, t)


def test_a_network_with_batchnorm_shares_the_gradient_that_training_would_use() -> None:
    net = models.resnet20(classes=5, size=8, activation="sigmoid", norm="batch").double()
    batch = random_batch(3)
    seen = clients.fedsgd(net, batch)
    same(seen.rounds[0].update, backward(net, batch.images, batch.labels))


@pytest.mark.parametrize("share", ["mean", "last"])
def test_local_steps_follow_torch_sgd(tiny_net: nn.Module, tiny_batch: Batch, share: str) -> None:
    steps, rate = 3, 0.2
    seen = clients.local_steps(tiny_net, tiny_batch, steps=steps, rate=rate, share=share)  # pyright: ignore
    everything = [torch.arange(4)] * steps
    after, gradients = train(tiny_net, tiny_batch.images, tiny_batch.labels, everything, rate)
    if share == "last":
        expected = gradients[-1]
    else:  # (W⁰ − Wᴸ)/(ηL): the reading of CPL's Table 1
        final = dict(after.named_parameters())
        expected = {
            n: ((p - final[n]) / (rate * steps)).detach() for n, p in tiny_net.named_parameters()
        }
    same(seen.rounds[0].update, expected)


def test_one_local_step_is_fedsgd(tiny_net: nn.Module, tiny_batch: Batch) -> None:
    one = clients.local_steps(tiny_net, tiny_batch, steps=1, rate=0.3, each=True).rounds[0].update
    sgd = clients.fedsgd(tiny_net, tiny_batch, each=True).rounds[0].update
    assert all(torch.equal(one[n], sgd[n]) for n in sgd)


@pytest.mark.parametrize("shuffle", [False, True])
def test_fedavg_sends_what_torch_sgd_arrives_at(
    tiny_net: nn.Module, tiny_batch: Batch, shuffle: bool
) -> None:
    seen = clients.fedavg(
        tiny_net, tiny_batch, epochs=2, batch_size=3, rate=0.1, shuffle=shuffle, seed=5
    )
    order = torch.Generator().manual_seed(5)
    turns = []
    for _ in range(2):
        turn = torch.randperm(4, generator=order) if shuffle else torch.arange(4)
        turns += [turn[:3], turn[3:]]
    after, _ = train(tiny_net, tiny_batch.images, tiny_batch.labels, turns, 0.1)
    assert seen.kind == "weights" and seen.given.local_steps == 4
    same(seen.rounds[0].update, {n: p.detach() for n, p in after.named_parameters()})


def test_the_fake_gradient_of_one_fedavg_step_is_the_gradient(
    tiny_net: nn.Module, tiny_batch: Batch
) -> None:
    seen = clients.fedavg(tiny_net, tiny_batch, epochs=1, rate=0.05)
    same(seen.gradient(), backward(tiny_net, tiny_batch.images, tiny_batch.labels))


def test_several_updates_walk_down_their_own_gradients(
    tiny_net: nn.Module, tiny_batch: Batch
) -> None:
    seen = clients.several(tiny_net, tiny_batch, updates=3, rate=0.2)
    turns = [torch.arange(4)] * 3
    _, gradients = train(tiny_net, tiny_batch.images, tiny_batch.labels, turns, 0.2)
    assert len(seen.rounds) == 3
    for round, expected in zip(seen.rounds, gradients, strict=True):
        same(round.update, expected)
    net = copy.deepcopy(tiny_net)  # the weights that come with a message are those it was made at
    held = seen.rounds[2].weights
    assert held is not None
    net.load_state_dict({n: w[0] for n, w in held.items()})
    same(seen.rounds[2].update, backward(net, tiny_batch.images, tiny_batch.labels))


def test_several_updates_of_single_images_move_apart(
    tiny_net: nn.Module, tiny_batch: Batch
) -> None:
    seen = clients.several(tiny_net, tiny_batch, updates=2, rate=0.2, each=True)
    _, gradients = train(
        tiny_net, tiny_batch.images[2:3], tiny_batch.labels[2:3], [torch.arange(1)] * 2, 0.2
    )
    same(seen.rounds[1].update, gradients[1], trial=2)


def test_horizontal_aggregate_is_the_gradient_of_the_union(
    tiny_net: nn.Module, tiny_batch: Batch
) -> None:
    workers = [tiny_batch[:2], tiny_batch[2:]]
    picks = torch.tensor([[[0, 1], [0, 1]], [[1, 1], [0, 0]]])
    seen = clients.horizontal(tiny_net, workers, picks=picks)
    same(seen.rounds[0].update, backward(tiny_net, tiny_batch.images, tiny_batch.labels))
    odd = torch.tensor([1, 1, 2, 2])
    same(seen.rounds[1].update, backward(tiny_net, tiny_batch.images[odd], tiny_batch.labels[odd]))
    assert torch.equal(seen.given.batch_indices, torch.tensor([[0, 1, 2, 3], [1, 1, 2, 2]]))  # pyright: ignore


def test_horizontal_defends_at_the_workers(tiny_net: nn.Module, tiny_batch: Batch) -> None:
    workers = [tiny_batch[:2], tiny_batch[2:]]
    seen = clients.horizontal(tiny_net, workers, defence=defences.clip(1e-3)).rounds[0].update
    norm = torch.stack([g.square().sum() for g in seen.values()]).sum().sqrt()
    assert norm <= 1e-3 * (1 + 1e-9)  # a mean of clipped messages is no longer than the clip
    assert norm < 0.999e-3  # and shorter than it unless all workers agree


@pytest.mark.parametrize("classes", [3, 7])
def test_vertical_protocol_equals_one_big_backward(classes: int) -> None:
    net = models.vertical_net(classes=classes, size=16, workers=4, seed=2).double()
    batch = random_batch(5, classes=classes, size=16)
    picks = torch.tensor([[0, 1, 2, 3, 4], [4, 4, 0, 1, 2]])
    seen = clients.vertical(net, batch, picks=picks)
    for round, pick in zip(seen.rounds, picks, strict=True):
        same(round.update, backward(net, batch.images[pick], batch.labels[pick]))


def test_the_oracles_say_the_truth(tiny_net: nn.Module, tiny_batch: Batch) -> None:
    give = (*clients.HONEST, "oracle_labels", "oracle_tv_level", "oracle_inputs")
    given = clients.fedsgd(tiny_net, tiny_batch, give=give).given
    assert torch.equal(given.oracle_labels[0], tiny_batch.labels)  # pyright: ignore
    x = tiny_batch.images.double()
    for b in range(len(tiny_batch)):
        total = 0.0
        for c in range(3):
            for i in range(8):
                for j in range(8):
                    total += abs(float(x[b, c, i + 1, j] - x[b, c, i, j])) if i < 7 else 0
                    total += abs(float(x[b, c, i, j + 1] - x[b, c, i, j])) if j < 7 else 0
        assert float(given.oracle_tv_level[0, b]) == pytest.approx(total)  # pyright: ignore
    z = tiny_net.features_of(x)  # pyright: ignore[reportCallIssue]
    torch.testing.assert_close(given.oracle_inputs[0], z.detach())  # pyright: ignore


def test_the_vertical_oracle_holds_every_workers_inputs() -> None:
    net = models.vertical_net(classes=5, size=16, workers=4, seed=2).double()
    batch = random_batch(3, size=16)
    given = clients.vertical(net, batch, give=("oracle_inputs",)).given
    patches = models.split(batch.images.double(), 4)
    wanted = [worker.internal_of(p) for worker, p in zip(net.workers, patches, strict=True)]  # pyright: ignore
    torch.testing.assert_close(given.oracle_inputs, torch.cat(wanted, 1).detach()[None])


@pytest.mark.parametrize("protocol", ["horizontal", "vertical"])
def test_the_server_may_train_between_rounds(protocol: str) -> None:
    batch, rate = random_batch(4, size=16), 0.3
    if protocol == "vertical":
        net = models.vertical_net(classes=5, size=16, workers=4, seed=2).double()
        picks = torch.tensor([[0, 1], [2, 3]])
        seen = clients.vertical(net, batch, picks=picks, rate=rate)
    else:
        net = models.lenet(classes=5, size=16, width=3, seed=2).double()
        picks = torch.tensor([[0, 2], [1, 3]])
        seen = clients.horizontal(
            net,
            [batch[:2], batch[2:]],
            picks=picks[:, :, None] - torch.tensor([0, 2])[:, None],
            rate=rate,
        )
    _, gradients = train(net, batch.images, batch.labels, list(picks), rate)
    for round, expected in zip(seen.rounds, gradients, strict=True):
        same(round.update, expected)


def test_the_same_seed_makes_the_same_noise(tiny_net: nn.Module, tiny_batch: Batch) -> None:
    def message(seed: int) -> Tensor:
        seen = clients.fedsgd(tiny_net, tiny_batch, defence=defences.gaussian(std=0.1), seed=seed)
        return seen.rounds[0].update["head.weight"]

    assert torch.equal(message(1), message(1))
    assert not torch.equal(message(1), message(2))


def test_training_on_afterwards_does_not_reach_into_an_observation(
    tiny_net: nn.Module, tiny_batch: Batch
) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch)
    before = seen.weights(by="test")["head.weight"].clone()
    with torch.no_grad():
        next(iter(tiny_net.head.parameters())).add_(1)  # pyright: ignore
    assert torch.equal(seen.weights(by="test")["head.weight"], before)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda n, b: clients.fedsgd(n, b, give=("wieghts",)), "did you mean 'weights'"),
        (lambda n, b: clients.fedsgd(n, b, give=("learning_rate",)), "no learning_rate to give"),
        (lambda n, b: clients.fedavg(n, b, batch_size=9), "must lie in 1…4"),
        (lambda n, b: clients.local_steps(n, b, steps=0, rate=1.0), "steps must be positive"),
        (lambda n, b: clients.local_steps(n, b, steps=1, rate=-1), "rate must be positive"),
        (lambda n, b: clients.fedavg(n, b, epochs=1.5), "epochs must be a whole number"),  # pyright: ignore
        (lambda n, b: clients.local_steps(n, b, steps=1, rate=1, share="men"), "did you mean"),  # pyright: ignore
        (lambda n, b: clients.vertical(n, b), "models.vertical_net"),
        (lambda n, b: clients.horizontal(n, [b[:1], b[1:]]), "equally much"),
        (
            lambda n, b: clients.horizontal(n, [b], picks=torch.tensor([[[7]]])),
            "worker 0's items",
        ),
    ],
)
def test_bad_requests_are_refused_with_a_sentence(
    call, sentence: str, tiny_net, tiny_batch
) -> None:
    with pytest.raises(ValueError, match=sentence):
        call(tiny_net, tiny_batch)
