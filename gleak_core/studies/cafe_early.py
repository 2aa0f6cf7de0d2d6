"""Figure 5 of CAFE, the attacker's choice: which rounds to solve, before the model has moved far.

Solving all rounds as if the model had stood still reads every item at its end, when most has been
learnt. Whoever solves the first rounds alone has fewer equations, and truer ones.
"""

from collections.abc import Iterator, Sequence

from gleak_core.studies.cafe_learning import (
    ATTACKS,
    RATES,
    ROUNDS,
    STEP,
    _begun,
    _loss,
    _solved,
    followed,
)
from gleak_core.studies.cafe_learnt import INNER
from gleak_core.studies.cafe_pools import BLOCK, EPOCHS, decibel, reads
from gleak_core.studies.cafe_taught import AS_IN_THE_FIGURE, BY_NETWORK
from gleak_core.studies.kept import kept
from gleak_core.studies.study import Cell, Row, Study, grid
from gleak_core.studies.trials import groups

__all__ = ["FIRST", "STUDIES", "early"]

WARM, STATIC = ATTACKS[:2]
FIRST = (120, 200)  # rounds: a few more than tell all items apart, and two for each item


def early(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Solve the first rounds alone; or match all of them, at a rate that the figure has not."""
    rate, rounds, warm = float(cell["rate"]), int(cell["rounds"]), cell["attack"] == WARM
    for number, some in groups(seeds, BLOCK):
        if warm:
            shown, seconds = followed(
                rate, INNER, STEP, number, device, granted=False, learnt=False
            )
            (psnr, ratio), solved = shown[-1], [False] * BLOCK
        else:
            (psnr, ratio, solved), seconds = _first(rate, rounds, number, device)
        for seed in some:
            yield {
                "psnr": psnr[seed % BLOCK],
                "loss": ratio,
                "status": "solved" if solved[seed % BLOCK] else "failed",
                "evaluations": EPOCHS,  # as many as the ten steps on each of 300 rounds are
                "seconds": seconds / BLOCK,
            }


@kept(reads=lambda *_: reads({"dataset": "Linnaeus"}))
def _first(
    rate: float, rounds: int, number: int, device: str
) -> tuple[list[float], float, list[bool]]:
    """Solve the first rounds; return the first pictures' PSNR, the loss's share, who is solved."""
    net, own, picks = _begun(number, device)
    before = _loss(net, own)
    images, solved = _solved(net, own, picks[:rounds], rate, range(BLOCK), drift=False)
    return decibel(images, own.images[:BLOCK].cpu()).tolist(), _loss(net, own) / before, solved


STUDIES: tuple[Study, ...] = (
    Study(
        id="matching.early",
        title="While the model learns: the first rounds alone, and one more rate",
        metrics=("psnr", "loss"),
        cells=grid(attack=(STATIC,), rounds=FIRST, rate=RATES)
        + grid(attack=(WARM,), rounds=(ROUNDS,), rate=(1e-3,)),
        measure=early,
        seconds=lambda cell: 2.0 if cell["attack"] == STATIC else 30.0,
        reads=lambda _: reads({"dataset": "Linnaeus"}),
        trials={"smoke": 1, "quick": 1, "paper": 40},
        block=BLOCK,
        reduced=dict.fromkeys(
            ("smoke", "quick"), grid(attack=(STATIC,), rounds=FIRST[:1], rate=RATES[:1])
        ),
        deviations=(
            "The pictures, batches and networks of cafe.fig5. The loss is that of the rounds that "
            "are seen: the model may go on learning after them.",
            *AS_IN_THE_FIGURE,
        ),
        asks=BY_NETWORK,
        chapter="04_cafe",
    ),
)
