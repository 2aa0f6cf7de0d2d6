"""What a trial costs on one CPU core, by the measured speed of the engine, until it was timed."""

import numpy as np

__all__ = [
    "EVALUATIONS",
    "GPU",
    "ITERATIONS",
    "TRAINING",
    "WIDE",
    "lenet_seconds",
    "share_of_training",
]

# Times a core, for one H200. A guess, as nothing was timed there: with a thousand trials at once
# the engine should do a hundred times a core's, and our blocks are smaller.
GPU = 40.0
ITERATIONS = 300  # DLG's own budget
EVALUATIONS = 1.2  # of L-BFGS in an iteration
WIDE = 5  # times the cost, for 48 channels in place of 12: four for a batch, five for 64×64
TRAINING = 15.0  # seconds: a small CNN, to the end, on 3660 pictures

# Milliseconds of one evaluation on DLG's LeNet: of a batch at 32×32, and of one larger picture.
# Measured with a few trials side by side; one alone takes up to five times as long.
_PICTURES, _MS = (1, 4, 16, 64), (0.38, 1.2, 4.4, 19.0)
_MS_AT = {64: 1.0, 128: 4.1, 224: 12.8}
_PAIR_MS = 0.0125  # what a pair of L-BFGS's history adds, for a picture of 32×32
_SIDE, SHORT = 32, 10  # a larger picture gets a shorter history


def lenet_seconds(
    pictures: int = 1, side: int = _SIDE, iterations: float = ITERATIONS, history: int | None = None
) -> float:
    """Return what it takes to match the gradient of a batch on DLG's LeNet.

    L-BFGS with a long history is slower than the evaluations: it streams through its memory. An
    attack by Adam has no history (0), and one evaluation in an iteration.
    """
    one = float(np.interp(pictures, _PICTURES, _MS)) if side == _SIDE else pictures * _MS_AT[side]
    history = (40 if side == _SIDE else SHORT) if history is None else history
    step = one + history * _PAIR_MS * pictures * (side / _SIDE) ** 2
    return iterations * (EVALUATIONS if history else 1) * step / 1000


def share_of_training(trials: int) -> float:
    """Return a trial's share of one training."""
    return TRAINING / trials
