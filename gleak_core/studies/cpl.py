"""Grids of "A deeper dive into CPL vs DLG"."""

from gleak_core.studies.cost import ONE_PICTURE, WIDE, lenet_seconds, share_of_training
from gleak_core.studies.study import Cell, Study, declared, grid

__all__ = ["STUDIES"]

SIDE, LARGE = 32, 128
RATE = 1e-3  # of the client, which the text does not give
SHOWN = 100  # iterations that the figures show
LONG = 220  # iterations to the picture of 128×128
MANY = 40
PAIRS = 40  # pictures on which the parts of CPL are compared
TUNED = 8  # values of α that are tried
_LABEL = 0.02  # seconds: a gradient of up to 20 pictures and its smallest entry

METHODS = ("CPL", "DLG")
PARTS = ("DLG + label", "DLG + loss term", "DLG + start")
BOTH = ("DLG + label + loss term", "DLG + label + start", "DLG + loss term + start")
STARTS = ("random", "black", "white", "level-1", "level-2")
DRAWN = ("random", "level-1", "level-2")  # starts made of random numbers
PUBLISHED, SWAPPED = "as in the code", "swapped"  # the numbers in patterns and in random starts
ORACLE, OWN = "victim's logits", "recovered label"  # what the loss term pulls the output to
CLASSES = (1, 2)
CONDITIONS = {  # the settings of the other results → side of the picture
    "one picture": SIDE,
    "batch of 10": SIDE,
    "five client iterations": SIDE,
    "128×128": LARGE,
    "CIFAR-100": SIDE,
}


def _dummies(cell: Cell) -> float:
    """One dummy stands for the whole batch, or every picture has its own."""
    return lenet_seconds(int(cell["batch"]) if cell["dummies"] == "all" else 1)


def _one(cell: Cell) -> float:
    return lenet_seconds()


def _shown(cell: Cell) -> float:
    return lenet_seconds(iterations=SHOWN)


def _iteration(cell: Cell) -> float:
    return lenet_seconds(iterations=float(cell["iteration"]))


def _large(cell: Cell) -> float:
    wide = WIDE if cell["network"] == "wide" else 1
    return lenet_seconds(1, LARGE, LONG) * wide


def _to_the_end(cell: Cell) -> float:
    return ONE_PICTURE


def _alpha(cell: Cell) -> float:
    return lenet_seconds() * (TUNED if cell["alpha"] == "tuned" else 1)


def _label(cell: Cell) -> float:
    return _LABEL + (share_of_training(MANY) if cell["network"] == "trained" else 0)


def _condition(cell: Cell) -> float:
    return lenet_seconds(1, CONDITIONS[str(cell["condition"])])  # one dummy, whatever the batch


def _swapped(starts: tuple[str, ...], **axes: tuple[str | int, ...]) -> tuple[Cell, ...]:
    """Return the cells of these starts, and where numbers are drawn those of the other range."""
    drawn = tuple(name for name in starts if name in DRAWN)
    return grid(start=starts, **axes, values=(PUBLISHED,)) + grid(
        start=drawn, **axes, values=(SWAPPED,)
    )


_AS_PUBLISHED = {"values": PUBLISHED}

_LFW = "The pictures are LFW's at 32×32,, of the people with at least 14 pictures."
_NET = (
    "The network is CPL's LeNet with four convolutions and sigmoids, its weights from U(±½): the "
    "text says LeNet and no more."
)
_RANGE = (
    "Random starts are N(0,1) and patterns U(0,1), as in CPL's code: the text gives no range, and "
    "the ranges swapped are measured beside."
)
_ALPHA = "α is 1e-3, and the loss term takes the victim's own logits, as in CPL's code."
_DUMMY = (
    "One dummy is matched to the mean gradient of a batch of one class, as the printed numbers "
    "suggest; SSIM and MSE are those to the nearest picture of the batch."
)
_RATE = (
    "A client iteration is a step of gradient descent on the whole batch at a rate of "
    f"{RATE:g}, and (W⁰ − Wᴸ)/(ηL) is matched: the text gives neither rate nor definition."
)
_TRIALS = "A trial is another picture on another network: the figure shows one."

STUDIES: tuple[Study, ...] = (
    declared(
        "cpl.table1",
        cells=grid(
            batch=(1, 5, 10, 20),
            client_iterations=(1, 2, 5, 10, 20, 50),
            rate=(1e-4, RATE, 1e-2, 1e-1),
            dummies=("one",),
        )
        # The attack that deserves the name: a dummy for every picture.
        + grid(
            batch=(5, 10, 20),
            client_iterations=(1, 2, 5, 10, 20, 50),
            rate=(RATE,),
            dummies=("all",),
        ),
        reading={"rate": RATE, "dummies": "one"},
        seconds=_dummies,
        deviations=(_LFW, _NET, _DUMMY, _RATE, _ALPHA),
    ),
    declared(
        "cpl.fig3",
        cells=grid(batch=(1, 5, 10, 15), dummies=("one",))
        + grid(batch=(5, 10, 15), dummies=("all",)),
        reading={"dummies": "one"},
        seconds=_dummies,
        deviations=(_LFW, _NET, _DUMMY, _ALPHA),
    ),
    declared(
        "cpl.fig8",
        cells=grid(method=METHODS, batch=(1, 5, 10, 15), client_iterations=(1, 5)),
        reading={"client_iterations": 1},
        seconds=_one,
        deviations=(_LFW, _NET, _DUMMY, _RATE, _ALPHA),
    ),
    declared(
        "cpl.fig4",
        cells=grid(
            batch=(1, 2),
            client_iterations=(5, 10, 15, 50, 100),
            alpha=("published", "zero"),
            rate=(RATE, 1e-2),
        ),
        reading={"rate": RATE},
        seconds=_one,
        paper=MANY,  # one run in ten is to be seen
        deviations=(_LFW, _NET, _DUMMY, _RATE, _ALPHA),
    ),
    declared(
        "cpl.fig5",
        cells=_swapped(STARTS),
        reading=_AS_PUBLISHED,
        seconds=_shown,
        paper=MANY,
        deviations=(_LFW, _NET, _RANGE, _TRIALS),
    ),
    declared(
        "cpl.fig6",
        cells=_swapped(STARTS),
        reading=_AS_PUBLISHED,
        seconds=_shown,
        paper=MANY,
        deviations=(_LFW, _NET, _RANGE, "The pictures are of other people than those of Figure 5."),
    ),
    declared(
        "cpl.fig7",
        cells=_swapped(("random", "level-2"), label_class=CLASSES),
        reading=_AS_PUBLISHED,
        seconds=_shown,
        paper=MANY,
        deviations=(_LFW, _NET, _RANGE, "A class is one half of the people: the text names none."),
    ),
    declared(
        "cpl.fig9",
        cells=_swapped(("random", "level-2"), dataset=("CIFAR-100", "LFW"), label_class=CLASSES),
        reading=_AS_PUBLISHED,
        seconds=_shown,
        paper=MANY,
        deviations=(
            _LFW,
            _NET,
            _RANGE,
            "A class is one half of the classes: the text names none.",
            "The pattern is that of level 2: the text does not say which.",
        ),
    ),
    declared(
        "cpl.fig10",
        cells=grid(
            method=METHODS, stage=("reasonable", "main features"), network=("wide", "narrow")
        ),
        reading={"network": "wide"},
        seconds=_large,
        deviations=(
            "The network has 48 channels, as CPL's own run at this size has a wide one; 12 "
            "channels are measured beside.",
            "The pictures are LFW's, scaled to 128×128.",
        ),
    ),
    declared(
        "cpl.fig11",
        cells=grid(method=METHODS, iteration=tuple(range(10, SHOWN + 1, 10))),
        seconds=_iteration,
        paper=MANY,
        deviations=(_LFW, _NET, _RANGE, "The web page's sample is lost: ours are recorded anew."),
    ),
    declared(
        "cpl.asr",
        cells=grid(method=METHODS),
        seconds=_to_the_end,
        paper=100,
        deviations=(_LFW, _NET, _RANGE, _ALPHA),
    ),
    declared(
        "cpl.alpha",
        cells=grid(
            alpha=("published", "tuned", "zero", "a tenth", "tenfold"),
            client_iterations=(1, 5, 10, 20, 50),
        ),
        seconds=_alpha,
        paper=MANY,
        deviations=(
            _LFW,
            _NET,
            _RATE,
            _ALPHA,
            f"The tuned α is the best of {TUNED} on pictures of other people.",
        ),
    ),
    declared(
        "cpl.label",
        cells=tuple(
            cell
            for cell in grid(
                batch=(1, 5, 10, 15, 20),
                network=("untrained", "trained"),
                classes=("one", "several"),
                defence=("none", "noise 1e-3", "half precision", "pruning 70 %"),
            )
            # One picture has one class; defences are our question, asked without training.
            if (cell["batch"], cell["classes"]) != (1, "several")
            and (cell["network"] == "untrained" or cell["defence"] == "none")
        ),
        reading={"defence": "none"},
        seconds=_label,
        paper=MANY,
        deviations=(_LFW, _NET, "The trials of a cell read labels off one trained network."),
    ),
    declared(
        "cpl.conclusion",
        cells=grid(
            method=(*METHODS, *PARTS, *BOTH),
            condition=CONDITIONS,
            term=(ORACLE,),
            values=(PUBLISHED,),
        )
        # The loss term without the oracle, and the two ranges exchanged.
        + grid(
            method=("CPL", "DLG + loss term"),
            condition=CONDITIONS,
            term=(OWN,),
            values=(PUBLISHED,),
        )
        + grid(
            method=("CPL", "DLG", "DLG + start"),
            condition=("one picture", "CIFAR-100"),
            term=(ORACLE,),
            values=(SWAPPED,),
        ),
        reading={"term": ORACLE, **_AS_PUBLISHED},
        seconds=_condition,
        paper=PAIRS,
        deviations=(_LFW, _NET, _RANGE, _RATE, _ALPHA),
    ),
)
