"""Pictures and tables of the book: one style, and never without words for those who cannot see.

Every function takes `alt`, returns a `Figure` or a `Table`, and leaves showing it to the notebook.
Colours are Okabe and Ito's, told apart by marker and dash as well; the ground is white, which the
book's dark mode keeps as a card.
"""

import html
import io
import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pandas as pd
import torch
from matplotlib import rc_context
from torch import Tensor

from gleak_core.files import atomic_write
from gleak_core.observation import Reconstruction
from gleak_core.scrubber import Runs, Scrubber, reel

__all__ = [
    "PALETTE",
    "Figure",
    "Scrubber",
    "Table",
    "before_after",
    "curves",
    "escape",
    "filmstrip",
    "heat_map",
    "intervals",
    "loss_curves",
    "paper_table",
    "render",
    "scrubber",
    "strip",
    "table",
]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLE: Any = {  # matplotlib types the keys as a list of literals
    "figure.facecolor": "white",
    "figure.dpi": 100,
    "savefig.dpi": 144,
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.hashsalt": "gleak",
}
_GAP = "—"


@dataclass(frozen=True)
class Figure:
    """A finished picture: PNG bytes, the words that stand for it, and a caption."""

    png: bytes
    alt: str
    caption: str = ""

    def __post_init__(self) -> None:
        if not self.alt.strip():
            raise ValueError("a figure needs alt text: say in a sentence what it shows")

    def save(self, path: Path | str) -> Path:
        """Write the PNG, whole or not at all."""
        atomic_write(Path(path), self.png)
        return Path(path)

    def __repr__(self) -> str:
        return f"Figure: {self.alt}"

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, Any]]:
        words = {"alt": self.alt} | ({"caption": self.caption} if self.caption else {})
        data = {"image/png": b64encode(self.png).decode(), "text/plain": repr(self)}
        return data, {"image/png": words}


@dataclass(frozen=True)
class Table:
    """A finished table: headed columns of text, a caption; shown as HTML or plain text."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str

    def __repr__(self) -> str:
        grid = [self.columns, *self.rows]
        widths = [max(len(row[i]) for row in grid) for i in range(len(self.columns))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in grid]
        lines.insert(1, "  ".join("-" * w for w in widths))
        return "\n".join([self.caption, *(line.rstrip() for line in lines)])

    def markdown(self) -> str:
        """Return the table for a page in Markdown, every value escaped."""
        rows = [self.columns, *self.rows]
        lines = ["| " + " | ".join(escape(cell) for cell in row) + " |" for row in rows]
        lines.insert(1, "|" + " --- |" * len(self.columns))
        return "\n".join([f"```{{table}} {self.caption}", *lines, "```"])

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col">{html.escape(c)}</th>' for c in self.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>"
            for row in self.rows
        )
        return (
            f'<table class="gleak-table"><caption>{html.escape(self.caption)}</caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )


def strip(
    rows: Mapping[str, Sequence[Tensor]],
    *,
    alt: str,
    titles: Sequence[str] = (),
    notes: Mapping[str, Sequence[str]] | None = None,
    caption: str = "",
) -> Figure:
    """Draw labelled rows of images (C, H, W); `titles` head the columns, `notes` stand below."""
    columns = max(len(images) for images in rows.values())
    if titles and len(titles) != columns:
        raise ValueError(f"{columns} columns need {columns} titles, got {len(titles)}")
    noted = any((notes or {}).values())
    # A filmstrip of ten columns and a grid of two should both show pictures one can look at.
    size = min(1.5, 9.2 / columns)

    def draw(figure: matplotlib.figure.Figure) -> None:
        below = 0.42 if noted else 0.18
        above = 0.35 if titles else 0.15
        beside = 0.5 + 0.1 * max(len(name) for name in rows)
        figure.set_size_inches(size * columns + beside, (size + below) * len(rows) + above)
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for axes, (name, images) in zip(grid, rows.items(), strict=True):
            for j, axis in enumerate(axes):
                axis.set(xticks=[], yticks=[])
                axis.grid(False)
                axis.spines[:].set_visible(False)
                if j < len(images):
                    axis.imshow(
                        _pixels(images[j]), cmap="gray", vmin=0, vmax=1, interpolation="nearest"
                    )
                if notes and j < len(notes.get(name, ())):
                    axis.set_xlabel(notes[name][j], fontsize=8)
            axes[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        for axis, title in zip(grid[0], titles, strict=False):
            axis.set_title(title, fontsize=9)

    return render(draw, alt, caption)


def before_after(
    private: Tensor,
    found: Tensor,
    *,
    alt: str,
    scores: Sequence[float] | None = None,
    titles: Sequence[str] = (),
    caption: str = "",
) -> Figure:
    """Draw private images (N, C, H, W) above what was made of them; `scores` are PSNRs in dB."""
    if private.shape != found.shape:
        raise ValueError(
            f"before and after must match: {tuple(private.shape)} against {tuple(found.shape)}"
        )
    notes = None if scores is None else {"rebuilt": [f"{s:.0f} dB" for s in scores]}
    rows = {"private": list(private), "rebuilt": list(found)}
    return strip(rows, alt=alt, titles=titles, notes=notes, caption=caption)


def filmstrip(
    found: Reconstruction,
    *,
    alt: str,
    trials: Sequence[int] = (0,),
    item: int = 0,
    count: int = 8,
    private: Tensor | None = None,
    names: Sequence[str] = (),
    caption: str = "",
) -> Figure:
    """Draw the frames of an attack, evenly spaced on a square-root scale (most happens early).

    `private` (len(trials), C, H, W) adds the true image as the last column.
    """
    steps = found.history.frame_steps
    wish = torch.linspace(0, 1, count, dtype=torch.float64) ** 2 * float(steps[-1])
    picked = sorted({int((steps - w).abs().argmin()) for w in wish})
    rows = {}
    for row, trial in enumerate(trials):
        frames = [found.history.frames[f, trial, item] for f in picked]
        truth = [] if private is None else [private[row]]
        rows[names[row] if names else f"trial {trial}"] = frames + truth
    titles = [f"step {int(steps[f])}" for f in picked] + ([] if private is None else ["private"])
    return strip(rows, alt=alt, titles=titles, caption=caption)


def scrubber(
    runs: Runs,
    private: Tensor,
    *,
    alt: str,
    trials: Sequence[int] | None = None,
    names: Sequence[str] = (),
    count: int = 24,
    caption: str = "",
) -> Scrubber:
    """Set any two runs side by side, with one slider over their frames and curves of the measures.

    The keys of `runs` are (attack, start), or a name alone; `private` (N, C, H, W) are the images
    that the `trials` (all of them, if not given) were run on, and `names` what to call them. Up to
    `count` steps are kept, the early ones denser. Without scripts a page shows the filmstrips.
    """
    shown = reel(runs, private, trials=trials, names=names, count=count)
    titles, rows = shown.stills()
    return shown.viewer(strip(rows, alt=alt, titles=titles).png, alt, caption)


def curves(
    series: Mapping[str, tuple[Sequence[float] | Tensor, Tensor]],
    *,
    alt: str,
    xlabel: str,
    ylabel: str,
    log: bool = False,
    band: tuple[float, float] = (0.25, 0.75),
    caption: str = "",
) -> Figure:
    """Draw the median of each series over its trials, with a quantile band.

    A series is (x, y): y is (S,) or (S, trials). NaNs are trials that have ended.
    """

    def draw(figure: matplotlib.figure.Figure) -> None:
        figure.set_size_inches(7, 3.6)
        axis = figure.subplots()
        for i, (name, (x, y)) in enumerate(series.items()):
            values = torch.as_tensor(y, dtype=torch.float64).cpu().reshape(len(x), -1).numpy()
            seen = ~np.isnan(values).all(1)
            xs, values = np.asarray(x, dtype=float)[seen], values[seen]
            low, middle, high = np.nanquantile(values, [band[0], 0.5, band[1]], axis=1)
            colour = PALETTE[i % len(PALETTE)]
            axis.plot(
                xs,
                middle,
                color=colour,
                linestyle=_DASHES[i % len(_DASHES)],
                marker=_MARKERS[i % len(_MARKERS)],
                markevery=max(1, len(xs) // 8),
                markersize=5,
                label=name,
            )
            if values.shape[1] > 1:
                axis.fill_between(xs, low, high, color=colour, alpha=0.18, linewidth=0)
        axis.set(xlabel=xlabel, ylabel=ylabel, yscale="log" if log else "linear")
        if len(series) > 1:
            axis.legend()

    return render(draw, alt, caption)


def loss_curves(found: Mapping[str, Reconstruction], *, alt: str, caption: str = "") -> Figure:
    """Draw the gradient distance of one or more attacks by step."""
    series = {name: (r.history.steps, r.history.loss) for name, r in found.items()}
    return curves(
        series, alt=alt, xlabel="step", ylabel="gradient distance", log=True, caption=caption
    )


def intervals(
    frame: pd.DataFrame,
    x: str,
    *,
    alt: str,
    xlabel: str,
    ylabel: str,
    by: str = "",
    log: bool = False,
    joined: bool = True,
    caption: str = "",
) -> Figure:
    """Draw measured cells with their intervals: `ours` between `low` and `high` at each `x`.

    `by` names a column whose values get a colour, a marker and a dash each. Values of `x` that are
    not numbers stand side by side in their order; `log` spaces numbers by their logarithm.
    `joined=False` leaves out the lines between points, where their order means nothing.
    """
    if lacking := [name for name in (x, by, "ours", "low", "high") if name and name not in frame]:
        raise ValueError(f"the frame lacks {', '.join(lacking)}: it has {', '.join(frame)}")
    if frame.empty:
        raise ValueError("there is nothing to draw: the frame has no rows")
    numbers = pd.api.types.is_numeric_dtype(frame[x])
    places = {value: i for i, value in enumerate(frame[x].unique())}
    groups = list(frame.groupby(by, sort=False)) if by else [("", frame)]

    def draw(figure: matplotlib.figure.Figure) -> None:
        figure.set_size_inches(7, 3.6)
        axis = figure.subplots()
        for i, (name, some) in enumerate(groups):
            apart = 0 if numbers else 0.16 * (i - (len(groups) - 1) / 2)
            xs = [value if numbers else places[value] + apart for value in some[x]]
            ours, low, high = (some[c].to_numpy(dtype=float) for c in ("ours", "low", "high"))
            axis.errorbar(
                xs,
                ours,
                yerr=np.abs([ours - low, high - ours]),
                color=PALETTE[i % len(PALETTE)],
                linestyle=_DASHES[i % len(_DASHES)] if numbers and joined else "none",
                marker=_MARKERS[i % len(_MARKERS)],
                markersize=6,
                capsize=3,
                label=str(name),
            )
        axis.set(xlabel=xlabel, ylabel=ylabel, xscale="log" if log else "linear")
        if not numbers:
            axis.set_xticks(range(len(places)), [str(value) for value in places])
        if by:
            axis.legend(title=by.replace("_", " "))

    return render(draw, alt, caption)


def heat_map(
    frame: pd.DataFrame,
    *,
    alt: str,
    label: str,
    xlabel: str,
    limits: tuple[float, float] | None = None,
    caption: str = "",
) -> Figure:
    """Draw a frame as a map: a line for each row, named by the index, a field for each trial.

    A field without a number is left white; `limits` are the ends of the colours, which a
    colour-blind reader and a grey printer see in the same order.
    """
    import seaborn  # a second, which only this figure pays for

    if frame.empty:
        raise ValueError("there is nothing to draw: the frame has no rows")
    low, high = limits or (float(frame.min(axis=None)), float(frame.max(axis=None)))

    def draw(figure: matplotlib.figure.Figure) -> None:
        figure.set_size_inches(7.5, 0.8 + 0.28 * len(frame))
        axis = figure.subplots()
        seaborn.heatmap(
            frame,
            ax=axis,
            cmap="cividis",
            vmin=low,
            vmax=high,
            xticklabels=False,
            yticklabels=[str(name) for name in frame.index],
            linewidths=0.5,
            cbar_kws={"label": label},
        )
        axis.grid(False)
        axis.set(xlabel=xlabel, ylabel="")
        axis.tick_params(axis="y", rotation=0, length=0)

    return render(draw, alt, caption)


def table(frame: pd.DataFrame, *, caption: str, digits: int = 3) -> Table:
    """Make a table of a data frame: numbers rounded, gaps shown as a dash, all strings escaped."""
    columns = tuple(str(c) for c in frame.columns)
    rows = tuple(
        tuple(_cell(v, digits) for v in row) for row in frame.itertuples(index=False, name=None)
    )
    return Table(columns, rows, caption)


def paper_table(rows: Sequence[Mapping[str, Any]], *, caption: str, digits: int = 3) -> Table:
    """Set published numbers beside ours: id, what, published, ours, interval, n, verdict.

    A reduced run has no verdict; the cell then says so instead of staying blank.
    """
    wanted = ("id", "what", "published", "ours", "interval", "n", "verdict")
    for row in rows:
        if missing := [k for k in wanted[:5] if k not in row] or [
            k for k in ("n",) if k not in row
        ]:
            raise ValueError(f"a row of a paper table lacks {', '.join(missing)}: {dict(row)}")
    frame = pd.DataFrame([{k: r.get(k) for k in wanted} for r in rows], columns=list(wanted))
    frame["verdict"] = [v or "reduced run: no verdict" for v in frame["verdict"]]
    frame["interval"] = [
        f"{_cell(i[0], digits)} to {_cell(i[1], digits)}" if isinstance(i, tuple | list) else i
        for i in frame["interval"]
    ]
    return table(frame, caption=caption, digits=digits)


def escape(text: Any) -> str:
    """Make any text harmless in Markdown: a backslash before every punctuation mark."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(str(text).split()))


def _cell(value: Any, digits: int) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return _GAP
    if isinstance(value, float | np.floating):
        return f"{value:.{digits}g}"
    return str(value)


def _pixels(image: Tensor) -> np.ndarray:
    """Return (H, W, C) or (H, W) in [0, 1]; what is not a number becomes grey."""
    shown = image.detach().cpu().double().nan_to_num(0.5, 1.0, 0.0).clamp(0, 1)
    return shown[0].numpy() if shown.shape[0] == 1 else shown.permute(1, 2, 0).numpy()


def render(draw: Callable[[matplotlib.figure.Figure], None], alt: str, caption: str) -> Figure:
    """Return what `draw` draws, in the book's style."""
    with rc_context(STYLE):
        figure = matplotlib.figure.Figure(layout="constrained")  # no pyplot: no global state
        draw(figure)
        buffer = io.BytesIO()
        # Without the version string two machines write the same bytes.
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return Figure(buffer.getvalue(), alt, caption)
