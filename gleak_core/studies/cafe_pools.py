"""Pools of pictures, of whose batches the server knows the members; two attacks on them.

CAFE's own attack matches the messages as they come: in the horizontal protocol the mean over four
workers. Ours solves the messages of one worker for the inputs of a layer, and fits every picture to
its own; it takes each worker's own messages. (Those of a mean leave a constant of each worker
unknown, which `gleak_core.aggregated` finds; see `cafe_counters`.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from gleak_core import attacks, cafe, clients, data, metrics, models, samplers, standing, starts
from gleak_core.aligned import recover, together
from gleak_core.data import Batch
from gleak_core.distances import DISTANCES
from gleak_core.errors import GleakError
from gleak_core.objectives import GradientMatch
from gleak_core.observation import History, Observation, Reconstruction
from gleak_core.studies.batches import DATASETS
from gleak_core.studies.study import Cell
from gleak_core.studies.trials import SIDE

__all__ = [
    "APART",
    "BATCH",
    "BLOCK",
    "CLEAR",
    "COVERS",
    "DEALS",
    "EPOCHS",
    "HORIZONTAL",
    "JOINT",
    "KNOWN",
    "MESSAGES",
    "NET",
    "OURS",
    "PUBLISHED",
    "RATE",
    "SHORT",
    "SINGLE",
    "VERTICAL",
    "WORKERS",
    "Loss",
    "Pool",
    "decibel",
    "dlg",
    "drawn",
    "inputs_of",
    "ledger",
    "matched",
    "reads",
    "shots",
    "variation",
    "weights",
]

HORIZONTAL, VERTICAL = "HFL", "VFL"
OURS, PUBLISHED = "by linear algebra", "as published"
WORKERS = 4
BATCH = 40  # of one step, over all workers
BLOCK = 5  # trials out of one run by linear algebra
CLEAR = 30.0  # dB, from which on the source calls a picture leaked
EPOCHS = 300  # evaluations for every picture, by linear algebra
JOINT, SHORT = 600, 300  # steps on every picture of a pool that is matched; of a large one
SINGLE = 600  # of DLG
DEALS, APART = 5, 10  # epochs that are dealt anew, and then repeated; steps between two looks
MESSAGES = 100  # that memory holds: of tiny batches fewer epochs are dealt
RATE = 0.05  # of a step on a pixel
COVERS = {0: 4, 1000: 2}  # from so many items on: messages with each that inputs are read from
KNOWN = 100  # pictures by which the attacker guesses ξ
NET: Mapping[str, Any] = {"activation": "relu"}


@dataclass(frozen=True)
class Loss:
    """What is matched, with the size of each term beside the distance, at the start; and how."""

    distance: str = "squared_l2"
    smooth: float = 0.01
    threshold: bool = True
    internal: float = 1.0
    direction: str = "adam"  # of `descent.DIRECTIONS`
    rate: float = RATE


# --- the clients' side --------------------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """The pictures of a client, or of all parties, and what is computed on them."""

    protocol: str
    dataset: str
    items: int  # of one worker; in the vertical protocol of all
    batch: int  # of one message of theirs
    number: int  # seeds pictures, network and batches
    thin: int = 1  # so many pictures are drawn for each that is kept

    @property
    def workers(self) -> int:
        """How many hold pictures of their own."""
        return WORKERS if self.protocol == HORIZONTAL else 1

    def own(self, workers: int) -> list[Batch]:
        """Return the private pictures of some workers."""
        many = self.items * workers
        every = drawn(self.dataset, self.thin * many, self.number)
        every = every[[*range(0, len(every), self.thin)]]
        return [every[[*range(k, k + self.items)]] for k in range(0, many, self.items)]

    @property
    def deals(self) -> int:
        """How many epochs are dealt anew before they are repeated."""
        return max(1, min(DEALS, MESSAGES * self.batch // self.items))

    def network(self, own: Batch, device: str) -> models.Network:
        """Return the network of the protocol, untrained."""
        build = models.cafe_net if self.protocol == HORIZONTAL else models.vertical_net
        return build(len(own.classes), size=SIDE, seed=self.number, **NET).to(device)

    def share(self, net: models.Network, own: Sequence[Batch], picks: Tensor) -> Observation:
        """Return what the server sees of some rounds (R, M, B)."""
        if self.protocol == HORIZONTAL:
            return clients.horizontal(net, own, picks=picks)
        return clients.vertical(net, own[0], picks=picks[:, 0])


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
        indices=first.indices.repeat(len(images))[:items],
    )


@lru_cache(maxsize=8)
def _size(name: str) -> int:
    return len(data.load(name))


def reads(cell: Cell) -> tuple[str]:
    """Return the data set of a cell: the embedded photographs where Linnaeus 5 is not at hand."""
    name = DATASETS[str(cell.get("dataset", "CIFAR-10"))]
    absent = name == "linnaeus5" and data.fingerprint(name) == "absent"
    return ("photographs" if absent else name,)


# --- by linear algebra --------------------------------------------------------------------------


def ledger(pool: Pool, net: models.Network, own: Batch) -> cafe.Ledger:
    """Write down a worker's rounds until every item's inputs are known.

    Twice as many rounds as items for the bias gradients, then as many as bring every item back a
    few times: only of these is the rest of the message looked at.
    """
    first = cafe.first_layers(pool.share(net, [own], torch.arange(pool.batch)[None, None]))
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
    times = COVERS[max(least for least in COVERS if least <= pool.items)]
    for picked in samplers.epochs(**draw, rounds=times * each):
        book.add(pool.share(net, [own], picked[None, None]))
    return book


def shots(
    pool: Pool, only: tuple[int, ...], device: str, steps: int
) -> tuple[Batch, Reconstruction]:
    """Return some private pictures of a worker, and what linear algebra makes of each.

    Where the rounds do not tell, nothing is made of them: the start is what the attacker has.
    """
    (own,) = pool.own(1)
    net = pool.network(own, device)
    begun = _begin(own, max(only) + 1, pool.number)[list(only)]
    try:
        book = ledger(pool, net, own.to(device))
        found = recover(book, only=only, start=begun, steps=steps, every=APART)
    except GleakError:
        found = _nothing(begun)
    return own[list(only)], found


def _begin(own: Batch, many: int, seed: int) -> Tensor:
    return starts.make("uniform", (many, 1, *own.images.shape[1:]), seed=seed)


def _nothing(begun: Tensor) -> Reconstruction:
    """Return the start as the result of an attack that could not begin."""
    many = len(begun)
    worst = torch.full((many,), torch.inf)
    return Reconstruction(
        images=begun,
        labels=None,
        loss=worst,
        status=("failed",) * many,
        history=History(
            steps=torch.zeros(1, dtype=torch.long),
            loss=worst[None],
            frame_steps=torch.zeros(1, dtype=torch.long),
            frames=begun[None],
        ),
        evaluations=torch.zeros(many, dtype=torch.long),
        seconds=0.0,
        attack="CAFE, by linear algebra",
    )


# --- as published -------------------------------------------------------------------------------


def matched(pool: Pool, loss: Loss, device: str, steps: int) -> tuple[Batch, Reconstruction]:
    """Return the pictures of all workers, and what CAFE's Algorithm 1 makes of them.

    The inputs of its third term come from each worker's own messages, solved. The steps of a
    reconstruction's history are those on every picture.
    """
    own = pool.own(pool.workers)
    net = pool.network(own[0], device)
    there = [one.to(device) for one in own]
    each, deals = pool.items // pool.batch, pool.deals
    picks = torch.stack(
        [
            samplers.epochs(pool.items, pool.batch, deals * each, seed=WORKERS * pool.number + m)
            for m in range(pool.workers)
        ],
        1,
    )
    seen = pool.share(net, there, picks)
    every = _together(own)
    inputs = _inputs(pool, net, seen, there) if loss.internal else None
    begun = _begin(every, len(every), pool.number)
    smooth, internal = weights(seen, every.to(device), begun, inputs, loss)
    level = _others(pool, every).expand(len(every))
    found = together(
        seen,
        every.labels.to(device),
        epochs=steps // deals,
        start=begun,
        direction=loss.direction,
        rate=loss.rate,
        distance=loss.distance,
        smooth=smooth,
        level=level if loss.threshold else None,
        internal=internal,
        inputs=inputs,
        every=APART // deals,
    )
    history = replace(
        found.history,
        steps=deals * found.history.steps,
        frame_steps=deals * found.history.frame_steps,
    )
    return every, replace(found, history=history)


def _inputs(pool: Pool, net: models.Network, seen: Observation, own: Sequence[Batch]) -> Tensor:
    """Return the inputs of the first fully connected layer, of every item.

    They are solved for; where a batch is the whole pool, no rounds tell them, and they are granted.
    """
    if pool.items > pool.batch:
        return torch.cat([ledger(pool, net, one).items().inputs for one in own])
    with torch.no_grad():
        each = [torch.cat([i.flatten(1) for i in inputs_of(seen, o.images)], 1) for o in own]
    return torch.cat(each).cpu()


def weights(
    seen: Observation, own: Batch, begun: Tensor, inputs: Tensor | None, loss: Loss
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
    smooth = loss.smooth * apart / float(variation(first).sum())
    if inputs is None:
        return smooth, 0.0
    with torch.no_grad():
        there = torch.cat([i.flatten(1) for i in inputs_of(seen, first)], 1).cpu().double()
    off = float((there - inputs[members].cpu().double()).square().sum())
    return smooth, loss.internal * apart / off


def inputs_of(seen: Observation, images: Tensor) -> list[Tensor]:
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


def variation(images: Tensor) -> Tensor:
    """Return TV as the paper has it, a sum over the image: (…, C, H, W) → (…)."""
    across, down = images.diff(dim=-1).abs(), images.diff(dim=-2).abs()
    return across.sum((-3, -2, -1)) + down.sum((-3, -2, -1))


def _others(pool: Pool, own: Batch) -> Tensor:
    """Return the mean TV of pictures of the same set that are not in the pool."""
    (name,) = reads({"dataset": pool.dataset})
    taken = set(own.indices.tolist())
    free = [k for k in range(_size(name)) if k not in taken]
    some = free[:: max(1, len(free) // KNOWN)][:KNOWN] or [*range(_size(name))]
    return variation(data.sample(name, indices=some, size=SIDE).images).mean()


def dlg(
    pool: Pool, workers: int, device: str, *, granted: bool = False
) -> tuple[Batch, Reconstruction]:
    """Return the pictures of some workers, and what DLG makes of their mean gradient.

    Its descent is of the same kind as CAFE's. With its labels `granted` this is what iDLG could
    reach at best: its rule finds one label.
    """
    own = _together(pool.own(workers))
    seen = clients.fedsgd(pool.network(own, device), own.to(device))
    begun = starts.make("uniform", (1, *own.images.shape), seed=pool.number)
    options: attacks.Options = {
        "start": begun,
        "solver": "adam",
        "rate": RATE,
        "steps": SINGLE,
        "every": APART,
        "seed": pool.number,
    }
    if granted:
        options["labels"] = own.labels[None].to(device)
    return own, attacks.dlg(seen, **options)


def _together(own: Sequence[Batch]) -> Batch:
    """Return the pictures of several workers as one batch."""
    images, labels, indices = (
        torch.cat([getattr(one, name) for one in own]) for name in ("images", "labels", "indices")
    )
    return replace(own[0], images=images, labels=labels, indices=indices)


# --- the judge's side ---------------------------------------------------------------------------


def decibel(found: Tensor, true: Tensor) -> Tensor:
    """Return the PSNR of images as the paper has it; where a channel is black, the usual one."""
    shown = found.cpu().clamp(0, 1).nan_to_num(0.5)
    own, usual = metrics.psnr_cafe(shown, true), metrics.psnr(shown, true)
    return torch.where(own.isnan(), usual, own).clamp(max=metrics.PSNR_CAP)
