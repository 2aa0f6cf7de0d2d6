"""How a recipe is carried out: labels, start, objective, solver, and a word on what came of it.

Whatever the recipe, the trials run side by side in a pool that never holds more of them than the
memory budget allows; one image or ten thousand starts is the same call.
"""

import time
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypedDict

import torch
from torch import Tensor

from gleak_core import analytic, labels, penalties, solvers, starts
from gleak_core.distances import DISTANCES, Distance, Masked, squares_of, surviving
from gleak_core.errors import GleakError, choose
from gleak_core.objectives import Dummies, GradientMatch, Repeated, Total
from gleak_core.observation import History, Observation, Reconstruction, Status
from gleak_core.recipes import PUBLISHED, RECIPES, Recipe
from gleak_core.solvers import Objective, Progress, Solution

__all__ = ["BUDGET", "SOLVED", "Options", "by_recursion", "carry_out"]

SOLVED = 1e-7
"""A gradient distance below this share of ‖∇W‖² counts as solved: a stop the attacker can see.

Relative, or a clipped gradient would count as solved by any dummy without a gradient. It says
that the gradients agree, not that the pictures do.
"""
_FEW = 16  # trials of the recursion that are judged without numba
BUDGET = 2**30
"""Bytes that the running trials of an attack may take together, by `GradientMatch.floats`."""


class Options(TypedDict, total=False):
    """What every attack lets you change. What is left out comes from its recipe."""

    labels: str | Tensor  # a rule of `labels.RULES`, "joint", "oracle", or labels (T, B)
    start: str | Tensor  # a name of `starts`, "analytic", or images (T·trials, B, C, H, W)
    distance: str | Distance
    masked: bool  # match surviving entries only: against pruning
    penalties: Mapping[str, float]
    solver: str
    steps: int
    rate: float
    history: int
    box: bool
    trials: int  # independent starts against each message
    seed: int
    every: int  # keep a frame every so many steps; 0: the first and the last only
    stop: float  # end a trial when its whole loss is below this share of what no gradient has
    budget: int  # bytes
    evaluator: str
    published: bool  # the recipe exactly as published, slow as it may be
    progress: Progress | None
    on_interrupt: str  # "raise", or "keep": Ctrl-C ends the attack and returns the best so far


def carry_out(name: str, seen: Observation, options: Options) -> Reconstruction:
    """Run the attack of that name, with some of its recipe changed."""
    began = time.perf_counter()
    for option in options:
        choose("option", option, Options.__annotations__)
    recipe = (PUBLISHED if options.get("published") else RECIPES)[name]
    parts = {f.name for f in fields(Recipe)}
    recipe = replace(recipe, **{k: v for k, v in options.items() if k in parts})
    trials = options.get("trials", 1)
    counts = {"trials": trials, "steps": recipe.steps, "history": recipe.history}
    for what, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{what} must be a whole number and at least 1, got {value}")
    for term in recipe.penalties:
        choose("penalty", term, penalties.PENALTIES)
    if not recipe.several:
        seen.one_message(by=recipe.title)

    matches = _matches(seen, recipe, options)
    dummies = matches[0].dummies
    apart = _total([(1 / len(matches), m) for m in matches])
    terms = [(c, penalties.build(p, seen, matches[0])) for p, c in recipe.penalties.items() if c]
    objective = Repeated(_total([(1.0, apart), *terms]), trials)
    z = _begin(seen, dummies, recipe.start, trials, options.get("seed", 0), matches[0])
    scale = torch.stack([m.scale for m in matches]).mean(0).double().cpu()
    scale = scale.repeat_interleave(trials)  # (T·trials,) ‖∇W‖² for the squared distance

    solution = _solve(objective, z, recipe, matches, options, scale)
    solved = solution.loss.cpu().double() < SOLVED * scale
    if terms or squares_of(matches[0].distance) is not matches[0].distance:
        solved = _agree(matches, solution.z, trials, options.get("budget", BUDGET))
    known = dummies.labels
    return Reconstruction(
        images=dummies.images(solution.z),
        labels=dummies.soft_labels(solution.z).argmax(-1)
        if known is None
        else known.repeat_interleave(trials, 0),
        loss=solution.loss,
        status=_status(solution, solved),
        history=History(
            steps=solution.steps,
            loss=solution.curve,
            frame_steps=solution.frame_steps,
            frames=dummies.images(solution.frames),
        ),
        evaluations=solution.evaluations,
        seconds=time.perf_counter() - began,
        attack=recipe.title,
        settings=_settings(recipe, options, matches[0].evaluator),
    )


def by_recursion(seen: Observation) -> Reconstruction:
    """Run the analytic recursion, and judge it as any attack is judged: by the gradients."""
    began = time.perf_counter()
    found = analytic.recover(seen)
    match = GradientMatch.of(
        seen,
        labels=found.labels,
        by="the analytic recursion",
        # Each trial is evaluated once: for a few of them, lanes would only wait for numba's import.
        evaluator="auto" if seen.trials > _FEW else "vmap",
    )
    z = match.dummies.pack(_like(found.images, match))
    loss = _values(match, z, _width([match], 0, z, BUDGET)).cpu()
    solved = loss < SOLVED * match.scale.cpu()
    return Reconstruction(
        images=match.dummies.images(z),
        labels=found.labels,
        loss=loss,
        status=tuple("solved" if good else "failed" for good in solved.tolist()),
        history=History(
            steps=torch.arange(1),
            loss=loss[None],
            frame_steps=torch.arange(1),
            frames=match.dummies.images(z)[None].cpu(),
        ),
        evaluations=torch.ones(seen.trials, dtype=torch.long),
        seconds=time.perf_counter() - began,
        attack="analytic",
    )


def _matches(seen: Observation, recipe: Recipe, options: Options) -> list[GradientMatch]:
    """Return the distance from each message."""
    known = _labels(seen, recipe)
    seen.one_batch(by=recipe.title)
    distances = []
    for round in range(len(seen.rounds)):
        named = recipe.distance
        distance = (
            DISTANCES[choose("distance", named, DISTANCES)] if isinstance(named, str) else named
        )
        if options.get("masked"):
            distance = Masked(distance, surviving(seen.gradient(round, by=recipe.title)))
        distances.append(distance)
    abreast = _abreast(seen, recipe, options)
    return [
        GradientMatch.of(
            seen,
            labels=known,
            by=recipe.title,
            distance=distance,
            evaluator=options.get("evaluator", "auto"),
            round=round,
            abreast=abreast,
        )
        for round, distance in enumerate(distances)
    ]


def _abreast(seen: Observation, recipe: Recipe, options: Options) -> int:
    """Return how many trials can run side by side at most: the solver's state takes most room."""
    if recipe.solver == "published_lbfgs":  # it goes through its trials one by one
        return 1
    shape, batch_size = seen.need("image_shape", "batch_size", by=recipe.title)
    state = _method(recipe, 0).floats(batch_size * torch.Size(shape).numel())
    room = options.get("budget", BUDGET) // (4 * state)
    return max(1, min(seen.trials * options.get("trials", 1), room))


def _labels(seen: Observation, recipe: Recipe) -> Tensor | None:
    """Return the labels to hold fixed (T, B), or None where they are optimised."""
    rule, by = recipe.labels, recipe.title
    if isinstance(rule, Tensor):
        (batch_size,) = seen.need("batch_size", by=by)
        if rule.shape != (seen.trials, batch_size):
            raise ValueError(
                f"labels must be (trials, batch) = {(seen.trials, batch_size)}, "
                f"got {tuple(rule.shape)}: one label for each image of each message"
            )
        weight, _ = seen.head()
        classes = seen.rounds[0].update[weight].shape[1]
        if rule.dtype != torch.int64 or not bool(((rule >= 0) & (rule < classes)).all()):
            raise ValueError(
                f"labels must be class numbers from 0 to {classes - 1} (int64), got {rule.dtype} "
                f"from {rule.min():g} to {rule.max():g}"
            )
        return rule.to(seen.device)
    if not isinstance(rule, str):
        raise ValueError(
            f"labels={rule!r} is neither a rule nor a tensor: write torch.tensor(…) of shape (T, B)"
        )
    choose("label rule", rule, ("joint", "oracle", *labels.RULES))
    if rule == "joint":
        return None
    if rule == "oracle":
        known, batch_size = seen.need("oracle_labels", "batch_size", by=f"{by} labels='oracle'")
        picks = seen.given.batch_indices
        known = known if picks is None else known[:, picks[0]]  # the labels are of all items
        if known.shape != (seen.trials, batch_size):
            raise GleakError(
                f"{by} with labels='oracle' needs a label for each image of each message, "
                f"{(seen.trials, batch_size)}, and was given {tuple(known.shape)}: pass labels="
            )
        return known
    return labels.RULES[rule](seen)


def _begin(
    seen: Observation,
    dummies: Dummies,
    start: str | Tensor,
    trials: int,
    seed: int,
    match: GradientMatch,
) -> Tensor:
    """Return the first dummies z (T·trials, n), in the precision and on the device of a message."""
    count = seen.trials * trials
    if isinstance(start, str) and start == "analytic":
        start = analytic.recover(seen).images
    if isinstance(start, Tensor):
        shape = (count, *dummies.image_shape)
        start = start.detach()
        images = start if len(start) == count else start.repeat_interleave(trials, 0)
        if images.shape != shape:
            raise ValueError(f"start must be images {shape}, got {tuple(start.shape)}")
    else:
        images = starts.make(start, (count, *dummies.image_shape), seed=seed)
    if dummies.labels is not None:
        return dummies.pack(_like(images, match))
    # A stream of its own: the labels' start does not depend on how many images there are.
    logits = (count, dummies.image_shape[0], dummies.classes)
    guess = starts.make("normal", logits, seed=seed + 2**40)
    return dummies.pack(_like(images, match), _like(guess, match))


def _solve(
    objective: Objective,
    z: Tensor,
    recipe: Recipe,
    matches: list[GradientMatch],
    options: Options,
    scale: Tensor,
) -> Solution:
    choose("solver", recipe.solver, solvers.SOLVERS)
    published = recipe.solver == "published_lbfgs"
    budget = options.get("budget", BUDGET)
    every = _every(z, recipe.steps, options.get("every"), max(budget, BUDGET))
    given: dict[str, Any] = {
        "steps": recipe.steps,
        "every": every,
        "stop": options.get("stop", 0.0 if options.get("published") else SOLVED / 100) * scale,
        "progress": options.get("progress"),
        "on_interrupt": options.get("on_interrupt", "raise"),
    }
    if published:
        return solvers.published_lbfgs(objective, z, rate=recipe.rate, **given)
    method = _method(recipe, matches[0].dummies.pixels)
    together = options.get("trials", 1) if recipe.penalties.get("group") else 1
    width = _width(matches, method.floats(z.shape[1]), z, budget, together)
    return solvers.minimise(objective, z, method, width=width, together=together, **given)


def _method(recipe: Recipe, pixels: int) -> solvers.Method:
    return solvers.method(
        recipe.solver,
        steps=recipe.steps,
        rate=recipe.rate,
        history=recipe.history,
        pixels=pixels if recipe.box else 0,
    )


def _width(
    matches: list[GradientMatch], floats: int, z: Tensor, budget: int, together: int = 1
) -> int:
    """Return how many trials may run side by side; a group only whole."""
    # Beyond 32 a CPU gains nothing more (`make bench`); a GPU is empty below hundreds.
    most = max(together, 1024 if z.is_cuda else 32)
    each = z.element_size() * (sum(m.floats for m in matches) + floats)
    room = max(1, budget // each)
    if room < together:
        raise GleakError(
            f"the group term looks at all {together} trials of a message at once, and the budget "
            f"has room for {room}: take fewer trials=, or raise budget="
        )
    return min(most, room) // together * together


def _every(z: Tensor, steps: int, wish: int | None, budget: int) -> int:
    """Return how often a frame is kept: as wished for, or as often as there is room."""

    def too_many(every: int) -> bool:
        count = 2 + ((steps - 1) // every if every > 0 else 0)
        return count * z.numel() * z.element_size() > budget

    if wish is None:
        return next((e for e in (10 * 2**i for i in range(20)) if not too_many(e)), 0)
    if too_many(wish):
        raise GleakError(
            f"frames of {len(z)} trials at every={wish} take more than {budget / 2**30:.1f} GB: "
            "record fewer (0: only the first and the last), or raise budget="
        )
    return wish


def _agree(matches: list[GradientMatch], z: Tensor, trials: int, budget: int) -> Tensor:
    """Say which trials are solved (T·trials,): by ‖∇W′ − ∇W‖², whatever they minimised."""
    judges = [replace(m, distance=squares_of(m.distance)) for m in matches]
    apart = Repeated(_total([(1 / len(judges), m) for m in judges]), trials)
    scale = torch.stack([m.scale for m in judges]).mean(0).double().cpu()
    found = _values(apart, z, _width(judges, 0, z, budget)).double().cpu()
    return found < SOLVED * scale.repeat_interleave(trials)


def _values(objective: Objective, z: Tensor, width: int) -> Tensor:
    """Return the objective (T,) without ever holding more than `width` trials."""
    rows = torch.arange(len(z), device=z.device).split(width)
    return torch.cat([objective.compact(row).value_and_grad(z[row])[0] for row in rows])


def _total(parts: list[tuple[float, Objective]]) -> Objective:
    return parts[0][1] if len(parts) == 1 and parts[0][0] == 1 else Total(tuple(parts))


def _like(images: Tensor, match: GradientMatch) -> Tensor:
    return images.to(next(iter(match.target.values())))


def _settings(recipe: Recipe, options: Options, evaluator: str) -> dict[str, Any]:
    """Return what was done, without tensors."""
    shown = {f.name: getattr(recipe, f.name) for f in fields(Recipe) if f.name != "sources"}
    extra = ("trials", "seed", "stop", "masked", "published")
    shown |= {k: v for k, v in options.items() if k in extra}
    shown = {k: "given" if isinstance(v, Tensor) else v for k, v in shown.items()}
    return {"seed": 0, "evaluator": evaluator, **shown}


def _status(solution: Solution, solved: Tensor) -> tuple[Status, ...]:
    """Say what the attacker can tell: cut short, solved, not yet, or worse than it began."""
    ended = (~solution.curve.isnan()).sum(0).clamp(min=1) - 1  # (T,) each trial's last step
    last = solution.curve.gather(0, ended[None])[0]
    worse = ~solution.finite | (last > solution.first_loss)
    return tuple(
        "interrupted" if cut else "solved" if good else "diverged" if bad else "failed"
        for cut, good, bad in zip(
            solution.interrupted.tolist(), solved.tolist(), worse.tolist(), strict=True
        )
    )
