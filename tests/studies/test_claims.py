"""The claims ledger: what the prose says of a result is what the scoreboard says."""

import json
import re
from collections.abc import Iterator

import pytest

from gleak_core import papers, studies
from gleak_core.files import ROOT
from gleak_core.studies import scoreboard

NAMES = "|".join(sorted({name.partition(".")[0] for name in papers.ids()}))
# A verdict in prose: {ref}`not reproduced <gen-table3>`, or a page's own link to it.
LINK = re.compile(rf"\{{ref\}}`([^`<]+?)\s*<((?:{NAMES})-[\w-]+)>`")
CALL = re.compile(r"\bclaim\(\s*\"([^\"]+)\"")
WORD = re.compile(r"\b(?:not |partly )?reproduced\b|\bnot testable here\b", re.IGNORECASE)
TITLE = re.compile(r"Gradient leakage, reproduced")
# Pages that explain the words; nothing else may use them without saying of what.
EXPLAIN = {"book/read.md", "book/scoreboard.md", "book/notation.md"}


def prose() -> Iterator[tuple[str, str]]:
    """Yield (where, paragraph) of every text of the book."""
    for path in sorted((ROOT / "book").glob("*.md")):
        for paragraph in path.read_text(encoding="utf-8").split("\n\n"):
            yield str(path.relative_to(ROOT)), paragraph
    for path in sorted((ROOT / "chapters").glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "markdown":
                for paragraph in "".join(cell["source"]).split("\n\n"):
                    yield str(path.relative_to(ROOT)), paragraph


def disagreements(texts: Iterator[tuple[str, str]], verdicts: dict[str, str]) -> list[str]:
    """Say where prose and scoreboard differ, and where a verdict names no result."""
    labels = {name.replace(".", "-"): name for name in verdicts}
    wrong = []
    for where, text in texts:
        linked = LINK.findall(text)
        for said, label in linked:
            name = labels.get(label)
            if name is None:
                wrong.append(f"{where}: {label} is no result")
            elif said in scoreboard.VERDICTS and said != verdicts[name]:
                wrong.append(f"{where}: {name} is called {said}, and is {verdicts[name]}")
        if where not in EXPLAIN:
            for word in WORD.findall(LINK.sub("", TITLE.sub("", text))):
                wrong.append(f"{where}: {word!r} without a link to its row: {text[:60]!r}")
    return wrong


def test_prose_and_scoreboard_agree() -> None:
    verdicts = {line.id: line.verdict for line in scoreboard.lines(folder=ROOT / "data/results")}
    assert disagreements(prose(), verdicts) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It is {ref}`reproduced <gen-table3>`.", "called reproduced, and is partly"),
        ("It is {ref}`not reproduced <gen-table9>`.", "gen-table9 is no result"),
        ("The figure is reproduced in full.", "without a link"),
        ("Table 3 is {ref}`partly <gen-table3>`, Table 4 is reproduced as well.", "without a link"),
        ("Table 4 is not testable here.", "'not testable here' without a link"),
    ],
)
def test_each_kind_of_disagreement_is_seen(text: str, words: str) -> None:
    [found] = disagreements(iter([("a.md", text)]), {"gen.table3": "partly"})
    assert words in found


def test_agreement_is_not_a_disagreement() -> None:
    text = "It is {ref}`partly <gen-table3>` reproducible; see {ref}`gen.table3 <gen-table3>`."
    assert disagreements(iter([("a.md", text)]), {"gen.table3": "partly"}) == []


def test_every_claim_of_a_chapter_names_a_result() -> None:
    known = {*papers.ids(), *studies.STUDIES}
    calls = {
        (path.name, name)
        for path in sorted((ROOT / "chapters").glob("*.ipynb"))
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
        for name in CALL.findall("".join(cell["source"]))
    }
    assert calls  # the pattern still finds the calls
    assert {name for _, name in calls} <= known


def test_chapters_claim_results_of_their_own_paper() -> None:
    for path in (ROOT / "chapters").glob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for name in CALL.findall("".join(cell["source"])):
                assert papers.source(name).chapter == path.stem, name
