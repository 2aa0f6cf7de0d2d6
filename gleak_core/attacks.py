"""The named attacks: each a recipe of label rule, start, objective and solver.

An attack sees an `Observation` and nothing else. `explain(name)` says what each is made of.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Unpack

from gleak_core import labels
from gleak_core.engine import BUDGET, SOLVED, Options, by_recursion, carry_out
from gleak_core.errors import choose
from gleak_core.observation import Observation, Reconstruction
from gleak_core.recipes import PUBLISHED, RECIPES, explain

__all__ = [
    "ATTACKS",
    "BUDGET",
    "PUBLISHED",
    "RECIPES",
    "SOLVED",
    "Options",
    "analytic",
    "cpl",
    "dlg",
    "explain",
    "general",
    "grad_inversion",
    "idlg",
    "inverting_gradients",
]


def dlg(seen: Observation, **options: Unpack[Options]) -> Reconstruction:
    """Deep Leakage from Gradients: optimise image and label together (Zhu et al. 2019, Alg. 1)."""
    return carry_out("dlg", seen, options)


def idlg(seen: Observation, **options: Unpack[Options]) -> Reconstruction:
    """Improved DLG: read the label off the gradient, then optimise the image (Zhao et al. 2020)."""
    return carry_out("idlg", seen, options)


def cpl(seen: Observation, **options: Unpack[Options]) -> Reconstruction:
    """Client Privacy Leakage: argmin label, patterned start, a task-loss term (Wei et al. 2020)."""
    return carry_out("cpl", seen, options)


def inverting_gradients(seen: Observation, **options: Unpack[Options]) -> Reconstruction:
    """Inverting Gradients: the angle of the gradient, and total variation (Geiping et al. 2020)."""
    return carry_out("inverting_gradients", seen, options)


def grad_inversion(seen: Observation, **options: Unpack[Options]) -> Reconstruction:
    """GradInversion: unique labels, fidelity terms, a group of seeds (Yin et al. 2021).

    The group is made of the `trials` against one message: take several.
    """
    return carry_out("grad_inversion", seen, options)


def general(seen: Observation, *, rounds: int = 1, **options: Unpack[Options]) -> Reconstruction:
    """General deep leakage: label counts, bounded pixels, several updates (Geng et al. 2021).

    With `rounds` > 1 the images found are used to count the labels again, and the attack is run
    again with these: the fixed point labels → images → p → labels. Weights are matched by angle
    (Eq. 24).
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    if seen.kind == "weights":
        options = {"distance": "cosine_per_layer", **options}
    found = carry_out("general", seen, options)
    for _ in range(rounds - 1):
        if "interrupted" in found.status:
            break
        # The same message may have been attacked by several trials: the best one counts.
        trials = found.trials // seen.trials
        again = labels.refine(seen, found.best(trials).images)
        found = _after(found, carry_out("general", seen, {**options, "labels": again}))
    return found


def analytic(seen: Observation, *, polish: int = 0, **options: Unpack[Options]) -> Reconstruction:
    """Rebuild the image by linear algebra, layer by layer; then polish it by so many steps.

    One image per message, and a network of `analytic`'s class; without `polish` no optimiser runs.
    """
    owned = ("start", "steps") if polish else tuple(Options.__annotations__)
    for option in options:
        choose("option", option, Options.__annotations__)
        if option in owned:
            raise ValueError(
                f"the recursion has no {option}: leave it out"
                + ("; polish= says how many steps" if polish else ", or polish= by an optimiser")
            )
    if polish:
        return carry_out("idlg", seen, {"start": "analytic", "steps": polish, **options})
    return by_recursion(seen)


ATTACKS: dict[str, Callable[..., Reconstruction]] = {
    "dlg": dlg,
    "idlg": idlg,
    "cpl": cpl,
    "inverting_gradients": inverting_gradients,
    "grad_inversion": grad_inversion,
    "general": general,
    "analytic": analytic,
}


def _after(first: Reconstruction, then: Reconstruction) -> Reconstruction:
    """Return the second attack with the cost of both."""
    return replace(
        then,
        evaluations=first.evaluations + then.evaluations,
        seconds=first.seconds + then.seconds,
    )
