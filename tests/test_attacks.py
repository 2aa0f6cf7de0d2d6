"""The textbook attacks: the objective against plain autograd, the label rule exactly, success."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import random_batch
from torch.nn import functional as F

from gleak_core import attacks, clients, data, defences, labels, metrics, models, starts
from gleak_core.device import tolerance
from gleak_core.objectives import GradientMatch, soft_cross_entropy, squared_l2
from gleak_core.observation import MissingCapability
from gleak_core.solvers import published_lbfgs

CLOSE = tolerance(torch.float64)


@settings(max_examples=10, deadline=None)
@given(b=st.integers(1, 3), t=st.integers(1, 3), joint=st.booleans(), seed=st.integers(0, 50))
def test_the_objective_equals_the_published_closure(b: int, t: int, joint: bool, seed: int) -> None:
    """Zhu et al.'s loop, written out: autograd.grad with a graph, and one backward through it."""
    net = models.lenet(classes=4, size=8, width=3, seed=seed).double()
    batches = [random_batch(b, classes=4, seed=seed + i) for i in range(t)]
    seen = [clients.fedsgd(net, batch) for batch in batches]
    known = None if joint else torch.stack([batch.labels for batch in batches])
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand((t, b, 3, 8, 8), generator=generator, dtype=torch.float64)
    y = torch.randn((t, b, 4), generator=generator, dtype=torch.float64)
    stacked = seen[0]
    for name in stacked.rounds[0].update:
        stacked.rounds[0].update[name] = torch.cat([s.rounds[0].update[name] for s in seen])
    objective = GradientMatch.of(stacked, labels=known, by="test")
    value, gradient = objective.value_and_grad(objective.pack(x, y))
    for i in range(t):
        dummy = x[i].clone().requires_grad_()
        logits = y[i].clone().requires_grad_()
        target = logits.softmax(-1) if joint else F.one_hot(batches[i].labels, 4).double()
        loss = torch.mean(torch.sum(-target * F.log_softmax(net(dummy), -1), 1))
        fake = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
        true = [g[i] for g in stacked.rounds[0].update.values()]
        distance = sum(((f - g) ** 2).sum() for f, g in zip(fake, true, strict=True))
        assert isinstance(distance, torch.Tensor)
        wanted = torch.autograd.grad(distance, [dummy, logits] if joint else [dummy])
        expected = torch.cat([w.flatten() for w in wanted])
        assert float(value[i]) == pytest.approx(distance.item(), rel=1e-10)
        torch.testing.assert_close(gradient[i], expected, rtol=CLOSE.rtol, atol=CLOSE.atol)


def test_the_objective_vanishes_at_the_private_image_and_only_there(tiny_net, tiny_batch) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch)
    objective = GradientMatch.of(seen, labels=tiny_batch.labels[None], by="test")
    truth = tiny_batch.images[None].double()
    value, gradient = objective.value_and_grad(objective.pack(truth, truth))
    assert float(value) < 1e-28 and float(gradient.abs().max()) < 1e-12
    nudged, _ = objective.value_and_grad(objective.pack(truth + 1e-2, truth))
    assert float(nudged) > 1e-10


def test_pack_and_unpack_are_inverse(tiny_net, tiny_batch) -> None:
    objective = GradientMatch.of(clients.fedsgd(tiny_net, tiny_batch), labels=None, by="test")
    images = starts.make("uniform", (1, 4, 3, 8, 8), seed=1)
    logits = starts.make("normal", (1, 4, 5), seed=2)
    z = objective.pack(images, logits)
    assert torch.equal(objective.images(z), images)
    torch.testing.assert_close(objective.soft_labels(z), logits.softmax(-1))


def test_soft_cross_entropy_meets_the_hard_one() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64)
    hard = torch.tensor([0, 1, 2, 3, 0, 1])
    soft = soft_cross_entropy(logits, F.one_hot(hard, 4).double())
    torch.testing.assert_close(soft, F.cross_entropy(logits, hard))


def test_squared_l2_sums_over_every_entry() -> None:
    fake = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3.0]])}
    seen = {"a": torch.tensor([0.0, 4.0]), "b": torch.tensor([[1.0]])}
    assert float(squared_l2(fake, seen)) == 1 + 4 + 4


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    classes=st.integers(2, 30),
    activation=st.sampled_from(["sigmoid", "relu"]),
)
def test_idlg_reads_every_label(seed: int, classes: int, activation: str) -> None:
    net = models.lenet(classes=classes, size=8, width=4, activation=activation, seed=seed)
    batch = random_batch(6, classes=classes, seed=seed)
    seen = clients.fedsgd(net.double(), batch, each=True)
    assert torch.equal(labels.idlg(seen)[:, 0], batch.labels)


def test_idlg_refuses_a_batch(tiny_net, tiny_batch) -> None:
    with pytest.raises(ValueError, match=r"label of one image, this batch has 4.*each=True"):
        attacks.idlg(clients.fedsgd(tiny_net, tiny_batch), steps=1)


def test_an_attack_without_weights_refuses(tiny_net, tiny_batch) -> None:
    blind = clients.fedsgd(tiny_net, tiny_batch, each=True).without("weights")
    for attack in (attacks.dlg, attacks.idlg):
        with pytest.raises(MissingCapability, match="needs weights"):
            attack(blind, steps=1)


@pytest.mark.parametrize(("attack", "least"), [(attacks.dlg, 2), (attacks.idlg, 3)])
def test_the_attack_leaks_photographs(attack, least: int) -> None:
    """Band: of 4 photographs at 16 px and 10 steps, DLG leaks at least 2 to 30 dB, iDLG 3.

    When written, over 4 seeds: DLG 12 of 16 (the others blew up), iDLG 16 of 16.
    """
    batch = data.sample("photographs", n=4, size=16, seed=3)
    net = models.lenet(classes=len(batch.classes), size=16, seed=3)
    seen = clients.fedsgd(net, batch, each=True)
    found = attack(seen, start="uniform", steps=10, seed=3)
    score = metrics.score(found, batch)
    assert int((score.psnr >= 30).sum()) >= least, score
    solved = [t for t, s in enumerate(found.status) if s == "solved"]
    assert all(found.labels[t] == batch.labels[t] and score.psnr[t] >= 30 for t in solved)


def test_an_attack_is_the_same_from_the_same_seed(tiny_net, tiny_batch) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch, each=True)
    one, two = (attacks.dlg(seen, steps=3, seed=4) for _ in range(2))
    other = attacks.dlg(seen, steps=3, seed=5)
    assert torch.equal(one.images, two.images) and torch.equal(one.loss, two.loss)
    assert not torch.equal(one.history.frames[0], other.history.frames[0])


def test_history_holds_the_start_and_the_last_step(tiny_net, tiny_batch) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch)
    found = attacks.dlg(seen, start="uniform", steps=7, every=3, seed=4)
    assert found.history.frame_steps.tolist() == [0, 3, 6, 7]
    start = starts.make("uniform", (1, 4, 3, 8, 8), seed=4)
    assert torch.equal(found.history.frames[0], start)
    assert found.history.loss.shape == (8, 1)
    assert float(found.loss) == float(found.history.loss.nan_to_num(torch.inf).min())


def test_the_start_is_the_same_in_every_precision() -> None:
    wide = starts.make("uniform", (1, 2, 3), seed=1)
    assert torch.equal(wide.float(), starts.make("uniform", (1, 2, 3), seed=1).to(torch.float32))
    assert float(wide.min()) >= 0 and float(wide.max()) < 1
    with pytest.raises(ValueError, match="did you mean 'uniform'"):
        starts.make("unifrom", (1,))


class Quadratic:
    """½‖z − c‖², whose minimum is known, and which turns to NaN where it is told to."""

    def __init__(self, centre: torch.Tensor, broken: tuple[int, ...] = ()) -> None:
        self.centre, self.broken = centre, broken

    def compact(self, keep: torch.Tensor) -> "Quadratic":
        broken = tuple(i for i, k in enumerate(keep.tolist()) if k in self.broken)
        return Quadratic(self.centre[keep], broken)

    def value_and_grad(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value = (z - self.centre).square().sum(1) / 2
        for i in self.broken:
            value[i] = torch.nan
        return value, z - self.centre


def test_the_published_loop_minimises_and_reports_what_broke() -> None:
    centre = torch.randn(3, 5, dtype=torch.float64)
    problem = Quadratic(centre, broken=(1,))
    seen: list[tuple[int, int]] = []
    solution = published_lbfgs(
        problem,
        torch.zeros(3, 5, dtype=torch.float64),
        steps=4,
        every=2,
        progress=lambda done, total, loss: seen.append((done, total)),
    )
    torch.testing.assert_close(solution.z[[0, 2]], centre[[0, 2]])
    assert solution.finite.tolist() == [True, False, True]
    assert solution.loss[1] == torch.inf and torch.equal(solution.z[1], torch.zeros(5).double())
    assert torch.isnan(solution.curve[1:, 1]).all()
    assert seen[-1] == (12, 12)
    with pytest.raises(ValueError, match="at least 1"):
        published_lbfgs(problem, torch.zeros(3, 5), steps=0)


def test_a_trial_stops_where_the_attacker_would() -> None:
    problem = Quadratic(torch.ones(2, 3, dtype=torch.float64))
    start = torch.stack([torch.ones(3), torch.zeros(3)]).double()
    solution = published_lbfgs(problem, start, steps=5, stop=1e-9)
    assert int(solution.evaluations[0]) == 1
    assert solution.loss.max() < 1e-9
    assert not torch.isnan(solution.frames).any()


def test_a_diverged_trial_says_so(tiny_net, tiny_batch) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch, each=True)
    update = seen.rounds[0].update
    update["head.bias"][1] = torch.nan
    found = attacks.dlg(seen, steps=2, start="uniform")
    assert found.status[1] == "diverged" and torch.isfinite(found.images).all()


@pytest.mark.parametrize("norm", [1e-3, 1e-2])
def test_a_small_gradient_is_not_solved_by_having_none(norm: float) -> None:
    """A dummy without a gradient is within ‖∇W‖² of a clipped one: that is no success."""
    batch = data.sample("photographs", n=2, size=16, seed=3)
    net = models.lenet(classes=10, size=16, seed=3)
    seen = clients.fedsgd(net, batch, each=True, defence=defences.clip(norm))
    found = attacks.idlg(seen, start="uniform", steps=5, seed=3)
    score = metrics.score(found, batch)
    assert not any(s == "solved" and p < 18 for s, p in zip(found.status, score.psnr, strict=True))
    assert "solved" not in attacks.idlg(seen, start="uniform", steps=1, seed=3).status
