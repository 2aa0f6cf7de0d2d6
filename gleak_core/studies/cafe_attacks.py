"""The tables and figures of CAFE: what is asked of pools, and how it is scored.

A trial is a picture. Those of one pool share its network and its batches, and their cost.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gleak_core import cafe, metrics
from gleak_core.data import Batch
from gleak_core.observation import Observation, Reconstruction
from gleak_core.studies import cafe_pools
from gleak_core.studies.cafe_pools import HORIZONTAL, VERTICAL, WORKERS, Loss, Pool, decibel
from gleak_core.studies.study import Cell, Row
from gleak_core.studies.trials import groups

__all__ = [
    "BATCH",
    "BATCHES",
    "BLOCK",
    "CLEAR",
    "GRANTED",
    "LONG",
    "LOSSES",
    "MANY",
    "METHODS",
    "OURS",
    "PUBLISHED",
    "RATIO",
    "SPARSE",
    "VARIANTS",
    "VERTICAL_RATIO",
    "WHOLE",
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
OURS, PUBLISHED = "by linear algebra", "as published"
BLOCK, MANY = 5, 10  # trials out of one run: by linear algebra; matched, or where a rate is asked
BATCH = 40  # of one step, over all workers
RATIO, VERTICAL_RATIO = 0.1, 0.2  # of the pool, in one step
WHOLE = {HORIZONTAL: 500, VERTICAL: 800}  # the pools of Table 4: a worker's; all
SPARSE = 100  # that of its attack as published, vertical
BATCHES = 2  # messages that hold a pool once where it is matched: a larger one takes hours
LONG = 600  # steps of Figure 3
CLEAR = 30.0  # dB, from which on the source calls a picture leaked

LOSSES = {
    "CAFE": Loss(),
    "CAFE with cosine similarity": Loss("cosine"),
    "Geiping et al. 2020": Loss("cosine", threshold=False, internal=0),
}
VARIANTS = {
    "full": Loss(),
    "no threshold": Loss(threshold=False),
    "no TV": Loss(smooth=0),
    "no internal representation": Loss(internal=0),
    "a tenth of the TV": Loss(smooth=0.001),
    "ten times the TV": Loss(smooth=0.1),
    "normalised steps": Loss(direction="normalised"),
    "normalised steps, a fifth as long": Loss(direction="normalised", rate=0.01),
}


# --- which runs ---------------------------------------------------------------------------------


def _judged(seeds: Sequence[int], block: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield the number of each run, and which of its trials are asked for."""
    for number, some in groups(seeds, block):
        yield number, tuple(seed % block for seed in some)


def _leaked(
    attack: str,
    protocol: str,
    dataset: str,
    batch: int,
    seeds: Sequence[int],
    device: str,
    *,
    ratio: float = RATIO,
    loss: Loss | None = None,
    steps: int = 0,
    block: int = 0,
) -> Iterator[tuple[Reconstruction, Batch]]:
    """Yield what an attack makes of messages over so many pictures, and the private ones.

    By linear algebra a horizontal message is one worker's, a quarter of them.
    """
    own = batch // WORKERS if protocol == HORIZONTAL else batch
    block = block or (BLOCK if attack == OURS else MANY)
    for number, only in _judged(seeds, block):
        if attack == OURS:
            pool = Pool(protocol, dataset, round(own / ratio), own, number)
            batch_, found = cafe_pools.shots(pool, only, device, steps or cafe_pools.EPOCHS)
            yield found, batch_
            continue
        pool = Pool(protocol, dataset, BATCHES * own, own, number)
        batch_, found = cafe_pools.matched(pool, loss or Loss(), device, steps or cafe_pools.JOINT)
        spread = [t * len(batch_) // block for t in only]  # over all workers
        yield _some(found, spread), batch_[spread]


def _some(found: Reconstruction, chosen: list[int]) -> Reconstruction:
    """Return some trials of a run."""
    history = found.history
    return replace(
        found,
        images=found.images[chosen],
        labels=None if found.labels is None else found.labels[chosen],
        loss=found.loss[chosen],
        status=tuple(found.status[t] for t in chosen),
        evaluations=found.evaluations[chosen],
        history=replace(history, loss=history.loss[:, chosen], frames=history.frames[:, chosen]),
    )


# --- how they are scored ------------------------------------------------------------------------


def _rows(found: Reconstruction, own: Batch, *names: str) -> Iterator[Row]:
    """Yield a row for each picture, where each is a trial of its own."""
    psnr = decibel(found.images[:, 0], own.images)
    ssim = metrics.ssim(found.images[:, 0].cpu().clamp(0, 1).nan_to_num(0.5), own.images)
    left = found.loss.cpu() / found.history.loss[0].cpu()
    for t, status in enumerate(found.status):
        row = {
            "psnr": float(psnr[t]),
            "success_rate": float(psnr[t] >= CLEAR),
            "loss": float(left[t]),
            "ssim": float(ssim[t]),
        }
        yield {n: row[n] for n in names} | _known(found, t, status)


def _known(found: Reconstruction, t: int, status: str) -> Row:
    return {"status": status, "evaluations": int(found.evaluations[t])}


def _soon(frames: Tensor, steps: Tensor, own: Batch) -> list[float]:
    """Return after how many steps each picture is clear, in frames (F, T, C, H, W); or infinity."""
    clear = torch.stack([decibel(frame, own.images) >= CLEAR for frame in frames])  # (F, T)
    first = steps[clear.int().argmax(0)].double()
    return torch.where(clear.any(0), first, torch.inf).tolist()


def _dlg(dataset: str, seeds: Sequence[int], device: str, granted: bool) -> Iterator[Row]:
    """Yield the PSNR of pictures of a batch of forty, in the order that fits it best."""
    for number, only in _judged(seeds, MANY):
        pool = Pool(HORIZONTAL, dataset, BATCH, BATCH, number)
        own, found = cafe_pools.dlg(pool, device, granted=granted)
        order = metrics.score(found, own).order[0]
        psnr = decibel(found.images[0].cpu()[order], own.images)
        for t in only:
            row = {"psnr": float(psnr[t]), "success_rate": float(psnr[t] >= CLEAR)}
            yield row | _known(found, 0, found.status[0])


# --- the studies --------------------------------------------------------------------------------


def by_method(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """CAFE, and DLG on the mean gradient of forty pictures."""
    dataset, attack = str(cell.get("dataset", "CIFAR-10")), str(cell["attack"])
    names = ("psnr",) if "dataset" in cell else ("psnr", "success_rate")
    if cell["method"] != "CAFE":
        for row in _dlg(dataset, seeds, device, cell["method"] == GRANTED):
            yield {n: row[n] for n in (*names, "status", "evaluations")}
        return
    for found, own in _leaked(attack, HORIZONTAL, dataset, BATCH, seeds, device):
        yield from _rows(found, own, *names)


def speed(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """After how many steps a picture is clear; a step of CAFE is one on all pictures of a batch.

    A picture that is never clear counts with all steps and one more, which nobody shares.
    """
    dataset, batch = str(cell["dataset"]), int(cell["batch"])
    if cell["method"] == "DLG":
        for seed in seeds:
            own, found = cafe_pools.dlg(Pool(HORIZONTAL, dataset, 1, 1, seed), device)
            [soon] = _soon(found.history.frames[:, 0], found.history.frame_steps, own)
            most = cafe_pools.SINGLE + 1
            yield {"iterations": min(soon, most), **_known(found, 0, found.status[0])}
        return
    attack = str(cell["attack"])
    most = (cafe_pools.EPOCHS if attack == OURS else cafe_pools.JOINT) + 1
    for found, own in _leaked(attack, HORIZONTAL, dataset, batch, seeds, device):
        soon = _soon(found.history.frames[:, :, 0], found.history.frame_steps, own)
        for t, status in enumerate(found.status):
            shared = soon[t] / batch if soon[t] < most else float(most)
            yield {"iterations": shared, **_known(found, t, status)}


def losses_horizontal(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Forty pictures at a time, matched by three losses, horizontally."""
    yield from _by_loss(cell, seeds, device, HORIZONTAL)


def losses_vertical(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Forty pictures at a time, matched by three losses, vertically."""
    yield from _by_loss(cell, seeds, device, VERTICAL)


def _by_loss(cell: Cell, seeds: Sequence[int], device: str, protocol: str) -> Iterator[Row]:
    loss, dataset = LOSSES[str(cell["loss"])], str(cell["dataset"])
    for found, own in _leaked(PUBLISHED, protocol, dataset, BATCH, seeds, device, loss=loss):
        yield from _rows(found, own, "psnr")


def ablated(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """CAFE's loss, and without each of its terms."""
    loss = VARIANTS[str(cell["variant"])]
    for found, own in _leaked(PUBLISHED, HORIZONTAL, "CIFAR-10", BATCH, seeds, device, loss=loss):
        yield from _rows(found, own, "psnr", "ssim")


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
    for found, own in _leaked(attack, protocol, dataset, batch, seeds, device, ratio=ratio):
        yield from _rows(found, own, "psnr")


def by_ratio(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Pools of one size, of which a step sees a tenth to a hundredth."""
    protocol, dataset = str(cell["protocol"]), str(cell["dataset"])
    published = cell["attack"] == PUBLISHED
    items = SPARSE if published else WHOLE[protocol]
    batch = round(float(cell["batch_ratio"]) * items)
    for number, only in _judged(seeds, MANY if published else BLOCK):
        pool = Pool(protocol, dataset, items, batch, number)
        if published:
            every, run = cafe_pools.matched(pool, Loss(), device, cafe_pools.JOINT)
            spread = [t * len(every) // MANY for t in only]
            own, found = every[spread], _some(run, spread)
        else:
            own, found = cafe_pools.shots(pool, only, device, cafe_pools.EPOCHS)
        yield from _rows(found, own, "psnr")


def by_epoch(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """What stands on the screen after so many steps on every picture."""
    at, attack = int(cell["epoch"]), str(cell["attack"])
    runs = _leaked(attack, HORIZONTAL, "Linnaeus", BATCH, seeds, device, steps=LONG)
    for found, own in runs:
        shown = int((found.history.frame_steps <= at).sum()) - 1
        psnr = decibel(found.history.frames[shown, :, 0], own.images)
        for t, status in enumerate(found.status):
            row = _known(found, t, status)
            yield {"psnr": float(psnr[t]), **row, "evaluations": min(at, row["evaluations"])}


def ended(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Both protocols at forty a step: the quality at the end, and what is left of the loss."""
    protocol, dataset = str(cell["protocol"]), str(cell["dataset"])
    for found, own in _leaked(str(cell["attack"]), protocol, dataset, BATCH, seeds, device):
        yield from _rows(found, own, "psnr", "loss")


def by_size(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Pools of hundreds and thousands, vertical."""
    ratio = BATCH / int(cell["pictures"])
    runs = _leaked(OURS, VERTICAL, "CIFAR-10", BATCH, seeds, device, ratio=ratio, block=MANY)
    for found, own in runs:
        yield from _rows(found, own, "psnr", "success_rate")


def inputs(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """How far off the inputs are: out of one gradient by division, or out of many rounds.

    Of one gradient every row is divided by its entry of the bias, and the nearest quotient counts:
    which row is a picture's is granted, as a unit that is on for one picture alone has it.
    """
    batch = int(cell["batch"])
    for number, only in _judged(seeds, 1 if batch == 1 else BLOCK):
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
