"""The cross-paper matrix: every attack on the same pictures, networks, protocols and defences.

No paper has this figure, so nothing is published to hold it against.
"""

from gleak_core.studies.cost import lenet_seconds
from gleak_core.studies.study import Cell, Study, grid

__all__ = ["STUDIES"]

ITERATIONS = 100  # the same for all
TRIALS = {"smoke": 2, "quick": 5, "paper": 20}
BATCHES = (1, 4, 8)
UPDATES = 2  # where several are shared

CONV = "ConvNet of CAFE"
RELU = "LeNet, ReLU"
MODELS = ("LeNet", RELU, CONV, "LeNet, trained")
FEDSGD, SEVERAL, FEDAVG = "FedSGD", "several updates", "FedAvg"
PROTOCOLS = (FEDSGD, SEVERAL, FEDAVG)
DEFENCES = ("none", "noise 1e-3", "half precision", "pruning 70 %")
ATTACKS = (
    "dlg",
    "idlg",
    "cpl",
    "inverting_gradients",
    "grad_inversion",
    "general",
    "analytic",
    "cafe",
)

BY_ADAM = ("inverting_gradients", "grad_inversion", "cafe")

_CONV_MS = 0.45  # one core: a picture and an evaluation, at a quarter of CAFE's width
_EVALUATIONS = 1.2  # of L-BFGS in an iteration; Adam's is one
_RECURSION = 0.05  # seconds: linear systems, no iterations


def refused(cell: Cell) -> bool:
    """Whether an attack is not made for a combination."""
    attack, batch, protocol = cell["attack"], cell["batch"], cell["protocol"]
    # Its rule reads one label, and the recursion rebuilds one picture.
    if attack in ("idlg", "analytic") and batch != 1:
        return True
    # Only the several updates of Geng et al. 2021, Alg. 2, are matched together.
    if protocol == SEVERAL:
        return attack != "general"
    # The recursion divides by the gradient itself, layer by layer: what has gone through noise,
    # rounding or local steps is no such gradient, and a ReLU cannot be undone.
    if attack == "analytic":
        exact = protocol == FEDSGD and cell["defence"] == "none"
        return not exact or cell["model"] == RELU
    # Its linear system is made of gradients of many batches at the same weights.
    return attack == "cafe" and protocol != FEDSGD


def _seconds(cell: Cell) -> float:
    """What one trial takes, with the same number of iterations for every iterative attack.

    The trained network is one for all trials: a process makes it once, in a minute.
    """
    if cell["attack"] == "analytic":
        return _RECURSION
    batch = int(cell["batch"])
    if cell["model"] == CONV:
        run = ITERATIONS * _EVALUATIONS * batch * _CONV_MS / 1000
    else:
        history = 0 if cell["attack"] in BY_ADAM else None
        run = lenet_seconds(batch, iterations=ITERATIONS, history=history)
    several = UPDATES if cell["protocol"] == SEVERAL else 1
    return several * run


STUDIES: tuple[Study, ...] = (
    Study(
        id="matrix.attacks",
        title="Every attack on the same pictures, networks, protocols and defences",
        metrics=("psnr", "ssim", "success_rate", "accuracy"),
        cells=tuple(
            cell
            for cell in grid(
                attack=ATTACKS,
                model=MODELS,
                batch=BATCHES,
                protocol=PROTOCOLS,
                defence=DEFENCES,
                dataset=("photographs",),  # at 32×32
            )
            if not refused(cell)
        ),
        measure=None,
        seconds=_seconds,
        trials=TRIALS,
        deviations=(
            "CAFE's network has a quarter of its width, 16-32-fc128-64: at full width the matrix "
            "alone would take longer than all other studies together.",
            "The trained LeNet is one network for all trials.",
            f"Every iterative attack gets {ITERATIONS} iterations, fewer than some were published "
            "with, so that their cost is the same.",
        ),
    ),
)
