"""The tapes say what PyTorch says, operation by operation and step by step."""

import json
from typing import Any

import pytest
import torch
from lab.replay import _KERNELS, replay
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from gleak_core.errors import GleakError
from gleak_core.lab import bundle, steps
from gleak_core.lab.tape import OPERATIONS, lower, trace
from gleak_core.penalties import tv_mean


def test_every_operation_has_a_kernel() -> None:
    assert set(_KERNELS) == set(OPERATIONS) - {"input"}


FUNCTIONS: dict[str, Any] = {
    "broadcast": lambda a, b: a[:, None] * b[None] + 2,
    "a constant": lambda a, b: (a * torch.ones_like(a) + 0.0) * 1.0,
    "constants": lambda a, b: 3.0 - (a - 1.0) / 2.0,
    "slices": lambda a, b: (a[1:] - a[:-1]).abs().mean(),
    "matrices": lambda a, b: b.t() @ b,
    "rows": lambda a, b: b.log_softmax(-1) + b.softmax(-1),
    "sums": lambda a, b: b.sum(0) + b.sum((0, 1)) + b.mean(1).sum(),
    "powers": lambda a, b: (a.square() + 1).sqrt() / b[:, 0].square(),
    "a stack": lambda a, b: torch.stack([a.sum(), b.sum(), a[0]]).sum(),
    "rectified": lambda a, b: (b - 1).relu() * a + (a - b.t()).relu().sum(0),
    "one picked": lambda a, b: b[2] * a[-1],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_slopes(name: str) -> None:
    function = FUNCTIONS[name]
    a, b = torch.rand(4, dtype=torch.float64) + 0.5, torch.rand(4, 4, dtype=torch.float64) + 0.5

    def both(a: Tensor, b: Tensor) -> list[Tensor]:
        slopes = torch.func.grad(lambda a, b: function(a, b).square().sum(), argnums=(0, 1))(a, b)
        return [function(a, b), *slopes]

    tape = lower(trace(both, a, b), ["a", "b"])
    for found, true in zip(replay(tape, a=a, b=b), both(a, b), strict=True):
        assert torch.allclose(torch.tensor(found), true.flatten(), rtol=1e-12)


def test_what_is_not_known_fails_the_build() -> None:
    with pytest.raises(GleakError, match=r"does not know aten\.tanh"):
        lower(trace(torch.tanh, torch.rand(3)), ["a"])
    with pytest.raises(GleakError, match="no power of 3"):
        lower(trace(lambda a: a.pow(3), torch.rand(3)), ["a"])
    with pytest.raises(GleakError, match="no dilation"):
        weight = torch.rand(1, 1, 2, 2)
        lower(
            trace(lambda a, w: F.conv2d(a, w, dilation=2), torch.rand(1, 1, 8, 8), weight),
            ["a", "w"],
        )
    with pytest.raises(ValueError, match="more inputs than names"):
        lower(trace(torch.add, torch.rand(3), torch.rand(3)), ["a"])
    with pytest.raises(ValueError, match="no input for the name 'b'"):
        lower(trace(torch.exp, torch.rand(3)), ["a", "b"])


def test_nothing_is_computed_twice_or_for_nobody() -> None:
    def twice(a: Tensor) -> Tensor:
        a.exp().sqrt()
        return a.exp() + a.exp() + torch.ones_like(a).sum()

    tape = lower(trace(twice, torch.rand(3)), ["a"])
    assert [step["op"] for step in tape.steps] == ["exp", "add", "affine"]
    assert tape.steps[-1]["c"] == 3


def weights_of(net: Any) -> dict[str, Tensor]:
    return {n: p.detach().double() for n, p in net.named_parameters()}


@pytest.mark.parametrize("network", [steps.network, steps.open_network])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_client_s_gradient(batch: int, network: Any) -> None:
    net = network()
    tape, names = steps.gradient(net, batch)
    held = weights_of(net)
    x, y = torch.rand(batch, 3, 32, 32, dtype=torch.float64), torch.eye(10).double()[:batch]
    found = replay(tape, x=x, y=y, **{f"w.{n}": w for n, w in held.items()})
    leaves = {n: w.requires_grad_() for n, w in held.items()}
    F.cross_entropy(functional_call(net, leaves, (x,)), y).backward()
    for name, one in zip(names, found, strict=True):
        grad = leaves[name].grad
        assert grad is not None
        assert torch.allclose(torch.tensor(one), grad.flatten(), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", steps.ATTACKS)
def test_the_step_of_an_attack(name: str, batch: int) -> None:
    attack, net = steps.ATTACKS[name], steps.network()
    tape, held = steps.step(net, attack, batch), weights_of(net)
    seen = {n: torch.randn_like(w) * 1e-2 for n, w in held.items()}
    masks = {n: (torch.rand_like(w) > 0.3).double() for n, w in held.items()}
    seen = {n: g * masks[n] for n, g in seen.items()}
    knobs = {"tv_mean": 0.3, "pull": 0.7}
    x = torch.rand(batch, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    y = torch.rand(batch, 10, dtype=torch.float64)
    y = (y if attack.joint else y.softmax(-1)).requires_grad_()
    inputs = {f"w.{n}": w for n, w in held.items()} | {f"g.{n}": g for n, g in seen.items()}
    inputs |= {f"m.{n}": m for n, m in masks.items()}
    inputs |= {f"c.{k}": v for k, v in knobs.items() if f"c.{k}" in tape.inputs}
    value, *slopes = replay(tape, x=x.detach(), y=y.detach(), **inputs)

    # The same by plain autograd, in other words.
    soft = y.softmax(-1) if attack.joint else y
    leaves = {n: w.clone().requires_grad_() for n, w in held.items()}
    logits = functional_call(net, leaves, (x,))
    loss = -(soft * logits.log_softmax(-1)).sum(-1).mean()
    fake = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
    fake = [f * m for f, m in zip(fake, masks.values(), strict=True)]
    if attack.distance == "cosine":
        flat, goal = (torch.cat([g.flatten() for g in gs]) for gs in (fake, seen.values()))
        total = 1 - flat @ goal / (flat.norm() * goal.norm())
    else:
        each = [((f - g) ** 2).sum() for f, g in zip(fake, seen.values(), strict=True)]
        total = torch.stack(each).sum()
    if "tv_mean" in attack.terms:
        total = total + knobs["tv_mean"] * tv_mean(x[None])[0]
    if attack.pull:
        total = total + knobs["pull"] * (logits.softmax(-1) - soft).square().sum()
    wanted = torch.autograd.grad(total, [x, y] if attack.joint else [x])
    assert value[0] == pytest.approx(total.item(), rel=1e-10)
    for found, true in zip(slopes, wanted, strict=True):
        scale = float(true.abs().max())
        assert torch.allclose(torch.tensor(found), true.flatten(), rtol=1e-8, atol=1e-10 * scale)


def test_a_tape_is_the_same_bytes_twice() -> None:
    net = steps.network()
    one, two = (steps.step(net, steps.ATTACKS["idlg"], 1).text() for _ in range(2))
    assert one == two
    assert len(one) < 20_000
    assert json.loads(one)["outputs"]


def chosen(value: Any, k: int) -> Any:
    """Read a bundled tape for one size of batch, as the page does."""
    if isinstance(value, list):
        return [chosen(one, k) for one in value]
    if not isinstance(value, dict):
        return value
    return value["by"][k] if "by" in value else {n: chosen(v, k) for n, v in value.items()}


def test_a_merged_tape_holds_each() -> None:
    net = steps.network()
    tapes = [steps.gradient(net, batch)[0] for batch in steps.BATCHES[1:]]
    packed = bundle.merged(tapes)
    assert len(json.dumps(packed)) < 1.6 * len(json.dumps(tapes[0].parts()))
    for k, tape in enumerate(tapes):
        assert chosen(packed, k) == tape.parts()


def test_tapes_of_other_steps_are_not_merged() -> None:
    net = steps.network()
    tapes = [steps.step(net, steps.ATTACKS[name], 2) for name in ("idlg", "cpl")]
    with pytest.raises(GleakError, match="do not have the same steps"):
        bundle.merged(tapes)
