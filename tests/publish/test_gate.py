"""The gate: a good page passes, and each way of being bad is refused with its sentence.

Take a rule out of gate.EXECUTED or gate.COMMITTED, and one of these fails.
"""

import base64
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import nbformat
import pytest
from publish.small_project import notebook

from gleak_core.publish import gate, sanitise

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n and so on").decode()
TABLE = '<table class="gleak-table"><caption>a &lt; b</caption><tr><td>1</td></tr></table>'


def stream(text: str, name: str = "stdout") -> Any:
    return nbformat.v4.new_output("stream", name=name, text=text)


def shown(mime: str, content: Any, **metadata: Any) -> Any:
    return nbformat.v4.new_output("display_data", data={mime: content}, metadata=metadata)


def picture(alt: str | None = "A line that rises.") -> Any:
    return shown("image/png", PNG, **({"image/png": {"alt": alt}} if alt is not None else {}))


def good() -> Any:
    """An executed page with one output of every allowed kind."""
    page = notebook("print(1)", "plot()", "table()", "formula()", "words()")
    outputs = [
        [],
        [stream("1\n")],
        [picture()],
        [shown("text/html", TABLE), shown("text/plain", "a table")],
        [shown("text/latex", "$x^2$")],
        [shown("text/markdown", "*so*")],
    ]
    cells = [cell for cell in page.cells if cell.cell_type == "code"]
    for number, (cell, output) in enumerate(zip(cells, outputs, strict=True), 1):
        cell.execution_count, cell.outputs = number, output
    page.metadata["gleak"] = {
        "run": {
            "profile": "smoke", "device": "cpu", "seconds": 1.0, "date": "2026-01-01 00:00:00",
            "versions": {}, "parameters": {"profile": "smoke", "device": "auto", "seed": 0},
        }
    }  # fmt: skip
    return page


def committed() -> Any:
    page = good()
    del page.metadata["gleak"]
    return page


def judge(page: Any, **options: Any) -> str:
    try:
        gate.check(page, **{"profile": "smoke", "name": "01_a", **options})
    except gate.GateRefused as refusal:
        return str(refusal)
    return ""


def test_a_good_page_passes() -> None:
    assert judge(good()) == ""
    assert judge(good(), parameters={"profile": "smoke", "device": "auto", "seed": 0}) == ""


def code(page: Any, number: int) -> Any:
    return [cell for cell in page.cells if cell.cell_type == "code"][number - 1]


def add(output: Any) -> Callable[[Any], None]:
    return lambda page: code(page, 2).outputs.append(output)


def put(number: int, **values: Any) -> Callable[[Any], None]:
    return lambda page: code(page, number).update(values)


def strip(page: Any) -> None:
    for cell in page.cells:
        if cell.cell_type == "code":
            cell.outputs = []


def run(**values: Any) -> Callable[[Any], None]:
    return lambda page: page.metadata["gleak"]["run"].update(values)


def meta(**values: Any) -> Callable[[Any], None]:
    return lambda page: page.metadata.update(values)


BAD: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a cell that did not run": (put(4, execution_count=None), "has execution count None, not 4"),
    "cells out of order": (put(2, execution_count=3), "has execution count 3, not 2"),
    "an empty cell": (put(4, source=" "), "code cell 4 is empty"),
    "no end": (meta(papermill={"end_time": None}), "did not reach its end"),
    "an exception": (meta(papermill={"exception": True}), "did not reach its end"),
    "a cell under way": (
        lambda page: code(page, 3).metadata.update(papermill={"status": "running"}),
        "code cell 3 (`plot()`) did not complete",
    ),
    "no record": (lambda page: page.metadata.pop("gleak"), "there is no record of the run"),
    "half a record": (lambda page: page.metadata.gleak.run.pop("date"), "record of the run (date)"),
    "stripped": (strip, "it has no outputs at all"),
    "a stored error": (
        add(nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])),
        "code cell 2 (`print(1)`) ended in ValueError: no",
    ),
    "stderr": (add(stream("careful\n", "stderr")), "wrote to standard error: careful"),
    "another profile": (
        lambda page: (
            run(profile="quick", parameters={"profile": "quick"})(page),
            put(1, source='profile = "quick"')(page),
        ),
        "ran with profile quick, and the book is built for smoke",
    ),
    "an untruthful page": (
        run(parameters={"profile": "smoke", "device": "auto", "seed": 1}),
        "the page shows seed = 0, but the record says 1",
    ),
    "a broken parameters cell": (put(1, source="import os"), "may only hold `name = literal`"),
    "a script output": (add(shown("application/javascript", "alert(1)")), "type application/java"),
    "an SVG": (add(shown("image/svg+xml", "<svg/>")), "has an output of type image/svg+xml"),
    "a widget": (
        add(shown("application/vnd.jupyter.widget-view+json", {})),
        "has an output of type application/vnd.jupyter",
    ),
    "a false PNG": (put(3, outputs=[shown("image/png", "PHN2Zz4=", **{"image/png": {"alt": "a"}})]),
                    "is not a PNG picture"),
    "an injected script": (add(shown("text/html", "<script>alert(1)</script>")), "<script> is not"),
    "markup in a caption": (
        put(3, outputs=[shown("image/png", PNG, **{"image/png": {"alt": "a", "caption": "<b>"}})]),
        "the caption of its picture holds markup",
    ),
    "no alt text": (put(3, outputs=[picture(None)]), "shows a picture without alt text"),
    "blank alt text": (put(3, outputs=[picture("  ")]), "shows a picture without alt text"),
    "two pictures": (put(3, outputs=[picture(), picture("Another.")]), "shows 2 pictures"),
    "a temporary file": (add(stream("saved /tmp/x.png\n")), "a path of this machine: '/tmp/x.png"),
    "a home": (add(stream("in /home/ada/x\n")), "'/home/ada/x"),
    "a Mac's home": (add(stream('File "/Users/ada/x"\n')), "'/Users/ada/x"),
    "a Windows home": (add(stream("C:\\Users\\ada\n")), "a path of this machine"),
    "this project's folder": (add(stream("at /srv/books/gleak/data\n")), "'/srv/books/gleak/data"),
    "beside the project": (add(shown("text/html", "<p>/srv/books/x</p>")), "'/srv/books/x"),
    "an installed package": (add(stream("lib/site-packages/torch\n")), "'site-packages/torch"),
    "a memory address": (add(stream("<A at 0x7f00aa11>")), "a memory address (at 0x7f00aa11)"),
    "no title": (lambda page: page.cells.pop(0), "does not begin with a title"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_each_fault_is_refused_in_its_own_words(case: str) -> None:
    spoil, said = BAD[case]
    page = good()
    spoil(page)
    words = judge(page, root=Path("/srv/books/gleak"))
    assert words.startswith("01_a cannot be published:")
    assert said in words


def test_parameters_that_were_asked_for_must_be_shown() -> None:
    asked = {"profile": "smoke", "device": "auto", "seed": 4}
    assert "the page shows seed = 0, but the request says 4" in judge(good(), parameters=asked)


def test_alt_text_of_the_cell_is_enough_for_several_pictures() -> None:
    page = good()
    code(page, 3).outputs = [picture(None), picture(None)]
    code(page, 3).metadata["mystnb"] = {"image": {"alt": "Two lines."}}
    assert judge(page) == ""


def test_every_problem_is_named() -> None:
    page = good()
    code(page, 2).outputs = [stream("x", "stderr"), stream("/tmp/a")]
    with pytest.raises(gate.GateRefused) as refusal:
        gate.check(page, profile="smoke")
    assert len(refusal.value.problems) == 2


BAD_COMMITTED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a record": (meta(gleak={"run": {"date": "today"}}), "no part of a committed chapter"),
    "papermill": (meta(papermill={"end_time": "now"}), "it carries run metadata"),
    "timings": (lambda p: code(p, 2).metadata.update(execution={}), "it carries run metadata"),
    "versions": (meta(language_info={"name": "python", "version": "3"}), "it carries run metadata"),
    "quick by default": (put(1, source='profile = "quick"'), "default profile is 'quick'"),
    "cuda by default": (put(1, source='profile = "smoke"\ndevice = "cuda"'), "device is 'cuda'"),
    "a long line": (put(2, source="print(1)  #" + "x" * 80), "has a line of 91 characters"),
    "stripped": (strip, "it has no outputs at all"),
    "stderr": (add(stream("careful\n", "stderr")), "wrote to standard error"),
    "a cell that did not run": (put(4, execution_count=None), "has execution count None"),
    "two parameters cells": (
        lambda page: code(page, 2).metadata.update(tags=["parameters"]), "has 2 cells tagged"
    ),
    "nothing compared": (
        lambda page: [
            cell.metadata.update(tags=[*cell.metadata.get("tags", []), "nbval-ignore-output"])
            for cell in page.cells
        ],
        "nbval would compare none of its outputs",
    ),
    "only pictures": (
        lambda page: [put(n, outputs=[])(page) for n in (2, 4, 5, 6)],
        "nbval would compare none of its outputs",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_COMMITTED)
def test_a_committed_chapter_is_held_to_more(case: str) -> None:
    spoil, said = BAD_COMMITTED[case]
    page = committed()
    gate.require(gate.COMMITTED, deepcopy(page), name="01_a")
    spoil(page)
    with pytest.raises(gate.GateRefused) as refusal:
        gate.require(gate.COMMITTED, page, name="01_a")
    assert said in str(refusal.value)


HARMLESS = [
    TABLE,
    "<p>a <b>b</b> &amp; c<br>d</p>",
    '<a href="https://arxiv.org/abs/1906.08935">paper</a><a href="x.html#y">y</a>',
    f'<img src="data:image/png;base64,{PNG}" alt="A line.">',
    "<style scoped>.dataframe tbody tr th { vertical-align: top; }</style>",
    '<div style="color: red" data-frame="3" aria-label="x">y</div>',
]


@pytest.mark.parametrize("html", HARMLESS)
def test_harmless_markup_passes(html: str) -> None:
    assert sanitise.markup_problems(html) == []


def test_pandas_tables_pass() -> None:
    import pandas as pd

    frame = pd.DataFrame({"<a>": ["<script>"]}, index=["&"])
    assert sanitise.markup_problems(frame._repr_html_()) == []  # type: ignore[operator]


HARMFUL = [
    "<script>alert(1)</script>", "<SCRIPT SRC=//x.y/z></SCRIPT>", "<svg onload=alert(1)></svg>",
    '<p onclick="alert(1)">x</p>', "<p onclick=alert(1)>x</p>", '<div id="main">x</div>',
    '<a href="javascript:alert(1)">x</a>', '<a href="java&#115;cript:alert(1)">x</a>',
    '<a href=" jAvA\tscript:alert(1)">x</a>', '<a href="data:text/html,x">x</a>',
    '<img src="https://x.y/z.png" alt="x">', '<img src="//x.y/z.png" alt="x">',
    '<img src="x" onerror="alert(1)" alt="x">', "<img src=x onerror=alert(1) ",
    f'<img src="data:image/png;base64,{PNG}">', '<img src="data:image/svg+xml;base64,AA" alt="x">',
    '<iframe src="x.html"></iframe>', '<object data="x"></object>', '<embed src="x">',
    '<link rel="stylesheet" href="x.css">', '<meta http-equiv="refresh" content="0">',
    '<base href="https://x.y">', '<form action="https://x.y"><button>x</button></form>',
    '<style>p { background: url("https://x.y") }</style>', "<style>@import 'x'</style>",
    '<p style="background: url(//x.y)">x</p>', '<p style="position:fixed; inset:0">x</p>',
    "<style></style ><script>x</script>", "<!-- x --><p>y</p>", "<!--[if IE]>x<![endif]-->",
    "<!DOCTYPE html>", "<?php x ?>", "<![CDATA[x]]>", "<p>x", "x</p>", "</div></div>", "a < b <",
    "<p><b>x</p></b>", "<math><mtext></mtext></math>", "<noscript><p>x</p></noscript>",
]  # fmt: skip


@pytest.mark.parametrize("html", HARMFUL)
def test_harmful_or_broken_markup_is_refused(html: str) -> None:
    assert sanitise.markup_problems(html)


@pytest.mark.parametrize(
    "markdown",
    ["<script>x</script>", "![x](https://x.y/z.png)", "[x](javascript:alert(1))", "a <b>x</b>"],
)
def test_harmful_markdown_is_refused(markdown: str) -> None:
    assert sanitise.markdown_problems(markdown)


def test_markdown_may_show_code() -> None:
    assert sanitise.markdown_problems("**a** < `<b>` and [x](https://x.y)") == []


@pytest.mark.parametrize(
    "latex", [r"\href{javascript:alert(1)}{x}", r"\require{html}", r"x</script>"]
)
def test_latex_with_powers_is_refused(latex: str) -> None:
    assert sanitise.latex_problems(latex)
    assert sanitise.latex_problems(r"\frac{\partial \mathcal{L}}{\partial W} \in \mathbb{R}") == []
