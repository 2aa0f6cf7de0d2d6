"""Counter-measures against a server that knows the batches: what is left of either attack.

The source calls for such and measures none; this table is ours.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from gleak_core import aggregated, cafe, clients, defences, models, samplers, starts
from gleak_core.aligned import recover, together
from gleak_core.data import Batch
from gleak_core.errors import GleakError
from gleak_core.observation import Observation, Round, Update, Weights
from gleak_core.papers import Metric
from gleak_core.studies import cafe_pools
from gleak_core.studies.cafe_attacks import CLEAR, OURS, PUBLISHED
from gleak_core.studies.cafe_pools import EPOCHS, JOINT, RATE, WORKERS, Loss, decibel
from gleak_core.studies.study import Cell, Row, Study, grid
from gleak_core.studies.trials import SIDE, groups

__all__ = ["COUNTERS", "EACH", "ITEMS", "JUDGED", "STUDIES", "Sent", "countered"]

ITEMS, EACH = 20, 5  # pictures of a worker, and of its share of a message
JUDGED = 10  # of a worker's pictures: the trials of a pool
TIMES = 2  # messages for each item
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


COUNTERS: Mapping[str, Callable[[Sent], Observation]] = {
    "none": lambda sent: sent.share(sent.rounds()),
    "a fixed partition": lambda sent: sent.share(sent.rounds("fixed")),
    "only the mean of four workers": lambda sent: sent.share(sent.rounds()),
    "indices are not told": lambda sent: sent.share(sent.rounds("fixed")),
    "wrong indices, 1 round in 10": lambda sent: _misled(sent, 0.1),
    "wrong indices, every round": lambda sent: _misled(sent, 1.0),
    "noise, 1e-3": lambda sent: sent.share(sent.rounds(), 1e-3),
    "noise, 1e-2": lambda sent: sent.share(sent.rounds(), 1e-2),
    "noise, 1e-2, in 16 rounds for each item": lambda sent: sent.share(sent.rounds(times=16), 1e-2),
    "noise, 1e-1": lambda sent: sent.share(sent.rounds(), 1e-1),
    "dropout, an item's own": lambda sent: _dropped(sent, anew=False),
    "dropout, drawn anew": lambda sent: _dropped(sent, anew=True),
}
_MEAN, _UNTOLD = "only the mean of four workers", "indices are not told"


def countered(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Attack one worker's pictures through a counter-measure; a trial is a picture."""
    counter, attack = str(cell["counter"]), str(cell["attack"])
    for number, some in groups(seeds, JUDGED):
        sent = _pool(WORKERS if counter == _MEAN else 1, number, device)
        seen = COUNTERS[counter](sent)
        chosen = [seed % JUDGED * ITEMS // JUDGED for seed in some]
        with torch.no_grad():
            true = cafe_pools.inputs_of(seen, sent.own[0].images[chosen])[0].flatten(1).double()
        if attack == OURS:
            images, inputs, solved = _algebra(counter, seen, chosen)
        else:
            images, inputs, solved = _matching(seen, sent, chosen)
        psnr = decibel(images, sent.own[0].images[chosen].cpu())
        off = (inputs.cpu() - true.cpu()).norm(dim=1) / true.cpu().norm(dim=1)
        for t in range(len(some)):
            yield {
                "psnr": float(psnr[t]),
                "leaked": float(psnr[t] >= CLEAR),
                "z_error": float(off[t]),
                "status": "solved" if solved[t] else "failed",
                "evaluations": EPOCHS if attack == OURS else JOINT,
            }


def _pool(workers: int, number: int, device: str) -> Sent:
    every = cafe_pools.drawn("CIFAR-10", WORKERS * ITEMS, number).to(device)
    options = {**cafe_pools.NET, "hidden": HIDDEN}
    net = models.cafe_net(len(every.classes), size=SIDE, seed=number, **options).to(device)
    own = [every[[*range(m * ITEMS, (m + 1) * ITEMS)]] for m in range(workers)]
    return Sent(own, net, number)


def _algebra(
    counter: str, seen: Observation, chosen: list[int]
) -> tuple[Tensor, Tensor, list[bool]]:
    """Solve for the inputs, by differences where nothing else is determined; fit each picture.

    Where there is nothing to solve, the start is what the attacker has, and zero for the inputs.
    """
    (shape,) = seen.need("image_shape", by="the study")
    begun = starts.make("grey", (len(chosen), 1, *shape))
    try:
        if counter == _UNTOLD:
            cafe.items(seen.without("batch_indices"))
        known = aggregated.items(seen) if counter == _MEAN else cafe.items(seen)
    except GleakError:
        nothing = torch.zeros(len(chosen), _inputs(seen), dtype=torch.float64)
        return begun[:, 0], nothing, [False] * len(chosen)
    found = recover(seen, known=known, only=chosen, start=begun, steps=EPOCHS)
    solved = [status == "solved" for status in found.status]
    return found.images[:, 0].cpu(), known.inputs[chosen], solved


def _inputs(seen: Observation) -> int:
    (name,) = cafe.first_layers(seen)
    return seen.rounds[0].update[f"{name}.weight"].shape[2]


def _matching(
    seen: Observation, sent: Sent, chosen: list[int]
) -> tuple[Tensor, Tensor, list[bool]]:
    """Match the same messages as the source does, labels granted, the inputs not."""
    every = sent.every
    begun = starts.make("uniform", (len(every), 1, *every.images.shape[1:]), seed=sent.number)
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
    images = found.images[chosen, 0]
    with torch.no_grad():
        inputs = cafe_pools.inputs_of(seen, images)[0].flatten(1).double()
    return images.cpu(), inputs, [found.status[t] == "solved" for t in chosen]


def _seconds(cell: Cell) -> float:
    """One CPU core, guessed: the share of each trial."""
    wide = WORKERS if cell["counter"] == _MEAN else 1
    return wide * (1.5 if cell["attack"] == PUBLISHED else 0.6)


STUDIES: tuple[Study, ...] = (
    Study(
        id="counters.pool",
        title="Counter-measures: what is left of either attack",
        metrics=("psnr", "leaked", "z_error"),
        cells=grid(counter=tuple(COUNTERS), attack=(OURS, PUBLISHED)),
        measure=countered,
        seconds=_seconds,
        reads=lambda _: ("cifar10",),
        trials={"smoke": 2, "quick": 5, "paper": 4 * JUDGED},
        block=JUDGED,
        deviations=(
            f"Pools of {ITEMS} pictures of a worker, in batches of {EACH}, {TIMES} messages for "
            f"each item; {JUDGED} pictures of each pool are trials, and share its network.",
            f"CAFE's network with ReLUs, and with {HIDDEN[0]} and "
            f"{HIDDEN[1]} hidden units instead of 512 and 256: all rounds lie in memory.",
            f"{OURS.capitalize()}, a picture is fitted in {EPOCHS} evaluations to inputs that two "
            "linear systems give; of a mean of four workers, rank one gives them. Where nothing is "
            "determined, the start is judged, and zero for the inputs.",
            f"{PUBLISHED.capitalize()}, the same messages are matched together, in about {JOINT} "
            "steps for each picture; labels are granted, and inputs are not. Where indices are not "
            "told, each message is matched alone, which is what a fixed partition amounts to.",
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
