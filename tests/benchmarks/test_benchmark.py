"""The benchmark measures what it says: its textbook loop is the textbook's, its rows are read."""

import pandas as pd
import pytest
import torch
from measure import PARTS, Scale
from textbook import closure_of, leak

from gleak_core import clients, data, models
from gleak_core.objectives import GradientMatch
from gleak_core.publish import speed


def message(size: int = 16) -> tuple[models.ConvNet, dict[str, torch.Tensor], GradientMatch]:
    batch = data.sample("photographs", n=1, size=size, seed=0)
    net = models.lenet(classes=len(batch.classes), size=size, seed=0)
    seen = clients.fedsgd(net, batch)
    match = GradientMatch.of(seen, labels=None, by="a test", evaluator="autograd")
    return net, {n: g[0] for n, g in seen.gradient().items()}, match


def test_the_textbook_closure_is_the_objective() -> None:
    net, target, match = message()
    draw = torch.Generator().manual_seed(0)
    x = torch.rand((1, 3, 16, 16), generator=draw).requires_grad_()
    y = torch.randn((1, match.dummies.classes), generator=draw).requires_grad_()
    loss = closure_of(net, target, x, y)()
    value, slope = match.value_and_grad(match.dummies.pack(x.detach()[None], y.detach()[None]))
    assert x.grad is not None and y.grad is not None
    torch.testing.assert_close(loss.detach(), value[0])
    torch.testing.assert_close(torch.cat([x.grad.flatten(), y.grad.flatten()]), slope[0])


def test_the_textbook_loop_is_the_published_one() -> None:
    """The same steps as the library's parity loop, and the best picture rather than the last."""
    from gleak_core.solvers import published_lbfgs

    net, target, match = message()
    draw = torch.Generator().manual_seed(1)
    x = torch.rand((1, 3, 16, 16), generator=draw)
    y = torch.randn((1, match.dummies.classes), generator=draw)
    ours = published_lbfgs(match, match.dummies.pack(x[None], y[None]), steps=3, every=0)
    theirs = leak(net, target, x, y, steps=4, stop=0.0)
    torch.testing.assert_close(
        torch.tensor(theirs.loss), ours.curve[:, 0].nan_to_num(torch.inf).min(), rtol=1e-2, atol=0
    )
    assert theirs.image.shape == x.shape


def test_a_loss_that_is_enough_ends_the_loop() -> None:
    net, target, match = message()
    x, y = torch.rand(1, 3, 16, 16), torch.randn(1, match.dummies.classes)
    assert leak(net, target, x, y, steps=50, stop=float("inf")).evaluations <= 25
    assert leak(net, target, torch.full_like(x, torch.nan), y, steps=50, stop=0.0).loss == float(
        "inf"
    )


@pytest.mark.parametrize("part", ["labels", "analytic"])
def test_a_part_gives_rows_that_the_page_can_read(part: str) -> None:
    rows = pd.DataFrame(list(PARTS[part](Scale(images=2))))
    assert set(speed.tables(rows)) == {"leaks" if part == "analytic" else part}
    assert min(rows["value"]) > 0


def test_every_point_has_a_process_and_a_peak_of_its_own() -> None:
    """A first, larger one leaves no mark on the second."""
    scale = Scale(trials=(), batches=(), sizes=(96, 16))
    rows = [row for row in PARTS["growth"](scale) if row["measure"] == "peak MB"]
    peaks = {str(row["at"]): float(str(row["value"])) for row in rows}
    assert peaks["16"] < peaks["96"]
