"""The pictures of "Towards general deep leakage" (Geng et al. 2021), as grids."""

from gleak_core.papers import Metric
from gleak_core.studies import general_attacks, general_large, general_weights
from gleak_core.studies.cost import lenet_seconds
from gleak_core.studies.general_attacks import (
    ALIGNED,
    AVERAGE,
    BATCH,
    BLOCK,
    CIFAR_BATCH,
    CLASSES,
    EIGHT,
    EVALUATIONS,
    GRANTED,
    HISTORY,
    INFERRED,
    LARGE,
    LOCAL_RATE,
    METHODS,
    SIMULATED,
    STARTS,
    TARGETS,
    WIDE,
)
from gleak_core.studies.study import Cell, Study, declared, grid
from gleak_core.studies.trials import SIDE

__all__ = ["STUDIES"]

SETTINGS = {"repetition": (1, 2, 3), "rep_amount": (2, 4)}
COMBINATIONS = ("tv", "tv+l2", "tv+clip", "tv+scale", "tv+clip+scale", "tv+l2+clip+scale")
SQUARED = tuple(name for name in COMBINATIONS if "clip" in name or "scale" in name)
FEW, FEWEST = 10, 20
MANY = 50

# One CPU core, measured beside another run.
_WIDE_MS = 75.0  # an evaluation of sixteen pictures with 48 channels
_CIFAR = EVALUATIONS["CIFAR-10"]


def _batch(cell: Cell) -> float:
    return int(cell.get("updates", 1)) * EVALUATIONS["ImageNet"] * _WIDE_MS / 1000


def _again(cell: Cell) -> float:
    return _batch(cell) / 2  # of runs that another cell looks at as well, in each of two processes


def _cifar(cell: Cell) -> float:
    return lenet_seconds(int(cell.get("batch", CIFAR_BATCH)), iterations=_CIFAR / 1.2)


def _several(cell: Cell) -> float:
    return _cifar(cell) * (int(cell["updates"]) if cell["equal"] == "steps" else 1)


def _local(cell: Cell) -> float:
    steps = int(cell["epochs"]) if cell["surrogate"] == SIMULATED else 1  # every step is redone
    return steps * lenet_seconds(EIGHT, iterations=_CIFAR / 1.2)


_NET = (
    "The network is LeNet with 12-12-12 channels and sigmoids, its weights from U(±½): the paper "
    "says LeNet and no more."
)
_WIDE = (
    f"The network is LeNet with {WIDE}-{WIDE}-{WIDE} channels and sigmoids, its weights from "
    f"U(±¼): the paper says LeNet and no more, and with 12 channels a batch of {BATCH} is out of "
    f"our reach (dlg.c3-batch). The solver remembers {HISTORY['ImageNet']} pairs, where torch's "
    "default is 100."
)
_IMAGENET = (
    f"Our ImageNet holds one picture of each of 800 classes: four neighbouring classes are taken "
    f"as one, {CLASSES} of four pictures. The paper has {CLASSES} of five."
)
_TV = "Total variation is a mean: as a sum it outweighs the gradients by far at the printed weight."
_SMALL = f"The pictures are {SIDE}×{SIDE} instead of {LARGE}×{LARGE}, so that many batches fit."
_FEW = (
    f"{FEW} trials instead of {FEWEST}, on {FEW // BLOCK} networks: one takes about a minute of a "
    "core for every update."
)
_NO_CLIP = (
    "The clip and scale terms are left out: as printed they stop our optimiser, and as means of "
    "squares they gain nothing (gen.table2)."
)
_TERMS = (
    f"{_NO_CLIP} Total variation weighs 0.5 and the solver's rate is 0.5, as printed for CIFAR-10; "
    "for ImageNet print has 200 and 0.1."
)
_SHARED = f"{BLOCK} batches share a network; the interval treats them as if each had its own."
_BUDGET = (
    "The paper counts 300 or 600 iterations and does not say of how many evaluations; an attack "
    f"has {EVALUATIONS['CIFAR-10']} here on CIFAR-10 and {EVALUATIONS['ImageNet']} on ImageNet."
)
_RIVAL = (
    "GradInversion is our own version of it: its label rule, Adam at a constant rate and as many "
    "evaluations, with the same total variation and start as the paper's attack, and without its "
    "group of starts, its added noise and the term for normalisation layers. Its source has 20 000 "
    "steps."
)
_GIVEN = "Labels are inferred by each method's own rule."
_LPIPS = "LPIPS is that of AlexNet, where its weights are there."


STUDIES: tuple[Study, ...] = (
    declared(
        "gen.fig1",
        measure=general_large.restored,
        reads=("imagenet",),
        block=1,
        cells=grid(
            batch=(BATCH,),
            bound=(general_large.BOUND,),
            tv=(general_large.LIGHT,),
            history=(general_large.LONG,),
        ),
        reading={
            "bound": general_large.BOUND,
            "tv": general_large.LIGHT,
            "history": general_large.LONG,
        },
        seconds=general_large.seconds,
        deviations=(
            f"The network is LeNet with {WIDE}-{WIDE}-{WIDE} channels and sigmoids, its weights "
            "from U(±1/16), a quarter of Table 1's: the paper says LeNet and no more. With Table "
            "1's the attack fails at this size (large.full).",
            _IMAGENET,
            f"Total variation is a mean, and weighs {general_large.LIGHT:g}: smaller weights make "
            "smaller gradients. The solver's rate is 0.5, as printed for CIFAR-10; for ImageNet "
            "print has 0.1, and 200 for every weight. Bound and weight were chosen on one batch, "
            "which is the first of these. The clip and scale terms are left out (gen.table2).",
            _BUDGET,
            "Every batch has a network of its own.",
        ),
    ),
    declared(
        "gen.table1",
        measure=general_attacks.several,
        reads=("imagenet",),
        block=BLOCK,
        cells=grid(method=METHODS, updates=(1,)) + grid(method=METHODS[1:], updates=(2, 3, 4)),
        seconds=_batch,
        paper=FEW,
        deviations=(
            _WIDE,
            _IMAGENET,
            _TV,
            _BUDGET,
            _TERMS,
            _SMALL,
            _FEW,
            _RIVAL,
            _SHARED,
            f"A client steps at a rate of {LOCAL_RATE:g} between two updates, as stated for its "
            "training.",
            _LPIPS,
        ),
    ),
    declared(
        "gen.fig3",
        measure=general_attacks.started,
        reads=("cifar10",),
        block=BLOCK,
        cells=grid(start=STARTS, batch=(1, 4)),
        seconds=_cifar,
        paper=MANY,
        deviations=(
            _NET,
            _TV,
            _BUDGET,
            "The pictures are CIFAR-10's: the figure does not say whose.",
            _TERMS,
            _SHARED,
        ),
    ),
    declared(
        "gen.table2",
        measure=general_attacks.regularisers,
        reads=("cifar10",),
        block=BLOCK,
        cells=grid(regularisers=COMBINATIONS, tv=("mean", "sum"), terms=("as printed",))
        + grid(regularisers=SQUARED, tv=("mean",), terms=("squared",)),
        reading={"tv": "mean", "terms": "as printed"},
        seconds=_cifar,
        paper=FEWEST,
        deviations=(
            _NET,
            "Total variation stands for the table as a mean: as a sum it is measured beside.",
            f"The batches are of {CIFAR_BATCH} pictures of CIFAR-10: the table gives neither.",
            "As printed, clip and scale are norms over the batch; squared, they are means of "
            "squares, so that a weight of 100 is a hundredth for the square of each pixel.",
            "The ℓ2 term is the norm of the batch, for which the source gives no formula.",
            "Gradients are matched by the squared distance, where Equation 10 has a norm for each "
            "layer.",
            _BUDGET,
            _SHARED,
            _LPIPS,
        ),
    ),
    declared(
        "gen.table5",
        measure=general_attacks.duplicates,
        reads=("imagenet",),
        block=BLOCK,
        cells=tuple(
            cell
            for setting, counts in SETTINGS.items()
            for cell in grid(method=METHODS, setting=(setting,), count=counts)
        ),
        seconds=_batch,
        paper=FEW,
        deviations=(
            _WIDE,
            _IMAGENET,
            _TV,
            _TERMS,
            _BUDGET,
            _SMALL,
            _FEW,
            _RIVAL,
            _GIVEN,
            _SHARED,
            _LPIPS,
        ),
    ),
    declared(
        "gen.fig2",
        measure=general_attacks.aligned,
        reads=("imagenet",),
        block=BLOCK,
        cells=grid(alignment=ALIGNED, similarity=("PSNR",))
        + grid(alignment=tuple(name for name in ALIGNED if name != "none"), similarity=("SSIM",)),
        reading={"similarity": "PSNR"},
        seconds=_again,
        paper=FEWEST,
        deviations=(
            _WIDE,
            _IMAGENET,
            _TV,
            _TERMS,
            _BUDGET,
            _SMALL,
            _SHARED,
            "Where labels are pinned, a picture whose label was read is matched by construction: "
            "the row without pins says what similarity alone does.",
        ),
    ),
    declared(
        "gen.fig4",
        measure=general_attacks.fused,
        reads=("imagenet",),
        block=BLOCK,
        cells=grid(method=METHODS, target=TARGETS),
        seconds=_again,
        paper=FEW,
        deviations=(_WIDE, _IMAGENET, _TV, _TERMS, _BUDGET, _SMALL, _FEW, _RIVAL, _GIVEN, _SHARED),
    ),
    declared(
        "gen.fig5",
        measure=general_weights.from_weights,
        reads=("cifar10",),
        block=BLOCK,
        # After one step the average update is the gradient, whatever the rate; and nearly so after
        # few steps at a small one.
        cells=grid(epochs=(1,), rate=(1e-1,), surrogate=(AVERAGE,), labels=(INFERRED,))
        + grid(epochs=(2, 4, 8, 16), rate=(1e-2, 1e-1), surrogate=(AVERAGE,), labels=(INFERRED,))
        + grid(epochs=(4, 8, 16), rate=(1e-3,), surrogate=(AVERAGE,), labels=(INFERRED,))
        + grid(epochs=(16,), rate=(1e-4,), surrogate=(AVERAGE,), labels=(INFERRED,))
        # With the right labels: are the pictures lost, or only they?
        + grid(epochs=(4, 16), rate=(1e-2, 1e-1), surrogate=(AVERAGE,), labels=(GRANTED,))
        + grid(epochs=(4,), rate=(1e-2, 1e-1), surrogate=(SIMULATED,), labels=(GRANTED,)),
        reading={"surrogate": AVERAGE, "labels": INFERRED},
        seconds=_local,
        deviations=(
            _NET,
            _TV,
            _BUDGET,
            "A local epoch is one step on all eight pictures.",
            "Labels are inferred, from the weights, where the row does not say that they are "
            "granted. Angles are matched, and beside these total variation weighs "
            f"{general_weights.TV:g}, for either surrogate: 0.5, as elsewhere, costs two decibels "
            "after one step and one after four at 0.01. (That was tried on seeds 0 and 1, which "
            "are among those of the study; weights.controls has others at 0.1.)",
            "One step is measured at one rate: its average update is the gradient at any; and few "
            "steps at small rates are left out, where it nearly is.",
            _NO_CLIP,
            _SHARED,
        ),
    ),
    declared(
        "gen.onewrong",
        measure=general_attacks.wrong,
        reads=("imagenet",),
        block=BLOCK,
        cells=grid(wrong_labels=(0, 1, 2, 4, 8), pictures=("all", "right labels"))
        + grid(wrong_labels=(BATCH,), pictures=("all",)),  # none is right there
        seconds=_again,
        paper=FEW,
        deviations=(
            _WIDE,
            _IMAGENET,
            _TV,
            _BUDGET,
            _SMALL,
            _FEW,
            "The attack is the paper's own throughout, given labels of which none or some are "
            "wrong: in print the two rows come from two attacks.",
            _TERMS,
            _SHARED,
        ),
    ),
    Study(
        id="updates.cost",
        title="Several updates with as many steps as one, or as many evaluations",
        metrics=("psnr", "ssim"),
        cells=grid(updates=(1,), equal=("steps",), rate=(LOCAL_RATE,))
        + grid(updates=(2, 3, 4), equal=("steps", "evaluations"), rate=(LOCAL_RATE,))
        + grid(updates=(2, 4), equal=("evaluations",), rate=(1e-3, 1.0)),
        measure=general_attacks.at_equal_cost,
        reads=lambda _: ("cifar10",),
        seconds=_several,
        trials={"smoke": 2, "quick": 5, "paper": FEWEST},
        block=BLOCK,
        deviations=(
            _NET,
            _TV,
            _TERMS,
            _BUDGET,
            _SHARED,
            f"Batches of {CIFAR_BATCH} pictures of CIFAR-10.",
        ),
        asks={
            "psnr": Metric("psnr", "dB", "higher", "mean"),
            "ssim": Metric("ssim", "", "higher", "mean"),
        },
        chapter="03_general",
    ),
)
