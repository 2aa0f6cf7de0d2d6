"""Does a trained model leak less of what it was trained on, or of anything? Controls for Figure 5.

`matching.learning` says that matching suffers little while the model goes its way and much when it
has arrived. Here the model goes the same way on *other* pictures: it moves as far, and has learnt,
but not what is attacked. A whole worker's rounds are seen in every case, by eight networks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from gleak_core import clients, starts
from gleak_core.aligned import together
from gleak_core.data import Batch
from gleak_core.models import Network
from gleak_core.observation import Observation
from gleak_core.papers import Metric
from gleak_core.studies.cafe_learning import (
    EACH,
    ITEMS,
    ROUNDS,
    SHOWN,
    STEP,
    _begun,
    _loss,
    followed,
)
from gleak_core.studies.cafe_learnt import INNER, RATE
from gleak_core.studies.cafe_pools import BLOCK, decibel, drawn, reads
from gleak_core.studies.kept import kept
from gleak_core.studies.study import Cell, Row, Study, grid
from gleak_core.studies.trials import groups

__all__ = ["AS_IN_THE_FIGURE", "BY_NETWORK", "MODELS", "STUDIES", "taught"]

FRESH, LEARNS, LEARNT = "untrained, stands", "learns these", "trained on these, stands"
MOVES, OTHERS = "learns others", "trained on others, stands"
MODELS = (FRESH, LEARNS, LEARNT, MOVES, OTHERS)

BY_NETWORK = {
    "psnr": Metric("psnr", "dB", "higher", "mean", shared=BLOCK),
    "loss": Metric("loss", "", "lower", "mean", shared=BLOCK),
}
AS_IN_THE_FIGURE = (
    f"A trial is a picture, and {BLOCK} of them are of one network: their mean counts once.",
    "The embedded photographs stand in for Linnaeus 5 where its folder is missing.",
)

_Shown: TypeAlias = list[tuple[list[float], float]]


def taught(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Match the rounds of one worker, whoever it is that the model learns from."""
    model, at = str(cell["model"]), int(cell["rounds"])
    for number, some in groups(seeds, BLOCK):
        if model in (MOVES, OTHERS):
            shown, seconds = _apart(model == MOVES, number, device)
        else:
            rate = 0.0 if model == FRESH else RATE
            shown, seconds = followed(
                rate, INNER, STEP, number, device, granted=False, learnt=model == LEARNT
            )
        psnr, loss = shown[SHOWN.index(at)]
        for seed in some:
            yield {
                "psnr": psnr[seed % BLOCK],
                "loss": loss,
                "status": "failed",  # a batch that is not seen again is not solved
                "evaluations": INNER * at * EACH // ITEMS,
                "seconds": seconds * at / ROUNDS / BLOCK,
            }


@kept(reads=lambda *_: reads({"dataset": "Linnaeus"}))
def _apart(moves: bool, number: int, device: str) -> _Shown:
    """Match rounds of a model that learns from others' pictures, meanwhile or before."""
    net, own, picks = _begun(number, device)
    before, found = _loss(net, own), []
    lessons = _lessons(net, _others(number).to(device), picks)
    if not moves:
        for _ in lessons:
            pass
    images = starts.make("uniform", (ITEMS, 1, *own.images.shape[1:]), seed=number)
    epoch = ITEMS // EACH
    for done in range(0, ROUNDS, epoch):
        rounds = []
        for members in picks[done : done + epoch]:
            rounds.append(_seen(net, own, members))
            if moves:
                next(lessons)
        images = together(
            _joined(rounds), own.labels, epochs=1, inner=INNER, start=images, rate=STEP
        ).images
        if done + epoch in SHOWN:
            found.append((decibel(images[:, 0], own.images.cpu()).tolist(), _loss(net, own)))
    return [(psnr, loss / before) for psnr, loss in found]


def _others(number: int) -> Batch:
    """Return as many pictures as the worker has, and none of its own."""
    return drawn("Linnaeus", 2 * ITEMS, number)[[*range(ITEMS, 2 * ITEMS)]]


def _lessons(net: Network, others: Batch, picks: Tensor) -> Iterator[None]:
    """Let the model step after each round of others, one at a time."""
    for members in picks:
        update = _seen(net, others, members).rounds[0].update
        with torch.no_grad():
            for name, weight in net.named_parameters():
                weight -= RATE * update[name][0]
        yield


def _seen(net: Network, own: Batch, members: Tensor) -> Observation:
    """Return what one worker sends of a round."""
    return clients.horizontal(net, [own], picks=members[None, None])


def _joined(rounds: Sequence[Observation]) -> Observation:
    """Return several rounds as one observation."""
    first = rounds[0]
    indices = [one.given.batch_indices for one in rounds]
    return replace(
        first,
        rounds=tuple(one.rounds[0] for one in rounds),
        given=replace(first.given, batch_indices=torch.cat([i for i in indices if i is not None])),
    )


STUDIES: tuple[Study, ...] = (
    Study(
        id="matching.taught",
        title="Matching a model that learns from these pictures, or from others",
        metrics=("psnr", "loss"),
        cells=grid(model=MODELS, rounds=SHOWN[1:]),
        measure=taught,
        seconds=lambda _: 10.0,
        reads=lambda _: reads({"dataset": "Linnaeus"}),
        trials={"smoke": 1, "quick": 1, "paper": 40},
        block=BLOCK,
        reduced=dict.fromkeys(("smoke", "quick"), grid(model=(FRESH,), rounds=SHOWN[1:2])),
        deviations=(
            f"The pictures, batches, {ROUNDS} rounds, {INNER} inner steps and networks of "
            f"cafe.fig5; one run shows all numbers of rounds. A model learns at the rate {RATE:g}; "
            "one that is trained has had as many rounds before, and stands still from then on. "
            f"Others are {ITEMS} pictures that come after the worker's in the same draw (crops of "
            "the same few photographs, where these stand in).",
            "The loss is that of the pictures that are attacked.",
            *AS_IN_THE_FIGURE,
        ),
        asks=BY_NETWORK,
        chapter="04_cafe",
    ),
)
