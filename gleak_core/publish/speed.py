"""The page about speed: tables and a figure of the rows that `make bench` wrote."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
import pandas as pd
from matplotlib.axes import Axes

from gleak_core import figures
from gleak_core.errors import GleakError, choose
from gleak_core.figures import PALETTE, Figure, Table
from gleak_core.statistics import wilson

__all__ = ["PAGE", "ROWS", "figure", "fill", "merged", "provenance", "read", "tables"]

ROWS = Path("data/results/speed.csv")
PAGE = Path("book/speed.md")
COLUMNS = ("part", "way", "at", "measure", "value", "runs", "device", "torch", "commit", "date")
TEXTBOOK = "textbook"
CHUNK = 32  # trials side by side on a CPU: from here on time is linear
_AUTO = "auto ("
_PRECISIONS = {"half": "half precision", "bfloat16": "bfloat16"}
_NAMES = {
    "textbook": "textbook loop",
    "line search": "loop, line search",
    "line search, grey": "loop, line search, grey",
    "idlg": "idlg",
    "dlg": "dlg",
    "a picture a call": "analytic, a call for each",
    "all in one call": "analytic, all in one call",
    "set-up reused": "analytic, set-up reused",
    "autograd": "autograd, one trial at a time",
}


def read(path: Path) -> pd.DataFrame:
    """Read the rows of a benchmark, and refuse a file that is none."""
    try:
        frame = pd.read_csv(path, dtype={"at": str, "commit": str, "date": str, "torch": str})
    except (OSError, ValueError) as error:
        raise GleakError(f"no benchmark in {path} ({error}): run make bench") from error
    if missing := sorted(set(COLUMNS) - set(frame.columns)):
        raise GleakError(f"{path} lacks {', '.join(missing)}: run make bench again")
    return frame


def merged(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Return the new rows, and the old ones of what was not measured again."""
    again = {tuple(str(row[k]) for k in ("part", "way")) for row in new.to_dict("records")}
    rows = [row for row in old.to_dict("records") if (row["part"], row["way"]) not in again]
    frame = pd.DataFrame([*rows, *new.to_dict("records")], columns=list(COLUMNS))
    return frame.astype({"at": str})


def fill(root: Path) -> None:
    """Put tables and figure into the page about speed, in place: `<!-- speed: NAME -->`."""
    page = root / PAGE
    rows = read(root / ROWS)
    made = {name: table.markdown() for name, table in tables(rows).items()}
    drawn = figure(rows)
    drawn.save(page.with_suffix(".png"))
    made["figure"] = f"```{{figure}} {PAGE.stem}.png\n:name: fig-speed\n:alt: {drawn.alt}\n\n"
    made["figure"] += "The benchmark in four charts.\n```"
    made["provenance"] = provenance(rows)

    def instead(found: re.Match[str]) -> str:
        choose("table about speed", found[1], made)
        return made[found[1]]

    text = re.sub(r"<!-- speed: (\w+) -->", instead, page.read_text(encoding="utf-8"))
    page.write_text(text, encoding="utf-8")


def provenance(rows: pd.DataFrame) -> str:
    """Say in one line where and when the rows were measured."""
    parts = []
    for column, words in (("device", "{}"), ("torch", "PyTorch {}"), ("date", "{}")):
        parts.append(words.format(", ".join(sorted(set(rows[column].astype(str))))))
    commits = sorted({c[:7] + c[40:] for c in rows["commit"].astype(str)})
    return " · ".join([*parts, f"commit {', '.join(commits)}"])


def tables(rows: pd.DataFrame) -> dict[str, Table]:
    """Return every table that the rows are enough for, by name."""
    made = {name: make(rows) for name, make in _TABLES.items()}
    return {name: table for name, table in made.items() if table is not None}


def figure(rows: pd.DataFrame) -> Figure:
    """Draw what the rows are enough for: evaluations, leaks, growth with N, noise."""
    found = [(chart, said) for chart in _CHARTS if (said := chart(None, rows))]
    if not found:
        raise GleakError("these rows have nothing to draw: run make bench without --only")
    down = (len(found) + 1) // 2

    def draw(page: matplotlib.figure.Figure) -> None:
        page.set_size_inches(9.2, 3.1 * down)
        axes = list(page.subplots(down, 2, squeeze=False).flat)
        for axis, (chart, _) in zip(axes, found, strict=False):
            chart(axis, rows)
        for axis in axes[len(found) :]:
            axis.axis("off")

    return figures.render(draw, " ".join(said for _, said in found), "")


# --- the tables -------------------------------------------------------------------------------


def _pick(rows: pd.DataFrame, *parts: str) -> list[dict[str, Any]]:
    """Return the rows of some parts, one line for each way and place, the measures in it."""
    lines: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows.to_dict("records"):
        if row["part"] in parts:
            key = tuple(str(row[k]) for k in ("part", "way", "at"))
            line = lines.setdefault(key, {"way": key[1], "at": key[2], "runs": 0})
            line[str(row["measure"])] = float(row["value"])
            line["runs"] = max(int(row["runs"]), line["runs"])
    return list(lines.values())


def _table(lines: Sequence[Mapping[str, Any]], caption: str) -> Table | None:
    return figures.table(pd.DataFrame(lines), caption=caption) if lines else None


def _evaluation_table(rows: pd.DataFrame) -> Table | None:
    found = _pick(rows, "evaluation")
    unit = next((line["ms"] for line in found if line["way"] == TEXTBOOK), None)
    lines = [
        {
            "evaluator": "textbook closure" if line["way"] == TEXTBOOK else _named(line["way"]),
            "trials at once": line["at"],
            "ms per trial": line["ms"],
            "times faster": unit / line["ms"] if unit else None,
        }
        for line in found
    ]
    runs = found[0]["runs"] if found else 0
    return _table(
        lines,
        f"One evaluation of the loss and its slope, LeNet on 32×32 (medians of {runs}, in turns).",
    )


def _leaks_table(rows: pd.DataFrame) -> Table | None:
    found = sorted(_pick(rows, "leaks", "analytic"), key=lambda line: line["leaks per s"])
    unit = next((line["leaks per s"] for line in found if line["way"] == TEXTBOOK), None)
    lines = [
        {
            "attack": _named(line["way"]),
            "leaked": _share(line["leaked"], line["runs"]),
            "solved": f"{line['solved']:.0f}",
            "evals": f"{line['evaluations']:.0f}" if "evaluations" in line else None,
            "s each": line["s per picture"],
            "leaks/s": line["leaks per s"],
            "faster": f"{line['leaks per s'] / unit:,.1f}" if unit else None,
        }
        for line in found
    ]
    return _table(
        lines,
        "Pictures leaked to 30 dB (of how many; 95 % interval), those that the attacker counts as "
        "solved, median evaluations, CPU-seconds each, leaks per CPU-second, times faster.",
    )


def _trials_table(rows: pd.DataFrame) -> Table | None:
    found = _pick(rows, "trials")
    unit = next((line["ms"] for line in found if int(line["at"]) >= CHUNK), None)
    lines = [
        {
            "N": line["at"],
            "ms": line["ms"],
            f"against N = {CHUNK}": line["ms"] / unit if unit else None,
            "peak MB": f"{line['peak MB']:.0f}",
            "results MB": f"{line['results MB']:.1f}",
        }
        for line in found
    ]
    return _table(
        lines,
        "N starts against one message: CPU-milliseconds per evaluation and trial, L-BFGS and all; "
        "the peak of the process (each N has its own), and the results' part of it.",
    )


def _shapes_table(rows: pd.DataFrame) -> Table | None:
    lines = []
    for part in ("batch", "size"):
        found = _pick(rows, part)
        for at in dict.fromkeys(line["at"] for line in found):
            here = {line["way"]: line for line in found if line["at"] == at}
            auto = next(way for way in here if way.startswith(_AUTO))
            line = {
                "B": at if part == "batch" else "1",
                "pixels": "32²" if part == "batch" else f"{at}²",
                "auto is": auto.removeprefix(_AUTO).removesuffix(")"),
            }
            for way in ("lanes", "closed_form", "vmap", "autograd", TEXTBOOK):
                line[way] = here[way]["ms"] if way in here else None
            lines.append(line | {"MB": f"{here[auto]['peak MB']:.0f}"})
    return _table(
        lines,
        "Milliseconds per evaluation and trial (8 trials; autograd and the textbook closure one "
        "by one), and the peak of the whole process with what auto takes.",
    )


def _labels_table(rows: pd.DataFrame) -> Table | None:
    lines = [
        {"rule": line["way"], "B": line["at"], "batches per s": f"{line['batches per s']:,.0f}"}
        for line in _pick(rows, "labels")
    ]
    return _table(lines, "Labels read off the gradient, one batch after the other.")


def _noise_table(rows: pd.DataFrame) -> Table | None:
    lines: dict[str, dict[str, Any]] = {}
    for line in _pick(rows, "robustness"):
        name = {"analytic": "analytic", "idlg": "L-BFGS"}[line["way"]]
        at = lines.setdefault(line["at"], {"noise": _noise_name(line["at"])})
        at[f"{name}: leaked"] = _share(line["leaked"], line["runs"])
        at[f"{name}: dB"] = f"{line['median dB']:.1f}"
    return _table(
        list(lines.values()),
        "Noise of a share of ‖∇W‖, spread evenly over all entries, or a shorter number format: "
        "pictures leaked to 30 dB, and median PSNR.",
    )


_TABLES: Mapping[str, Callable[[pd.DataFrame], Table | None]] = {
    "evaluation": _evaluation_table,
    "leaks": _leaks_table,
    "trials": _trials_table,
    "shapes": _shapes_table,
    "labels": _labels_table,
    "robustness": _noise_table,
}


def _named(way: str) -> str:
    return _NAMES.get(way, way)


def _share(successes: float, trials: float) -> str:
    low, high = wilson(int(successes), int(trials))
    return f"{successes:.0f}/{trials:.0f} ({100 * low:.0f}–{100 * high:.0f}%)"


def _noise_name(at: str) -> str:
    return {"0": "none", **_PRECISIONS}.get(at, at)


# --- the charts: each says in words what it draws, and draws it where there is a place for it --


def _bars(
    axis: Axes | None, names: Sequence[str], values: Sequence[float], title: str, what: str
) -> str:
    if axis is not None:
        places = range(len(names))
        axis.barh(places, values, color=PALETTE[0])
        axis.set_yticks(places, names, fontsize=8)
        axis.set_xscale("log")
        axis.set_xlim(min(values) / 3, max(values) * 6)
        for place, value in zip(places, values, strict=True):
            axis.text(value * 1.15, place, f"{value:.3g}", va="center", fontsize=8)
        axis.grid(visible=False, axis="y")
        axis.set_title(title, fontsize=9)
    pairs = (f"{name} {value:.3g}" for name, value in zip(names, values, strict=True))
    return f"{what}: {', '.join(pairs)}."


def _evaluations(axis: Axes | None, rows: pd.DataFrame) -> str:
    found = [line for line in _pick(rows, "evaluation") if not line["way"].startswith(_AUTO)]
    if not found:
        return ""
    names = [
        way if way in (TEXTBOOK, "autograd") else f"{way}, {at} at once"
        for way, at in ((line["way"], line["at"]) for line in found)
    ]
    what = "Milliseconds per evaluation and trial"
    return _bars(axis, names, [line["ms"] for line in found], "ms per evaluation and trial", what)


def _leaks(axis: Axes | None, rows: pd.DataFrame) -> str:
    found = [line for line in _pick(rows, "leaks", "analytic") if line["leaks per s"] > 0]
    if not found:
        return ""
    found.sort(key=lambda line: line["leaks per s"])
    names = [
        line["way"] if line["way"] in ("dlg", "idlg") else _named(line["way"]) for line in found
    ]
    names = [name.partition(" (")[0] for name in names]
    what = "Pictures leaked per CPU-second"
    values = [line["leaks per s"] for line in found]
    return _bars(axis, names, values, "pictures leaked per CPU-second", what)


def _trials(axis: Axes | None, rows: pd.DataFrame) -> str:
    found = _pick(rows, "trials")
    if not found:
        return ""
    n = [int(line["at"]) for line in found]
    spent, peak = [line["ms"] for line in found], [line["peak MB"] for line in found]
    if axis is not None:
        axis.plot(n, spent, "o-", color=PALETTE[0], markersize=5)
        axis.set(xscale="log", xlabel="N trials", ylim=(0, 1.3 * max(spent)))
        axis.set_ylabel("ms per evaluation and trial (circles)", color=PALETTE[0], fontsize=8)
        other = axis.twinx()
        other.plot(n, peak, "s--", color=PALETTE[1], markersize=5)
        other.set_ylim(0, 1.6 * max(peak))
        other.set_ylabel("peak MB of the process (squares)", color=PALETTE[1], fontsize=8)
        other.grid(visible=False)
        axis.set_title("Growth with the number of trials", fontsize=9)
    return (
        f"From {n[0]} to {n[-1]} trials: milliseconds per evaluation and trial from "
        f"{spent[0]:.3g} to {spent[-1]:.3g}, peak memory of the process from "
        f"{peak[0]:.0f} to {peak[-1]:.0f} MB."
    )


def _noise(axis: Axes | None, rows: pd.DataFrame) -> str:
    found = [line for line in _pick(rows, "robustness") if line["at"] != "0"]
    if not found:
        return ""
    at = list(dict.fromkeys(line["at"] for line in found))
    said = []
    for i, (way, name) in enumerate((("analytic", "analytic"), ("idlg", "L-BFGS"))):
        level = {line["at"]: line["median dB"] for line in found if line["way"] == way}
        values = [level[a] for a in at]
        if axis is not None:
            noise = sum(a not in _PRECISIONS for a in at)  # a line joins what has an order
            look = {"color": PALETTE[i], "markersize": 5}
            axis.plot(values[:noise], ("o-", "s--")[i], label=name, **look)
            axis.plot(range(noise, len(at)), values[noise:], "os"[i], **look)
        pairs = ", ".join(
            f"{v:.0f} dB at {_noise_name(a)}" for v, a in zip(values, at, strict=True)
        )
        said.append(f"{name} {pairs}")
    if axis is not None:
        axis.axhline(30, color="#555555", linewidth=0.8)
        names = [{"half": "fp16", "bfloat16": "bf16"}.get(a, f"{a}") for a in at]
        names = [f"{float(n):.0e}".replace("e-0", "e-") if n[0].isdigit() else n for n in names]
        axis.set_xticks(range(len(at)), names, fontsize=8)
        axis.set(xlabel="noise on the gradient", ylabel="median PSNR, dB")
        axis.set_title("What noise does", fontsize=9)
        axis.legend(fontsize=8)
    return f"Median PSNR against noise: {'; '.join(said)}."


_CHARTS = (_evaluations, _leaks, _trials, _noise)
