"""The scoreboard and the errata as pages: made of what is recorded, nothing typed."""

import html
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gleak_core.errors import choose
from gleak_core.figures import escape
from gleak_core.studies import human, scoreboard
from gleak_core.studies.errata import ERRATA
from gleak_core.studies.scoreboard import VERDICTS, Line

__all__ = ["ERRATA_PAGE", "PAGE", "anchor", "badge", "fill"]

PAGE = Path("book/scoreboard.md")
ERRATA_PAGE = Path("book/errata.md")
_PAPERS = {
    "dlg": "Chapter 1: a critique of DLG",
    "cpl": "Chapter 2: CPL against DLG",
    "gen": "Chapter 3: general leakage",
    "cafe": "Chapter 4: CAFE",
}


def fill(root: Path) -> None:
    """Put the recorded results into the pages, in place: `<!-- scoreboard: NAME -->`."""
    lines = scoreboard.lines(folder=root / "data" / "results")
    made = {
        "summary": summary(lines),
        "table": table(lines),
        "details": details(lines),
        "errata": errata(),
    }

    def instead(found: re.Match[str]) -> str:
        return made[choose("part of the scoreboard", found[1], made)]

    for page in (root / PAGE, root / ERRATA_PAGE):
        if page.exists():
            text = page.read_text(encoding="utf-8")
            page.write_text(re.sub(r"<!-- scoreboard: (\w+) -->", instead, text), encoding="utf-8")


def anchor(name: str) -> str:
    """Return the label of a result on the page: `gen.table3` → `gen-table3`."""
    return name.replace(".", "-")


def badge(verdict: str) -> str:
    """Return a verdict in words and colour."""
    kind = verdict.removesuffix(" here").replace(" ", "-")
    return f'<span class="verdict verdict-{kind}">{html.escape(verdict)}</span>'


def summary(lines: Sequence[Line]) -> str:
    """Count the verdicts."""
    count = Counter(line.verdict for line in lines)
    parts = [f"{badge(v)} {count[v]}" for v in VERDICTS if count[v]]
    return f"{len(lines)} results: " + " · ".join(parts)


def table(lines: Sequence[Line]) -> str:
    """Return one row per result, a table per paper."""
    return "\n\n".join(
        _table(title, [line for line in lines if line.id.startswith(f"{prefix}.")])
        for prefix, title in _PAPERS.items()
    )


def details(lines: Sequence[Line]) -> str:
    """Return a section per result: claim, rules, cells, deviations, cost."""
    out = []
    for prefix, title in _PAPERS.items():
        out.append(f"## {title}: the rules and the numbers")
        out += [_section(line) for line in lines if line.id.startswith(f"{prefix}.")]
    return "\n\n".join(out)


def errata() -> str:
    """Return a section per erratum, its computation done now."""
    out, chapter = [], ""
    for one in ERRATA:
        paper = one.result.partition(".")[0]
        if paper != chapter:
            out.append(f"## {_PAPERS[paper].partition(': ')[2].capitalize()}")
            chapter = paper
        where = f"{{ref}}`{one.result} <{anchor(one.result)}>`"
        out.append(
            f"({one.id})=\n### {_text(one.place)}\n\n"
            f"**The source.** {_text(one.says)}\n\n"
            f"**The computation.** {_text(one.shows())}\n\n"
            f"**How we read it.** {_text(one.reading)} (On the scoreboard: {where}.)"
        )
    return "\n\n".join(out)


def _table(title: str, lines: Sequence[Line]) -> str:
    head = ("Result", "Published", "Ours, 95 % interval", "n", "Verdict", "Cost")
    rows = [
        "| " + " | ".join(head) + " |",
        "|" + " --- |" * len(head),
        *("| " + " | ".join(_cells(line)) + " |" for line in lines),
    ]
    return f"```{{table}} {title}\n:class: scoreboard\n" + "\n".join(rows) + "\n```"


def _cells(line: Line) -> tuple[str, ...]:
    unit = line.result.metrics[line.result.headline.metric].unit
    at = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in line.result.headline.at.items())
    what = f"{line.metric(line.result.headline.metric).words}{f' at {at}' if at else ''}"
    ours, printed = line.ours, line.published
    return (
        f"{{ref}}`{line.id} <{anchor(line.id)}>` {_text(line.result.title)}: {_text(what)}",
        "—" if printed is None else _text(f"{printed:g} {unit}".rstrip()),
        _text(_interval(ours.value, ours.low, ours.high, unit)) if ours else "—",
        str(ours.n) if ours else "—",
        badge(line.verdict),
        _text(human(line.seconds)) if line.seconds else "—",
    )


def _section(line: Line) -> str:
    result = line.result
    facts = [f"({anchor(line.id)})=\n### {line.id}: {_text(result.title)}"]
    facts.append(f"{badge(line.verdict)} {_sentence([line.why])}")
    facts.append(f"**Claim** ({_text(result.place)}). {_text(result.claim)}")
    body = [
        f"**Stated.** {_sentence(result.stated)}",
        f"**Left open.** {_sentence(result.open)}",
    ]
    marks = {finding.rule.says: finding for finding in line.findings}
    said = []
    for rule in result.rules:
        found = marks.get(rule.says)
        mark = "not judged yet" if found is None else "met" if found.met else "not met"
        tail = f": {_text(found.detail)}" if found else ""
        said.append(f"- {_text(rule.says)}. *{mark[:1].upper()}{mark[1:]}*{tail}")
    body.append("**Rules**, written down before any result was seen:\n\n" + "\n".join(said))
    if line.study and line.study.deviations:
        listed = "\n".join(f"{n}. {_text(d)}" for n, d in enumerate(line.study.deviations, 1))
        body.append(f"**Where we differ from the source.**\n\n{listed}")
    if len(line.rows):
        body += [_numbers(line), _cost(line)]
    inside = "\n\n".join(body)
    title = "Conditions, rules, numbers" if len(line.rows) else "Conditions, rules"
    facts.append(f"::::{{dropdown}} {title}\n{inside}\n::::")
    return "\n\n".join(facts)


def _numbers(line: Line) -> str:
    """Return the table of all cells."""
    assert line.study
    cells = line.cells()
    keys = [key for key in line.study.keys if len({str(cell[key]) for cell in cells}) > 1]
    many = len({cell["metric"] for cell in cells}) > 1
    head = [k.replace("_", " ") for k in keys] + ["measure"] * many
    units = {line.metric(cell["metric"]).unit for cell in cells}
    alone = f" ({units.pop()})" if len(units) == 1 and units != {""} else ""
    head += [_text(f"published{alone}"), _text(f"ours{alone}, 95 % interval"), "n", "not solved"]
    rows = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for cell in cells:
        unit = "" if alone else line.metric(cell["metric"]).unit
        low, high = (math.nan if end is None else end for end in cell["interval"])
        ours = math.nan if cell["ours"] is None else cell["ours"]
        printed = cell["published"]
        values = [_text(str(cell[key])) for key in keys]
        values += [line.metric(cell["metric"]).words] * many
        values += [
            "—" if printed is None else _text(f"{printed:g} {unit}".rstrip()),
            _text(_interval(ours, low, high, unit)),
            str(cell["n"]),
            str(cell["failed"]),
        ]
        rows.append("| " + " | ".join(values) + " |")
    fixed = {key: cells[0][key] for key in line.study.keys if key not in keys}
    same = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in fixed.items())
    caption = "All cells" + (f"; everywhere: {_text(same)}" if same else "")
    return f":::{{table}} {caption}\n:class: scoreboard\n" + "\n".join(rows) + "\n:::"


def _cost(line: Line) -> str:
    older = f" Since then: {line.older}." if line.older else ""
    return f"**Cost.** {_text(line.origin)}.{_text(older)}"


def _interval(value: float, low: float, high: float, unit: str) -> str:
    if math.isnan(value):
        return "not finite"
    if math.isinf(low) and math.isinf(high):  # too few values for an interval
        return f"{value:.4g} {unit}".rstrip()
    return f"{value:.4g} [{low:.4g}, {high:.4g}] {unit}".rstrip()


def _sentence(parts: Sequence[str]) -> str:
    words = "; ".join(parts)
    return _text(f"{words[:1].upper()}{words[1:]}.")


def _text(words: Any) -> str:
    """Return words as they are, whatever Markdown would make of them."""
    return escape(str(words))
