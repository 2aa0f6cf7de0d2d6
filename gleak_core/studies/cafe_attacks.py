"""How CAFE is measured: pools of pictures, of whose batches the server knows the members.

A trial is a picture. Those of one pool share its network and its batches, and their cost. In the
horizontal protocol the server sees each worker's own message, so that the workers' pools are four
problems of one kind: a run attacks one of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from gleak_core import attacks, cafe, clients, data, metrics, models, samplers, standing, starts
from gleak_core.aligned import recover, together
from gleak_core.data import Batch
from gleak_core.distances import DISTANCES
from gleak_core.objectives import GradientMatch
from gleak_core.observation import Observation, Reconstruction
from gleak_core.studies.batches import DATASETS
from gleak_core.studies.study import Cell, Row
from gleak_core.studies.trials import SIDE, groups

__all__ = [
    "BATCH",
    "BLOCK",
    "CLEAR",
    "EPOCHS",
    "HORIZONTAL",
    "JOINT",
    "LONG",
    "LOSSES",
    "MANY",
    "METHODS",
    "NET",
    "POOLS",
    "RATIO",
    "SINGLE",
    "TOGETHER",
    "VARIANTS",
    "VERTICAL",
    "VERTICAL_RATIO",
    "WORKERS",
    "Loss",
    "Pool",
    "ablated",
    "batches_horizontal",
    "batches_vertical",
    "by_epoch",
    "by_method",
    "by_ratio",
    "by_size",
    "decibel",
    "drawn",
    "ended",
    "inputs",
    "losses_horizontal",
    "losses_vertical",
    "reads",
    "shots",
    "speed",
]

HORIZONTAL, VERTICAL = "HFL", "VFL"
WORKERS = 4
BATCH = 40  # of one step, over all workers
RATIO, VERTICAL_RATIO = 0.1, 0.2  # of the pool, in one step
POOLS = {HORIZONTAL: 500, VERTICAL: 800}  # of Table 4: a worker's, all
METHODS = ("CAFE", "DLG")
BLOCK, MANY = 5, 10  # trials out of one run; where a rate is asked for
EPOCHS = 300  # evaluations for every picture
LONG = 600  # of Figure 3
SINGLE = 600  # of DLG, where it has one picture
JOINT = 200  # epochs of a pool that is matched together
TOGETHER = 2 * BATCH  # its pictures
CLEAR = 30.0  # dB, from which on the source calls a picture leaked
RATE = 0.05  # of a step on a pixel
NET: Mapping[str, Any] = {"activation": "relu"}
_COVERS = 4  # messages with every item that its inputs are read from
_LARGE = 1000  # items from which on two of them have to do
_KNOWN = 100  # pictures of his own by which the attacker guesses ξ


@dataclass(frozen=True)
class Loss:
    """What is matched, with the size of each term beside the distance, at the start."""

    distance: str = "squared_l2"
    smooth: float = 0.01
    threshold: bool = True
    internal: float = 1.0


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
}


# --- the clients' side --------------------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """The pictures that one system of equations is about, and what is computed on them."""

    protocol: str
    dataset: str
    items: int
    batch: int  # of one message
    number: int  # seeds pictures, network and batches

    def own(self) -> Batch:
        """Return the private pictures."""
        return drawn(self.dataset, self.items, self.number)

    def network(self, own: Batch, device: str) -> models.Network:
        """Return the network of the protocol, untrained."""
        build = models.cafe_net if self.protocol == HORIZONTAL else models.vertical_net
        return build(len(own.classes), size=SIDE, seed=self.number, **NET).to(device)

    def share(self, net: models.Network, own: Batch, picks: Tensor) -> Observation:
        """Return what the server sees of some rounds (R, B)."""
        if self.protocol == HORIZONTAL:
            return clients.horizontal(net, [own], picks=picks[:, None])
        return clients.vertical(net, own, picks=picks)


def drawn(dataset: str, items: int, seed: int) -> Batch:
    """Return pictures of a set; where it has too few, the same mirrored and turned after them."""
    (name,) = reads({"dataset": dataset})
    there = _size(name)
    first = data.sample(name, min(items, there), size=SIDE, seed=seed, balanced=False)
    images = [
        turned.flip(-1) if copy % 2 else turned
        for copy in range(-(-items // there))
        for turned in [first.images.rot90(copy // 2, (-2, -1))]
    ]
    return replace(
        first,
        images=torch.cat(images)[:items],
        labels=first.labels.repeat(len(images))[:items],
        indices=torch.arange(items),
    )


@lru_cache(maxsize=8)
def _size(name: str) -> int:
    return len(data.load(name))


def reads(cell: Cell) -> tuple[str]:
    """Return the data set of a cell: the embedded photographs where Linnaeus 5 is not at hand."""
    name = DATASETS[str(cell.get("dataset", "CIFAR-10"))]
    absent = name == "linnaeus5" and data.fingerprint(name) == "absent"
    return ("photographs" if absent else name,)


# --- the attacker's side ------------------------------------------------------------------------


def ledger(pool: Pool, net: models.Network, own: Batch) -> cafe.Ledger:
    """Write down rounds of a pool until every item's inputs are known.

    Twice as many rounds as items for the bias gradients, then as many as bring every item back a
    few times: only of these is the rest of the message looked at.
    """
    first = cafe.first_layers(pool.share(net, own, torch.arange(pool.batch)[None]))
    layers = [*first, "head" if pool.protocol == HORIZONTAL else "server"]
    each = -(-pool.items // pool.batch)
    draw = {"items": pool.items, "batch": pool.batch, "seed": pool.number}
    picks = torch.cat(  # an epoch, so that nobody is forgotten
        [
            samplers.epochs(**draw, rounds=each),
            samplers.independent(**draw, rounds=2 * pool.items - each),
        ]
    )
    book = cafe.Ledger()
    book.add(standing.rounds(net, own, picks, layers=[f"{name}.bias" for name in layers]))
    book.solve()
    times = (_COVERS if pool.items < _LARGE else 2) * each
    for picked in samplers.epochs(pool.items, pool.batch, times, seed=pool.number):
        book.add(pool.share(net, own, picked[None]))
    return book


@lru_cache(maxsize=2)  # cells that look at the same run in another way
def shots(
    pool: Pool, only: tuple[int, ...], device: str, steps: int = EPOCHS
) -> tuple[Batch, Reconstruction]:
    """Return some private pictures of a pool, and what linear algebra makes of each."""
    own = pool.own()
    net = pool.network(own, device)
    book = ledger(pool, net, own.to(device))
    begun = starts.make("uniform", (len(only), 1, *own.images.shape[1:]), seed=pool.number)
    return own[list(only)], recover(book, only=only, start=begun, steps=steps, every=10)


def matched(pool: Pool, loss: Loss, device: str) -> tuple[Batch, Reconstruction]:
    """Return a pool of a few batches, and what CAFE's Algorithm 1 makes of it."""
    own = pool.own()
    net = pool.network(own, device)
    moved = own.to(device)
    each = pool.items // pool.batch
    seen = pool.share(
        net, moved, samplers.epochs(pool.items, pool.batch, 2 * each, seed=pool.number)
    )
    inputs = ledger(pool, net, moved).items().inputs
    begun = starts.make("uniform", (pool.items, 1, *own.images.shape[1:]), seed=pool.number)
    level = _variation(drawn(pool.dataset, _KNOWN, pool.number + 1000).images).mean()
    smooth, internal = _weights(seen, moved, begun, inputs, loss)
    found = together(
        seen,
        moved.labels,
        epochs=JOINT // 2,  # all rounds are gone through, and they hold every picture twice
        start=begun,
        rate=RATE,
        distance=loss.distance,
        level=level.expand(pool.items) if loss.threshold else None,
        smooth=smooth,
        internal=internal,
        inputs=inputs,
    )
    return own, found


def _weights(
    seen: Observation, own: Batch, begun: Tensor, inputs: Tensor, loss: Loss
) -> tuple[float, float]:
    """Return β and γ: each term's share of the distance, at the start and on the first batch.

    The paper gives neither, and no number of theirs would fit another network.
    """
    assert seen.given.batch_indices is not None
    members = seen.given.batch_indices[0].cpu()
    first = begun[members, 0].to(own.images)
    match = GradientMatch.of(
        seen.message(0),
        labels=own.labels[members.to(own.labels.device)][None],
        by="a start",
        distance=DISTANCES[loss.distance],
    )
    apart = float(match.value_and_grad(first.flatten()[None])[0])
    with torch.no_grad():
        there = torch.cat([i.flatten(1) for i in _inputs(seen, first)], 1).cpu().double()
    off = float((there - inputs[members].cpu().double()).square().sum())
    return loss.smooth * apart / float(_variation(first).sum()), loss.internal * apart / off


def _inputs(seen: Observation, images: Tensor) -> list[Tensor]:
    """Return the inputs of every party's first fully connected layer."""
    caught: list[Tensor] = []
    hooks = [
        seen.architecture.get_submodule(name).register_forward_pre_hook(
            lambda _, args: caught.append(args[0])
        )
        for name in cafe.first_layers(seen)
    ]
    try:
        torch.func.functional_call(seen.architecture, seen.weights(by="a start"), (images,))
    finally:
        for hook in hooks:
            hook.remove()
    return caught


def _variation(images: Tensor) -> Tensor:
    """Return TV as the paper has it, a sum over the image: (…, C, H, W) → (…)."""
    across, down = images.diff(dim=-1).abs(), images.diff(dim=-2).abs()
    return across.sum((-3, -2, -1)) + down.sum((-3, -2, -1))


def dlg(pool: Pool, device: str) -> tuple[Batch, Reconstruction]:
    """Return a batch, and what DLG makes of its mean gradient by the same kind of descent."""
    own = pool.own()[[*range(pool.batch)]]
    seen = clients.fedsgd(pool.network(own, device), own.to(device))
    begun = starts.make("uniform", (1, *own.images.shape), seed=pool.number)
    steps = SINGLE if pool.batch == 1 else EPOCHS
    return own, attacks.dlg(seen, start=begun, solver="adam", rate=RATE, steps=steps, every=10)


# --- the judge's side ---------------------------------------------------------------------------


def decibel(found: Tensor, true: Tensor) -> Tensor:
    """Return the PSNR of images as the paper has it; where a channel is black, the usual one."""
    shown = found.cpu().clamp(0, 1).nan_to_num(0.5)
    own, usual = metrics.psnr_cafe(shown, true), metrics.psnr(shown, true)
    return torch.where(own.isnan(), usual, own).clamp(max=metrics.PSNR_CAP)


def _rows(found: Reconstruction, own: Batch, *names: str) -> Iterator[Row]:
    """Yield a row for each picture, where each is a trial of its own."""
    psnr = decibel(found.images[:, 0], own.images)
    soon = _soon(found, own)
    ssim = metrics.ssim(found.images[:, 0].cpu().clamp(0, 1).nan_to_num(0.5), own.images)
    for t, status in enumerate(found.status):
        row = {
            "psnr": float(psnr[t]),
            "success_rate": float(psnr[t] >= CLEAR),
            "loss": float(found.loss[t] / found.history.loss[0, t]),
            "ssim": float(ssim[t]),
            "evaluations_to_leak": soon[t],
        }
        yield {n: row[n] for n in names} | {
            "status": status,
            "evaluations": int(found.evaluations[t]),
        }


def _soon(found: Reconstruction, own: Batch) -> list[float]:
    """Return after how many evaluations each picture is clear; infinite if it never is."""
    at = found.history.frame_steps.tolist()
    clear = [decibel(frame[:, 0], own.images) >= CLEAR for frame in found.history.frames]
    return [
        next((float(n) for n, there in zip(at, clear, strict=True) if there[t]), float("inf"))
        for t in range(len(own))
    ]


def _in_batch(found: Reconstruction, own: Batch, some: Sequence[int], *names: str) -> Iterator[Row]:
    """Yield a row for each of some pictures of one batch, in the order that fits it best."""
    order = metrics.score(found, own).order[0]
    psnr = decibel(found.images[0].cpu()[order], own.images)
    for t in some:
        row = {"psnr": float(psnr[t]), "success_rate": float(psnr[t] >= CLEAR)}
        yield {n: row[n] for n in names} | {
            "status": found.status[0],
            "evaluations": int(found.evaluations[0]),
        }


# --- the studies --------------------------------------------------------------------------------


def _judged(seeds: Sequence[int], block: int = BLOCK) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield the number of each run, and which of its pictures are looked at."""
    for number, some in groups(seeds, block):
        yield number, tuple(seed % block for seed in some)


def _usual(dataset: str, number: int, batch: int = BATCH) -> Pool:
    """Return the pool of one of four workers who hold a quarter of a batch each."""
    own = batch // WORKERS
    return Pool(HORIZONTAL, dataset, round(own / RATIO), own, number)


def by_method(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """CAFE, and DLG on the mean gradient of forty pictures."""
    dataset = str(cell.get("dataset", "CIFAR-10"))
    names = ("psnr",) if "dataset" in cell else ("psnr", "success_rate")
    for number, only in _judged(seeds, BLOCK if "dataset" in cell else MANY):
        if cell["method"] == "DLG":
            pool = Pool(HORIZONTAL, dataset, BATCH, BATCH, number)
            own, found = dlg(pool, device)
            yield from _in_batch(found, own, only, *names)
        else:
            own, found = shots(_usual(dataset, number), only, device)
            yield from _rows(found, own, *names)


def speed(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """After how many steps a picture is clear: CAFE's are divided by the pictures of a batch."""
    dataset, batch = str(cell["dataset"]), int(cell["batch"])
    if cell["method"] == "DLG":
        for seed in seeds:
            own, found = dlg(Pool(HORIZONTAL, dataset, 1, 1, seed), device)
            frames = found.history.frames[:, 0]  # (F, 1, C, H, W)
            at = found.history.frame_steps.tolist()
            clear = [bool(decibel(frame, own.images) >= CLEAR) for frame in frames]
            soon = next((n for n, there in zip(at, clear, strict=True) if there), SINGLE + 1)
            yield {
                "iterations": float(soon),
                "status": found.status[0],
                "evaluations": int(found.evaluations[0]),
            }
        return
    for number, only in _judged(seeds):
        own, found = shots(_usual(dataset, number, batch), only, device)
        for row in _rows(found, own, "evaluations_to_leak"):
            yield {
                "iterations": min(row.pop("evaluations_to_leak"), EPOCHS + 1) / batch,
                **row,
            }


def losses_horizontal(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Forty pictures at a time, matched by three losses, horizontally."""
    yield from _by_loss(cell, seeds, device, HORIZONTAL)


def losses_vertical(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Forty pictures at a time, matched by three losses, vertically."""
    yield from _by_loss(cell, seeds, device, VERTICAL)


def _by_loss(cell: Cell, seeds: Sequence[int], device: str, protocol: str) -> Iterator[Row]:
    for number, only in _judged(seeds, MANY):
        pool = Pool(protocol, str(cell["dataset"]), TOGETHER, BATCH, number)
        yield from _matched_rows(pool, LOSSES[str(cell["loss"])], only, device, "psnr")


def ablated(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """CAFE's loss, and without each of its terms."""
    for number, only in _judged(seeds, MANY):
        pool = Pool(HORIZONTAL, "CIFAR-10", TOGETHER, BATCH, number)
        loss = VARIANTS[str(cell["variant"])]
        yield from _matched_rows(pool, loss, only, device, "psnr", "ssim")


def _matched_rows(
    pool: Pool, loss: Loss, only: tuple[int, ...], device: str, *names: str
) -> Iterator[Row]:
    own, found = matched(pool, loss, device)
    rows = list(_rows(found, own, *names))
    yield from (rows[t] for t in only)


def batches_horizontal(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Batches of several sizes, a worker's own, in pools of ten."""
    yield from _by_batch(cell, seeds, device, HORIZONTAL, RATIO)


def batches_vertical(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Batches of several sizes, in pools of five."""
    yield from _by_batch(cell, seeds, device, VERTICAL, VERTICAL_RATIO)


def _by_batch(
    cell: Cell, seeds: Sequence[int], device: str, protocol: str, ratio: float
) -> Iterator[Row]:
    batch = int(cell["batch"])
    for number, only in _judged(seeds):
        pool = Pool(protocol, str(cell["dataset"]), round(batch / ratio), batch, number)
        own, found = shots(pool, only, device)
        yield from _rows(found, own, "psnr")


def by_ratio(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Pools of one size, of which a step sees a tenth to a hundredth."""
    protocol = str(cell["protocol"])
    items = POOLS[protocol]
    for number, only in _judged(seeds):
        batch = round(float(cell["batch_ratio"]) * items)
        own, found = shots(Pool(protocol, str(cell["dataset"]), items, batch, number), only, device)
        yield from _rows(found, own, "psnr")


def by_epoch(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """What stands on the screen after so many evaluations of every picture."""
    at = int(cell["epoch"])
    for number, only in _judged(seeds):
        own, found = shots(_usual("Linnaeus", number), only, device, LONG)
        shown = int((found.history.frame_steps <= at).sum()) - 1
        psnr = decibel(found.history.frames[shown, :, 0], own.images)
        for t, status in enumerate(found.status):
            spent = min(at, int(found.evaluations[t]))
            yield {"psnr": float(psnr[t]), "status": status, "evaluations": spent}


def ended(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Both protocols at forty a step: the quality at the end, and what is left of the loss."""
    for number, only in _judged(seeds):
        dataset = str(cell["dataset"])
        pool = (
            _usual(dataset, number)
            if cell["protocol"] == HORIZONTAL
            else Pool(VERTICAL, dataset, round(BATCH / RATIO), BATCH, number)
        )
        own, found = shots(pool, only, device)
        yield from _rows(found, own, "psnr", "loss")


def by_size(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Pools of hundreds and thousands, vertical."""
    for number, only in _judged(seeds, MANY):
        pool = Pool(VERTICAL, "CIFAR-10", int(cell["pictures"]), BATCH, number)
        own, found = shots(pool, only, device)
        yield from _rows(found, own, "psnr", "success_rate")


def inputs(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """How far off the inputs are: out of one gradient by division, or out of many rounds."""
    batch = int(cell["batch"])
    for number, only in _judged(seeds, 1 if batch == 1 else BLOCK):
        pool = Pool(HORIZONTAL, "CIFAR-10", round(batch / RATIO), batch, number)
        own = pool.own().to(device)
        net = pool.network(own, device)
        seen = pool.share(net, own, torch.arange(batch)[None])
        found = (
            ledger(pool, net, own).items().inputs.cpu()
            if cell["updates"] == "many"
            else _divided(seen).expand(pool.items, -1)
        )
        with torch.no_grad():
            true = _inputs(seen, own.images)[0].flatten(1).cpu().double()
        for t in only:
            off = float((found[t] - true[t]).norm() / true[t].norm())
            yield {"z_error": off, "status": "solved" if off < 0.01 else "failed", "evaluations": 1}


def _divided(seen: Observation) -> Tensor:
    """Return the one input that a gradient has if it is a single picture's: a row over its bias."""
    (name,) = cafe.first_layers(seen)
    update = seen.rounds[0].update
    bias, weight = (update[f"{name}.{part}"][0].cpu().double() for part in ("bias", "weight"))
    sure = bias.abs().argmax()
    return weight[sure] / bias[sure]
