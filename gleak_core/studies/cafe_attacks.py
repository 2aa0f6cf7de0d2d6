"""The tables and figures of CAFE: what is asked of pools, and how it is scored.

A trial is a picture. Those of one pool share its network and its batches, and their cost. Many
tables show the same runs, so what is read off a run is kept.
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gleak_core import cafe, metrics
from gleak_core.data import Batch
from gleak_core.observation import Observation, Reconstruction
from gleak_core.studies import cafe_pools
from gleak_core.studies.cafe_pools import (
    BATCH,
    BLOCK,
    CLEAR,
    HORIZONTAL,
    OURS,
    PUBLISHED,
    VERTICAL,
    WORKERS,
    Loss,
    Pool,
    decibel,
)
from gleak_core.studies.kept import kept
from gleak_core.studies.study import Cell, Row
from gleak_core.studies.trials import SHARED, groups

__all__ = [
    "BATCHES",
    "GRANTED",
    "LOSSES",
    "MANY",
    "METHODS",
    "ONE",
    "RATIO",
    "SHOWN",
    "SPARSE",
    "VARIANTS",
    "VERTICAL_RATIO",
    "WHOLE",
    "WITHOUT_Z",
    "ablated",
    "batches_horizontal",
    "batches_vertical",
    "by_epoch",
    "by_method",
    "by_ratio",
    "by_size",
    "ended",
    "inputs",
    "losses_horizontal",
    "losses_vertical",
    "speed",
]

METHODS = ("CAFE", "DLG")
GRANTED = "DLG, labels granted (iDLG at best)"
WITHOUT_Z = "CAFE without Z"
ONE = "one message, labels and Z granted"
MANY = SHARED  # trials out of one run that is matched
RATIO, VERTICAL_RATIO = 0.1, 0.2  # of the pool, in one step
WHOLE = {HORIZONTAL: 500, VERTICAL: 800}  # the pools of Table 4: a worker's; all
SPARSE = 200  # that of its attack as published, vertical
BATCHES = 2  # messages that hold a pool once where it is matched: a larger one takes hours
SHOWN = (50, 100, 200, 300, 450, 600)  # the steps of Figure 3

Score: TypeAlias = dict[str, str | int | list[float]]
"""What is read off one picture of a run: see `_scores`."""

_CAFE = Loss()
LOSSES = {
    "CAFE": _CAFE,
    "CAFE with cosine similarity": Loss("cosine"),
    "Geiping et al. 2020": Loss("cosine", threshold=False, internal=0),
}
VARIANTS = {
    "full": _CAFE,
    "no threshold": Loss(threshold=False),
    "no TV": Loss(smooth=0),
    "no internal representation": Loss(internal=0),
    "a tenth of the TV": Loss(smooth=0.001),
    "ten times the TV": Loss(smooth=0.1),
    "ten times the TV, no threshold": Loss(smooth=0.1, threshold=False),
    "normalised steps": Loss(direction="normalised"),
    "normalised steps, a fifth as long": Loss(direction="normalised", rate=0.01),
}


# --- which runs ---------------------------------------------------------------------------------


def _leaked(
    attack: str,
    protocol: str,
    dataset: str,
    batch: int,
    seeds: Sequence[int],
    device: str,
    *,
    ratio: float = RATIO,
    loss: Loss = _CAFE,
    block: int = 0,
    messages: int = BATCHES,
) -> Iterator[Row]:
    """Yield the score of each picture that is leaked from messages over so many.

    By linear algebra a horizontal message is one worker's, a quarter of them. Where one message
    holds the pool its pictures are thinned out, so that they are among those of two.
    """
    own = batch // WORKERS if protocol == HORIZONTAL else batch
    items, thin = (
        (round(own / ratio), 1) if attack == OURS else (messages * own, BATCHES // messages)
    )
    block = block or (BLOCK if attack == OURS else MANY)
    for number, some in groups(seeds, block):
        pool = Pool(protocol, dataset, items, own, number, thin)
        yield from _attacked(attack, pool, block, some, device, loss=loss)


def _attacked(
    attack: str,
    pool: Pool,
    block: int,
    seeds: Sequence[int],
    device: str,
    *,
    loss: Loss = _CAFE,
) -> Iterator[Row]:
    """Yield the scores of some of the pictures that are judged of a run."""
    if attack == OURS:
        scores, seconds = _solved(pool, block, cafe_pools.EPOCHS, device)
    else:
        scores, seconds = _matched(pool, loss, block, _steps(pool, loss), device)
    for seed in seeds:
        yield {**scores[seed % block], "seconds": seconds / block}


def _steps(pool: Pool, loss: Loss) -> int:
    """Return the steps of a run: all where a table shows its end, half in a large or a side one."""
    to_the_end = loss in (_CAFE, VARIANTS["no internal representation"])
    small = pool.workers * pool.batch == BATCH and pool.items <= BATCHES * pool.batch
    return cafe_pools.JOINT if to_the_end and small else cafe_pools.SHORT


def _sets(pool: Pool, *_: object) -> tuple[str]:
    """Name the data set behind a run."""
    return cafe_pools.reads({"dataset": pool.dataset})


@kept(reads=_sets)
def _solved(pool: Pool, block: int, steps: int, device: str) -> list[Score]:
    """Return the scores of a worker's first pictures, by linear algebra."""
    own, found = cafe_pools.shots(pool, tuple(range(block)), device, steps)
    return _scores(found, own, range(block))


@kept(reads=_sets)
def _matched(pool: Pool, loss: Loss, block: int, steps: int, device: str) -> list[Score]:
    """Return the scores of some pictures, of all workers alike, of those matched together."""
    own, found = cafe_pools.matched(pool, loss, device, steps)
    return _scores(found, own, [t * len(own) // block for t in range(block)])


@kept(reads=_sets)
def _dlg(pool: Pool, workers: int, granted: bool, block: int, device: str) -> list[Score]:
    """Return the scores of some pictures of a batch that DLG attacks, in the best order."""
    own, found = cafe_pools.dlg(pool, workers, device, granted=granted)
    order = metrics.score(found, own).order[0].cpu()
    chosen = [t * len(own) // block for t in range(block)]
    private = own.images[chosen]
    history = found.history
    shown = [decibel(frame[0, order[chosen]], private) for frame in history.frames]
    return [
        {
            "psnr": [float(psnr[k]) for psnr in shown],
            "steps": history.frame_steps.tolist(),
            "status": found.status[0],
            "evaluations": int(found.evaluations[0]),
        }
        for k in range(block)
    ]


# --- how they are scored ------------------------------------------------------------------------


def _scores(found: Reconstruction, own: Batch, chosen: Sequence[int]) -> list[Score]:
    """Return of some pictures, each a trial of the run, what they were like after so many steps.

    That is their PSNR and SSIM, and what was left of their loss.
    """
    history, chosen = found.history, list(chosen)
    private, steps = own.images[chosen], history.frame_steps
    psnr, ssim = [], []
    for frame in history.frames:
        shown = frame[chosen, 0].cpu().clamp(0, 1).nan_to_num(0.5)
        psnr.append(decibel(shown, private))
        ssim.append(metrics.ssim(shown, private))
    at = torch.searchsorted(history.steps, steps, right=True) - 1
    loss, ended = history.loss[at].cpu(), found.loss.cpu()
    loss = torch.where(loss.isnan(), ended, loss)  # a trial that is over keeps its last
    loss[-1] = ended
    left = (loss / history.loss[0].cpu())[:, chosen]  # (F, T)
    return [
        {
            "steps": steps.tolist(),
            "psnr": [float(p[k]) for p in psnr],
            "ssim": [float(s[k]) for s in ssim],
            "loss": left[:, k].tolist(),
            "status": found.status[t],
            "evaluations": int(found.evaluations[t]),
        }
        for k, t in enumerate(chosen)
    ]


def _named(score: Row, *names: str, at: int | None = None) -> Row:
    """Return a row with these of a picture's measures, at the end or after so many steps."""
    last = len(score["steps"]) if at is None else sum(steps <= at for steps in score["steps"])
    row = {n: score[n][last - 1] for n in ("psnr", "ssim", "loss") if n in score}
    row["success_rate"] = float(row["psnr"] >= CLEAR)
    spent = score["evaluations"] if at is None else min(at, score["evaluations"])
    return {n: row[n] for n in names} | {
        "status": score["status"],
        "evaluations": spent,
        "seconds": score["seconds"] * spent / max(1, score["evaluations"]),  # so far
    }


def _soon(score: Row) -> float:
    """Return after how many steps a picture is clear, or infinity."""
    clear = [n for n, psnr in zip(score["steps"], score["psnr"], strict=True) if psnr >= CLEAR]
    return float(min(clear, default=torch.inf))


# --- the studies --------------------------------------------------------------------------------


def by_method(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """CAFE, with its help and without; and DLG on the mean gradient of forty of its pictures."""
    dataset, attack = str(cell.get("dataset", "CIFAR-10")), str(cell["attack"])
    names = ("psnr",) if "dataset" in cell else ("psnr", "success_rate")
    method = str(cell["method"])
    how: dict[str, Any] = {}
    if method == WITHOUT_Z:
        how["loss"] = VARIANTS["no internal representation"]
    if method == ONE:
        how["messages"] = 1
    if method in ("CAFE", WITHOUT_Z, ONE):
        for score in _leaked(attack, HORIZONTAL, dataset, BATCH, seeds, device, **how):
            yield _named(score, *names)
        return
    own = BATCH // WORKERS
    for number, some in groups(seeds, MANY):
        pool = Pool(HORIZONTAL, dataset, own, own, number, BATCHES)
        scores, seconds = _dlg(pool, WORKERS, method == GRANTED, MANY, device)
        for seed in some:
            yield _named({**scores[seed % MANY], "seconds": seconds / MANY}, *names)


def speed(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """After how many steps a picture is clear; a step of CAFE is one on all pictures of a batch.

    A picture that is never clear counts as one step more than the longest run has, which nobody
    shares.
    """
    dataset, batch = str(cell["dataset"]), int(cell["batch"])
    if cell["method"] == "DLG":
        for seed in seeds:
            [score], seconds = _dlg(Pool(HORIZONTAL, dataset, 1, 1, seed), 1, False, 1, device)
            yield _clear({**score, "seconds": seconds}, 1)
        return
    for score in _leaked(str(cell["attack"]), HORIZONTAL, dataset, batch, seeds, device):
        yield _clear(score, batch)


def _clear(score: Row, batch: int) -> Row:
    """Return the row of Table 1a."""
    soon = _soon(score)
    cleared = soon < torch.inf
    return {
        **_named(score),
        "iterations": soon / batch if cleared else float(cafe_pools.SINGLE + 1),
        "success_rate": float(cleared),
    }


def losses_horizontal(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Forty pictures at a time, matched by three losses, horizontally."""
    yield from _by_loss(cell, seeds, device, HORIZONTAL)


def losses_vertical(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Forty pictures at a time, matched by three losses, vertically."""
    yield from _by_loss(cell, seeds, device, VERTICAL)


def _by_loss(cell: Cell, seeds: Sequence[int], device: str, protocol: str) -> Iterator[Row]:
    loss, dataset = LOSSES[str(cell["loss"])], str(cell["dataset"])
    for score in _leaked(PUBLISHED, protocol, dataset, BATCH, seeds, device, loss=loss):
        yield _named(score, "psnr", at=cafe_pools.SHORT)


def ablated(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """CAFE's loss, and without each of its terms."""
    loss = VARIANTS[str(cell["variant"])]
    for score in _leaked(PUBLISHED, HORIZONTAL, "CIFAR-10", BATCH, seeds, device, loss=loss):
        yield _named(score, "psnr", "ssim", at=cafe_pools.SHORT)


def batches_horizontal(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Batches of several sizes, four workers' together."""
    yield from _by_batch(cell, seeds, device, HORIZONTAL, WORKERS * int(cell["batch"]), RATIO)


def batches_vertical(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Batches of several sizes, vertical."""
    yield from _by_batch(cell, seeds, device, VERTICAL, int(cell["batch"]), VERTICAL_RATIO)


def _by_batch(
    cell: Cell, seeds: Sequence[int], device: str, protocol: str, batch: int, ratio: float
) -> Iterator[Row]:
    attack, dataset = str(cell["attack"]), str(cell["dataset"])
    for score in _leaked(attack, protocol, dataset, batch, seeds, device, ratio=ratio):
        yield _named(score, "psnr", at=None if attack == OURS else cafe_pools.SHORT)


def by_ratio(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Pools of one size, of which a step sees a tenth to a hundredth."""
    protocol, dataset, attack = (str(cell[n]) for n in ("protocol", "dataset", "attack"))
    items, block = (WHOLE[protocol], BLOCK) if attack == OURS else (SPARSE, MANY)
    batch = round(float(cell["batch_ratio"]) * items)
    for number, some in groups(seeds, block):
        pool = Pool(protocol, dataset, items, batch, number)
        for score in _attacked(attack, pool, block, some, device):
            yield _named(score, "psnr")


def by_epoch(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """What stands on the screen after so many steps on every picture; one run shows them all."""
    attack = str(cell["attack"])
    for score in _leaked(attack, HORIZONTAL, "Linnaeus", BATCH, seeds, device):
        yield _named(score, "psnr", at=int(cell["epoch"]))


def ended(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Both protocols at forty a step: the quality at the end, and what is left of the loss."""
    protocol, dataset = str(cell["protocol"]), str(cell["dataset"])
    for score in _leaked(str(cell["attack"]), protocol, dataset, BATCH, seeds, device):
        yield _named(score, "psnr", "loss")


def by_size(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Pools of hundreds and thousands, vertical."""
    ratio = BATCH / int(cell["pictures"])
    for score in _leaked(
        OURS, VERTICAL, "CIFAR-10", BATCH, seeds, device, ratio=ratio, block=SHARED
    ):
        yield _named(score, "psnr", "success_rate")


def inputs(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """How far off the inputs are: out of one gradient by division, or out of many rounds.

    Of one gradient every row is divided by its entry of the bias, and the nearest quotient counts:
    which row is a picture's is granted, as a unit that is on for one picture alone has it.
    """
    batch = int(cell["batch"])
    for number, some in groups(seeds, 1 if batch == 1 else BLOCK):
        only = [seed % (1 if batch == 1 else BLOCK) for seed in some]
        pool = Pool(HORIZONTAL, "CIFAR-10", round(batch / RATIO), batch, number)
        own = pool.own(1)[0].to(device)
        net = pool.network(own, device)
        seen = pool.share(net, [own], torch.arange(batch)[None, None])
        with torch.no_grad():
            true = cafe_pools.inputs_of(seen, own.images)[0].flatten(1).cpu().double()
        if cell["updates"] == "many":
            found = cafe_pools.ledger(pool, net, own).items().inputs.cpu()
            off = [(found[t] - true[t]).norm() for t in only]
        else:
            quotients = _divided(seen)
            off = [(quotients - true[t]).norm(dim=1).min() for t in only]
        for t, apart in zip(only, off, strict=True):
            error = float(apart / true[t].norm())
            status = "solved" if error < 0.01 else "failed"
            yield {"z_error": error, "status": status, "evaluations": 1}


def _divided(seen: Observation) -> Tensor:
    """Return the rows of the layer's gradient over those of its bias (O, P), where these are any.

    A single picture's input is each of them.
    """
    (name,) = cafe.first_layers(seen)
    update = seen.rounds[0].update
    bias, weight = (update[f"{name}.{part}"][0].cpu().double() for part in ("bias", "weight"))
    there = bias.abs() > 0
    return weight[there] / bias[there, None]
