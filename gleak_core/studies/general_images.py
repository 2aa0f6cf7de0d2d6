"""The pictures of "Towards general deep leakage" (Geng et al. 2021), as grids."""

from gleak_core.studies.cost import ITERATIONS, lenet_seconds
from gleak_core.studies.study import Cell, Study, declared, grid

__all__ = ["STUDIES"]

BATCH, LARGE_ITERATIONS = 16, 400  # of the ImageNet runs
SIDE = 224
SMALL_SIDE = 64  # where the question is one of labels and not of size
SMALL_BATCH = 4  # of the runs on CIFAR-10
EPOCHS_BATCH = 8
LARGE_TRIALS, LARGEST_TRIALS = 5, 3
FEWEST = 20
MANY = 50

METHODS = ("GradInversion", "General leakage")
SETTINGS = {"repetition": (1, 2, 3), "rep_amount": (2, 4)}
ALIGNED = ("assignment", "assignment, labels pinned")
STARTS = ("U(0,1)", "N(0.5,1)", "N(0,1)", "U(-0.5,0.5)")
COMBINATIONS = ("tv", "tv+l2", "tv+clip", "tv+scale", "tv+clip+scale", "tv+l2+clip+scale")
SQUARED = tuple(name for name in COMBINATIONS if "clip" in name or "scale" in name)
AVERAGE, SIMULATED = "average update", "simulated steps"


def _large(cell: Cell) -> float:
    return int(cell.get("updates", 1)) * lenet_seconds(BATCH, SIDE, LARGE_ITERATIONS)


def _small(cell: Cell) -> float:
    return lenet_seconds(BATCH, SMALL_SIDE)


def _cifar(cell: Cell) -> float:
    return lenet_seconds(int(cell.get("batch", SMALL_BATCH)))


def _local(cell: Cell) -> float:
    steps = int(cell["epochs"]) if cell["surrogate"] == SIMULATED else 1  # every step is redone
    return steps * lenet_seconds(EPOCHS_BATCH)


_NET = (
    "The network is LeNet with 12-12-12 channels and sigmoids, its weights from U(±½): the paper "
    "says LeNet and no more."
)
_IMAGENET = "Our ImageNet holds one picture of each of 800 classes."
_GROUPS = "A label that repeats is a run of neighbouring classes of ImageNet taken as one."
_TV = "Total variation is a mean: as a sum it outweighs the gradients by far at the printed weight."
_SMALL = (
    f"The pictures are {SMALL_SIDE}×{SMALL_SIDE} instead of {SIDE}×{SIDE}, attacked for "
    f"{ITERATIONS} iterations instead of {LARGE_ITERATIONS}, so that {FEWEST} batches fit: the "
    "question is one of labels."
)
_RIVAL = (
    "GradInversion is our own version of it, with its label rule and one start for a batch: its "
    "group of starts multiplies the cost."
)
_GIVEN = "Labels are inferred by each method's own rule."
_LPIPS = "LPIPS is that of AlexNet, where its weights are there."


def _few(trials: int) -> str:
    return f"{trials} trials instead of 20: one of {SIDE}×{SIDE} takes minutes on a core."


STUDIES: tuple[Study, ...] = (
    declared(
        "gen.fig1",
        cells=grid(batch=(BATCH,)),
        seconds=_large,
        paper=LARGE_TRIALS,
        deviations=(_NET, _IMAGENET, _TV, _few(LARGE_TRIALS)),
    ),
    declared(
        "gen.table1",
        cells=grid(method=METHODS, updates=(1,)) + grid(method=METHODS[1:], updates=(2, 3, 4)),
        seconds=_large,
        paper=LARGEST_TRIALS,
        deviations=(_NET, _IMAGENET, _TV, _RIVAL, _LPIPS, _few(LARGEST_TRIALS)),
    ),
    declared(
        "gen.fig3",
        cells=grid(start=STARTS, batch=(1, 4)),
        seconds=_cifar,
        paper=MANY,
        deviations=(_NET, _TV, "The pictures are CIFAR-10's: the figure does not say whose."),
    ),
    declared(
        "gen.table2",
        cells=grid(regularisers=COMBINATIONS, tv=("mean", "sum"), terms=("as printed",))
        + grid(regularisers=SQUARED, tv=("mean",), terms=("squared",)),
        reading={"tv": "mean", "terms": "as printed"},
        seconds=_cifar,
        paper=MANY,
        deviations=(
            _NET,
            "Total variation stands for the table as a mean: as a sum it is measured beside.",
            f"The batches are of {SMALL_BATCH} pictures of CIFAR-10: the table gives neither.",
            _LPIPS,
        ),
    ),
    declared(
        "gen.table5",
        cells=tuple(
            cell
            for setting, counts in SETTINGS.items()
            for cell in grid(method=METHODS, setting=(setting,), count=counts)
        ),
        seconds=_small,
        paper=FEWEST,
        deviations=(_NET, _IMAGENET, _GROUPS, _TV, _SMALL, _RIVAL, _GIVEN, _LPIPS),
    ),
    declared(
        "gen.fig2",
        cells=grid(alignment=("none", *ALIGNED), similarity=("PSNR",))
        + grid(alignment=ALIGNED, similarity=("SSIM",)),
        reading={"similarity": "PSNR"},
        seconds=_small,
        paper=FEWEST,
        deviations=(_NET, _IMAGENET, _TV, _SMALL),
    ),
    declared(
        "gen.fig4",
        cells=grid(
            method=METHODS,
            target=("own picture", "half own, half same label", "half own, half other label"),
        ),
        seconds=_small,
        paper=FEWEST,
        deviations=(_NET, _IMAGENET, _GROUPS, _TV, _SMALL, _RIVAL, _GIVEN),
    ),
    declared(
        "gen.fig5",
        cells=grid(epochs=(1, 2, 4, 8, 16), rate=(1e-4, 1e-3, 1e-2, 1e-1), surrogate=(AVERAGE,))
        + grid(epochs=(4, 16), rate=(1e-3,), surrogate=(SIMULATED,))
        + grid(epochs=(4,), rate=(1e-1,), surrogate=(SIMULATED,)),
        reading={"surrogate": AVERAGE},
        seconds=_local,
        deviations=(
            _NET,
            _TV,
            "A local epoch is one step on all eight pictures.",
            "Labels are inferred, from the weights.",
        ),
    ),
    declared(
        "gen.onewrong",
        cells=grid(wrong_labels=(0, 1, 4), pictures=("all", "right labels"))
        + grid(wrong_labels=(BATCH,), pictures=("all",)),  # none is right there
        seconds=_small,
        paper=FEWEST,
        deviations=(
            _NET,
            _IMAGENET,
            _TV,
            _SMALL,
            "The attack is the paper's own throughout, given labels of which some are wrong: in "
            "print the two rows come from two attacks.",
        ),
    ),
)
