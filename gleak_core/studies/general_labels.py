"""When labels can be counted: trained networks, other activations, and the guesses of p and O.

No paper has this table. The rule of Geng et al. 2021 (Eq. 16) guesses the means of p and of O from
dummies, and takes that of O for every picture's; where a label is wrong, one of these is.
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gleak_core import attacks, clients, data, labels, metrics, models, starts, training
from gleak_core.data import Batch
from gleak_core.datasets.sampling import shuffled
from gleak_core.observation import Observation
from gleak_core.papers import Metric
from gleak_core.studies.general_attacks import measures
from gleak_core.studies.study import Cell, Row, Study, grid
from gleak_core.studies.trials import SIDE, begin, groups

__all__ = ["DUMMIES", "NETWORKS", "STUDIES", "counted"]

SET, CLASSES = "cifar10", 10
PICTURES, TEST, PUBLIC = 4660, 400, 1000
"""Of all pictures: those that no client has, and of these again those that the attacker has."""
BLOCK = 4  # trials that share a trained network
SMALL, LARGE = 8, 64  # pictures of a batch; the small ones can be reconstructed


class Made(NamedTuple):
    """How a network is made: its form, and so many epochs of training at a rate."""

    form: Mapping[str, Any]
    epochs: int = 0
    rate: float = 0.0


TANH: Mapping[str, Any] = {"activation": "tanh", "init": "pytorch"}
RELU: Mapping[str, Any] = {"activation": "relu", "init": "kaiming", "width": 16}
LONG, SHORT = 30, 2
NETWORKS: Mapping[str, Made] = {
    "sigmoids, untrained": Made({}),
    "tanh, untrained": Made(TANH),
    "tanh, 30 epochs": Made(TANH, LONG, 0.02),
    "ReLUs, untrained": Made(RELU),
    "ReLUs, 2 epochs": Made(RELU, SHORT, 0.01),
    "ReLUs, 30 epochs": Made(RELU, LONG, 0.01),
}
TRAINED = tuple(name for name, made in NETWORKS.items() if made.epochs)

BY_SUM, BY_BIAS = "Eq. 16", "bias gradient"
RULES = {BY_SUM: "general", BY_BIAS: "bias"}
SIGNS, LOWEST, EVEN = "signs of the rows (iDLG)", "lowest rows (GradInversion)", "an even guess"

NOISE = {"64 of U(0,1)": "uniform", "64 of N(0,1)": "normal"}
OTHERS: Mapping[str, int] = {"64 other pictures": 64, "1000 other pictures": PUBLIC}
COPIES = {"a first reconstruction": 1, "a third reconstruction": 3}
OWN, NO = "the private batch", "none needed"
FIRST, *_ = NOISE
DUMMIES = (*NOISE, *OTHERS, *COPIES, OWN)
EVALUATIONS, TV = 600, 0.05  # of one reconstruction

COME, ONCE = "as they come", "each once"
CLIENTS, HELD_OUT = "clients'", "held out"


# --- the client's side --------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _parts() -> tuple[Batch, Batch, Batch]:
    """Return the pictures of the clients, of nobody, and of the attacker."""
    everything = data.sample(SET, min(PICTURES, len(data.load(SET).labels)), size=SIDE)
    rest, test = training.split(everything, TEST)
    own, public = training.split(rest, PUBLIC, seed=1)
    return own, test, public


def _private(cell: Cell, seed: int) -> Batch:
    """Return a batch of the clients' pictures, or of some that the network was not trained on."""
    own, test, _ = _parts()
    pool = own if cell["pictures"] == CLIENTS else test
    order = shuffled(len(pool), seed)
    if cell["labels"] == ONCE:
        _, first = np.unique(pool.labels[order], return_index=True)
        order = order[np.sort(first)]
    return pool[order[: int(cell["batch"])]]


def _network(name: str, number: int, device: str) -> tuple[models.ConvNet, float]:
    """Return a network, and its accuracy on pictures that nobody has (%); nan if untrained."""
    made = NETWORKS[name]
    net = models.lenet(CLASSES, seed=number, **made.form).to(device)
    if not made.epochs:
        return net, math.nan
    stage = _trained(str(made.form["activation"]), number, device)[made.epochs]
    net.load_state_dict(stage.weights)
    return net, stage.accuracy


@functools.lru_cache(maxsize=16)  # all rules and dummies are compared on the same networks
def _trained(activation: str, number: int, device: str) -> dict[int, training.Stage]:
    made = next(m for m in NETWORKS.values() if m.epochs and m.form["activation"] == activation)
    net = models.lenet(CLASSES, seed=number, **made.form).to(device)
    own, test, _ = _parts()
    how: dict[str, Any] = {"epochs": LONG, "rate": made.rate, "keep": (SHORT,), "seed": number}
    return {stage.epoch: stage for stage in training.train(net, own, test, **how)}


# --- the attacker's side ------------------------------------------------------------------------


def counted(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Read the labels of batches, with p and O guessed from some dummies."""
    name, rule, kind = (str(cell[key]) for key in ("network", "rule", "dummies"))
    for number, some in groups(seeds, BLOCK if name in TRAINED else 1):
        net, test = _network(name, number, device)
        for seed in some:
            own = _private(cell, seed)
            seen = clients.fedsgd(net, own.to(device))
            dummies, psnr = _dummies(kind, seen, own, RULES.get(rule, ""), seed)
            found = _read(rule, seen, net, dummies)
            right = float(metrics.label_accuracy(found.cpu(), own.labels))
            yield {
                "accuracy": 100 * right,
                "off": 100 * _apart(net, dummies, own.images),
                "psnr": psnr,
                "test": test,
                "status": "solved" if right == 1 else "failed",
                "evaluations": 1 + EVALUATIONS * COPIES.get(kind, 0),
            }


def _read(rule: str, seen: Observation, net: models.ConvNet, dummies: Tensor | None) -> Tensor:
    """Return the labels (B,) that a rule reads."""
    if dummies is not None:
        return labels.assign(_counts(RULES[rule], seen, net, dummies), _size(seen))[0]
    if rule == LOWEST:
        return labels.grad_inversion(seen)[0]
    return _signs(seen) if rule == SIGNS else torch.arange(_size(seen)) % CLASSES


def _size(seen: Observation) -> int:
    """Return how many pictures a batch has."""
    (size,) = seen.need("batch_size", by="a label rule")
    return size


def _counts(rule: str, seen: Observation, net: models.ConvNet, dummies: Tensor) -> Tensor:
    """Return Σₖ y (1, N) as `labels.counts` does, from any number of dummies (D, C, H, W)."""
    with torch.no_grad():
        dummies = dummies.to(seen.device)
        p = net(dummies).softmax(-1).mean(0)  # (N,)
        o = net.features_of(dummies).sum(-1).mean()
    weight, offset = seen.head()
    gradient = seen.gradient()
    error = gradient[offset] if rule == "bias" else gradient[weight].sum(-1) / o  # of p − y
    return _size(seen) * (p - error)


def _signs(seen: Observation) -> Tensor:
    """Return every class whose row of the last layer's gradient has a negative sum, once.

    iDLG's rule is for one picture; of a batch it tells which classes are there, as long as p is
    small beside the labels. Those that it does not name are -1 here, which is no class.
    """
    weight, _ = seen.head()
    sums, size = seen.gradient()[weight].sum(-1)[0], _size(seen)  # (N,)
    named = sums.argsort()[: int((sums < 0).sum())][:size]
    return F.pad(named, (0, size - len(named)), value=-1)


def _dummies(
    kind: str, seen: Observation, own: Batch, rule: str, seed: int
) -> tuple[Tensor | None, float]:
    """Return the images (D, C, H, W) that stand for the private ones, and how near they come."""
    if kind == NO:
        return None, math.nan
    if kind == OWN:
        return own.images, math.nan
    shape = own.images.shape[1:]
    if kind in NOISE:
        return starts.make(NOISE[kind], (64, 1, *shape), seed=seed)[:, 0].float(), math.nan
    if kind in OTHERS:
        *_, public = _parts()
        return public[shuffled(len(public), seed)[: OTHERS[kind]]].images, math.nan
    found = attacks.general(
        seen,
        labels=rule,
        rounds=COPIES[kind],
        start=begin("uniform", [seed], shape, batch=len(own)),
        distance="cosine_per_layer",
        penalties={"tv_mean": TV},
        solver="plain_lbfgs",
        rate=0.5,
        steps=EVALUATIONS,
        every=0,
    )
    [row] = measures(found, [own], "psnr")
    return found.images[0].clamp(0, 1).nan_to_num(0.5).cpu(), float(row["psnr"])


# --- the judge's side ---------------------------------------------------------------------------


def _apart(net: models.ConvNet, dummies: Tensor | None, images: Tensor) -> float:
    """Return the share of p, summed over a batch, that the dummies put in wrong classes."""
    if dummies is None:
        return math.nan
    like = next(net.parameters())
    with torch.no_grad():
        guess, true = (net(x.to(like)).softmax(-1).mean(0) for x in (dummies, images))
    return float((guess - true).abs().sum() / 2)


def _seconds(cell: Cell) -> float:
    """One CPU core, guessed: a share of the trainings, and of a reconstruction all evaluations."""
    of_one = 0.004 if "sigmoids" in str(cell["network"]) else 0.015
    share = 0.3 if cell["network"] in TRAINED else 0.0
    return 0.05 + share + EVALUATIONS * of_one * COPIES.get(str(cell["dummies"]), 0)


_PLAIN = {"labels": (COME,), "pictures": (CLIENTS,)}
_UNIQUE = {**_PLAIN, "labels": (ONCE,)}

STUDIES: tuple[Study, ...] = (
    Study(
        id="labels.counted",
        title="Which labels are counted, by the network and by the dummies behind p",
        metrics=("accuracy", "off", "psnr", "test"),
        cells=grid(
            network=NETWORKS, dummies=(*NOISE, *OTHERS, OWN), rule=RULES, batch=(LARGE,), **_PLAIN
        )
        + grid(
            network=NETWORKS,
            dummies=(FIRST, "1000 other pictures", OWN),
            rule=RULES,
            batch=(SMALL,),
            **_PLAIN,
        )
        + grid(
            network=("sigmoids, untrained", "ReLUs, untrained", "ReLUs, 30 epochs"),
            dummies=COPIES,
            rule=(BY_BIAS,),
            batch=(SMALL,),
            **_PLAIN,
        )
        + grid(network=NETWORKS, dummies=(NO,), rule=(SIGNS,), batch=(SMALL, LARGE), **_PLAIN)
        + grid(network=NETWORKS, dummies=(NO,), rule=(LOWEST,), batch=(SMALL,), **_PLAIN)
        + grid(
            network=("sigmoids, untrained",),
            dummies=(NO,),
            rule=(EVEN,),
            batch=(SMALL, LARGE),
            **_PLAIN,
        )
        + grid(network=NETWORKS, dummies=(FIRST,), rule=RULES, batch=(SMALL,), **_UNIQUE)
        + grid(network=NETWORKS, dummies=(NO,), rule=(SIGNS, LOWEST), batch=(SMALL,), **_UNIQUE)
        + grid(
            network=TRAINED,
            dummies=(FIRST,),
            rule=RULES,
            batch=(LARGE,),
            labels=(COME,),
            pictures=(HELD_OUT,),
        ),
        measure=counted,
        seconds=_seconds,
        reads=lambda _: (SET,),
        trials={"smoke": 2, "quick": 5, "paper": 20},
        block=BLOCK,
        deviations=(
            "Networks are LeNets: sigmoids with 12 channels and weights from U(±½), tanh with 12 "
            "and PyTorch's weights, ReLUs with 16 and Kaiming's. Sigmoids are not trained: from "
            "U(±½) they hardly learn.",
            f"A trained network has learnt from {PICTURES - TEST - PUBLIC} pictures (of "
            f"{PICTURES}), at the rates 0.02 (tanh) and 0.01; its victims' pictures are among "
            "them, as a client's are, unless they are held out; the attacker's other pictures are "
            "not.",
            f"{BLOCK} trials share a trained network; the interval treats them as if each had its "
            "own. Every trial has an untrained network of its own.",
            f"A reconstruction matches angles, has total variation at {TV:g} and {EVALUATIONS} "
            "evaluations; for a third one the labels are counted again after each, from the bias "
            "gradient.",
            "Batches are drawn from ten classes that are equally frequent, which favours labels "
            "dealt out evenly. On ReLUs, trained or not, the attack restores nothing: what a good "
            "reconstruction would do for the labels there is not measured.",
            "iDLG's rule is for a single picture. Here every class whose row sums to less than "
            "zero is named once, as its authors' argument allows; GradInversion's rule has no "
            "answer for more pictures than classes.",
        ),
        asks={
            "accuracy": Metric("accuracy", "%", "higher", "mean"),
            "off": Metric("off", "%", "lower", "mean"),
            "psnr": Metric("psnr", "dB", "higher", "mean"),
            "test": Metric("test", "%", "higher", "mean"),
        },
        chapter="03_general",
    ),
)
