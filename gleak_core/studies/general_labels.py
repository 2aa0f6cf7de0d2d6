"""When labels can be counted: trained networks, other activations, and the guess of p.

No paper has this table. The rule of Geng et al. 2021 (Eq. 16) guesses p and O from dummies; what
is wrong with a label is wrong with one of the two guesses.
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gleak_core import attacks, clients, data, labels, metrics, models, starts, training
from gleak_core.data import Batch
from gleak_core.observation import Observation
from gleak_core.papers import Metric
from gleak_core.studies.study import Cell, Row, Study, grid
from gleak_core.studies.trials import SIDE, begin, groups

__all__ = ["DUMMIES", "NETWORKS", "STUDIES", "counted"]

SET, CLASSES, TEST = "cifar10", 10, 400
EPOCHS = 30
DRAWN = 64  # dummies that are drawn
RULES = {"Eq. 16": "general", "bias gradient": "bias"}
SIGNS, LOWEST = "signs of the rows (iDLG)", "lowest rows (GradInversion)"
SIGMOID: dict[str, Any] = {}
TANH: dict[str, Any] = {"activation": "tanh"}
RELU: dict[str, Any] = {"activation": "relu", "init": "kaiming", "width": 16}
NETWORKS: Mapping[str, tuple[Mapping[str, Any], float]] = {
    "sigmoids, untrained": (SIGMOID, 0.0),
    "sigmoids, trained": (SIGMOID, 0.025),
    "tanh, untrained": (TANH, 0.0),
    "ReLUs, untrained": (RELU, 0.0),
    "ReLUs, trained": (RELU, 0.05),
}
"""A network → what it is made of, and the rate that it was trained at; 0: not at all."""
NOISE = {"U(0,1)": "uniform", "N(0,1)": "normal"}
OTHERS, COPIES, OWN = "other pictures", "a first reconstruction", "the private batch"
NO = "none needed"
DUMMIES = (*NOISE, OTHERS, COPIES, OWN)
FIRST = 600  # evaluations of the attack behind a first reconstruction
BLOCK = 10  # trials that share a network
SMALL = 8  # pictures of a batch that can be reconstructed


def counted(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Read the labels of batches as they come, with p and O guessed from some dummies."""
    size, rule, kind = int(cell["batch"]), str(cell["rule"]), str(cell["dummies"])
    for number, some in groups(seeds, BLOCK):
        net = _network(str(cell["network"]), number, device)
        for seed in some:
            batch = data.sample(SET, size, size=SIDE, seed=seed, balanced=False)
            seen = clients.fedsgd(net, batch.to(device))
            found, off = _read(seen, batch, net, rule, kind, seed)
            right = float(metrics.label_accuracy(found.cpu(), batch.labels))
            yield {
                "accuracy": 100 * right,
                "off": 100 * off,
                "status": "solved" if right == 1 else "failed",
                "evaluations": FIRST + 1 if kind == COPIES else 1,
            }


def _read(
    seen: Observation, batch: Batch, net: models.Network, rule: str, kind: str, seed: int
) -> tuple[Tensor, float]:
    """Return the labels (B,) that a rule reads, and how far off its guess of p is; nan if none."""
    if rule == LOWEST:
        return labels.grad_inversion(seen)[0], math.nan
    if rule == SIGNS:
        return _signs(seen), math.nan
    name = RULES[rule]
    dummies = _dummies(kind, seen, batch, name, seed).to(seen.device)
    if kind in NOISE:
        found = labels.RULES[name](seen, dummies=DRAWN, start=NOISE[kind])
    else:
        found = labels.refine(seen, dummies[None], rule=name)
    return found[0], _apart(net, dummies, batch.images.to(seen.device))


def _signs(seen: Observation) -> Tensor:
    """Return every class whose row of the last layer's gradient has a negative sum, once.

    iDLG's rule is for one picture; of a batch it tells which classes are there, as long as p is
    small beside the labels. Those that it does not name are -1 here, which is no class.
    """
    weight, _ = seen.head()
    sums = seen.gradient()[weight].sum(-1)[0]  # (N,)
    (size,) = seen.need("batch_size", by="iDLG's signs")
    named = sums.argsort()[: int((sums < 0).sum())][:size]
    return F.pad(named, (0, size - len(named)), value=-1)


def _dummies(kind: str, seen: Observation, batch: Batch, rule: str, seed: int) -> Tensor:
    """Return the images (D, C, H, W) that stand for the private ones."""
    shape = batch.images.shape[1:]
    if kind in NOISE:  # those that the rules draw by themselves
        return starts.make(NOISE[kind], (DRAWN, 1, *shape))[:, 0].float()
    if kind == OTHERS:
        others = data.sample(SET, 2 * len(batch), size=SIDE, seed=2**20 + seed, balanced=False)
        return others.images[~torch.isin(others.indices, batch.indices)][: len(batch)]
    if kind == OWN:
        return batch.images
    first = attacks.general(
        seen,
        labels=rule,
        start=begin("uniform", [seed], shape, batch=len(batch)),
        penalties={"tv_mean": 0.5},
        solver="plain_lbfgs",
        rate=0.5,
        steps=FIRST,
        every=0,
    )
    return first.images[0].clamp(0, 1).nan_to_num(0.5).cpu()


def _apart(net: models.Network, dummies: Tensor, images: Tensor) -> float:
    """Return the share of p, summed over a batch, that the dummies put in wrong classes."""
    with torch.no_grad():
        guess, true = (net(x).softmax(-1).mean(0) for x in (dummies, images))
    return float((guess - true).abs().sum() / 2)


def _network(kind: str, number: int, device: str) -> models.Network:
    how, rate = NETWORKS[kind]
    net = models.lenet(CLASSES, seed=number, **how).to(device)
    if rate:
        net.load_state_dict(_trained(kind, number, device).weights)
    return net


@functools.lru_cache(maxsize=8)  # the dummies are compared on the same networks
def _trained(kind: str, number: int, device: str) -> training.Stage:
    how, rate = NETWORKS[kind]
    net = models.lenet(CLASSES, seed=number, **how).to(device)
    everything = data.sample(SET, len(data.load(SET).labels), size=SIDE)
    train, test = training.split(everything, TEST)
    [last] = training.train(net, train, test, epochs=EPOCHS, rate=rate, seed=number)
    return last


def _seconds(cell: Cell) -> float:
    """One CPU core, guessed: a reconstruction, or next to nothing and a share of a training."""
    share = 60 / BLOCK if "untrained" not in str(cell["network"]) else 0
    first = FIRST * (0.004 if cell["network"] in ("sigmoids, untrained",) else 0.02)
    return 0.05 + share / len(DUMMIES) + (first if cell["dummies"] == COPIES else 0)


STUDIES: tuple[Study, ...] = (
    Study(
        id="labels.counted",
        title="Which labels are counted, by the network and by the dummies behind p",
        metrics=("accuracy", "off"),
        cells=tuple(
            cell
            for cell in grid(network=NETWORKS, dummies=DUMMIES, rule=RULES, batch=(SMALL, 64))
            if cell["dummies"] != COPIES or cell["batch"] == SMALL
        )
        + grid(network=NETWORKS, dummies=(NO,), rule=(SIGNS,), batch=(SMALL, 64))
        + grid(network=NETWORKS, dummies=(NO,), rule=(LOWEST,), batch=(SMALL,)),
        measure=counted,
        seconds=_seconds,
        reads=lambda _: (SET,),
        trials={"smoke": 2, "quick": 5, "paper": 20},
        block=BLOCK,
        deviations=(
            "The labels are as they come, in CIFAR-10; a trained network has seen its victims' "
            "pictures, as a client's has.",
            f"{BLOCK} trials share a network, trained or not; the interval treats them as if each "
            "had its own.",
            "iDLG's rule is for a single picture. Here every class whose row sums to less than "
            "zero is named once, as its authors' argument allows; GradInversion's rule has no "
            "answer for more pictures than classes.",
        ),
        asks={
            "accuracy": Metric("accuracy", "%", "higher", "mean"),
            "off": Metric("off", "%", "lower", "mean"),
        },
        chapter="03_general",
    ),
)
