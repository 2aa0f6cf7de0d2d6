"""The comparison viewer, packed: frames of several attacks, of which a page shows any two at once.

Nothing here draws or runs in a page. A run becomes one sheet of tiles (PNG) with the measures of
each tile, in an attribute of the page's HTML; `book/_static/scrubber.js` makes the viewer of it.
Where no script runs, the filmstrip inside stays what the reader sees.
"""

import html
import io
import json
import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gleak_core.alignment import align
from gleak_core.metrics import PSNR_CAP, mse, psnr
from gleak_core.observation import Reconstruction

__all__ = ["Film", "Reel", "Runs", "Scrubber", "reel"]

Runs = Mapping[tuple[str, str], Reconstruction] | Mapping[str, Reconstruction]
Tiles = NDArray[np.uint8]  # (…, H, W, C)


@dataclass(frozen=True)
class Scrubber:
    """A finished viewer: the HTML it is made of, and the words that stand for it."""

    html: str
    alt: str

    def __repr__(self) -> str:
        return f"Scrubber: {self.alt}"

    def _repr_html_(self) -> str:
        return self.html


@dataclass(frozen=True)
class Film:
    """One run as it is shown: at each of the reel's steps a tile and its measures, by image."""

    attack: str
    start: str
    at: list[int]  # (n,) the step that each frame was recorded at
    tiles: Tiles  # (n, N, H, W, C)
    measures: dict[str, Tensor]  # (n, N) each, NaN where there is none
    ended: list[tuple[int, str]]  # (N,) the last step of each trial, and the attacker's word on it

    @property
    def name(self) -> str:
        """The run in words."""
        return _name((self.attack, self.start))

    def packed(self) -> dict[str, Any]:
        """Return the run for the page."""
        numbers = {name: _numbers(values) for name, values in self.measures.items()}
        named = {"attack": self.attack, "start": self.start}
        return {**named, "at": self.at, "ended": self.ended, **_sheet(self.tiles), **numbers}


@dataclass(frozen=True)
class Reel:
    """Several runs on the same images, at the same steps."""

    steps: list[int]  # (n,)
    images: list[str]  # (N,)
    private: Tiles  # (N, H, W, C)
    films: list[Film]

    def stills(self, count: int = 6) -> tuple[list[str], dict[str, list[Tensor]]]:
        """Return titles and rows of a filmstrip: the first image of each run, then the private."""
        picked = [self.steps.index(step) for step in _spread(self.steps, count)]
        rows = {
            film.name: [_picture(film.tiles[i, 0]) for i in picked] + [_picture(self.private[0])]
            for film in self.films
        }
        return [*(f"step {self.steps[i]}" for i in picked), "private"], rows

    def viewer(self, png: bytes, alt: str, caption: str = "") -> Scrubber:
        """Return the viewer around its filmstrip."""
        height, width = self.private.shape[1:3]
        content = {
            "steps": self.steps,
            "images": self.images,
            "width": width,
            "height": height,
            "private": _sheet(self.private[None]),
            "runs": [film.packed() for film in self.films],
        }
        packed = json.dumps(content, separators=(",", ":"), allow_nan=False)
        below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
        return Scrubber(
            f'<figure class="gleak-scrubber" data-scrubber="{html.escape(packed)}">'
            f'<img src="data:image/png;base64,{b64encode(png).decode()}" '
            f'alt="{html.escape(alt)}">{below}</figure>',
            alt,
        )


def reel(
    runs: Runs,
    private: Tensor,
    *,
    trials: Sequence[int] | None = None,
    names: Sequence[str] = (),
    count: int = 24,
) -> Reel:
    """Hold runs against the private images (N, C, H, W), frame by frame, at up to `count` steps.

    The steps are those of all runs together; a run that has no frame of a step shows the one
    before. Trials of several images are aligned by what the attack ended with.
    """
    found: dict[tuple[str, str], Reconstruction] = {
        (key, "") if isinstance(key, str) else key: run for key, run in runs.items()
    }
    chosen = _checked(found, private, trials, count)
    if names and len(names) != len(private):
        raise ValueError(f"{len(private)} images need {len(private)} names, got {len(names)}")
    every = sorted({step for run in found.values() for step in run.history.frame_steps.tolist()})
    if len(every) < 2:
        raise ValueError("there is nothing to scrub over: pass a run with more than one frame")
    steps = _spread(every, count)
    truth = private.detach().cpu().double()
    return Reel(
        steps=steps,
        images=list(names) or [f"image {i + 1}" for i in range(len(private))],
        private=_tiles(truth),
        films=[_film(*key, run, truth, chosen, steps) for key, run in found.items()],
    )


def _checked(
    runs: Mapping[tuple[str, str], Reconstruction],
    private: Tensor,
    trials: Sequence[int] | None,
    count: int,
) -> list[int]:
    """Return the chosen trials, if the runs can be shown side by side."""
    if not runs:
        raise ValueError("a scrubber needs runs: pass {(attack, start): reconstruction}")
    if count < 2:
        raise ValueError(f"a scrubber needs at least 2 steps, got count={count}")
    first, one = next(iter(runs.items()))
    for key, run in runs.items():
        kept, taken = len(run.history.frames), len(run.history.steps)
        if run.images.shape != one.images.shape:
            raise ValueError(
                f"{_name(first)} holds images {tuple(one.images.shape)} and {_name(key)} "
                f"{tuple(run.images.shape)}: run both on the same batch, with as many trials "
                "(found.best(restarts) leaves one trial of each)"
            )
        if kept < min(3, taken):  # the first and the last are kept even with every=0
            raise ValueError(
                f"{_name(key)} kept {kept} frames of {taken} steps: "
                "run the attack with every= at a tenth of its steps, or less"
            )
    chosen = list(range(one.trials) if trials is None else trials)
    if not chosen or min(chosen) < 0 or max(chosen) >= one.trials:
        raise ValueError(f"trials must lie in 0…{one.trials - 1}, got {chosen}")
    wanted = (len(chosen) * one.images.shape[1], *one.images.shape[2:])
    if tuple(private.shape) != wanted:
        raise ValueError(
            f"{len(chosen)} trials need private images of shape {wanted}, got "
            f"{tuple(private.shape)}: pass the ones attacked, in their order, or choose trials="
        )
    if wanted[1] not in (1, 3):
        raise ValueError(f"a scrubber shows 1 or 3 channels, got {wanted[1]}: use grey or RGB")
    return chosen


def _name(key: tuple[str, str]) -> str:
    return ", ".join(filter(None, key))


def _film(
    attack: str,
    start: str,
    run: Reconstruction,
    truth: Tensor,
    trials: list[int],
    steps: list[int],
) -> Film:
    """Return a run at each of the steps: its last frame at or before it."""
    past = run.history
    held = _last(past.frame_steps, steps)
    at = past.frame_steps.cpu()[held]
    size = run.images.shape[1]
    paired = truth.view(len(trials), size, *truth.shape[1:])  # (T, B, C, H, W)
    order = align(run.images.detach().cpu()[trials].double().clamp(0, 1), paired)  # (T, B)
    frames = past.frames.detach().cpu()[held][:, trials]
    frames = frames[:, torch.arange(len(trials))[:, None], order].flatten(1, 2)  # (n, N, C, H, W)
    finite = frames.isfinite().flatten(2).all(2)
    frames = torch.where(finite[..., None, None, None], frames.double().clamp(0, 1), torch.nan)
    losses = past.loss.detach().cpu().double()[:, trials]
    best = run.loss.detach().cpu().double()[trials].expand(len(steps), -1)
    loss = losses[_last(past.steps, at.tolist())]
    # Trials that have ended, and the last frame of all, show the best iterate, not the latest.
    settled = loss.isnan() | (at == past.frame_steps[-1].cpu())[:, None]
    loss = torch.where(settled, best, loss).repeat_interleave(size, 1)
    return Film(
        attack=attack,
        start=start,
        at=at.tolist(),
        tiles=_tiles(frames),
        measures={
            "psnr": psnr(frames, truth).clamp(max=PSNR_CAP),
            "mse": mse(frames, truth),
            "loss": loss.masked_fill(~finite, torch.nan),
        },
        ended=[
            (_end(past.steps.cpu(), losses[:, t]), run.status[trial])
            for t, trial in enumerate(trials)
            for _ in range(size)
        ],
    )


def _end(steps: Tensor, loss: Tensor) -> int:
    """Return the last step at which a trial still had a loss."""
    had = (~loss.isnan()).nonzero()
    return int(steps[had[-1, 0]] if len(had) else steps[0])


def _last(known: Tensor, steps: Sequence[int]) -> Tensor:
    """Return where the last known step at or before each step stands; the first, if none does."""
    wish = torch.tensor(steps)
    return (torch.searchsorted(known.cpu().contiguous(), wish, right=True) - 1).clamp(min=0)


def _spread(steps: list[int], count: int) -> list[int]:
    """Return up to `count` of the steps, more of the early ones: there most of it happens."""
    if len(steps) <= count:
        return steps
    span = steps[-1] - steps[0]
    wishes = [steps[0] + span * (i / (count - 1)) ** 2 for i in range(count)]
    return sorted({min(steps, key=lambda step: abs(step - wish)) for wish in wishes})


def _tiles(images: Tensor) -> Tiles:
    """Return images (…, C, H, W) in eight bits; one that is not finite becomes a hatched tile."""
    shape = images.shape[-3:]
    row, column = torch.meshgrid(torch.arange(shape[1]), torch.arange(shape[2]), indexing="ij")
    hatch = torch.where((row + column) % 6 < 2, 0.35, 0.85).expand(shape).double()
    finite = images.isfinite().flatten(-3).all(-1)[..., None, None, None]
    shown = torch.where(finite, images.double().clamp(0, 1), hatch)
    return (shown * 255).round().to(torch.uint8).movedim(-3, -1).numpy()


def _picture(tile: Tiles) -> Tensor:
    return torch.from_numpy(tile).movedim(-1, 0).double() / 255


def _sheet(tiles: Tiles) -> dict[str, Any]:
    """Pack tiles (n, N, H, W, C) into one PNG, equal ones once; say which is which, by image.

    A tile is a row of the sheet: PNG then stores what changed from one frame to the next, which
    takes a third less than tiles side by side.
    """
    places: dict[bytes, int] = {}
    index = [
        [places.setdefault(tile.tobytes(), len(places)) for tile in one]
        for one in tiles.swapaxes(0, 1)
    ]
    channels = tiles.shape[-1]
    rows = np.frombuffer(b"".join(places), dtype=np.uint8).reshape(len(places), -1, channels)
    buffer = io.BytesIO()
    Image.fromarray(rows[..., 0] if channels == 1 else rows).save(buffer, "PNG", optimize=True)
    return {"sheet": b64encode(buffer.getvalue()).decode(), "tiles": index}


def _numbers(values: Tensor) -> list[list[float | None]]:
    """Return values (n, N) by image, in four digits; what is no number becomes null."""
    return [
        [float(f"{v:.4g}") if math.isfinite(v) else None for v in one] for one in values.T.tolist()
    ]
