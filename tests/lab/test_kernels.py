"""The kernels, run by wasmtime, against NumPy and PyTorch: in float64, to the last digits."""

from typing import Any

import numpy as np
import pytest
import torch
from lab.replay import replay
from lab.wasm import Kernels, Runner

from gleak_core.lab import kernels, steps
from gleak_core.lab.tape import OPERATIONS, Tape, lower, trace


@pytest.fixture(scope="module")
def module() -> bytes:
    return kernels.committed()


def test_every_operation_is_compiled(module: bytes) -> None:
    names = set(Kernels(module).exports)
    assert {f"k_{op}" for op in OPERATIONS if op != "input"} <= names
    assert {"dot", "axpy", "memory"} <= names


def alone(module: bytes, op: str, a: Any) -> Any:
    tape = Tape([len(a), len(a)], [{"op": op, "i": [0], "o": 1}], {"a": 0}, [1])
    return Runner(tape, module)(a=a)[0]


def test_the_exponential_is_right_everywhere(module: bytes) -> None:
    a = np.concatenate([np.linspace(-745, 709.7, 20_001), np.linspace(-1, 1, 2001), [0.0, -0.0]])
    found, true = alone(module, "exp", a), np.exp(a)
    normal = true > 1e-300
    assert np.abs(found[normal] / true[normal] - 1).max() < 1e-15 * 3
    assert np.allclose(found[~normal], true[~normal], atol=1e-320, rtol=1e-3)
    edge = alone(module, "exp", np.array([-np.inf, -1e4, 1e4, np.inf, np.nan]))
    assert edge[:4].tolist() == [0, 0, np.inf, np.inf] and np.isnan(edge[4])


def test_the_logarithm_is_right(module: bytes) -> None:
    rows = torch.linspace(-30, 30, 4000, dtype=torch.float64).view(400, 10)
    tape = lower(trace(lambda a: a.log_softmax(-1), rows), ["a"])
    found = torch.tensor(Runner(tape, module)(a=rows)[0]).view(400, 10)
    assert torch.allclose(found, rows.log_softmax(-1), rtol=1e-14, atol=1e-15)


def test_signs_and_roots(module: bytes) -> None:
    a = np.array([-2.0, -0.0, 0.0, 3.0])
    assert alone(module, "sgn", a).tolist() == [-1, 0, 0, 1]
    assert alone(module, "abs", a).tolist() == [2, 0, 0, 3]
    assert alone(module, "sqrt", np.array([4.0, 2.0])).tolist() == [2, 2**0.5]


GEOMETRIES = [(1, 3, 9, 7, 5, 3, 2, 1), (2, 2, 8, 8, 4, 5, 1, 2), (3, 1, 5, 6, 6, 2, 2, 0)]


@pytest.mark.parametrize(("n", "ci", "h", "w", "co", "k", "s", "p"), GEOMETRIES)
def test_convolutions_of_every_shape(
    module: bytes, n: int, ci: int, h: int, w: int, co: int, k: int, s: int, p: int
) -> None:
    x, kernel, bias = (
        torch.randn(*shape, dtype=torch.float64) for shape in ((n, ci, h, w), (co, ci, k, k), (co,))
    )

    def everything(x: Any, kernel: Any, bias: Any) -> Any:
        def made(x: Any, kernel: Any, bias: Any) -> Any:
            out = torch.nn.functional.conv2d(x, kernel, bias, stride=s, padding=p)
            return (out * out).sum()

        return list(torch.func.grad(made, argnums=(0, 1, 2))(x, kernel, bias))

    tape = lower(trace(everything, x, kernel, bias), ["x", "k", "b"])
    found = Runner(tape, module)(x=x, k=kernel, b=bias)
    for one, true in zip(found, everything(x, kernel, bias), strict=True):
        assert torch.allclose(torch.tensor(one), true.flatten(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", steps.ATTACKS)
def test_the_step_of_an_attack(module: bytes, name: str, batch: int) -> None:
    net = steps.network()
    tape = steps.step(net, steps.ATTACKS[name], batch)
    stream = np.random.default_rng(0)
    held = {f"w.{n}": p.detach().double().numpy() for n, p in net.named_parameters()}
    inputs = {
        key: held[key]
        if key in held
        else np.array([0.5])
        if key.startswith("c.")
        else stream.random(tape.sizes[at])
        for key, at in tape.inputs.items()
    }
    for found, true in zip(Runner(tape, module)(**inputs), replay(tape, **inputs), strict=True):
        assert np.allclose(found, true, rtol=1e-9, atol=1e-11 * np.abs(true).max())


def test_a_compiler_makes_the_same_bytes(module: bytes) -> None:
    pytest.importorskip("ziglang", reason="the zig compiler is in the extra `lab`")
    assert kernels.build() == module


def test_the_committed_bytes_are_of_this_source(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    changed = tmp_path / "kernels.c"
    changed.write_text(kernels.SOURCE.read_text() + "\n/* another */\n")
    monkeypatch.setattr(kernels, "SOURCE", changed)
    with pytest.raises(kernels.GleakError, match="make lab"):
        kernels.committed()
