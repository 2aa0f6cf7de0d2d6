"""The lab's engine in headless Chromium: its kernels, its random numbers, its descents."""

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from lab.replay import replay
from playwright.sync_api import Browser, Page

from gleak_core import models
from gleak_core.lab import kernels, steps
from gleak_core.lab.tape import Tape

pytestmark = [pytest.mark.browser, pytest.mark.slow]
ENGINE = kernels.SOURCE.with_name("engine.js")
KERNELS = ("WebAssembly", "JavaScript")


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Page]:
    opened = browser.new_page()
    opened.add_script_tag(content=ENGINE.read_text(encoding="utf-8"))
    module = base64.b64encode(kernels.committed()).decode()
    opened.evaluate(
        """async text => {
          const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
          window.choose = async name => name === 'WebAssembly' ? compiled(bytes) : plain();
        }""",
        module,
    )
    yield opened
    opened.close()


def inputs_of(tape: Tape, net: models.Network, seed: int = 0) -> dict[str, list[float]]:
    stream = np.random.default_rng(seed)
    held = {f"w.{n}": p.detach().double().flatten().tolist() for n, p in net.named_parameters()}
    return {
        name: held.get(name) or (0.1 * stream.random(tape.sizes[at])).tolist()
        for name, at in tape.inputs.items()
    }


RUN = """async ([name, tape, inputs]) => {
  const ready = load(JSON.parse(tape), await choose(name));
  for (const key in inputs) ready.inputs[key].set(inputs[key]);
  return ready.run().map(a => [...a]);
}"""


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("attack", steps.ATTACKS)
@pytest.mark.parametrize("name", KERNELS)
def test_a_step_is_the_same_on_both_kernels(page: Page, name: str, attack: str, batch: int) -> None:
    net = steps.network()
    tape = steps.step(net, steps.ATTACKS[attack], batch)
    inputs = inputs_of(tape, net)
    found = page.evaluate(RUN, [name, tape.text(), inputs])
    for one, true in zip(found, replay(tape, **inputs), strict=True):
        assert np.allclose(one, true, rtol=1e-9, atol=1e-11 * np.abs(true).max())


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_weights_are_torch_s_bit_for_bit(page: Page, seed: int) -> None:
    net = models.lenet(10, size=32, seed=seed)
    true = torch.cat([p.detach().flatten() for p in net.parameters()])
    sizes = [p.numel() for p in net.parameters()]
    found = page.evaluate(
        "([seed, sizes]) => { const u = uniforms(seed); "
        "return sizes.flatMap(n => [...u(n, -0.5, 0.5)]); }",
        [seed, sizes],
    )
    assert torch.equal(torch.tensor(found, dtype=torch.float32), true)


def test_noise_is_normal(page: Page) -> None:
    x = np.array(page.evaluate("() => [...normals(3)(40000)]"))
    assert abs(x.mean()) < 0.02 and abs(x.std() - 1) < 0.02
    assert abs((np.abs(x) < 1.96).mean() - 0.95) < 0.005


ROSENBROCK = """async ([name, search]) => {
  const k = await choose(name), x = k.alloc(2), slope = k.alloc(2);
  x.set([-1.2, 1]);
  const objective = { x, slope, value() {
    const [a, b] = x, r = b - a * a;
    slope.set([-400 * a * r - 2 * (1 - a), 200 * r]);
    return 100 * r * r + (1 - a) ** 2;
  } };
  const solver = new LBFGS(k, objective, { history: 5, search });
  while (solver.evaluations < 200 && solver.iterate());
  return [[...x], solver.loss, solver.evaluations, solver.stalled];
}"""


@pytest.mark.parametrize("name", KERNELS)
def test_the_search_finds_the_bottom_of_a_valley(page: Page, name: str) -> None:
    x, loss, evaluations, _ = page.evaluate(ROSENBROCK, [name, True])
    assert np.allclose(x, 1, atol=1e-6) and loss < 1e-12 and evaluations < 100


BY_TORCH = """async ([name, kind]) => {
  const k = await choose(name), x = k.alloc(2), slope = k.alloc(2), seen = [];
  x.set([0.4, 1.1]);
  const objective = { x, slope, value() {
    const [a, b] = x, r = b - a * a;
    slope.set([-4 * a * r - 2 * (1 - a), 2 * r]);
    return r * r + (1 - a) ** 2;
  } };
  const solver = kind === 'adam' ? new Adam(k, objective)
    : new LBFGS(k, objective, { history: 10, search: false });
  for (let i = 0; i < 9; i++) { solver.iterate(); seen.push([...x]); }
  return seen;
}"""


@pytest.mark.parametrize("kind", ["adam", "plain"])
@pytest.mark.parametrize("name", KERNELS)
def test_descents_without_a_search_are_torch_s(page: Page, name: str, kind: str) -> None:
    x = torch.tensor([0.4, 1.1], dtype=torch.float64, requires_grad=True)
    solver: Any = (
        torch.optim.Adam([x], lr=0.05)
        if kind == "adam"
        else torch.optim.LBFGS(
            [x], lr=1, max_iter=1, history_size=10, tolerance_grad=0, tolerance_change=0
        )
    )

    def closure() -> torch.Tensor:
        solver.zero_grad()
        a, b = x
        value = (b - a * a) ** 2 + (1 - a) ** 2
        value.backward()
        return value

    for found in page.evaluate(BY_TORCH, [name, kind]):
        solver.step(closure)
        assert np.allclose(found, x.detach().numpy(), rtol=1e-9, atol=1e-12)
