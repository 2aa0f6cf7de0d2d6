"""How "A deeper dive into CPL vs DLG" is measured: both attacks, and CPL's three ideas one by one.

Twenty neighbouring seeds share a network. Whatever the method, a seed stands for the same pictures,
the same network and the same random numbers in the start: methods are compared in pairs.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gleak_core import attacks, clients, data, metrics, models
from gleak_core.data import Batch
from gleak_core.datasets.sampling import shuffled
from gleak_core.observation import Observation, Reconstruction
from gleak_core.studies.batches import DATASETS
from gleak_core.studies.runs import only
from gleak_core.studies.study import Cell, Row
from gleak_core.studies.trials import (
    INNER,
    ITERATIONS,
    SIDE,
    attempts,
    begin,
    groups,
    published,
    side_by_side,
)

__all__ = [
    "ALPHA",
    "BUDGETS",
    "CLOSE",
    "CONDITIONS",
    "LARGE",
    "METHODS",
    "MOST",
    "ORACLE",
    "OWN",
    "PUBLISHED",
    "RATE",
    "SHOWN",
    "SWAPPED",
    "WITHIN",
    "Clients",
    "attack",
    "compared",
    "elbows",
    "first_picture",
    "frames",
    "judged",
    "large",
    "nearest",
    "of_one_class",
    "one_dummy",
    "parts",
    "patterned",
    "rows",
    "run",
    "second_picture",
    "success",
    "table",
]

CLOSE = 1e-9  # of ‖∇W‖²: where an attack may end; at DLG's 2e-8 some pictures had not leaked
ALPHA = 1e-3  # of the loss term, ours: the text gives none
RATE = 1e-3  # of the client, ours: the text gives none
SHOWN = 100  # iterations that the figures show
LARGE = 128  # the side of a larger picture
WIDTHS = {"wide": 48, "narrow": 12}
HISTORY = 20  # of L-BFGS on a large picture: a hundred pairs would cost more than the evaluations
MOST = 20  # pictures of one person in the largest batch
QUALITY = {"reasonable": 20.0, "main features": 15.0}  # dB
WITHIN = {"reasonable": 220, "main features": 30}  # iterations, as printed
BUDGETS = {"reasonable": 80, "main features": 30}  # and those that an attack is given

LABEL, TERM, START = "label", "loss term", "start"
METHODS: Mapping[str, tuple[str, ...]] = {
    "CPL": (LABEL, TERM, START),
    "DLG": (),
    "DLG + label": (LABEL,),
    "DLG + loss term": (TERM,),
    "DLG + start": (START,),
    "DLG + label + loss term": (LABEL, TERM),
    "DLG + label + start": (LABEL, START),
    "DLG + loss term + start": (TERM, START),
}
"""A method → which of CPL's three ideas it has."""
PUBLISHED, SWAPPED = "as in the code", "swapped"
ORACLE, OWN = "victim's logits", "recovered label"
# CPL's code draws random starts from N(0, 1) and patterns from U(0, 1).
_RANGE = {PUBLISHED: ("normal", "uniform"), SWAPPED: ("uniform", "normal")}


# --- the client's side --------------------------------------------------------------------------


@dataclass(frozen=True)
class Clients:
    """What the clients of a group of trials do: each has a batch of one class, on one network."""

    dataset: str = "LFW"
    batch: int = 1
    iterations: int = 1
    rate: float = RATE
    side: int = SIDE
    width: int = 12
    half: int | None = None  # of the classes: the even or the odd ones

    def share(
        self, number: int, seeds: Sequence[int], device: str
    ) -> tuple[list[Batch], Observation]:
        """Return the private batches of these seeds, and what is seen of them side by side."""
        own = [
            of_one_class(self.dataset, self.batch, seed, side=self.side, half=self.half)
            for seed in seeds
        ]
        scale = 0.25 if self.width > 12 else 0.5
        net = models.cpl_lenet(
            len(own[0].classes), size=self.side, width=self.width, scale=scale, seed=number
        ).to(device)
        seen = [
            clients.local_steps(
                net, batch.to(device), steps=self.iterations, rate=self.rate, give=_GIVEN
            )
            for batch in own
        ]
        answers = [one.need("oracle_logits", by="CPL's loss term")[0] for one in seen]
        logits = torch.cat(answers)  # (T, B, K)
        together = side_by_side(seen)
        return own, replace(together, given=replace(together.given, oracle_logits=logits))


CONDITIONS: Mapping[str, tuple[Clients, int]] = {
    "one picture": (Clients(), SHOWN),
    "batch of 10": (Clients(batch=10), SHOWN),
    "five client iterations": (Clients(iterations=5), SHOWN),
    "128×128": (Clients(side=LARGE), 25),
    "CIFAR-100": (Clients(dataset="CIFAR-100"), SHOWN),
}
"""The settings of the other results: what the clients do, and the iterations of the attack."""
_GIVEN = (*clients.HONEST, "local_steps", "oracle_logits")


def of_one_class(
    dataset: str, batch: int, seed: int, *, side: int = SIDE, half: int | None = None
) -> Batch:
    """Return pictures of one class; a larger batch holds those of a smaller one.

    Only classes with enough pictures for the largest batch take part, whatever the batch, so that
    batches of several sizes are of the same people.
    """
    name = DATASETS[dataset]
    able = [k for k in _classes(name) if half is None or k % 2 == half]
    label = able[int(shuffled(len(able), seed)[0])]
    return data.sample(name, labels=[label] * batch, size=side, seed=seed)


@cache
def _classes(name: str) -> tuple[int, ...]:
    """Return the classes with enough pictures, or all where every class has but a few."""
    counts = np.bincount(data.load(name).labels)
    able = np.flatnonzero(counts >= MOST)
    return tuple(map(int, able if len(able) > 1 else np.flatnonzero(counts)))


# --- the attacker's side ------------------------------------------------------------------------


def one_dummy(seen: Observation) -> Observation:
    """Return the same messages for an attacker who lets one picture stand for a whole batch.

    The logits that CPL's code pulls the answer to are then the mean of the batch's.
    """
    logits = seen.given.oracle_logits
    assert logits is not None
    mean = logits.mean(1, keepdim=True)
    return replace(seen, given=replace(seen.given, batch_size=1, oracle_logits=mean))


def attack(
    seen: Observation,
    ideas: Collection[str],
    seeds: Sequence[int],
    *,
    number: int,
    steps: int,
    values: str = PUBLISHED,
    term: str = ORACLE,
    alpha: float = ALPHA,
    every: int = INNER,
    **more: Any,
) -> Reconstruction:
    """Run DLG's loop with some of CPL's ideas; `more` goes to the attack."""
    plain, pattern = _RANGE[values]
    name = f"level-2:{pattern}" if START in ideas else f"random:{plain}"
    return run(
        seen,
        name,
        seeds,
        label=LABEL in ideas,
        term=term if TERM in ideas else "",
        alpha=alpha,
        number=number,
        steps=steps,
        every=every,
        **more,
    )


def run(
    seen: Observation,
    start: str,
    seeds: Sequence[int],
    *,
    label: bool,
    term: str,
    number: int,
    steps: int,
    alpha: float = ALPHA,
    every: int = INNER,
    **more: Any,
) -> Reconstruction:
    """Run DLG's loop from a start; with the label read off, and with a loss term, or without."""
    batch, shape = seen.need("batch_size", "image_shape", by="CPL")
    penalty = {ORACLE: "oracle_task_loss", OWN: "task_loss"}.get(term)
    return attacks.dlg(
        seen,
        **published(
            labels="cpl" if label else "joint",
            penalties={penalty: alpha} if penalty and alpha else {},
            start=begin(start, seeds, shape, batch=batch),
            steps=steps * INNER,
            stop=CLOSE,
            seed=number,
            every=every,
            **more,
        ),
    )


# --- the judge's side ---------------------------------------------------------------------------


def nearest(pictures: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return MSE and SSIM (F,) of pictures (F, C, H, W), each to the nearest one of a batch."""
    found = pictures.clamp(0, 1).nan_to_num(0.5)[:, None]
    own = batch.images.to(found)[None]
    return metrics.mse(found, own).amin(1), metrics.ssim(found, own).amax(1)


def judged(images: Tensor, own: Sequence[Batch], *measures: str) -> Iterator[dict[str, float]]:
    """Yield how close each trial's picture, of (T, 1, C, H, W), is to the nearest private one.

    The measures are "ssim", "mse", "psnr" and "success_rate".
    """
    for picture, batch in zip(images, own, strict=True):
        error, alike = (float(one[0]) for one in nearest(picture, batch))
        row = {
            "ssim": alike,
            "mse": error,
            "psnr": min(-10 * math.log10(max(error, 1e-12)), metrics.PSNR_CAP),
            "success_rate": float(error < metrics.THRESHOLD),
        }
        yield {measure: row[measure] for measure in measures}


def rows(
    found: Reconstruction, own: Sequence[Batch], *measures: str, **more: Sequence[float]
) -> Iterator[Row]:
    """Yield a row for each trial of an attack with one dummy, with a column of `more` for each."""
    for t, row in enumerate(judged(found.images, own, *measures)):
        extra = {name: values[t] for name, values in more.items()}
        yield {**row, **extra, **_known(found, t)}


def _known(found: Reconstruction, t: int) -> Row:
    """Return what every row says of its run."""
    return {"status": found.status[t], "evaluations": int(found.evaluations[t])}


# --- the studies --------------------------------------------------------------------------------


def table(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """CPL by batch and client iterations; one dummy for a batch, or one for each picture."""
    every = cell["dummies"] == "all"
    for number, some in groups(seeds):
        own, seen = Clients(
            batch=int(cell["batch"]),
            iterations=int(cell.get("client_iterations", 1)),
            rate=float(cell.get("rate", RATE)),
        ).share(number, some, device)
        aim = seen if every else one_dummy(seen)
        found = attack(aim, METHODS["CPL"], some, number=number, steps=SHOWN, every=0)
        if not every:
            yield from rows(found, own, "ssim", "mse")
            continue
        for t, batch in enumerate(own):
            score = metrics.score(only(found, t), batch)
            assert isinstance(score.ssim, Tensor)  # 32×32 has room for its window
            error, alike = float(score.mse.mean()), float(score.ssim.mean())
            yield {"ssim": alike, "mse": error, **_known(found, t)}


def compared(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """CPL and DLG, each with one dummy, as the batch grows."""
    for number, some in groups(seeds):
        own, seen = Clients(
            batch=int(cell["batch"]), iterations=int(cell["client_iterations"])
        ).share(number, some, device)
        found = attack(
            one_dummy(seen), METHODS[str(cell["method"])], some, number=number, steps=SHOWN, every=0
        )
        yield from rows(found, own, "ssim", "mse")


def first_picture(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """CPL from five starts."""
    yield from _race(cell, seeds, device, *_SOON, half=0)


def second_picture(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """The same on pictures of other people."""
    yield from _race(cell, seeds, device, *_SOON, half=1)


def patterned(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """DLG from a random start and from a pattern, in two classes."""
    half = int(cell["label_class"]) - 1
    yield from _race(cell, seeds, device, *_SOON, half=half, of_dlg=True)


def elbows(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """The same on two data sets: how much of the way lies in the first half of the iterations."""
    half = int(cell["label_class"]) - 1
    yield from _race(cell, seeds, device, "iterations", "mse", "early", half=half, of_dlg=True)


_SOON = ("iterations", "mse", "success_rate")


def _race(
    cell: Cell,
    seeds: Sequence[int],
    device: str,
    *measures: str,
    half: int,
    of_dlg: bool = False,
) -> Iterator[Row]:
    start = _start(str(cell["start"]), str(cell["values"]))
    victims = Clients(dataset=str(cell.get("dataset", "LFW")), half=half)
    for number, some in groups(seeds):
        own, seen = victims.share(number, some, device)
        label, term = (False, "") if of_dlg else (True, ORACLE)
        found = run(seen, start, some, label=label, term=term, number=number, steps=SHOWN)
        asked = [name for name in measures if name != "early"]
        runs = attempts(found, _singles(own), *asked, budget=SHOWN, per=INNER)
        for t, row in enumerate(runs):
            if "early" in measures:
                row["early"] = _early(nearest(found.history.frames[:, t, 0], own[t])[0])
            yield row


def _start(pattern: str, values: str) -> str:
    """Return the name of a start, whose numbers have the range of CPL's code or the other one."""
    plain, patterned = _RANGE[values]
    if pattern in ("black", "white"):
        return pattern
    return f"{pattern}:{plain if pattern == 'random' else patterned}"


def _early(errors: Tensor) -> float:
    """Return the share of the fall of the best log MSE (F,) that lies in the first half."""
    best = errors.cummin(0).values.log10()
    fall = best[0] - best
    return float(fall[len(fall) // 2] / fall[-1]) if fall[-1] > 0 else 0.0


def large(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """A picture of 128×128: after how many iterations one recognises it."""
    stage = str(cell["stage"])
    budget = BUDGETS[stage]
    for number, some in groups(seeds):
        width = WIDTHS[str(cell["network"])]
        own, seen = Clients(side=LARGE, width=width).share(number, some, device)
        found = attack(
            seen, METHODS[str(cell["method"])], some, number=number, steps=budget, history=HISTORY
        )
        good, soon = 10 ** (-QUALITY[stage] / 10), []
        for t, batch in enumerate(own):
            errors, _ = nearest(found.history.frames[:, t, 0], batch)
            there = (errors <= good).nonzero()[:, 0].tolist()
            never = (WITHIN[stage] + 1) * INNER
            steps = int(found.history.frame_steps[there[0]]) if there else never
            soon.append(-(-steps // INNER))
        yield from rows(found, own, "psnr", iterations=soon)


def frames(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Both attacks side by side: what stands on the screen after so many iterations."""
    at = int(cell["iteration"]) * INNER
    for number, some in groups(seeds):
        own, found = _watched(str(cell["method"]), number, tuple(some), device)
        shown = int((found.history.frame_steps <= at).sum()) - 1
        for t, row in enumerate(judged(found.history.frames[shown], own, "mse", "ssim")):
            yield {**row, **_known(found, t)}


@lru_cache(maxsize=4)  # the ten iterations that are looked at are of the same runs
def _watched(
    method: str, number: int, seeds: tuple[int, ...], device: str
) -> tuple[list[Batch], Reconstruction]:
    own, seen = Clients().share(number, seeds, device)
    return own, attack(seen, METHODS[method], seeds, number=number, steps=SHOWN)


def success(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Both attacks to the end, by all measures of the source."""
    for number, some in groups(seeds):
        own, seen = Clients().share(number, some, device)
        found = attack(seen, METHODS[str(cell["method"])], some, number=number, steps=ITERATIONS)
        names = ("mse", "success_rate", "iterations")
        runs = attempts(found, _singles(own), *names, budget=ITERATIONS, per=INNER)
        for row, alike in zip(runs, judged(found.images, own, "ssim"), strict=True):
            yield row | alike


def parts(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """CPL's three ideas, one by one and in pairs, under the conditions of the other results."""
    how, steps = CONDITIONS[str(cell["condition"])]
    for number, some in groups(seeds):
        own, seen = how.share(number, some, device)
        found = attack(
            one_dummy(seen),
            METHODS[str(cell["method"])],
            some,
            number=number,
            steps=steps,
            values=str(cell["values"]),
            term=str(cell["term"]),
            every=0,
            history=HISTORY if how.side == LARGE else 100,
        )
        yield from rows(found, own, "mse", "success_rate")


def _singles(own: Sequence[Batch]) -> Batch:
    """Return batches of one picture as one batch."""
    return replace(
        own[0],
        images=torch.cat([one.images for one in own]),
        labels=torch.cat([one.labels for one in own]),
        indices=torch.cat([one.indices for one in own]),
    )
