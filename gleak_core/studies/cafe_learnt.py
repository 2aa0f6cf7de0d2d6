"""Why a model that learns leaks less: because it moves, or because it has learnt?

`cafe.fig5` attacks a model while it learns. Here the same rounds are matched against a model that
stands still, before it has learnt anything and after; with steps of two lengths on the pictures;
and with Z, which the published attack has, and which no equations give once the model moves.
"""

from collections.abc import Iterator, Sequence

from gleak_core.papers import Metric
from gleak_core.studies.cafe_learning import EACH, ITEMS, ROUNDS, STEP, followed
from gleak_core.studies.cafe_pools import reads
from gleak_core.studies.study import Cell, Row, Study, grid
from gleak_core.studies.trials import groups

__all__ = ["FRESH", "LEARNS", "LEARNT", "NO_Z", "STUDIES", "WITH_Z", "why"]

FRESH, LEARNS, LEARNT = "untrained, stands", "learns", "has learnt, stands"
NO_Z, WITH_Z = "not known", "granted"
INNER, RATE = 10, 1e-2  # as in the figure
LONG = 0.05  # the step with which the other tables were begun
JUDGED = 10  # pictures of each network

_MODELS = {
    FRESH: {"rate": 0.0, "learnt": False},
    LEARNS: {"rate": RATE, "learnt": False},
    LEARNT: {"rate": RATE, "learnt": True},
}


def why(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Match the rounds of a model that stands or learns; say what it has learnt by then."""
    model, granted = _MODELS[str(cell["model"])], cell["z"] == WITH_Z
    for number, some in groups(seeds, JUDGED):
        shown, seconds = followed(
            model["rate"],
            INNER,
            float(cell["step"]),
            number,
            device,
            granted=granted,
            learnt=model["learnt"],
        )
        psnr, loss = shown[-1]
        for seed in some:
            yield {
                "psnr": psnr[seed % JUDGED * ITEMS // JUDGED],
                "loss": loss,
                "status": "failed",  # a batch that is not seen again is not solved
                "evaluations": INNER * ROUNDS * EACH // ITEMS,
                "seconds": seconds / JUDGED,
            }


STUDIES: tuple[Study, ...] = (
    Study(
        id="matching.learning",
        title="Matching a model that stands, that learns, that has learnt",
        metrics=("psnr", "loss"),
        cells=grid(model=tuple(_MODELS), z=(NO_Z,), step=(LONG, STEP))
        + grid(model=tuple(_MODELS), z=(WITH_Z,), step=(STEP,)),
        measure=why,
        seconds=lambda _: 20.0,
        reads=lambda _: reads({"dataset": "Linnaeus"}),
        trials={"smoke": 1, "quick": 1, "paper": 20},
        block=JUDGED,
        reduced=dict.fromkeys(("smoke", "quick"), grid(model=(FRESH,), z=(NO_Z,), step=(STEP,))),
        deviations=(
            f"The pictures, batches, {ROUNDS} rounds and {INNER} inner steps of cafe.fig5. A model "
            f"that learns does so at the rate {RATE:g}; one that has learnt has seen the same "
            "rounds before, and stands still from then on.",
            "Z is granted: the inputs of the first fully connected layer at the weights of each "
            "round are the pictures' own, from an oracle. Its term is as large as the distance at "
            "the start, and keeps its weight.",
            f"A trial is a picture, and {JUDGED} of them are of one run, with one network: the "
            "interval treats them as if each had its own.",
            "The embedded photographs stand in for Linnaeus 5 where its folder is missing.",
        ),
        asks={
            "psnr": Metric("psnr", "dB", "higher", "mean"),
            "loss": Metric("loss", "", "lower", "mean", shared=JUDGED),
        },
        chapter="04_cafe",
    ),
)
