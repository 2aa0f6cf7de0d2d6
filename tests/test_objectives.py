"""Every way to evaluate the objective, against Zhu et al.'s closure written out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import random_batch
from torch.nn import functional as F

from gleak_core import clients, models, starts
from gleak_core.device import tolerance
from gleak_core.objectives import GradientMatch, Repeated, Total

CLOSE = tolerance(torch.float64)


@settings(max_examples=8, deadline=None)
@given(
    b=st.integers(1, 3),
    t=st.integers(1, 3),
    joint=st.booleans(),
    seed=st.integers(0, 50),
    size=st.integers(6, 10),
    kernel=st.sampled_from([3, 5]),
)
@pytest.mark.parametrize("evaluator", ["closed_form", "vmap", "autograd", "auto"])
def test_the_objective_equals_the_published_closure(
    evaluator: str, b: int, t: int, joint: bool, seed: int, size: int, kernel: int
) -> None:
    """Zhu et al.'s loop, written out: autograd.grad with a graph, and one backward through it."""
    net = models.lenet(classes=4, size=size, width=3, kernel=kernel, seed=seed).double()
    batches = [random_batch(b, classes=4, size=size, seed=seed + i) for i in range(t)]
    seen = [clients.fedsgd(net, batch) for batch in batches]
    known = None if joint else torch.stack([batch.labels for batch in batches])
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand((t, b, 3, size, size), generator=generator, dtype=torch.float64)
    y = torch.randn((t, b, 4), generator=generator, dtype=torch.float64)
    stacked = seen[0]
    for name in stacked.rounds[0].update:
        stacked.rounds[0].update[name] = torch.cat([s.rounds[0].update[name] for s in seen])
    objective = GradientMatch.of(stacked, labels=known, by="test", evaluator=evaluator)
    value, gradient = objective.value_and_grad(objective.dummies.pack(x, y))
    for i in range(t):
        dummy = x[i].clone().requires_grad_()
        logits = y[i].clone().requires_grad_()
        target = logits.softmax(-1) if joint else F.one_hot(batches[i].labels, 4).double()
        loss = torch.mean(torch.sum(-target * F.log_softmax(net(dummy), -1), 1))
        fake = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
        true = [g[i] for g in stacked.rounds[0].update.values()]
        distance = torch.stack([((f - g) ** 2).sum() for f, g in zip(fake, true, strict=True)])
        wanted = torch.autograd.grad(distance.sum(), [dummy, logits] if joint else [dummy])
        expected = torch.cat([w.flatten() for w in wanted])
        assert float(value[i]) == pytest.approx(distance.sum().item(), rel=1e-10)
        torch.testing.assert_close(gradient[i], expected, rtol=1e-10, atol=1e-12)


def test_pack_and_unpack_are_inverse(tiny_net, tiny_batch) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch)
    dummies = GradientMatch.of(seen, labels=None, by="test").dummies
    images = starts.make("uniform", (1, 4, 3, 8, 8), seed=1)
    logits = starts.make("normal", (1, 4, 5), seed=2)
    z = dummies.pack(images, logits)
    assert torch.equal(dummies.images(z), images) and z.shape[1] == dummies.unknowns
    torch.testing.assert_close(dummies.soft_labels(z), logits.softmax(-1))


def test_totals_add_up_and_restarts_repeat(tiny_net, tiny_batch) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch, each=True)
    match = GradientMatch.of(seen, labels=tiny_batch.labels[:, None], by="test")
    z = match.dummies.pack(starts.make("uniform", (4, 1, 3, 8, 8)))
    value, gradient = match.value_and_grad(z)
    both = Total(((0.5, match), (2.0, match))).value_and_grad(z)
    torch.testing.assert_close(both, (2.5 * value, 2.5 * gradient))
    twice = Repeated(match, 2).value_and_grad(z.repeat_interleave(2, 0))
    torch.testing.assert_close(twice[0], value.repeat_interleave(2), rtol=1e-10, atol=0)


def test_an_evaluator_that_does_not_fit_is_refused() -> None:
    net = models.resnet20(classes=3, size=8, norm="none").double()
    seen = clients.fedsgd(net, random_batch(2, classes=3))
    with pytest.raises(ValueError, match="use evaluator='auto'"):
        GradientMatch.of(seen, labels=None, by="test", evaluator="closed_form")
    assert GradientMatch.of(seen, labels=None, by="test").evaluator == "vmap"
