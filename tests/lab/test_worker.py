"""The worker's own parts against the library's: weights, gradients, defences, labels, starts."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, Page

from gleak_core import clients, data, defences, labels, models
from gleak_core.lab import page as lab
from gleak_core.lab import recorded, steps
from gleak_core.layers import Network

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def worker(browser: Browser) -> Iterator[Page]:
    """The worker's functions in a page, with its parts and kernels."""
    opened = browser.new_page()
    code = "".join(
        lab.HERE.joinpath(name).read_text("utf-8") for name in ("engine.js", "worker.js")
    )
    opened.add_script_tag(content=code)
    text = lab.PAGE.read_text(encoding="utf-8")
    held = text.partition('<script id="parts" type="application/json">')[2].partition("</script>")[
        0
    ]
    opened.evaluate("given => actions.init(given)", json.loads(held)["work"])
    assert opened.evaluate("kernels.name") == "WebAssembly"
    yield opened
    opened.close()


def network(kind: str) -> Network:
    if kind == "open":
        return steps.open_network()
    if kind == "trained":
        net = steps.network()
        net.load_state_dict(recorded.weights())
        return net
    scale = {"uniform": 0.5, "quarter": 0.25}.get(kind)
    return models.lenet(10, size=32, init="uniform" if scale else kind, scale=scale)


WEIGHTS = """([kind, net]) =>
  weightsOf(kind, parts.layers[net]).map(w => [...w.filter((_, i) => i % 7 === 0)])"""


@pytest.mark.parametrize("kind", ["uniform", "quarter", "pytorch", "trained", "open"])
def test_weights_are_the_library_s(worker: Page, kind: str) -> None:
    asked = ["pytorch", "open"] if kind == "open" else [kind, "lenet"]
    found = worker.evaluate(WEIGHTS, asked)
    wanted = [p.detach().flatten()[::7].tolist() for p in network(kind).parameters()]
    for one, true in zip(found, wanted, strict=True):
        # Exact, but for 1/√n, which is rounded in another place: a digit of float32.
        assert np.allclose(one, true, rtol=0, atol=3e-8)
        assert kind not in ("uniform", "quarter", "trained") or one == true


def test_the_trained_network_knows_the_photographs() -> None:
    pictures = recorded.pictures()
    assert pictures.classes == tuple(recorded.BEST)
    assert (network("trained")(pictures.images).argmax(1) == pictures.labels).all()


GRADIENT = """([images, labels, kind]) => {
  kernels.release(floor);
  const open = kind === 'open', layers = parts.layers[open ? 'open' : 'lenet'];
  const weights = weightsOf(open ? 'pytorch' : kind, layers);
  return gradientOf(Float64Array.from(images), labels, weights, open)
    .map(g => [...g.filter((_, i) => i % 5 === 0)]);
}"""


@pytest.mark.parametrize(("kind", "batch"), [("uniform", n) for n in steps.BATCHES] + [("open", 3)])
def test_what_is_sent_is_the_library_s_gradient(worker: Page, kind: str, batch: int) -> None:
    private = data.sample("photographs", batch, size=32, seed=batch)
    seen = clients.fedsgd(network(kind).double(), private.to(dtype=torch.float64))
    given = [private.images.flatten().tolist(), private.labels.tolist(), kind]
    update = seen.gradient(by="a test")
    for name, one in zip(update, worker.evaluate(GRADIENT, given), strict=True):
        true = update[name].flatten()[::5].numpy()
        close = 1e-12 if kind == "uniform" else 1e-6  # the weights differ in the last digit
        assert np.allclose(one, true, rtol=0, atol=close * np.abs(true).max())


DEFEND = """([gradient, settings]) =>
  defend(gradient.map(g => Float64Array.from(g)), settings).map(g => [...g])"""
EDGES = [0.0, -0.0, 6.1e-5, 6e-8, 2.9e-8, 1.0, 1.00048828125, 1.00146484375, 65504.0, -3.14159e-7]


@pytest.mark.parametrize(
    ("settings", "defence"),
    [
        ({"defence": "none"}, defences.none()),
        ({"defence": "half"}, defences.half()),
        ({"defence": "int8"}, defences.int8()),
        ({"defence": "prune", "share": 30}, defences.prune(0.3)),
        ({"defence": "prune", "share": 99}, defences.prune(0.99)),
    ],
)
def test_a_defence_is_the_library_s(worker: Page, settings: Any, defence: Any) -> None:
    stream = torch.Generator().manual_seed(0)
    sent = {
        "a": torch.randn(1, 7, 13, generator=stream, dtype=torch.float64),
        "b": torch.tensor([EDGES], dtype=torch.float64),
        "c": torch.randn(1, 40, generator=stream, dtype=torch.float64).round(decimals=1),  # ties
        "d": torch.zeros(1, 3, dtype=torch.float64),
    }
    found = worker.evaluate(DEFEND, [[g.flatten().tolist() for g in sent.values()], settings])
    for one, true in zip(found, defence(sent, stream).values(), strict=True):
        assert np.array_equal(one, true.flatten().numpy())


def test_noise_is_as_strong_as_it_says(worker: Page) -> None:
    settings = {"defence": "noise", "sigma": 0.25}
    (found,) = worker.evaluate(DEFEND, [[[1.0] * 20_000], settings])
    assert np.mean(found) == pytest.approx(1, abs=0.01) and np.std(found) == pytest.approx(
        0.25, rel=0.02
    )


READ = "([message, rule, batch]) => readLabels(message.map(g => Float64Array.from(g)), rule, batch)"


@pytest.mark.parametrize(("rule", "batch"), [("idlg", 1), ("cpl", 1), ("cpl", 3), ("idlg", 4)])
def test_labels_are_read_as_by_the_library(worker: Page, rule: str, batch: int) -> None:
    private = data.sample("photographs", batch, size=32, seed=5)
    seen = clients.fedsgd(steps.network(), private)
    message = [g.flatten().tolist() for g in seen.gradient(by="a test").values()]
    by = labels.cpl if rule == "cpl" else labels.idlg if batch == 1 else labels.grad_inversion
    assert worker.evaluate(READ, [message, rule, batch]) == by(seen)[0].tolist()


START = "([name, batch]) => [...start(name, batch, 3)]"
RANGES = {
    "uniform": (0.5, 12**-0.5), "normal": (0, 1), "normal_half": (0.5, 1),
    "uniform_centred": (0, 12**-0.5), "grey": (0.5, 0.2), "flat_grey": (0.5, 0),
    "black": (0, 0), "white": (1, 0), "level-1": (0.5, 12**-0.5), "level-2": (0.5, 12**-0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", RANGES)
def test_a_start_is_what_its_name_says(worker: Page, name: str) -> None:
    x = np.reshape(worker.evaluate(START, [name, 2]), (2, 3, 32, 32))
    mean, deviation = RANGES[name]
    assert x.mean() == pytest.approx(mean, abs=0.06) and x.std() == pytest.approx(
        deviation, abs=0.06
    )
    folds = {"level-1": 1, "level-2": 2}.get(name, 0)
    side = 32 >> folds
    assert np.array_equal(x, np.tile(x[..., :side, :side], (1, 1, 2**folds, 2**folds)))
    assert folds or not deviation or not np.array_equal(x[..., :16, :16], x[..., 16:, 16:])


JUDGE = """([truth, found]) => {
  const { order, each, psnr } = judgeOf(Float64Array.from(truth))(Float64Array.from(found));
  return [order, each, psnr];
}"""


def test_the_judge_finds_the_best_order(worker: Page) -> None:
    stream = np.random.default_rng(0)
    truth = stream.random((4, 3072))
    mixed, noise = [2, 0, 3, 1], [0.1, 0.01, 0.001, 0.0001]
    found = np.empty_like(truth)
    for i, j in enumerate(mixed):  # found[j] is of truth[i]
        found[j] = truth[i] + noise[i] * np.sign(0.5 - truth[i])
    order, each, psnr = worker.evaluate(JUDGE, [truth.ravel().tolist(), found.ravel().tolist()])
    assert order == mixed
    assert each == pytest.approx([20, 40, 60, 80], abs=1e-6) and psnr == pytest.approx(50, abs=1e-6)
