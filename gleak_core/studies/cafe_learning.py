"""CAFE while the model learns: what its equations still say when the unknowns move.

Three ways of attacking. The published one matches each round at its own weights and goes on with
the pictures it has (`warm start`). Or all rounds are solved as if the model had stood still
(`static solve`), or as if every item's gradient had moved in proportion to time (`drift model`).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from gleak_core import cafe, clients, samplers, solvers, starts
from gleak_core.aligned import SOLVED, Behind, together
from gleak_core.data import Batch
from gleak_core.errors import GleakError
from gleak_core.models import Network
from gleak_core.observation import Observation, Round
from gleak_core.studies import cafe_pools
from gleak_core.studies.cafe_pools import (
    BLOCK,
    EPOCHS,
    HORIZONTAL,
    Loss,
    Pool,
    decibel,
    drawn,
    reads,
)
from gleak_core.studies.kept import kept
from gleak_core.studies.study import Cell, Row
from gleak_core.studies.trials import groups

__all__ = ["ATTACKS", "EACH", "ITEMS", "RATES", "ROUNDS", "SHOWN", "STEP", "followed", "learning"]

ATTACKS = ("warm start", "static solve", "drift model")
RATES = (1e-4, 1e-3, 1e-2, 3e-2)  # of the model: from next to standing to learning by heart
ITEMS, EACH = 100, 10  # pictures of a worker, and of a batch
ROUNDS = 300
SHOWN = (30, 100, 200, ROUNDS)  # those after which a warm start is looked at
STEP = 0.01  # on a pixel
_LAYER, _LAST = "hidden.0", 30  # whose inputs are sought, in so many of the last rounds


def learning(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Attack a model that steps after every round; say what it has learnt as well."""
    rate, attack, at = float(cell["rate"]), str(cell["attack"]), int(cell["rounds"])
    inner = int(cell["inner_steps"])
    for number, some in groups(seeds, BLOCK):
        if attack == ATTACKS[0]:
            shown, seconds = followed(
                rate, inner, STEP, number, device, granted=False, learnt=False
            )
            psnr, ratio = shown[SHOWN.index(at)]
            spent, seconds = inner * at * EACH // ITEMS, seconds * at / ROUNDS  # so far
            solved = [False] * BLOCK
        else:
            (psnr, ratio, solved), seconds = _at_once(rate, attack == ATTACKS[2], number, device)
            spent = EPOCHS
        for seed in some:
            yield {
                "psnr": psnr[seed % BLOCK],
                "loss": ratio,
                "status": "solved" if solved[seed % BLOCK] else "failed",
                "evaluations": spent,
                "seconds": seconds / BLOCK,
            }


def _begun(number: int, device: str) -> tuple[Network, Batch, Tensor]:
    """Return a model that has learnt nothing, a worker's pictures, and its batches."""
    own = drawn("Linnaeus", ITEMS, number)
    net = Pool(HORIZONTAL, "Linnaeus", ITEMS, EACH, number).network(own, device)
    return net, own.to(device), samplers.epochs(ITEMS, EACH, ROUNDS, seed=number)


@kept(reads=lambda *_, **__: reads({"dataset": "Linnaeus"}))
def followed(
    rate: float, inner: int, step: float, number: int, device: str, *, granted: bool, learnt: bool
) -> list[tuple[list[float], float]]:
    """Match every round as it comes, from the pictures that the rounds before have left.

    Return, after each of some rounds, the PSNR of every picture and the model's loss, as a share of
    what it was. Where Z is `granted`, it is that of the weights of each round. A model that has
    `learnt` has done so before the first round that is matched, and stands still from then on.
    """
    net, own, picks = _begun(number, device)
    before, found, internal = _loss(net, own), [], 0.0
    if learnt:
        for _ in _rounds(net, own, picks, rate):
            pass
        rate = 0.0
    images = starts.make("uniform", (ITEMS, 1, *own.images.shape[1:]), seed=number)
    for epoch, seen in enumerate(_rounds(net, own, picks, rate), 1):
        inputs = _inputs(seen, own) if granted else None
        if granted and not internal:
            _, internal = cafe_pools.weights(seen, own, images, inputs, Loss())
        images = together(
            seen,
            own.labels,
            epochs=1,
            inner=inner,
            start=images,
            rate=step,
            internal=internal,
            inputs=inputs,
        ).images
        if epoch * ITEMS // EACH in SHOWN:
            psnr = decibel(images[:, 0], own.images.cpu())
            found.append((psnr.tolist(), _loss(net, own) / before))
    return found


def _inputs(seen: Observation, own: Batch) -> Tensor:
    """Return the inputs of the first fully connected layer, at the weights of each item's round."""
    assert seen.given.batch_indices is not None
    rows: dict[int, Tensor] = {}
    for r, members in enumerate(seen.given.batch_indices.tolist()):
        with torch.no_grad():
            (there,) = cafe_pools.inputs_of(seen.message(r), own.images[members])
        rows |= zip(members, there.flatten(1).cpu(), strict=True)
    return torch.stack([rows[item] for item in range(ITEMS)])


@kept(reads=lambda *_: reads({"dataset": "Linnaeus"}))
def _at_once(
    rate: float, drift: bool, number: int, device: str
) -> tuple[list[float], float, list[bool]]:
    """Solve all rounds; return the first pictures' PSNR, the loss's share, and which are solved."""
    net, own, picks = _begun(number, device)
    before = _loss(net, own)
    images, solved = _solved(net, own, picks, rate, range(BLOCK), drift=drift)
    psnr = decibel(images, own.images[:BLOCK].cpu())
    return psnr.tolist(), _loss(net, own) / before, solved


def _loss(net: Network, own: Batch) -> float:
    with torch.no_grad():
        return float(F.cross_entropy(net(own.images), own.labels))


def _rounds(net: Network, own: Batch, picks: Tensor, rate: float) -> Iterator[Observation]:
    """Yield what is sent, an epoch at a time, and let the model learn from it.

    Every message is as large as the network: no more than an epoch's lie in memory.
    """
    for some in picks.split(ITEMS // EACH):
        seen = clients.horizontal(net, [own], picks=some[:, None], rate=rate)
        last = seen.rounds[-1]
        assert last.weights is not None
        with torch.no_grad():
            for name, weight in net.named_parameters():
                weight.copy_(last.weights[name] - rate * last.update[name][0])
        yield seen  # each round with the weights of its own


def _solved(
    net: Network, own: Batch, picks: Tensor, rate: float, only: Sequence[int], *, drift: bool
) -> tuple[Tensor, list[bool]]:
    """Solve all rounds at once; then each picture from the last round that tells its inputs."""
    biases: list[Tensor] = []
    last: list[Round] = []
    seen: Observation | None = None
    for seen in _rounds(net, own, picks, rate):
        biases += [each.update[f"{_LAYER}.bias"][0].cpu() for each in seen.rounds]
        last = (last + list(seen.rounds))[-_LAST:]
    assert seen is not None
    slopes = _slopes(picks, torch.stack(biases).double(), drift)
    channels, height, width = shape = own.images.shape[1:]
    images = torch.full((len(only), *shape), 0.5)
    solved = [False] * len(only)
    waiting = set(range(len(only)))
    for back, each in enumerate(reversed(last), 1):
        members = picks[-back].tolist()
        here = [t for t in waiting if only[t] in members]
        if not here:
            continue
        try:
            inputs, _ = cafe.inputs_of(
                slopes[-back][members], each.update[f"{_LAYER}.weight"][0].cpu()
            )
        except GleakError:
            continue
        waiting -= set(here)
        goal = inputs[[members.index(only[t]) for t in here]].float().to(own.images.device)
        assert each.weights is not None
        behind = Behind(seen.architecture, each.weights, (_LAYER,), goal, (channels, height, width))
        method = solvers.method("lbfgs", steps=EPOCHS, rate=1.0, history=20)
        found = solvers.minimise(
            behind,
            torch.full((len(here), shape.numel()), 0.5).to(goal),
            method,
            steps=EPOCHS,
        )
        for k, t in enumerate(here):
            images[t] = found.z[k].view(shape).cpu()
            solved[t] = bool(found.loss[k] <= SOLVED * goal[k].square().sum())
    return images, solved


def _slopes(picks: Tensor, biases: Tensor, drift: bool) -> Tensor:
    """Return every item's slopes in every round (R, N, O), by least squares.

    That stand still, A g = ḡ; or that move along a line, A (g + τ h) = ḡ with τ from -1 to 1.
    """
    matrix = cafe.shares(picks, ITEMS)
    time = torch.linspace(-1, 1, len(picks), dtype=biases.dtype)
    both = torch.cat([matrix, time[:, None] * matrix], 1) if drift else matrix
    found = torch.linalg.lstsq(both, biases, driver="gelsd").solution
    if not drift:
        return found.expand(len(picks), -1, -1)
    still, moving = found.split(ITEMS)
    return still + time[:, None, None] * moving
