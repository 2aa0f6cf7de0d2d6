"""One run out of several that were made side by side."""

from dataclasses import replace

from gleak_core.observation import Reconstruction

__all__ = ["only"]


def only(found: Reconstruction, t: int) -> Reconstruction:
    """Return one trial of several."""
    at = slice(t, t + 1)
    return replace(
        found,
        images=found.images[at],
        labels=None if found.labels is None else found.labels[at],
        loss=found.loss[at],
        status=found.status[at],
        evaluations=found.evaluations[at],
        history=replace(
            found.history, loss=found.history.loss[:, at], frames=found.history.frames[:, at]
        ),
    )
