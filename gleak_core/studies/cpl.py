"""Grids of "A deeper dive into CPL vs DLG"."""

from gleak_core.papers import Metric
from gleak_core.studies import cpl_attacks, cpl_clients, cpl_judges, cpl_questions
from gleak_core.studies.batches import DATASETS
from gleak_core.studies.cpl_attacks import (
    BUDGETS,
    CONDITIONS,
    LARGE,
    METHODS,
    MOST,
    ORACLE,
    OWN,
    PUBLISHED,
    RATE,
    SHOWN,
    SWAPPED,
    WITHIN,
)
from gleak_core.studies.cpl_clients import AT_ONCE, STEP
from gleak_core.studies.cpl_judges import JUDGES
from gleak_core.studies.cpl_questions import DEFENCES, OWN_PICTURES, TRIED, WEIGHTS
from gleak_core.studies.study import Cell, Study, declared, grid
from gleak_core.studies.trials import INNER, SHARED

__all__ = ["STUDIES"]

MANY = 40
PAIRS = 30  # pictures on which the parts of CPL are compared
_BLOCK = SHARED

BATCHES, ITERATIONS = (1, 5, 10, 20), (1, 2, 5, 10, 20, 50)
PAIR = ("CPL", "DLG")
STARTS = ("random", "black", "white", "level-1", "level-2")
DRAWN = ("random", "level-1", "level-2")  # starts made of random numbers
CLASSES = (1, 2)
SWAPPABLE = ("CPL", "DLG", "DLG + start")
STEPS = (1, 10, 20, 50)  # client iterations that α is tuned against

# One CPU core, measured: twenty trials side by side, to the end of their iterations.
_MS = {1: 1.7, 2: 3.4, 5: 7.0, 10: 13.0, 15: 19.0, 20: 25.0}  # an evaluation of so many dummies
_LARGE_MS = {"narrow": 20.0, "wide": 110.0}  # of one picture of 128×128
_LABEL, _TRAINING = 0.05, 20.0  # seconds: a gradient of up to 20 pictures; a network that learns


def _dummies(cell: Cell) -> float:
    """One dummy stands for the whole batch, or every picture has its own."""
    many = int(cell["batch"]) if cell["dummies"] == "all" else 1
    return SHOWN * INNER * _MS[many] / 1000


def _shown(cell: Cell) -> float:
    return SHOWN * INNER * _MS[1] / 1000


def _frames(cell: Cell) -> float:
    return _shown(cell) / 5  # ten cells are of the same runs, in each of two processes


def _large(cell: Cell) -> float:
    return BUDGETS[str(cell["stage"])] * INNER * _LARGE_MS[str(cell["network"])] / 1000


def _to_the_end(cell: Cell) -> float:
    return _shown(cell) * (1 if cell["method"] == "CPL" else 3)


def _alpha(cell: Cell) -> float:
    tried = len(TRIED) * OWN_PICTURES / 20 if cell["alpha"] == "tuned" else 0
    return _shown(cell) * (1 + tried)


def _label(cell: Cell) -> float:
    return _LABEL + (_TRAINING / SHARED if cell["network"] == "trained" else 0)


def _condition(cell: Cell) -> float:
    how, steps = CONDITIONS[str(cell["condition"])]  # one dummy, whatever the batch
    return steps * INNER * (_LARGE_MS["narrow"] if how.side == LARGE else _MS[1]) / 1000


def _swapped(starts: tuple[str, ...], **axes: tuple[str | int, ...]) -> tuple[Cell, ...]:
    """Return the cells of these starts, and where numbers are drawn those of the other range."""
    drawn = tuple(name for name in starts if name in DRAWN)
    return grid(start=starts, **axes, values=(PUBLISHED,)) + grid(
        start=drawn, **axes, values=(SWAPPED,)
    )


_AS_PUBLISHED = {"values": PUBLISHED}

_LFW = f"The pictures are LFW's at 32×32, of the people with at least {MOST} pictures."
_NET = (
    "The network is CPL's LeNet with four convolutions and sigmoids, its weights from U(±½): the "
    "text says LeNet and no more."
)
_LOOP = (
    f"The attack is DLG's own loop for {SHOWN} iterations of 20 evaluations, as many as the "
    "figures show; the iterate with the lowest loss is judged, clipped."
)
_RANGE = (
    "Random starts are N(0,1) and patterns U(0,1), as in CPL's code: the text gives no range, and "
    "the ranges swapped are measured beside."
)
_ALPHA = (
    "α is 1e-3, and the loss term takes the victim's own logits (their mean over a batch), as in a "
    "line of CPL's code that is commented out there: an attacker does not have them."
)
_DUMMY = (
    "One dummy is matched to the mean gradient of a batch of one class, as the printed numbers "
    "suggest; SSIM and MSE are those to the nearest picture of the batch."
)
_RATE = (
    "A client iteration is a step of gradient descent on the whole batch at a rate of "
    f"{RATE:g}, and (W⁰ − Wᴸ)/(ηL) is matched: the text gives neither rate nor definition, and "
    "CPL's code has another one (messages.moved)."
)
_TRIALS = (
    "A trial is another picture, and twenty of them share a network; others have another one: the "
    "figure shows one picture."
)
_SHARED = (_NET, _LOOP, _TRIALS)

STUDIES: tuple[Study, ...] = (
    declared(
        "cpl.table1",
        measure=cpl_attacks.table,
        reads=("lfw",),
        block=_BLOCK,
        cells=grid(batch=BATCHES, client_iterations=ITERATIONS, rate=(RATE,), dummies=("one",))
        # After one iteration no rate is left in what is matched.
        + grid(
            batch=(1, 10),
            client_iterations=(2, 10, 50),
            rate=(1e-4, 1e-2, 1e-1),
            dummies=("one",),
        )
        # The attack that deserves the name: a dummy for every picture.
        + grid(batch=(5, 10), client_iterations=(1, 5), rate=(RATE,), dummies=("all",)),
        reading={"rate": RATE, "dummies": "one"},
        seconds=_dummies,
        deviations=(_LFW, *_SHARED, _DUMMY, _RATE, _ALPHA),
    ),
    declared(
        "cpl.fig3",
        measure=cpl_attacks.table,
        reads=("lfw",),
        block=_BLOCK,
        cells=grid(batch=(1, 5, 10, 15), dummies=("one",))
        + grid(batch=(5, 10, 15), dummies=("all",)),
        reading={"dummies": "one"},
        seconds=_dummies,
        deviations=(_LFW, *_SHARED, _DUMMY, _ALPHA),
    ),
    declared(
        "cpl.fig8",
        measure=cpl_attacks.compared,
        reads=("lfw",),
        block=_BLOCK,
        cells=grid(method=PAIR, batch=(1, 5, 10, 15), client_iterations=(1, 5)),
        reading={"client_iterations": 1},
        seconds=_shown,
        deviations=(_LFW, *_SHARED, _DUMMY, _RATE, _ALPHA),
    ),
    declared(
        "cpl.fig4",
        measure=cpl_clients.appearing,
        reads=("lfw",),
        block=_BLOCK,
        cells=grid(
            batch=(1, 2),
            client_iterations=(5, 10, 15, 50, 100),
            alpha=("published", "zero"),
            rate=(RATE,),
        )
        + grid(
            batch=(1,),
            client_iterations=(5, 10, 15, 50, 100),
            alpha=("published", "zero"),
            rate=(1e-2,),
        ),
        reading={"rate": RATE},
        seconds=_shown,
        deviations=(
            _LFW,
            *_SHARED,
            _DUMMY,
            _RATE,
            _ALPHA,
            "A run drifts if it has halved the error of its start and ends at more than twice its "
            "lowest.",
        ),
    ),
    declared(
        "cpl.fig5",
        measure=cpl_attacks.first_picture,
        reads=("lfw",),
        block=_BLOCK,
        cells=_swapped(STARTS),
        reading=_AS_PUBLISHED,
        seconds=_shown,
        paper=MANY,
        deviations=(_LFW, *_SHARED, _RANGE, _ALPHA, "The people are one half of them."),
    ),
    declared(
        "cpl.fig6",
        measure=cpl_attacks.second_picture,
        reads=("lfw",),
        block=_BLOCK,
        cells=_swapped(STARTS),
        reading=_AS_PUBLISHED,
        seconds=_shown,
        paper=MANY,
        deviations=(_LFW, *_SHARED, _RANGE, _ALPHA, "The people are the other half of them."),
    ),
    declared(
        "cpl.fig7",
        measure=cpl_attacks.patterned,
        reads=("lfw",),
        block=_BLOCK,
        cells=_swapped(("random", "level-2"), label_class=CLASSES),
        reading=_AS_PUBLISHED,
        seconds=_shown,
        paper=MANY,
        deviations=(
            _LFW,
            *_SHARED,
            _RANGE,
            "A class is one half of the people: the text names none.",
        ),
    ),
    declared(
        "cpl.fig9",
        measure=cpl_attacks.elbows,
        block=_BLOCK,
        cells=_swapped(("random", "level-2"), dataset=("CIFAR-100", "LFW"), label_class=CLASSES),
        reads=lambda cell: (DATASETS[str(cell["dataset"])],),
        reading=_AS_PUBLISHED,
        seconds=_shown,
        deviations=(
            _LFW,
            *_SHARED,
            _RANGE,
            "A class is one half of the classes: the text names none.",
            "The pattern is that of level 2: the text does not say which.",
        ),
    ),
    declared(
        "cpl.fig10",
        measure=cpl_attacks.large,
        reads=("lfw",),
        block=_BLOCK,
        cells=tuple(
            cell
            for cell in grid(method=PAIR, stage=tuple(BUDGETS), network=("wide", "narrow"))
            if tuple(cell.values()) != ("DLG", "main features", "wide")  # the paper asks for CPL's
        ),
        reading={"network": "wide"},
        seconds=_large,
        deviations=(
            "The network has 48 channels, as CPL's own run at this size has a wide one; 12 "
            "channels are measured beside.",
            "The pictures are LFW's, scaled to 128×128.",
            f"It is given {BUDGETS['reasonable']} of the {WITHIN['reasonable']} iterations: "
            "what is not reasonable by then counts as never. L-BFGS remembers 20 steps.",
            "The trials, each another picture, share a network.",
            _ALPHA,
        ),
    ),
    declared(
        "cpl.fig11",
        measure=cpl_attacks.frames,
        reads=("lfw",),
        block=_BLOCK,
        cells=grid(method=PAIR, iteration=tuple(range(10, SHOWN + 1, 10))),
        seconds=_frames,
        paper=MANY,
        deviations=(
            _LFW,
            *_SHARED,
            _RANGE,
            _ALPHA,
            "The web page's sample is lost: ours are recorded anew. What stands on the screen is "
            "judged, not the best so far.",
        ),
    ),
    declared(
        "cpl.asr",
        measure=cpl_attacks.success,
        reads=("lfw",),
        block=_BLOCK,
        cells=grid(method=PAIR),
        seconds=_to_the_end,
        paper=100,
        deviations=(_LFW, _NET, _RANGE, _ALPHA, _TRIALS, "The attack has DLG's 300 iterations."),
    ),
    declared(
        "cpl.alpha",
        measure=cpl_questions.weighted,
        reads=("lfw",),
        block=_BLOCK,
        cells=grid(alpha=(*WEIGHTS, "tuned"), client_iterations=STEPS, term=(ORACLE,))
        + grid(alpha=("published", "tuned"), client_iterations=STEPS, term=(OWN,)),
        reading={"term": ORACLE},
        seconds=_alpha,
        deviations=(
            _LFW,
            *_SHARED,
            _RATE,
            _ALPHA,
            f"The tuned α is the best of {len(TRIED)} on {OWN_PICTURES} pictures of other people, "
            "for each number of client iterations; with the recovered label it is chosen anew.",
        ),
    ),
    declared(
        "cpl.label",
        measure=cpl_questions.label,
        reads=("lfw",),
        block=_BLOCK,
        cells=tuple(
            cell
            for cell in grid(
                batch=(1, 5, 10, 15, 20),
                network=("untrained", "trained", "ReLU, untrained"),
                classes=("one", "several"),
                defence=tuple(DEFENCES),
            )
            # One picture has one class; defences are our question, asked without training.
            if (cell["batch"], cell["classes"]) != (1, "several")
            and (cell["network"] == "untrained" or cell["defence"] == "none")
        ),
        reading={"defence": "none"},
        seconds=_label,
        paper=MANY,
        deviations=(
            _LFW,
            _NET,
            "That network does not learn: the trained one has 16 channels and ReLUs, and is "
            "measured without its training as well. Twenty trials share a training.",
        ),
    ),
    declared(
        "cpl.conclusion",
        measure=cpl_attacks.parts,
        reads=lambda cell: ("cifar100" if cell["condition"] == "CIFAR-100" else "lfw",),
        block=_BLOCK,
        cells=grid(
            method=tuple(METHODS), condition=tuple(CONDITIONS), term=(ORACLE,), values=(PUBLISHED,)
        )
        # The loss term without the oracle needs the label that was read off.
        + grid(
            method=("CPL", "DLG + label + loss term"),
            condition=tuple(CONDITIONS),
            term=(OWN,),
            values=(PUBLISHED,),
        )
        # The two ranges exchanged: every method where one picture is attacked.
        + grid(method=tuple(METHODS), condition=("one picture",), term=(ORACLE,), values=(SWAPPED,))
        + grid(
            method=("CPL", "DLG + label + loss term"),
            condition=("one picture",),
            term=(OWN,),
            values=(SWAPPED,),
        )
        + grid(method=SWAPPABLE, condition=("CIFAR-100",), term=(ORACLE,), values=(SWAPPED,)),
        reading={"term": ORACLE, **_AS_PUBLISHED},
        seconds=_condition,
        paper=PAIRS,
        deviations=(
            _LFW,
            *_SHARED,
            _RANGE,
            _RATE,
            _ALPHA,
            f"A picture of {LARGE}×{LARGE} gets {CONDITIONS['128×128'][1]} iterations on the same "
            "network with a longer last layer.",
            "The methods are compared in pairs: the same pictures, networks and random numbers.",
        ),
    ),
    Study(
        id="judges.batch",
        title="One dummy for a batch, by what it is compared with",
        metrics=("ssim", "mse"),
        cells=grid(batch=BATCHES, compared_with=tuple(JUDGES)),
        measure=cpl_judges.judges,
        reads=lambda _: ("lfw",),
        seconds=lambda cell: _shown(cell) / 2,
        trials={"smoke": 2, "quick": 5, "paper": 20},
        block=_BLOCK,
        deviations=(_LFW, *_SHARED, _ALPHA, "One client iteration."),
        asks={
            "ssim": Metric("ssim", "", "higher", "mean"),
            "mse": Metric("mse", "", "lower", "mean"),
        },
        chapter="02_cpl",
    ),
    Study(
        id="messages.moved",
        title="A client iteration as in CPL's code: the gradient at weights that training moved",
        metrics=("ssim", "mse"),
        cells=grid(client_iterations=(1, 2, 5, 10, 20, 50)),
        measure=cpl_clients.moved,
        reads=lambda _: ("lfw",),
        seconds=_shown,
        trials={"smoke": 2, "quick": 5, "paper": 20},
        block=_BLOCK,
        deviations=(
            _LFW,
            *_SHARED,
            f"Training takes Adam at {STEP:g} on {AT_ONCE} pictures a step, drawn from the whole "
            "set; there is no loss term, as in that code.",
        ),
        asks={
            "ssim": Metric("ssim", "", "higher", "mean"),
            "mse": Metric("mse", "", "lower", "mean"),
        },
        chapter="02_cpl",
    ),
)
