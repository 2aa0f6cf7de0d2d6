"""What the named attacks are made of: as published, each choice with its source, and as we run it.

A recipe is data: label rule, start, distance, penalties, solver. `attacks` carries them out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from gleak_core.distances import Distance
from gleak_core.errors import choose

__all__ = ["PUBLISHED", "RECIPES", "Recipe", "explain"]


@dataclass(frozen=True)
class Recipe:
    """An attack as a choice of parts; `sources` says where each choice comes from."""

    title: str
    paper: str
    labels: str | Tensor  # "joint", "oracle", a rule of `labels.RULES`, or labels (T, B)
    start: str | Tensor
    distance: str | Distance
    solver: str
    steps: int
    rate: float = 1.0
    history: int = 100
    penalties: Mapping[str, float] = field(default_factory=dict)
    box: bool = False  # keep pixels in [0, 1] after every step
    several: bool = False  # matches several messages at once
    sources: Mapping[str, str] = field(default_factory=dict)


_DLG = Recipe(
    title="DLG",
    paper="Zhu, Liu & Han 2019, Deep Leakage from Gradients",
    labels="joint",
    start="normal",
    distance="squared_l2",
    solver="published_lbfgs",
    steps=300,
    sources={
        "labels": "Alg. 1: the label is optimised with the image",
        "start": "Alg. 1: N(0, 1)",
        "distance": "Eq. 4",
        "solver": "§4.1: L-BFGS, rate 1, history 100; 20 iterations a step, no line search",
        "steps": "its code (§4.1 states 1200 iterations)",
    },
)

_AS_DLG = {part: f"as DLG ({source})" for part, source in _DLG.sources.items()}

PUBLISHED: Mapping[str, Recipe] = {
    "dlg": _DLG,
    "idlg": replace(
        _DLG,
        title="iDLG",
        paper="Zhao, Mopuri & Bilen 2020, Improved Deep Leakage from Gradients",
        labels="idlg",
        sources={**_AS_DLG, "labels": "its Eq. 4: the sign of the last layer's rows"},
    ),
    "cpl": replace(
        _DLG,
        title="CPL",
        paper="Wei et al. 2020, A Framework for Evaluating Gradient Leakage Attacks",
        labels="cpl",
        start="level-2",
        penalties={"task_loss": 1e-3},
        sources={
            **_AS_DLG,
            "labels": "argmin over the last layer's rows",
            "start": "a patterned start; level 2 read as equal quadrants of equal quadrants",
            "penalties": "α‖f(x) − y‖²; α is not stated: 1e-3 is ours",
        },
    ),
    "inverting_gradients": Recipe(
        title="Inverting Gradients",
        paper="Geiping et al. 2020, Inverting Gradients",
        labels="general",
        start="normal",
        distance="cosine",
        penalties={"tv_mean": 0.1},
        solver="signed_adam",
        steps=24_000,
        rate=0.1,
        box=True,
        sources={
            "labels": "taken as known there; restored by Geng et al. 2021, Eq. 16 here",
            "distance": "Eq. 4",
            "penalties": "Eq. 4; the coefficient varies by experiment (its code: 0.1 on ImageNet)",
            "solver": "Adam on signs, the rate to a tenth at 3/8, 5/8 and 7/8 (its code)",
            "steps": "its code for ImageNet",
        },
    ),
    "grad_inversion": Recipe(
        title="GradInversion",
        paper="Yin et al. 2021, See through Gradients",
        labels="grad_inversion",
        start="normal",
        distance="squared_l2",
        penalties={"tv_sum": 1e-4, "l2": 1e-6, "group": 0.01},
        solver="adam",
        steps=20_000,
        rate=0.1,
        sources={
            "labels": "batch label restoration: the smallest minima of the last layer's rows",
            "distance": "its gradient matching term",
            "penalties": "fidelity and group terms; add batch_norm for a model with statistics",
            "solver": "Adam; its warm-up, cosine decay and added noise are left out",
            "steps": "its experiments on ImageNet",
        },
    ),
    "general": Recipe(
        title="General deep leakage",
        paper="Geng et al. 2021, Towards General Deep Leakage in Federated Learning",
        labels="general",
        start="uniform",
        distance="squared_l2",
        penalties={"tv_mean": 0.5, "clip": 100.0, "scale": 100.0},
        solver="published_lbfgs",
        steps=300,
        rate=0.5,
        several=True,
        sources={
            "labels": "Eq. 16",
            "start": "§4: U(0, 1)",
            "distance": "Alg. 1 and 2 (Eq. 10 prints the norm unsquared); Eq. 24 for weights",
            "penalties": "Eq. 17–19 with the coefficients for CIFAR-10; TV read as a mean, and "
            "α_l2 = 0.1 left out, for which Eq. 19 has no term",
            "solver": "§4: L-BFGS, rate 0.5; no line search is mentioned",
            "steps": "§4, for CIFAR-10",
        },
    ),
}

_ROBUST = {"solver": "lbfgs", "rate": 1.0, "history": 40, "start": "grey", "steps": 3000}
_WHY = {
    "solver": "it never takes a step that raises the loss, so it cannot blow up",
    "start": "closer to any picture than noise of full range",
    "steps": "one evaluation each, not twenty",
    "history": "enough for most pictures; the published 100 costs more to move than it saves",
    "rate": "a step that is too long is shortened",
    "penalties": "clipping squared and averaged, for the kink of Eq. 17 stops a method that must "
    "go down; no scale term, for the gradients already say how bright the picture is",
}


def _ours(name: str, **changes: object) -> Recipe:
    published = PUBLISHED[name]
    changed = _ROBUST | changes
    return replace(published, **changed, sources=_WHY)  # pyright: ignore[reportArgumentType]


RECIPES: Mapping[str, Recipe] = {
    "dlg": _ours("dlg"),
    "idlg": _ours("idlg"),
    "cpl": _ours("cpl", start="level-2"),
    "inverting_gradients": replace(
        PUBLISHED["inverting_gradients"],
        steps=2000,
        penalties={"tv_mean": 0.01},
        sources={
            "steps": "a laptop's patience",
            "penalties": "a choice of ours, for small pictures",
        },
    ),
    "grad_inversion": replace(
        PUBLISHED["grad_inversion"], steps=2000, sources={"steps": "a laptop's patience"}
    ),
    "general": _ours("general", start="uniform", penalties={"tv_mean": 0.5, "clip_squared": 100.0}),
}
"""The recipes as we run them unless told otherwise; `published=True` takes the other one."""

_PARTS = ("labels", "start", "distance", "penalties", "solver", "steps", "rate", "history", "box")


def explain(name: str) -> str:
    """Return an attack's recipe side by side: as published, as it is run here, and why."""
    if name == "analytic":
        return (
            "analytic: no recipe, but equations; layer by layer from the last, the input is solved "
            "for (Zhu & Blaschko 2021, R-GAP). One image, an exact gradient, a plain stack."
        )
    choose("attack", name, [*RECIPES, "analytic"])
    published, ours = PUBLISHED[name], RECIPES[name]
    rows = [("", "published", "here", "source, and why ours differs")]
    for part in _PARTS:
        before, now = _say(getattr(published, part)), _say(getattr(ours, part))
        reasons = [published.sources.get(part, "")]
        if before != now:
            reasons.append(f"here: {ours.sources.get(part, 'follows from the solver')}")
        rows.append(
            (part, before, "the same" if before == now else now, "; ".join(filter(None, reasons)))
        )
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in rows
    ]
    return "\n".join([f"{published.title}: {published.paper}", *lines])


def _say(value: object) -> str:
    if isinstance(value, Mapping):
        return " + ".join(f"{c:g} {name}" for name, c in value.items()) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
