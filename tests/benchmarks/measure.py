"""The parts of the benchmark: each gives rows, and needs nothing that another part left behind."""

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import textbook
import torch
from torch import Tensor

from gleak_core import (
    analytic,
    attacks,
    clients,
    data,
    defences,
    labels,
    metrics,
    models,
    stacks,
    starts,
)
from gleak_core.datasets.batch import Batch
from gleak_core.objectives import GradientMatch
from gleak_core.observation import Observation, Reconstruction

__all__ = ["PARTS", "Row", "Scale", "noisy"]

LEAKED = 30.0  # dB
CLASSES = 100
_T = TypeVar("_T")
NOISE = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)

Row = dict[str, object]
"""part, way, at (what the part varies), measure, value, runs (how many values it is made of)."""


@dataclass(frozen=True)
class Scale:
    """How much of everything is measured."""

    images: int = 64
    joint: int = 16  # of them, for the attack that optimises the label too
    textbook: int = 8
    better: int = 4
    repeats: int = 60
    noisy: int = 8
    trials: Sequence[int] = (1, 8, 32, 512, 4096)
    batches: Sequence[int] = (1, 4, 16, 64)
    sizes: Sequence[int] = (32, 64, 128, 224)
    device: str = "cpu"


# --- the parts --------------------------------------------------------------------------------


def evaluation(scale: Scale) -> Iterator[Row]:
    """One evaluation of value and slope for each trial, by every evaluator, interleaved."""
    ways = _evaluators(1, 32, scale.device, trials=(1, 32))
    yield from _timed("evaluation", ways, scale.repeats, scale.device)


def leaks(scale: Scale) -> Iterator[Row]:
    """Pictures leaked to 30 dB per second of work, with the attacker's own stop."""
    for way, attack, images in (
        ("idlg", attacks.idlg, scale.images),
        ("dlg", attacks.dlg, scale.joint),
    ):
        batch, _, seen = _messages(images, scale.device)
        _, warm = _spent(partial(attack, seen, steps=2, every=0), scale.device)
        found, spent = _spent(partial(attack, seen, every=0, stop=attacks.SOLVED), scale.device)
        count = found.evaluations.double()
        yield from _leaked("leaks", way, images, found, batch, spent)
        yield _row("leaks", way, images, "evaluations", float(count.median()), images)
        yield _row("leaks", way, images, "first call, s", warm, 1)


def loop(scale: Scale) -> Iterator[Row]:
    """The same pictures by the textbook loop: as many of them as there is time for."""
    yield from _loop(scale, "textbook", scale.textbook, "normal", None)


def better(scale: Scale) -> Iterator[Row]:
    """The textbook loop with what is known to help it: a line search, a start at mid-grey."""
    yield from _loop(scale, "line search", scale.better, "normal", "strong_wolfe")
    yield from _loop(scale, "line search, grey", scale.better, "grey", "strong_wolfe")


def _loop(scale: Scale, way: str, n: int, start: str, search: str | None) -> Iterator[Row]:
    batch, net, seen = _messages(scale.images, scale.device)
    bound, like = attacks.SOLVED, next(net.parameters()).detach()
    found, counts, spent = [], [], 0.0
    for t in range(n):
        target = {name: g[t] for name, g in seen.rounds[0].update.items()}
        norm = float(torch.stack([g.square().sum() for g in target.values()]).sum())
        x = starts.make(start, (1, 3, 32, 32), seed=t).to(like)
        y = starts.make("normal", (1, CLASSES), seed=t + 2**40).to(like)
        run = partial(textbook.leak, net, target, x, y, steps=300, stop=bound * norm, search=search)
        one, seconds = _spent(run, scale.device)
        spent += seconds
        found.append((one.image, one.loss < bound * norm))
        counts.append(one.evaluations)
    images = torch.stack([image for image, _ in found]).cpu()
    leaked = int((metrics.psnr(images[:, 0], batch.images[:n].cpu()) >= LEAKED).sum())
    yield _row("leaks", way, n, "leaked", leaked, n)
    yield _row("leaks", way, n, "solved", sum(good for _, good in found), n)
    yield _row("leaks", way, n, "s per picture", spent / n, n)
    yield _row("leaks", way, n, "leaks per s", leaked / spent, n)
    yield _row("leaks", way, n, "evaluations", statistics.median(counts), n)


def growth(scale: Scale) -> Iterator[Row]:
    """Time and memory against trials, batch and size: each point in a process of its own."""
    points: list[tuple[str, dict[str, object]]] = [
        *(("trials", {"trials": trials}) for trials in scale.trials),
        *(("batch", {"batch": batch, "size": 32}) for batch in scale.batches),
        *(("size", {"batch": 1, "size": size}) for size in scale.sizes),
    ]
    # The server imports once, and every process begins as a fork of it. PyTorch imports the last
    # two at the first gradient under vmap: seconds for each process, and megabytes of its peak.
    context = multiprocessing.get_context("forkserver")
    lazy = ("torch._dynamo", "torch.fx.experimental.symbolic_shapes")
    context.set_forkserver_preload([__name__, *lazy])
    with context.Pool(1, maxtasksperchild=1) as pool:
        for part, given in points:
            yield from pool.apply(_point, (part, given | {"device": scale.device}))


def recursion(scale: Scale) -> Iterator[Row]:
    """The analytic recursion: one picture a call, all in one, and on a set-up that is there."""
    batch, net, seen = _messages(scale.images, scale.device)
    attacks.analytic(seen.select([0]))  # what a process pays once is not what a picture costs
    alone = min(16, scale.images)
    single = [seen.select([t]) for t in range(alone)]
    found, spent = _spent(lambda: [attacks.analytic(one) for one in single], scale.device)
    images = torch.cat([one.images for one in found])
    solved = tuple(s for one in found for s in one.status)
    joined = replace(found[0], images=images, status=solved)
    yield from _leaked("analytic", "a picture a call", alone, joined, batch, spent)
    found, spent = _spent(lambda: attacks.analytic(seen), scale.device)
    yield from _leaked("analytic", "all in one call", scale.images, found, batch, spent)
    stack, weights = stacks.read(net), {n: w.detach() for n, w in net.named_parameters()}
    assert stack is not None  # a LeNet is one
    ready = analytic.Recursion(stack, weights, (3, 32, 32))
    ready(seen.select([0]).gradient())
    rebuilt, spent = _spent(lambda: ready(seen.gradient()), scale.device)
    again = replace(found, images=rebuilt.images.to(found.images))
    yield from _leaked("analytic", "set-up reused", scale.images, again, batch, spent)


def rules(scale: Scale) -> Iterator[Row]:
    """Batches whose labels are read per second; one picture for the rules that want one."""
    net = models.lenet(classes=CLASSES, seed=0).to(scale.device)
    for size, names in ((1, ("idlg", "cpl")), (16, ("grad_inversion", "general", "bias"))):
        batches = [data.sample("photographs", n=size, balanced=False, seed=s) for s in range(20)]
        seen = [clients.fedsgd(net, batch) for batch in batches]
        for name in names:
            rule = labels.RULES[name]
            seconds = [
                _spent(lambda rule=rule, one=one: rule(one), scale.device)[1] for one in seen
            ]
            rate = 1 / statistics.median(seconds)
            yield _row("labels", name, size, "batches per s", rate, len(seen))


def robustness(scale: Scale) -> Iterator[Row]:
    """The recursion and L-BFGS against noise on the gradient, and against half precision."""
    batch, _, clean = _messages(scale.noisy, scale.device)
    messages = {f"{share:g}": noisy(clean, share) for share in NOISE}
    for name in ("half", "bfloat16"):
        messages[name] = _messages(scale.noisy, scale.device, getattr(defences, name)())[2]
    for at, seen in messages.items():
        iterate = partial(attacks.idlg, every=0, steps=2000, stop=attacks.SOLVED)
        for way, attack in (("analytic", attacks.analytic), ("idlg", iterate)):
            found = attack(seen)
            score = metrics.score(found, batch).psnr[:, 0]
            n = scale.noisy
            yield _row("robustness", way, at, "leaked", int((score >= LEAKED).sum()), n)
            yield _row("robustness", way, at, "median dB", float(score.median()), n)
            yield _row("robustness", way, at, "solved", found.status.count("solved"), n)


PARTS: Mapping[str, Callable[[Scale], Iterator[Row]]] = {
    "evaluation": evaluation,
    "leaks": leaks,
    "loop": loop,
    "better": better,
    "growth": growth,
    "analytic": recursion,
    "labels": rules,
    "robustness": robustness,
}


# --- one point, in a process of its own: its peak is nobody else's -----------------------------


def of_trials(trials: int, device: str) -> Iterator[Row]:
    """So many starts against one message, twelve steps each."""
    _, _, seen = _messages(1, device)
    attacks.idlg(seen, trials=8, steps=2, every=0)  # what a process pays once
    found, spent = _spent(lambda: attacks.idlg(seen, trials=trials, steps=12, every=0), device)
    each = 1e3 * spent / float(found.evaluations.sum())
    yield _row("trials", "idlg", trials, "ms", each, 1)
    yield _row("trials", "idlg", trials, "peak MB", _peak(device), 1)
    held = 4 * found.images[0].numel() * 4 / 2**20  # start, best, first and last frame
    yield _row("trials", "idlg", trials, "results MB", held * trials, 1)


def of_shape(part: str, batch: int, size: int, device: str) -> Iterator[Row]:
    """One evaluation for each of eight trials of this shape, first by what `auto` takes."""
    ways = _evaluators(batch, size, device, trials=(8,))
    named, (_, auto) = next(iter(ways.items()))
    auto()
    at = batch if part == "batch" else size
    yield _row(part, named.partition(",")[0], at, "peak MB", _peak(device), 1)
    for row in _timed(part, ways, 5, device):
        yield row | {"at": at}


def _point(part: str, given: dict[str, Any]) -> list[Row]:
    torch.set_num_threads(1)
    return list(of_trials(**given) if part == "trials" else of_shape(part, **given))


# --- what they share --------------------------------------------------------------------------


def _messages(
    n: int, device: str, defence: defences.Defence | None = None
) -> tuple[Batch, torch.nn.Module, Observation]:
    """Return n photographs, the paper's LeNet and a gradient of each."""
    batch = data.sample("photographs", n=n, balanced=False, seed=1)
    net = models.lenet(classes=CLASSES, seed=0).to(device)
    seen = clients.fedsgd(net, batch, each=True, defence=defence)
    return batch, net, seen


def _evaluators(
    batch: int, size: int, device: str, trials: Sequence[int]
) -> dict[str, tuple[int, Callable[[], object]]]:
    """Return name: (trials, one evaluation of each of them), what `auto` takes first."""
    net = models.lenet(classes=CLASSES, size=size, seed=0).to(device)
    most = max(trials)
    images = starts.make("uniform", (most, batch, 3, size, size), seed=1).float()
    true = torch.arange(most * batch).view(most, batch) % CLASSES
    classes = tuple(map(str, range(CLASSES)))
    private = Batch(images[0], true[0], classes, "noise", torch.arange(batch))
    seen, like = clients.fedsgd(net, private), next(net.parameters())
    ways: dict[str, tuple[int, Callable[[], object]]] = {}
    for count in trials:
        x = starts.make("grey", (count, batch, 3, size, size), seed=2).to(like)
        y = starts.make("normal", (count, batch, CLASSES), seed=3).to(like)
        for way in ("auto", "lanes", "closed_form", "vmap", "autograd"):
            if way == "vmap" and batch * size * size > 16 * 32 * 32:
                continue  # its memory is out of proportion
            if way == "autograd" and count != min(trials):
                continue  # one by one: the number does not matter
            try:
                match = GradientMatch.of(
                    seen.restarts(count), labels=None, by="the benchmark", evaluator=way
                )
            except ValueError:  # no numba, or a GPU
                continue
            z = match.dummies.pack(x, y)
            name = f"auto ({match.evaluator})" if way == "auto" else way
            ways[f"{name}, {count} trials"] = (count, lambda m=match, z=z: m.value_and_grad(z))
    x = starts.make("grey", (batch, 3, size, size), seed=2).to(like.detach()).requires_grad_()
    y = starts.make("normal", (batch, CLASSES), seed=3).to(like.detach()).requires_grad_()
    target = {n: g[0] for n, g in seen.rounds[0].update.items()}
    ways["textbook"] = (1, textbook.closure_of(net, target, x, y))
    return ways


def _timed(
    part: str, ways: Mapping[str, tuple[int, Callable[[], object]]], repeats: int, device: str
) -> Iterator[Row]:
    """Time calls in turns, so that what else the machine does falls on all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 2):
        for name, (trials, call) in ways.items():
            _, spent = _spent(call, device)
            if turn >= 2:  # the first calls pay for set-up
                seconds[name].append(spent / trials)
    for name, times in seconds.items():
        trials = ways[name][0]
        yield _row(
            part, name.partition(",")[0], trials, "ms", 1e3 * statistics.median(times), repeats
        )


def _leaked(
    part: str, way: str, at: int, found: Reconstruction, batch: Batch, spent: float
) -> Iterator[Row]:
    images = found.images.cpu()
    score = metrics.psnr(images[:, 0].to(batch.images), batch.images[: len(images)])
    leaked, n = int((score >= LEAKED).sum()), len(images)
    yield _row(part, way, at, "leaked", leaked, n)
    yield _row(part, way, at, "solved", found.status.count("solved"), n)
    yield _row(part, way, at, "s per picture", spent / n, n)
    yield _row(part, way, at, "leaks per s", leaked / spent, n)
    yield _row(part, way, at, "median dB", float(score.median()), n)
    yield _row(part, way, at, "least dB", float(score.min()), n)


def noisy(seen: Observation, share: float, seed: int = 0) -> Observation:
    """Add noise of a share of ‖∇W‖, spread evenly over all entries."""
    draw = torch.Generator().manual_seed(seed)
    update = seen.rounds[0].update
    entries = sum(g[0].numel() for g in update.values())
    square = torch.stack([g.flatten(1).square().sum(1) for g in update.values()]).sum(0)
    std = share * (square / entries).sqrt()

    def more(g: Tensor) -> Tensor:
        noise = torch.randn(g.shape, generator=draw, dtype=g.dtype).to(g.device)
        return g + std.view(-1, *[1] * (g.ndim - 1)) * noise

    sent = {n: more(g) for n, g in update.items()}
    return replace(seen, rounds=(replace(seen.rounds[0], update=sent),))


def _spent(call: Callable[[], _T], device: str) -> tuple[_T, float]:
    """Return what a call gives and the CPU-seconds it took; on a GPU the seconds by the clock."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    began = clock()
    result = call()
    if device != "cpu":
        torch.cuda.synchronize()
    return result, clock() - began


def _peak(device: str) -> float:
    """Return the most memory in MB that this process ever held (on a GPU: that its tensors did)."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # on Linux getrusage begins with the peak of whoever started this process
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _row(part: str, way: str, at: object, measure: str, value: float, runs: int) -> Row:
    return {"part": part, "way": way, "at": at, "measure": measure, "value": value, "runs": runs}
