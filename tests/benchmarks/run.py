"""How fast the textbook attack is: the baseline that every later engine is measured against.

Run by `make bench`, never asserted in a test. Everything is a ratio within one run, on one
thread, medians of interleaved repetitions; the table says what was measured where.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import torch
from torch.nn import functional as F

from gleak_core import attacks, clients, data, figures, metrics, models, starts
from gleak_core.device import describe
from gleak_core.files import BUILD, atomic_write
from gleak_core.objectives import GradientMatch


def published_closure(net: torch.nn.Module, target: list[torch.Tensor]) -> Callable[[], None]:
    """Return Zhu et al.'s closure, written out on its own: the unit of all ratios."""
    x = torch.rand(1, 3, 32, 32, requires_grad=True)
    y = torch.randn(1, 100, requires_grad=True)

    def closure() -> None:
        loss = torch.mean(torch.sum(-y.softmax(-1) * F.log_softmax(net(x), -1), 1))
        fake = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
        distance = torch.stack([((f - t) ** 2).sum() for f, t in zip(fake, target, strict=True)])
        x.grad = y.grad = None
        distance.sum().backward()

    return closure


def evaluations(repeats: int) -> list[dict[str, object]]:
    """Time one evaluation per trial of each evaluator, interleaved with the published closure."""
    net = models.lenet(classes=100, seed=0)
    batch = data.sample("photographs", n=32, balanced=False, seed=0)
    seen = clients.fedsgd(net, batch, each=True)
    ways: dict[str, tuple[int, Callable[[], object]]] = {}
    first = [g[0] for g in seen.rounds[0].update.values()]
    ways["published closure"] = (1, published_closure(net, first))
    for trials in (1, 8, 32):
        objective = GradientMatch.of(seen.select(range(trials)), labels=None, by="benchmark")
        x = starts.make("uniform", (trials, 1, 3, 32, 32))
        z = objective.dummies.pack(x, starts.make("normal", (trials, 1, 100)))
        ways[f"GradientMatch, {trials} trials"] = (
            trials,
            lambda objective=objective, z=z: objective.value_and_grad(z),
        )
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 3):
        for name, (trials, call) in ways.items():
            began = time.process_time()
            call()
            if turn >= 3:  # the first calls pay for set-up
                seconds[name].append((time.process_time() - began) / trials)
    unit = statistics.median(seconds["published closure"])
    return [
        {
            "what": f"one evaluation: {name}",
            "milliseconds": 1e3 * statistics.median(times),
            "ratio": unit / statistics.median(times),
            "note": f"{repeats} repetitions",
        }
        for name, times in seconds.items()
    ]


def leaks(images: int, steps: int) -> list[dict[str, object]]:
    """Count pictures leaked to 30 dB per CPU-second by the published loop, from two starts."""
    batch = data.sample("photographs", n=images, balanced=False, seed=1)
    seen = clients.fedsgd(models.lenet(classes=100, seed=0), batch, each=True)
    rows = []
    for start in ("normal", "uniform"):
        began = time.process_time()
        found = attacks.dlg(
            seen, published=True, start=start, steps=steps, stop=attacks.SOLVED, seed=2
        )
        spent = time.process_time() - began
        leaked = int((metrics.score(found, batch).psnr >= 30).sum())
        rows.append(
            {
                "what": f"published loop from {start} noise: leaks per CPU-second",
                "milliseconds": 1e3 * spent / images,
                "ratio": leaked / spent,
                "note": f"{leaked} of {images} pictures to 30 dB, {steps} steps at most",
            }
        )
    return rows


def main() -> None:
    """Measure, print, and write `_build/benchmarks/textbook.csv`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, default=BUILD / "benchmarks" / "textbook.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    frame = pd.DataFrame(evaluations(options.repeats) + leaks(options.images, options.steps))
    stamp = f"{describe()}, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}"
    print(figures.table(frame, caption=f"The textbook attack ({stamp})"))
    atomic_write(options.out, frame.to_csv(index=False))
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
