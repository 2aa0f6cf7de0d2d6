"""Label rules: closed forms exactly, counting against a plain loop, accuracy in a stated band."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import random_batch
from torch import Tensor, nn

from gleak_core import clients, data, labels, metrics, models, starts
from gleak_core.data import Batch
from gleak_core.device import tolerance
from gleak_core.errors import GleakError
from gleak_core.observation import MissingCapability, Observation

CLOSE = tolerance(torch.float64)
SEEDS = st.integers(0, 10_000)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=CLOSE.rtol, atol=CLOSE.atol)


def labelled(n: int, classes: int, seed: int, *, size: int = 8) -> Batch:
    """Return a batch whose labels are drawn with replacement: some repeat, some are missing."""
    drawn = torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed + 1))
    return replace(random_batch(n, classes=classes, size=size, seed=seed), labels=drawn)


def together(each: list[Observation]) -> Observation:
    """Return one observation with a trial for each of several at the same weights."""
    rounds = []
    for of_round in zip(*(seen.rounds for seen in each), strict=True):
        first = of_round[0]
        update = {n: torch.cat([r.update[n] for r in of_round]) for n in first.update}
        rounds.append(replace(first, update=update))
    return replace(each[0], rounds=tuple(rounds))


def with_head(rows: Tensor, batch_size: int) -> Observation:
    """Return an observation whose last layer's weight gradient (N, M) is given."""
    classes, m = rows.shape
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, m), nn.Linear(m, classes))
    batch = random_batch(batch_size, classes=classes, size=1)
    seen = clients.fedsgd(net.double(), batch)
    seen.rounds[0].update["2.weight"] = rows[None].double()
    return seen


ROWS = torch.tensor([[-5.0, 9.0], [0.5, 0.5], [-1.0, -2.0], [-0.5, 0.0], [3.0, 3.0]])
# sums 4, 1, −3, −½, 6; minima −5, ½, −2, −½, 3


def test_cpl_takes_the_smallest_sum() -> None:
    assert labels.cpl(with_head(ROWS, 1)).tolist() == [[2]]
    assert labels.cpl(with_head(ROWS, 3)).tolist() == [[2, 2, 2]]


def test_grad_inversion_takes_the_smallest_minima_in_order() -> None:
    assert labels.grad_inversion(with_head(ROWS, 1)).tolist() == [[0]]
    assert labels.grad_inversion(with_head(ROWS, 3)).tolist() == [[0, 2, 3]]
    assert labels.grad_inversion(with_head(ROWS, 5)).tolist() == [[0, 1, 2, 3, 4]]


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, b=st.integers(1, 5), classes=st.integers(2, 20), pick=st.data())
def test_cpl_is_exact_on_batches_of_one_class(seed: int, b: int, classes: int, pick) -> None:
    net = models.lenet(classes=classes, size=8, width=4, seed=seed).double()
    kinds = [pick.draw(st.integers(0, classes - 1)) for _ in range(2)]
    batches = [
        replace(random_batch(b, classes=classes, seed=seed + i), labels=torch.full((b,), kind))
        for i, kind in enumerate(kinds)
    ]
    seen = together([clients.fedsgd(net, batch) for batch in batches])
    assert labels.cpl(seen).tolist() == [[kind] * b for kind in kinds]
    if b == 1:
        assert torch.equal(labels.cpl(seen), labels.idlg(seen))


@settings(max_examples=30, deadline=None)
@given(
    real=st.lists(st.floats(-3, 6), min_size=2, max_size=4),
    batch_size=st.integers(1, 5),
)
def test_assigned_counts_are_the_nearest_whole_ones(real: list[float], batch_size: int) -> None:
    estimate = torch.tensor([real], dtype=torch.float64)
    found = labels.assign(estimate, batch_size)
    whole = torch.bincount(found[0], minlength=len(real))
    assert found.shape == (1, batch_size) and found.dtype == torch.int64
    assert int(whole.sum()) == batch_size and torch.equal(found, found.sort().values)
    every = torch.tensor(
        [
            c
            for c in itertools.product(range(batch_size + 1), repeat=len(real))
            if sum(c) == batch_size
        ]
    )
    nearest = (every - estimate).square().sum(1).min()
    assert float((whole - estimate).square().sum()) == pytest.approx(float(nearest), abs=1e-9)


def test_assign_is_exact_on_whole_counts_and_keeps_trials_apart() -> None:
    whole = torch.tensor([[2.0, 0.0, 3.0], [0.0, 5.0, 0.0]])
    kept = whole.clone()
    assert labels.assign(whole, 5).tolist() == [[0, 0, 2, 2, 2], [1] * 5]
    assert torch.equal(whole, kept)


def test_a_broken_trial_leaves_the_others_alone() -> None:
    broken = torch.tensor([[torch.nan, 1.0, torch.inf], [2.0, 0.0, 1.0]])
    found = labels.assign(broken, 3)
    assert found[1].tolist() == [0, 0, 2] and bool(((found >= 0) & (found < 3)).all())


@pytest.mark.parametrize(("shape", "size"), [((3,), 2), ((1, 2, 3), 2), ((1, 3), 0)])
def test_assign_refuses_what_cannot_be_counts(shape: tuple[int, ...], size: int) -> None:
    with pytest.raises(ValueError, match=r"pass counts \(T, N\)"):
        labels.assign(torch.ones(shape), size)


def plain(seen: Observation, net: nn.Module, dummies: Tensor, rule: str, t: int) -> Tensor:
    """Write Geng et al. 2021, Eq. 16 out for one trial and the first message."""
    own = net.state_dict()
    net.load_state_dict({n: w[t] if w.dim() > own[n].dim() else w for n, w in held(seen).items()})
    weight, offset = seen.head()
    last = [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
    inputs: list[Tensor] = []
    handle = last.register_forward_hook(lambda _, x, out: inputs.append(x[0]))
    with torch.no_grad():
        p = net(dummies).softmax(1).sum(0) / len(dummies)
    handle.remove()
    update, size = seen.rounds[0].update, seen.given.batch_size
    assert size is not None
    if rule == "bias":
        return size * p - size * update[offset][t]
    mean_o = sum(float(o.sum()) for o in inputs[0]) / len(dummies)
    return size * p - size * update[weight][t].sum(1) / mean_o


def held(seen: Observation) -> dict[str, Tensor]:
    return seen.weights(by="test")


class Foreign(nn.Module):
    """A network of nobody's: a buffer, and no name of ours for its last layer."""

    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(192, 9), nn.Linear(9, 5)
        self.register_buffer("shift", torch.linspace(-1, 1, 9))
        models.initialise(self, "pytorch")

    def forward(self, images: Tensor) -> Tensor:
        return self.outer((self.inner(images.flatten(1)) + self.shift).sigmoid())


NETS: dict[str, Callable[[], nn.Module]] = {
    "lenet": lambda: models.lenet(classes=5, size=8, width=3, seed=2),
    "cafe": lambda: models.cafe_net(5, size=8, widths=(4, 4), hidden=(8, 6), activation="relu"),
    "vertical": lambda: models.vertical_net(5, size=8, widths=(2, 2), hidden=(4, 4), vector=3),
    "resnet": lambda: models.resnet(1, classes=5, size=8),
    "any": Foreign,
}


@pytest.mark.parametrize("rule", ["general", "bias"])
@pytest.mark.parametrize("kind", sorted(NETS))
@pytest.mark.parametrize("stacked", [False, True])
def test_counts_equal_the_equation_written_out(kind: str, rule: str, stacked: bool) -> None:
    """Whatever the model, with weights that trials share and with weights that moved apart."""
    net = NETS[kind]().double()
    batch = labelled(3, 5, 7)
    if stacked:
        seen = clients.several(net, batch, updates=2, rate=0.5, each=True).message(1)
    else:
        seen = together([clients.fedsgd(net, batch), clients.fedsgd(net, labelled(3, 5, 8))])
    found = labels.counts(seen, rule=rule, dummies=6, start="normal", seed=4)
    dummies = starts.make("normal", (6, 3, 8, 8), seed=4)
    assert found.shape == (seen.trials, 5)
    for t in range(seen.trials):
        close(found[t], plain(seen, net, dummies, rule, t))
    size = torch.full((seen.trials,), 1.0 if stacked else 3.0).double()
    close(found.sum(1), size)  # by themselves: p sums to 1, and p − y to 0, over the classes


@settings(max_examples=25, deadline=None)
@given(
    seed=SEEDS,
    b=st.integers(1, 12),
    classes=st.integers(2, 7),
    activation=st.sampled_from(["sigmoid", "relu", "tanh"]),
    scale=st.sampled_from([0.05, 0.5, 1.0]),
)
def test_the_bias_rule_is_exact_with_the_private_images(seed, b, classes, activation, scale):
    net = models.lenet(
        classes=classes, size=8, width=3, activation=activation, scale=scale, seed=seed
    ).double()
    batches = [labelled(b, classes, seed + i) for i in range(2)]
    seen = together([clients.fedsgd(net, batch) for batch in batches])
    truth = torch.stack([batch.labels.sort().values for batch in batches])
    images = torch.stack([batch.images for batch in batches])
    assert torch.equal(labels.refine(seen, images), truth)
    assert torch.equal(labels.refine(seen, images.flip(1), rule="bias"), truth)


@pytest.mark.parametrize("rule", ["general", "bias"])
def test_one_image_refines_itself_under_both_rules(rule: str, tiny_net, tiny_batch) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch, each=True)
    found = labels.refine(seen, tiny_batch.images[:, None], rule=rule)
    assert torch.equal(found[:, 0], tiny_batch.labels)


def test_refine_works_at_every_protocol_that_shares_a_mean_gradient(tiny_net) -> None:
    batch = labelled(9, 5, 3)
    truth = batch.labels.sort().values
    normed = models.resnet(1, classes=5, size=8).double()
    for seen in (
        clients.fedsgd(normed, batch),  # batch norm: p needs the whole batch at once
        clients.several(tiny_net, batch, updates=3, rate=0.5),
        clients.fedavg(tiny_net, batch, epochs=1, rate=0.1),
        clients.local_steps(tiny_net, batch, steps=1, rate=0.1),
        clients.fedsgd(tiny_net, batch).only("head"),
    ):
        assert torch.equal(labels.refine(seen, batch.images[None])[0], truth), seen


def test_weights_and_gradient_of_one_step_count_alike(tiny_net) -> None:
    batch = labelled(6, 5, 1)
    close(
        labels.counts(clients.fedavg(tiny_net, batch, rate=0.3)),
        labels.counts(clients.fedsgd(tiny_net, batch)),
    )


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, b=st.integers(1, 9), order=st.randoms(use_true_random=False))
def test_the_order_of_the_batch_does_not_matter(seed: int, b: int, order) -> None:
    net = models.lenet(classes=5, size=8, width=3, seed=seed).double()
    batch = labelled(b, 5, seed)
    other = batch[order.sample(range(b), b)]
    seen, mixed = clients.fedsgd(net, batch), clients.fedsgd(net, other)
    for rule in ("general", "bias"):
        close(labels.counts(seen, rule=rule), labels.counts(mixed, rule=rule))
        assert labels.RULES[rule](seen).shape == (1, b)
    assert torch.equal(labels.general(seen), labels.general(mixed))


def test_several_messages_of_one_batch_are_averaged(tiny_net, tiny_batch) -> None:
    seen = clients.several(tiny_net, tiny_batch, updates=3, rate=0.5)
    single = [labels.counts(seen.message(r), rule="bias") for r in range(3)]
    assert not torch.allclose(single[0], single[2], rtol=1e-6)
    close(labels.counts(seen, rule="bias"), torch.stack(single).mean(0))


@pytest.mark.parametrize("rule", ["idlg", "cpl", "grad_inversion"])
def test_the_other_rules_take_one_message(rule: str, tiny_net, tiny_batch) -> None:
    seen = clients.several(tiny_net, tiny_batch[:1], updates=2)
    with pytest.raises(GleakError, match=r"seen\.message\(0\)"):
        labels.RULES[rule](seen)
    assert labels.RULES[rule](seen.message(1)).shape == (1, 1)


def test_messages_of_different_batches_are_not_averaged(tiny_net, tiny_batch) -> None:
    def seen(*picks: list[int]) -> Observation:
        return clients.horizontal(tiny_net, [tiny_batch], picks=torch.tensor(picks)[:, None])

    with pytest.raises(GleakError, match=r"2 messages are of different ones.*seen\.message\(0\)"):
        labels.general(seen([0, 1], [2, 3]))
    assert labels.general(seen([0, 1], [1, 0])).shape == (1, 2)
    assert labels.general(seen([0, 1], [2, 3]).message(1)).shape == (1, 2)


def test_options_reach_the_dummies(tiny_net, tiny_batch) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch)
    same = labels.counts(seen)
    assert torch.equal(same, labels.counts(seen, rule="general", dummies=64, start="uniform"))
    others: list[dict[str, Any]] = [{"seed": 1}, {"start": "white"}, {"dummies": 5}]
    assert not torch.equal(same, labels.counts(seen, rule="bias"))
    for options in others:
        assert not torch.equal(same, labels.counts(seen, **options))
    # Of 2000 images every option moves some, so labels can tell whether it arrived.
    lively = models.lenet(classes=5, size=8, width=4, scale=1.0, seed=1).double()
    many = clients.fedsgd(lively, labelled(2000, 5, 2))
    for rule in ("general", "bias"):
        usual = labels.RULES[rule](many)
        for options in others:
            found = labels.RULES[rule](many, **options)
            wanted = labels.assign(labels.counts(many, rule=rule, **options), 2000)
            assert torch.equal(found, wanted) and not torch.equal(found, usual), options


def test_no_hook_stays_behind_in_the_observation(tiny_net, tiny_batch) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch)
    labels.general(seen)
    wrong = replace(seen, given=replace(seen.given, image_shape=(3, 9, 9)))
    with pytest.raises(ValueError, match="this network takes images"):
        labels.general(wrong)
    assert not any(m._forward_pre_hooks for m in seen.architecture.modules())


def test_refusals_name_their_cure(tiny_net, tiny_batch) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch)
    many = clients.fedsgd(tiny_net, random_batch(6))
    with pytest.raises(ValueError, match=r"batch of 6 has only 5 classes: use labels\.general"):
        labels.grad_inversion(many)
    with pytest.raises(ValueError, match="dummies must be at least 1, got 0"):
        labels.general(seen, dummies=0)
    with pytest.raises(ValueError, match="did you mean 'uniform'"):
        labels.bias(seen, start="unifrom")
    with pytest.raises(ValueError, match="unknown counting rule 'genral': did you mean 'general'"):
        labels.counts(seen, rule="genral")
    with pytest.raises(ValueError, match="unknown counting rule 'idlg'"):
        labels.refine(seen, tiny_batch.images[None], rule="idlg")
    for images in (tiny_batch.images, tiny_batch.images[None, :3], torch.zeros(2, 4, 3, 8, 8)):
        with pytest.raises(ValueError, match=r"expected \(1, 4, 3, 8, 8\): pass the images of a"):
            labels.refine(seen, images)


@pytest.mark.parametrize("rule", ["general", "bias"])
@pytest.mark.parametrize("missing", ["weights", "image_shape", "batch_size"])
def test_counting_needs_what_it_says(rule: str, missing: str, tiny_net, tiny_batch) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch).without(missing)
    with pytest.raises(MissingCapability, match=f"the label rule '{rule}' needs {missing}"):
        labels.RULES[rule](seen)


@pytest.mark.parametrize("rule", ["idlg", "cpl", "grad_inversion"])
def test_reading_needs_no_weights(rule: str, tiny_net, tiny_batch) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch, each=True).without("weights", "image_shape")
    assert torch.equal(labels.RULES[rule](seen)[:, 0], tiny_batch.labels)


def test_every_rule_reads_a_single_label(tiny_net, tiny_batch) -> None:
    """Band: untrained and B = 1, every rule is right about all 4 images; each gives (T, B)."""
    seen = clients.fedsgd(tiny_net, tiny_batch, each=True)
    for name, rule in labels.RULES.items():
        assert torch.equal(rule(seen), tiny_batch.labels[:, None]), name


def accuracy(rule: str, batches: list[Batch], net: nn.Module) -> float:
    seen = together([clients.fedsgd(net, batch) for batch in batches])
    truth = torch.stack([batch.labels for batch in batches])
    return float(metrics.label_accuracy(labels.RULES[rule](seen), truth).mean())


@pytest.mark.parametrize("classes", [4, 100])
def test_counting_is_right_about_random_pictures(classes: int) -> None:
    """Band: at least 0.9 over 20 batches of 16 with repeated labels; the paper says 0.97 to 1."""
    net = models.lenet(classes=classes, size=16, seed=1)
    batches = [labelled(16, classes, s, size=16) for s in range(20)]
    assert accuracy("general", batches, net) >= 0.9
    assert accuracy("bias", batches, net) >= 0.9


def test_counting_is_right_about_photographs() -> None:
    """Band: at least 0.9 over 10 batches of 16, of which each class repeats once or twice."""
    net = models.lenet(classes=10, size=16, seed=1)
    batches = [data.sample("photographs", n=16, size=16, seed=s) for s in range(10)]
    assert accuracy("general", batches, net) >= 0.9
    assert accuracy("bias", batches, net) >= 0.9


def test_grad_inversion_loses_what_repeats() -> None:
    """Band: with r of 16 labels repeated 1 − r/16 cannot be beaten, and 0.1 less is reached."""
    net = models.lenet(classes=100, size=16, seed=1)
    for r in (0, 4, 8):
        batches = []
        for s in range(10):
            kinds = torch.randperm(100, generator=torch.Generator().manual_seed(s))[: 16 - r]
            repeated = torch.cat([kinds, kinds[:1].repeat(r)])
            batches.append(replace(labelled(16, 100, s, size=16), labels=repeated))
        reached = accuracy("grad_inversion", batches, net)
        assert 1 - r / 16 - 0.1 <= reached <= 1 - r / 16
        assert accuracy("general", batches, net) >= 0.9
