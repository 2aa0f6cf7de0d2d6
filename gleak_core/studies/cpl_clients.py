"""What the client iterates before it sends, and whether a picture appears and goes away.

The text has a "client iteration" without saying what is sent after it. One reading is the weights
that were reached: then the mean gradient on the way is matched. The other, that of CPL's public
code, is a gradient at weights that training on other pictures has moved.
"""

from collections.abc import Iterator, Sequence

import torch
from torch.nn import functional as F

from gleak_core import clients, data, models
from gleak_core.studies.cpl_attacks import (
    ALPHA,
    METHODS,
    SHOWN,
    Clients,
    attack,
    nearest,
    of_one_class,
    one_dummy,
    rows,
)
from gleak_core.studies.study import Cell, Row
from gleak_core.studies.trials import SIDE, groups, side_by_side

__all__ = ["AT_ONCE", "STEP", "appearing", "moved"]

AT_ONCE, STEP = 32, 0.01  # pictures of a training step, and Adam's rate, as in CPL's code


def appearing(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """CPL as the client iterates more, with its loss term and without: does a picture go away?

    A run drifts that halves the error of its start, and ends at more than twice its lowest.
    """
    alpha = ALPHA if cell["alpha"] == "published" else 0.0
    for number, some in groups(seeds):
        own, seen = Clients(
            batch=int(cell["batch"]),
            iterations=int(cell["client_iterations"]),
            rate=float(cell["rate"]),
        ).share(number, some, device)
        found = attack(
            one_dummy(seen), METHODS["CPL"], some, number=number, steps=SHOWN, alpha=alpha
        )
        away = []
        for t, batch in enumerate(own):
            errors = nearest(found.history.frames[:, t, 0], batch)[0]  # (F,)
            least = errors[1:].min()
            away.append(float(least < errors[0] / 2 and errors[-1] > 2 * least))
        yield from rows(found, own, "ssim", "mse", drift=away)


def moved(cell: Cell, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """CPL on the gradient of a picture, at weights that so many steps on others have moved."""
    for number, some in groups(seeds):
        own = [of_one_class("LFW", 1, seed) for seed in some]
        net = models.cpl_lenet(len(own[0].classes), seed=number).to(device)
        descent = torch.optim.Adam(net.parameters(), lr=STEP)
        for step in range(int(cell["client_iterations"])):
            others = data.sample(
                "lfw", AT_ONCE, size=SIDE, seed=1000 * (number + 1) + step, balanced=False
            ).to(device)
            descent.zero_grad()
            F.cross_entropy(net(others.images), others.labels).backward()
            descent.step()
        seen = side_by_side([clients.fedsgd(net, batch.to(device)) for batch in own])
        # Without the loss term, as in the code, where it stands in a comment.
        found = attack(seen, METHODS["DLG + label + start"], some, number=number, steps=SHOWN)
        yield from rows(found, own, "ssim", "mse")
