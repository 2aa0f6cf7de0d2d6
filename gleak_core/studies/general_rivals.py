"""GradInversion, term by term, and Inverting Gradients, on the batches of general deep leakage.

No paper has this table: Geng et al. 2021 compare with GradInversion and do not say with how much
of it. A start has as many evaluations whatever the attack, so four starts cost four times as much.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from gleak_core import attacks, clients, data
from gleak_core.layers import initialise
from gleak_core.observation import Observation, Reconstruction
from gleak_core.papers import Metric
from gleak_core.studies.general_attacks import (
    ADAM,
    BLOCK,
    CIFAR_BATCH,
    EVALUATIONS,
    SIZE,
    TV,
    Victims,
    begun,
    general,
    measures,
)
from gleak_core.studies.study import Cell, Row, Study, grid
from gleak_core.studies.trials import SIDE, groups, side_by_side

__all__ = ["ASKS", "ATTACKS", "STARTED", "STUDIES", "measured"]

LENET, NORMED = "LeNet", "with BatchNorm"
STARTED = 4  # a group of GradInversion
CONSENSUS, STATISTICS = 0.01, 0.1  # the group's as in our recipe; BatchNorm's is a choice of ours
SEEN_BEFORE = 1000  # pictures behind the running statistics
_STEPS = EVALUATIONS["CIFAR-10"]
ATTACKS = (
    "General leakage",
    "General leakage, four starts",
    "GradInversion, one start",
    "GradInversion, four starts",
    "GradInversion, a group of four",
    "Inverting Gradients",
)
ON_NORMED = (
    "General leakage",
    "GradInversion, one start",
    "GradInversion, BatchNorm term",
    "Inverting Gradients",
)


def measured(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Restore batches of four pictures of CIFAR-10 by one of the attacks."""
    victims = Victims("CIFAR-10", (1,) * CIFAR_BATCH)
    for number, some in groups(seeds, BLOCK):
        own = victims.batches(some)
        if cell["network"] == NORMED:
            net = normed(number, len(own[0].classes)).to(device)
        else:
            net = victims.network(number, own, device)
        seen = side_by_side([clients.fedsgd(net, batch.to(device)) for batch in own])
        tries = STARTED if "four" in str(cell["attack"]) else 1
        found = _attacked(str(cell["attack"]), seen, some, tries)
        cost = found.evaluations.view(-1, tries).sum(1)
        for t, row in enumerate(measures(found.best(tries), own, "psnr", "ssim", "accuracy")):
            yield {**row, "evaluations": int(cost[t])}


def _attacked(name: str, seen: Observation, seeds: Sequence[int], tries: int) -> Reconstruction:
    # The first start of a batch is that of all other attacks on it.
    each = [begun(seen, [seed + k * 2**30 for seed in seeds]) for k in range(tries)]
    start = torch.stack(each, 1).flatten(0, 1)  # (T·tries, B, C, H, W)
    if name.startswith("General"):
        return general(seen, seeds, "CIFAR-10", start=start, trials=tries)
    how: dict[str, Any] = {"start": start, "trials": tries, "steps": _STEPS, "every": 0}
    if name == "Inverting Gradients":
        return attacks.inverting_gradients(seen, **how)
    terms = {"tv_mean": TV, "l2": SIZE}
    if "group" in name:
        terms["group"] = CONSENSUS
    if "BatchNorm" in name:
        terms["batch_norm"] = STATISTICS
    return attacks.grad_inversion(seen, penalties=terms, rate=ADAM, **how)


def normed(seed: int, classes: int) -> nn.Module:
    """Return DLG's LeNet with a BatchNorm after each convolution, which has seen some pictures."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        channels = 3
        for stride in (2, 2, 1):
            layers += [nn.Conv2d(channels, 12, 5, stride, 2), nn.BatchNorm2d(12), nn.Sigmoid()]
            channels = 12
        net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(12 * (SIDE // 4) ** 2, classes))
    initialise(net, "uniform", seed=seed)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.reset_parameters()
            part.momentum = None  # the mean over all that it sees
    with torch.no_grad():
        net(
            data.sample("cifar10", SEEN_BEFORE, size=SIDE, seed=2**20 + seed, balanced=False).images
        )
    return net.eval()


def _seconds(cell: Cell) -> float:
    """One CPU core, guessed."""
    return 8.0 * (STARTED if "four" in str(cell["attack"]) else 1)


ASKS = {
    "psnr": Metric("psnr", "dB", "higher", "mean"),
    "ssim": Metric("ssim", "", "higher", "mean"),
    "accuracy": Metric("accuracy", "%", "higher", "mean"),
}

STUDIES: tuple[Study, ...] = (
    Study(
        id="rivals.terms",
        title="GradInversion term by term, and Inverting Gradients",
        metrics=("psnr", "ssim", "accuracy"),
        cells=grid(network=(LENET,), attack=ATTACKS) + grid(network=(NORMED,), attack=ON_NORMED),
        measure=measured,
        seconds=_seconds,
        reads=lambda _: ("cifar10",),
        trials={"smoke": 2, "quick": 5, "paper": 20},
        block=BLOCK,
        deviations=(
            f"Batches of {CIFAR_BATCH} pictures of CIFAR-10 with labels of their own; every "
            f"attack reads the labels by its own rule and starts from U(0,1); a start has {_STEPS} "
            "evaluations, where GradInversion has 20 000 steps and Inverting Gradients 24 000.",
            "GradInversion has a constant rate, no added noise, and total variation as the paper's "
            "attack has it; its group is of four and has no registration of shifted pictures.",
            f"BatchNorm carries the statistics of {SEEN_BEFORE} other pictures; its network is "
            "DLG's LeNet with a BatchNorm after each convolution, and is not trained.",
            f"{BLOCK} batches share a network; the interval treats them as if each had its own.",
        ),
        asks=ASKS,
        chapter="03_general",
    ),
)
