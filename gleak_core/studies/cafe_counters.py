"""Counter-measures against a server that knows the batches: what is left of either attack.

The source calls for such and measures none; this table is ours.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from gleak_core import (
    aggregated,
    alignment,
    cafe,
    clients,
    defences,
    models,
    samplers,
    starts,
    untold,
)
from gleak_core.aligned import recover, together
from gleak_core.data import Batch
from gleak_core.errors import GleakError
from gleak_core.observation import Observation, Round, Update, Weights
from gleak_core.papers import Metric
from gleak_core.studies import cafe_pools
from gleak_core.studies.cafe_pools import (
    CLEAR,
    EPOCHS,
    OURS,
    PUBLISHED,
    RATE,
    WORKERS,
    Loss,
    decibel,
)
from gleak_core.studies.study import Cell, Row, Study, grid
from gleak_core.studies.trials import SIDE, groups

__all__ = ["COUNTERS", "EACH", "ITEMS", "STUDIES", "Sent", "countered"]

ITEMS, EACH = 20, 5  # pictures of a worker, all of them trials, and of its share of a message
TIMES, MANY = 2, 15  # rounds for each item
JOINT = 300  # steps on every picture of a pool that is matched
HIDDEN = (64, 32)  # fewer units: the messages of all rounds lie in memory
KEPT = 0.5  # of the units, by dropout
_MATCHED = Loss(internal=0)


@dataclass(frozen=True)
class Sent:
    """Some workers' pictures, the network, and the batches that they draw."""

    own: list[Batch]
    net: models.ConvNet
    number: int

    @property
    def every(self) -> Batch:
        """All pictures, one worker's after another's."""
        first = self.own[0]
        images, labels, indices = (
            torch.cat([getattr(one, name) for one in self.own])
            for name in ("images", "labels", "indices")
        )
        return replace(first, images=images, labels=labels, indices=indices)

    def rounds(self, sampler: str = "independent", times: int = TIMES, **options: float) -> Tensor:
        """Draw batches (R, M, B) of every worker's items, `times` rounds for each item."""
        draw, many = samplers.SAMPLERS[sampler], times * ITEMS * len(self.own)
        seeds = [WORKERS * self.number + m for m in range(len(self.own))]
        return torch.stack([draw(ITEMS, EACH, many, seed=seed, **options) for seed in seeds], 1)

    def share(self, picks: Tensor, noise: float = 0.0) -> Observation:
        """Return what a server sees that is sent the mean over these workers.

        `noise` is the standard deviation, of a gradient entry's root mean square.
        """
        if not noise:
            return clients.horizontal(self.net, self.own, picks=picks)
        (plain,) = self.share(picks[:1]).rounds
        size = torch.cat([g.flatten() for g in plain.update.values()]).square().mean().sqrt()
        defence = defences.gaussian(std=noise * float(size))
        return clients.horizontal(
            self.net, self.own, picks=picks, defence=defence, seed=self.number
        )


def _misled(sent: Sent, share: float) -> Observation:
    """Name the members of another round, in some of the rounds."""
    picks = sent.rounds()
    seen = sent.share(picks)
    stream = torch.Generator().manual_seed(sent.number)
    said = picks[:, 0].clone()
    wrong = torch.randperm(len(picks), generator=stream)[: max(2, round(share * len(picks)))]
    said[wrong] = said[wrong.roll(1)]
    return replace(seen, given=replace(seen.given, batch_indices=said))


def _dropped(sent: Sent, *, anew: bool) -> Observation:
    """Drop units of the first hidden layer: the same for an item in every round, or anew."""
    (own,), net = sent.own, sent.net
    picks = sent.rounds()[:, 0]
    stream = torch.Generator().manual_seed(sent.number)
    shape = (*picks.shape, HIDDEN[0]) if anew else (len(own), HIDDEN[0])
    masks = (torch.rand(shape, generator=stream) < KEPT).to(own.images) / KEPT
    weights = {n: w.detach() for n, w in net.named_parameters()}
    chosen: list[Tensor] = []

    def loss(w: Weights, image: Tensor, label: Tensor, mask: Tensor) -> Tensor:
        chosen[:] = [mask]
        return F.cross_entropy(functional_call(net, w, (image[None],)), label[None])

    def drop(_: nn.Module, __: tuple[Tensor, ...], answer: Tensor) -> Tensor:
        return answer * chosen[0]

    each = vmap(grad(loss), in_dims=(None, 0, 0, 0))
    seen = sent.share(sent.rounds()[:1])
    rounds: list[Round] = []
    hook = net.hidden[1].register_forward_hook(drop)
    try:
        for members, mask in zip(picks, masks if anew else masks[picks], strict=True):
            found: Update = each(weights, own.images[members], own.labels[members], mask)
            mean = {n: g.mean(0, keepdim=True) for n, g in found.items()}
            rounds.append(Round(mean, seen.rounds[0].weights))
    finally:
        hook.remove()
    return replace(
        seen,
        rounds=tuple(rounds),
        given=replace(seen.given, batch_indices=picks),
        protocol=f"{seen.protocol}, dropout",
    )


MEAN = "only the mean of four workers"
UNTOLD = {f"indices are not told, {times} rounds for each item": times for times in (TIMES, MANY)}
MISLED = {"wrong indices, 1 round in 10": 0.1, "wrong indices, every round": 1.0}
COUNTERS: Mapping[str, Callable[[Sent], Observation]] = {
    "none": lambda sent: sent.share(sent.rounds()),
    "a fixed partition": lambda sent: sent.share(sent.rounds("fixed")),
    MEAN: lambda sent: sent.share(sent.rounds()),
    **{
        name: lambda sent, times=times: sent.share(sent.rounds(times=times)).without(
            "batch_indices"
        )
        for name, times in UNTOLD.items()
    },
    **{name: lambda sent, share=share: _misled(sent, share) for name, share in MISLED.items()},
    "noise, 0.01": lambda sent: sent.share(sent.rounds(), 0.01),
    "noise, 0.1": lambda sent: sent.share(sent.rounds(), 0.1),
    "noise, 1": lambda sent: sent.share(sent.rounds(), 1.0),
    "noise, 1, 16 rounds for each item": lambda sent: sent.share(sent.rounds(times=16), 1.0),
    "dropout, an item's own": lambda sent: _dropped(sent, anew=False),
    "dropout, drawn anew": lambda sent: _dropped(sent, anew=True),
}


def countered(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Attack one worker's pictures through a counter-measure; a trial is a picture.

    They are judged in the order that fits best: who is who is no secret of theirs, and of two
    pictures with one label that always meet nobody can tell.
    """
    counter, attack = str(cell["counter"]), str(cell["attack"])
    for number, some in groups(seeds, ITEMS):
        sent = _pool(WORKERS if counter == MEAN else 1, number, device)
        seen = COUNTERS[counter](sent)
        own = sent.own[0].images
        (shape,) = seen.need("image_shape", by="the study")
        begun = starts.make("uniform", (len(sent.every), 1, *shape), seed=number).to(own)
        if attack == OURS:
            images, inputs, solved, spent = _algebra(counter, seen, begun[:ITEMS])
        else:
            images, inputs, solved, spent = _matching(seen, sent, begun)
        shown = images.cpu().clamp(0, 1).nan_to_num(0.5)
        order = alignment.align(shown, own.cpu())
        psnr = decibel(shown[order], own.cpu())
        true = _through(seen, own)
        off = (inputs[order] - true).norm(dim=1) / true.norm(dim=1)
        for seed in some:
            t = seed % ITEMS
            yield {
                "psnr": float(psnr[t]),
                "leaked": float(psnr[t] >= CLEAR),
                "z_error": float(off[t]),
                "status": "solved" if solved[int(order[t])] else "failed",
                "evaluations": spent,
            }


def _pool(workers: int, number: int, device: str) -> Sent:
    every = cafe_pools.drawn("CIFAR-10", WORKERS * ITEMS, number).to(device)
    options = {**cafe_pools.NET, "hidden": HIDDEN}
    net = models.cafe_net(len(every.classes), size=SIDE, seed=number, **options).to(device)
    own = [every[[*range(m * ITEMS, (m + 1) * ITEMS)]] for m in range(workers)]
    return Sent(own, net, number)


def _through(seen: Observation, images: Tensor) -> Tensor:
    """Return the inputs of the first fully connected layer, of pictures (N, C, H, W)."""
    with torch.no_grad():
        return cafe_pools.inputs_of(seen, images)[0].flatten(1).cpu().double()


Found = tuple[Tensor, Tensor, list[bool], int]
"""Pictures, their inputs, which were fitted to these, and the evaluations of each."""


def _algebra(counter: str, seen: Observation, begun: Tensor) -> Found:
    """Solve for the inputs of the first worker's items, and fit each picture to its own.

    Where there is nothing to solve, the start is what the attacker has.
    """
    many = len(begun)
    try:
        if counter in UNTOLD:
            told = untold.batches(seen)
            seen = replace(seen, given=replace(seen.given, batch_indices=told))
        elif counter in MISLED:
            seen = _believed(seen)
        known = aggregated.items(seen) if counter == MEAN else cafe.items(seen)
    except GleakError:
        return begun[:, 0], _through(seen, begun[:, 0]), [False] * many, 0
    found = recover(seen, known=known, only=range(many), start=begun, steps=EPOCHS)
    solved = [status == "solved" for status in found.status]
    return found.images[:, 0], known.inputs[:many].cpu(), solved, EPOCHS


def _believed(seen: Observation) -> Observation:
    """Return the rounds whose indices agree with the others'."""
    true = untold.agreeing(seen)
    assert seen.given.batch_indices is not None
    rounds = tuple(one for one, keep in zip(seen.rounds, true.tolist(), strict=True) if keep)
    told = seen.given.batch_indices.cpu()[true]
    return replace(seen, rounds=rounds, given=replace(seen.given, batch_indices=told))


def _matching(seen: Observation, sent: Sent, begun: Tensor) -> Found:
    """Match the same messages as the source does, labels granted, the inputs not."""
    every = sent.every
    told = seen.given.batch_indices
    assert told is not None
    smooth, _ = cafe_pools.weights(seen, every, begun, None, _MATCHED)
    pool = cafe_pools.Pool(cafe_pools.HORIZONTAL, "CIFAR-10", ITEMS, EACH, sent.number)
    found = together(
        seen,
        every.labels,
        epochs=max(1, round(JOINT * len(every) / told.numel())),
        start=begun,
        rate=RATE,
        smooth=smooth,
        level=cafe_pools._others(pool, every).expand(len(every)),
        seed=sent.number,
    )
    images = found.images[:ITEMS, 0]
    solved = [status == "solved" for status in found.status[:ITEMS]]
    spent = int(found.evaluations[:ITEMS].double().mean().round())
    return images, _through(seen, images), solved, spent


def _seconds(cell: Cell) -> float:
    """One CPU core, guessed: the share of each trial."""
    wide = WORKERS if cell["counter"] == MEAN else 1
    return wide * (1.5 if cell["attack"] == PUBLISHED else 0.8)


STUDIES: tuple[Study, ...] = (
    Study(
        id="counters.pool",
        title="Counter-measures: what is left of either attack",
        metrics=("psnr", "leaked", "z_error"),
        cells=grid(counter=tuple(COUNTERS), attack=(OURS,))
        + grid(counter=tuple(name for name in COUNTERS if name not in UNTOLD), attack=(PUBLISHED,)),
        measure=countered,
        seconds=_seconds,
        reads=lambda _: ("cifar10",),
        trials={"smoke": 2, "quick": 5, "paper": 2 * ITEMS},
        block=ITEMS,
        deviations=(
            f"Two pools of {ITEMS} pictures of a worker, in batches of {EACH}; {TIMES} rounds for "
            "each item where a row does not say otherwise. All pictures of a pool are trials, and "
            "share its network.",
            f"CAFE's network with ReLUs, and with {HIDDEN[0]} and {HIDDEN[1]} hidden units instead "
            "of 512 and 256: all rounds lie in memory.",
            f"{OURS.capitalize()}, a picture is fitted in {EPOCHS} evaluations to inputs that two "
            "linear systems give; of a mean of four workers, rank one gives them. Where indices "
            "are not told they are read off the messages; where some are wrong, rounds that "
            "disagree are left out. Where nothing can be solved, the start is judged.",
            f"{PUBLISHED.capitalize()}, the same messages are matched together, in about {JOINT} "
            "steps for each picture; labels are granted, and inputs are not. Without indices it "
            "can match one message at a time, which is what a fixed partition amounts to.",
            "Pictures are judged in the order that fits best, whatever the attack.",
            "Noise is Gaussian, in every entry of a worker's message, by the root mean square of "
            "a gradient's entries. Dropout is of half of the units of the first hidden layer; "
            "neither attack takes account of it.",
        ),
        asks={
            "psnr": Metric("psnr", "dB", "higher", "median"),
            "leaked": Metric("leaked", "", "higher", "rate"),
            "z_error": Metric("z_error", "", "lower", "median"),
        },
        chapter="04_cafe",
    ),
)
