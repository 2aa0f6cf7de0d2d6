"""The lab's engine in headless Chromium: its kernels, its random numbers, its descents."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from lab.replay import replay
from playwright.sync_api import Browser, Page

from gleak_core import data, models
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


ATTACK = """async ([name, gradientTape, stepTape, names, weights, image, label, seed, most]) => {
  const k = await choose(name), client = load(JSON.parse(gradientTape), k);
  const y = Float64Array.from({ length: 10 }, (_, i) => +(i === label));
  client.inputs.x.set(image); client.inputs.y.set(y);
  names.forEach((n, i) => client.inputs['w.' + n].set(weights[i]));
  const sent = client.run().map(a => a.slice());
  const attack = load(JSON.parse(stepTape), k);
  names.forEach((n, i) => attack.inputs['w.' + n].set(weights[i]));
  names.forEach((n, i) => attack.inputs['g.' + n].set(sent[i]));
  attack.inputs.y.set(y);
  const x = attack.inputs.x, slope = attack.outputs[1];
  x.set(uniforms(seed)(x.length, 0, 1));
  const objective = { x, slope, value() { attack.run(); return attack.outputs[0][0]; } };
  const solver = new LBFGS(k, objective), began = performance.now();
  const clip = v => Math.min(1, Math.max(0, v));
  const error = () => image.reduce((sum, v, i) => sum + (clip(x[i]) - v) ** 2, 0) / image.length;
  const psnr = () => -10 * Math.log10(error() + 1e-30);
  while (solver.evaluations < most && psnr() < 30 && solver.iterate());
  return [psnr(), solver.evaluations, (performance.now() - began) / 1000];
}"""


def test_a_picture_leaks_in_the_browser(page: Page) -> None:
    net = steps.network()
    batch = data.sample("photographs", 3, size=32, seed=0)
    gradient, names = steps.gradient(net, 1)
    step = steps.step(net, steps.ATTACKS["idlg"], 1)
    weights = [p.detach().flatten().tolist() for p in net.parameters()]
    for k in range(3):
        given: list[Any] = [gradient.text(), step.text(), names, weights]
        image, label = batch.images[k].flatten().tolist(), int(batch.labels[k])
        psnr, evaluations, seconds = page.evaluate(
            ATTACK, ["WebAssembly", *given, image, label, k, 1500]
        )
        assert psnr >= 30, (psnr, evaluations, seconds)
        print(json.dumps([psnr, evaluations, seconds]))
