"""Coursework from one source: the copy keeps its secrets, and each answer is judged by itself."""

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import nbformat
import pytest
from publish.conftest import Write
from publish.small_project import PARAMETERS
from typer.testing import CliRunner, Result

from gleak_core.cli import app
from gleak_core.errors import GleakError
from gleak_core.publish import coursework, notebooks
from gleak_core.publish.coursework import Outcome

TEXT = """\
## Exercises

```{exercise} Double it
:label: ex-s-double

Write `double`.
```

````{solution} ex-s-double
:class: dropdown

The secret is in

```python
twice = 2  # the first secret
```
````

:::{exercise} Only words
:label: ex-s-words

Why?
:::
"""
ONLY_A_SOLUTION = "::::{solution} ex-s-words\nBecause of the second secret.\n::::\n"
HALVE = "~~~{exercise} Halve it\n:label: ex-s-halve\n~~~"
DOUBLE = '''\
# ex-s-double
def double(x):
    """Return twice as much."""
    ### BEGIN SOLUTION
    third_secret = 2
    return third_secret * x
    ### END SOLUTION
'''
DOUBLE_CHECK = '# ex-s-double\nimport math\nassert double(unit) == 2, "the fourth secret"'
HALVE_SOLVED = """\
# ex-s-halve
### BEGIN SOLUTION
fifth_secret = double(unit) / 4
half = fifth_secret
### END SOLUTION
said = f"half is {half}"
"""
HALVE_CHECK = "# ex-s-halve\nassert math.isclose(half, 0.5)\nassert said"
SECRETS = (
    "first secret", "second secret", "third_secret", "fourth secret", "fifth_secret", "SOLUTION",
    "solution", "assert", "exercise-check", "dropdown", "hide-cell",
)  # fmt: skip


def code(source: str, *tags: str) -> Any:
    cell = nbformat.v4.new_code_cell(source)
    if tags:
        cell.metadata["tags"] = list(tags)
    return cell


def solved(*, setup: str = "unit = 1", last: str = "print(double(unit), half)") -> Any:
    """Return a chapter with two exercises to build, a third in words, and cells around them."""
    made = nbformat.v4.new_notebook(metadata={"kernelspec": {"display_name": "", "name": "x"}})
    made.cells = [
        nbformat.v4.new_markdown_cell("# A small chapter"),
        code(PARAMETERS, "parameters"),
        code(setup),
        nbformat.v4.new_markdown_cell(TEXT),
        nbformat.v4.new_markdown_cell(ONLY_A_SOLUTION),
        code(DOUBLE, "exercise", "hide-cell"),
        code(DOUBLE_CHECK, "exercise-check", "hide-cell"),
        nbformat.v4.new_markdown_cell(HALVE),
        code(HALVE_SOLVED, "hide-cell", "exercise"),
        code(HALVE_CHECK, "exercise-check", "hide-cell"),
        code(last),
    ]
    for number, cell in enumerate(made.cells):
        cell["id"] = f"c{number:02}"
    made.cells[-1].outputs = [nbformat.v4.new_output("stream", text="2 0.5\n")]
    made.cells[-1].execution_count = 7
    return made


def answered(**sources: str) -> Any:
    """Return the student's copy with answers: `double=…, halve=…`; an empty one is deleted."""
    copy = coursework.student(solved())
    for name, source in sources.items():
        label = f"# ex-s-{name}\n"
        [cell] = [cell for cell in copy.cells if cell.source.startswith(label)]
        cell.source = label + source
    copy.cells = [
        cell for cell in copy.cells if cell.source not in [f"# ex-s-{n}\n" for n in sources]
    ]
    return copy


RIGHT = {"double": "double = lambda x: x + x", "halve": "half, said = 0.5, 'half'"}


def checked(student: Any, chapter: Any = None, **options: Any) -> list[tuple[str, str]]:
    """Return state and message of each exercise."""
    outcomes = coursework.check(student, chapter or solved(), **options)
    assert [o.label for o in outcomes] == ["ex-s-double", "ex-s-halve"]
    return [(o.state, o.message) for o in outcomes]


def together(answers: Sequence[tuple[str, str]], **options: Any) -> list[list[tuple[str, str]]]:
    """Return state and message of pairs of answers, one after the other in one kernel.

    The exercises come once for each pair, and nothing that they define stays for the next.
    """
    chapter, student = solved(), nbformat.v4.new_notebook()
    exercises = chapter.cells[3:10]
    del chapter.cells[3:]
    for number, (double, halve) in enumerate(answers):
        own = [*exercises, code("del double, half, said, math")]
        chapter.cells += numbered(own, number)
        student.cells += numbered(answered(double=double, halve=halve).cells, number)
    outcomes = coursework.check(student, chapter, **options)
    labels = [f"ex-s{n}-{name}" for n in range(len(answers)) for name in ("double", "halve")]
    assert [o.label for o in outcomes] == labels
    found = [(o.state, o.message) for o in outcomes]
    return [found[n : n + 2] for n in range(0, len(found), 2)]


def numbered(cells: Sequence[Any], number: int) -> list[Any]:
    """Return cells with labels and ids of their own."""
    copies = deepcopy(list(cells))
    for cell in copies:
        cell["source"] = cell.source.replace("ex-s-", f"ex-s{number}-")
        cell["id"] = f"{cell.id}-{number}"
    return copies


# --- the student's copy ------------------------------------------------------------------------


def test_a_copy_holds_no_secret_and_says_where_answers_go() -> None:
    chapter = solved()
    before = deepcopy(chapter)
    copy = coursework.student(chapter)
    assert chapter == before
    nbformat.validate(copy)
    assert [secret for secret in SECRETS if secret in json.dumps(copy)] == []
    assert [cell.id for cell in copy.cells] == [
        "c00",
        "c01",
        "c02",
        "c03",
        "c05",
        "c07",
        "c08",
        "c10",
    ]
    double, halve = notebooks.tagged(copy, "exercise")
    assert double.source == (
        '# ex-s-double\ndef double(x):\n    """Return twice as much."""\n'
        '    raise NotImplementedError("ex-s-double: your answer goes here")'
    )
    assert halve.source == (
        '# ex-s-halve\nraise NotImplementedError("ex-s-halve: your answer goes here")\n'
        'said = f"half is {half}"'
    )
    for cell in notebooks.code_cells(copy):
        assert (cell.outputs, cell.execution_count) == ([], None)
    [text] = [cell.source for cell in copy.cells if cell.id == "c03"]
    assert text == TEXT[: TEXT.index("````")] + TEXT[TEXT.index(":::{exercise}") :].rstrip("\n")


def test_a_copy_of_a_copy_has_no_solution_to_leave_out() -> None:
    with pytest.raises(GleakError, match="holds no solution"):
        coursework.student(coursework.student(solved()))


def test_two_regions_are_two_answers() -> None:
    chapter = solved()
    chapter.cells[8].source += "### BEGIN SOLUTION\nfifth_secret\n### END SOLUTION\n"
    source = coursework.student(chapter).cells[6].source
    assert source.count("raise NotImplementedError") == 2
    assert "secret" not in source


@pytest.mark.parametrize("name", sorted(notebooks.find()))
def test_the_copy_of_a_chapter_holds_no_solution(name: str) -> None:
    chapter = notebooks.read(notebooks.find()[name])
    copy = coursework.student(chapter)
    nbformat.validate(copy)
    whole = json.dumps(copy["cells"])
    for word in ("{solution", "BEGIN SOLUTION", "END SOLUTION", "exercise-check"):
        assert word not in whole
    sources = [cell["source"] for cell in copy["cells"]]
    for one in coursework.exercises(chapter):
        assert one.solution not in sources
        assert one.check not in sources
        [cell] = [s for s in sources if s.startswith(f"# {one.label}\n")]
        assert f"{one.label}: your answer goes here" in cell


def setting(number: int, source: str) -> Callable[[Any], None]:
    def change(chapter: Any) -> None:
        chapter.cells[number].source = source

    return change


def tagging(number: int, *tags: str) -> Callable[[Any], None]:
    def change(chapter: Any) -> None:
        chapter.cells[number].metadata["tags"] = list(tags)

    return change


def without(number: int) -> Callable[[Any], None]:
    def change(chapter: Any) -> None:
        del chapter.cells[number]

    return change


def again(chapter: Any) -> None:
    chapter.cells += [code(DOUBLE, "exercise"), code(DOUBLE_CHECK, "exercise-check")]


BEGIN, END = "### BEGIN SOLUTION\n", "### END SOLUTION\n"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (setting(5, f"# ex-s-double\n{BEGIN}x"), "c05 .*never ends: put `### END SOLUTION` after"),
        (setting(5, f"# ex-s-double\n{END}x"), "c05 .*never began: put `### BEGIN SOLUTION` befor"),
        (setting(5, f"# ex-s-double\n{BEGIN}{BEGIN}{END}{END}"), "c05 .*a solution in a solution"),
        (setting(5, "# ex-s-double\ndouble = 2"), "c05 .*holds no solution: put one between"),
        (setting(5, DOUBLE + "### BEGIN SOLUTIONS"), "c05 .*has the marker .*: write `### BEGIN"),
        (setting(5, DOUBLE.partition("\n")[2]), "c05 .*which exercise it is: begin it with `# ex-"),
        (without(6), "c05 .*not followed by its check: .*begins with `# ex-s-double`"),
        (setting(6, HALVE_CHECK), "c05 .*not followed by its check"),
        (setting(6, "assert double(1) == 2"), "c05 .*not followed by its check"),
        (without(5), "c06 .*checks no exercise: put it right after"),
        (tagging(5), "c05 .*holds a solution: tag it 'exercise'"),
        (tagging(5, "exercise", "exercise-check"), None),
        (setting(7, "words"), "c08 .*belongs to no text: .*`:label: ex-s-halve`"),
        (setting(7, HALVE.replace("halve", "double")), "c07 .*label ex-s-double again: give each"),
        (again, "has the label of another: give ex-s-double to one"),
        (setting(4, "```{solution} ex-s-words\nsecret"), "c04 .*never closes .*end it with `{3}"),
        (setting(7, "~~~{exercise}\n:label: ex-s-halve"), "c07 .*never closes"),
        (setting(4, "```{solution-start} ex-s-words\n```\nsecret"), "c04 .*cannot be cut out"),
        (setting(4, "> ```{solution} ex-s-words\n> secret\n> ```"), "c04 .*cannot be cut out"),
    ],
)
def test_what_is_malformed_is_refused_with_its_cell_and_cure(
    change: Callable[[Any], None], sentence: str | None
) -> None:
    chapter = solved()
    change(chapter)
    if sentence is None:  # a tag too many hides nothing less
        assert "secret" not in json.dumps(coursework.student(chapter))
        return
    with pytest.raises(GleakError, match=sentence) as refusal:
        coursework.student(chapter)
    assert "\n" not in str(refusal.value)


# --- checking ----------------------------------------------------------------------------------


def test_a_chapter_passes_its_own_checks() -> None:
    assert checked(solved()) == [("passed", ""), ("passed", "")]


def test_the_unsolved_copy_is_answered_nowhere() -> None:
    assert checked(coursework.student(solved())) == [("not answered", "")] * 2


ANSWERS: list[tuple[str, str, list[tuple[str, str]]]] = [
    # A wrong answer spoils no other: the second exercise calls the chapter's own `double`.
    (
        "def double(x):\n    return 3 * x",
        "half, said = double(unit) / 4, 'half'",
        [("failed", "the fourth secret"), ("passed", "")],
    ),
    # An error while checking, and an assert without words, which is shown itself.
    (
        "def double(x):\n    return x / 0",
        "half, said = 2, 3",
        [
            ("failed", "ZeroDivisionError: division by zero"),
            ("failed", "assert math.isclose(half, 0.5)"),
        ],
    ),
    # What cannot be read, and what takes a name that the next exercise needs.
    (
        "def double(x:",
        "unit = double = print = None\nhalf, said = 0.5, 1",
        [("failed", "SyntaxError: '(' was never closed"), ("passed", "")],
    ),
    # A way out is no way through; the second student deleted his cell.
    ("raise SystemExit(0)", "", [("failed", "SystemExit: 0"), ("not there", "")]),
    # The check of a deleted cell runs all the same: the next one needs what it imports.
    ("", RIGHT["halve"], [("not there", ""), ("passed", "")]),
    # A name of the student's own stays for his next answer, and `unit` is what it was.
    (
        "unit, mine = 7, 1\nraise NotImplementedError",
        "half, said = mine / 2, unit == 1",
        [("not answered", ""), ("passed", "")],
    ),
    # PyTorch says so of types that it cannot compute with.
    (
        "def double(x):\n    raise NotImplementedError('not for Half')",
        "half, said = 0.5, double\nimport inspect; inspect.getsource(double)",
        [("failed", "NotImplementedError: not for Half"), ("passed", "")],
    ),
]


@pytest.fixture(scope="module")
def judged() -> list[list[tuple[str, str]]]:
    """What became of all ANSWERS."""
    return together([(double, halve) for double, halve, _ in ANSWERS])


@pytest.mark.parametrize("number", range(len(ANSWERS)))
def test_an_answer_is_judged_by_itself(
    number: int, judged: Sequence[Sequence[tuple[str, str]]]
) -> None:
    assert judged[number] == ANSWERS[number][2]


def test_nothing_else_of_a_student_runs_and_nothing_is_left(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    copy = answered(**RIGHT)
    copy.cells.insert(2, code(f"unit = 100\nopen({str(trace)!r}, 'w')", "setup-for-exercises"))
    copy.cells.append(code(f"open({str(trace)!r}, 'w')"))
    for cell in copy.cells:  # a hosted notebook may lose its tags
        cell.metadata.pop("tags", None)
    here = set(Path.cwd().iterdir())
    assert checked(copy) == [("passed", ""), ("passed", "")]
    assert not trace.exists()
    assert set(Path.cwd().iterdir()) == here


def test_a_label_in_two_cells_is_no_answer_and_starts_no_kernel() -> None:
    copy = answered(halve="")
    copy.cells.append(deepcopy(notebooks.tagged(copy, "exercise")[0]))
    says = "2 cells begin with `# ex-s-double`: keep one of them"
    assert checked(copy) == [("failed", says), ("not there", "")]


ENDS = [
    ("import os\nos._exit(0)", "the kernel died here (killed, or out of memory)"),
    ("exit()\ndouble = lambda x: 2 * x", "the kernel died here (killed, or out of memory)"),
    ("while True: pass", "ran longer than 3 s"),
]


@pytest.fixture(scope="module")
def ended() -> list[list[tuple[str, str]]]:
    """What became of all that ENDS a kernel, and of a right answer after each."""
    return together([(source, RIGHT["halve"]) for source, _ in ENDS], timeout=3)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(ENDS)))
def test_what_ends_the_kernel_fails_alone(
    number: int, ended: Sequence[Sequence[tuple[str, str]]]
) -> None:
    assert ended[number] == [("failed", ENDS[number][1]), ("passed", "")]


def test_the_failure_of_another_cell_is_no_answer_s_fault() -> None:
    with pytest.raises(GleakError, match=r"small, code cell 2: ZeroDiv(.|\n)*chapter's own"):
        checked(answered(**RIGHT), solved(setup="unit = 1 / 0"), name="small")


def test_a_check_that_the_chapter_fails_is_no_student_s_fault() -> None:
    chapter = solved()
    chapter.cells[9].source += "\nassert nowhere"
    with pytest.raises(GleakError, match=r"small, code cell 6: NameError: name 'nowhere'"):
        checked(answered(**RIGHT), chapter, name="small")


def test_only_what_exercises_need_runs_where_the_chapter_says_so() -> None:
    chapter = solved(last="raise RuntimeError('too slow to run')")
    chapter.cells[2].metadata["tags"] = ["setup-for-exercises"]
    assert checked(answered(**RIGHT), chapter) == [("passed", ""), ("passed", "")]


def test_a_chapter_without_exercises_has_nothing_to_check() -> None:
    chapter = solved()
    chapter.cells = chapter.cells[:3]
    with pytest.raises(GleakError, match="01_a has no exercise with a check"):
        coursework.check(chapter, chapter, name="01_a")


@pytest.mark.parametrize("name", sorted(notebooks.find()))
def test_the_exercises_of_a_chapter_are_solved_in_it(name: str) -> None:
    """After the cells for setting up alone, as `check` runs them, without its kernel."""
    chapter = notebooks.read(notebooks.find()[name])
    found, names = coursework.exercises(chapter), dict[str, Any]()
    for cell in notebooks.code_cells(chapter):
        if {"parameters", "setup-for-exercises"} & set(cell["metadata"].get("tags", [])):
            exec(cell["source"], names)
    assert len(found) >= 3
    for one in found:
        exec(f"{one.solution}\n\n{one.check}", names)  # a later one may need an earlier one


@pytest.mark.slow
def test_a_chapter_s_own_answers_pass() -> None:
    chapter = notebooks.read(notebooks.find()["04_cafe"])
    outcomes = coursework.check(chapter, chapter, name="04_cafe")
    labels = [one.label for one in coursework.exercises(chapter)]
    assert [(o.label, o.state) for o in outcomes] == [(label, "passed") for label in labels]


# --- the command -------------------------------------------------------------------------------


def gleak(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["teach", *map(str, words)])


@pytest.fixture
def chapter(project: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small chapter as 01_a, and a second one, in the place of the book's own."""
    write("02_b")
    path = project / "chapters" / "01_a.ipynb"
    path.write_text(notebooks.text(solved()))
    here = {name: project / "chapters" / f"{name}.ipynb" for name in ("01_a", "02_b")}
    monkeypatch.setattr(notebooks, "find", lambda *_: here)
    return path


def test_copy_writes_and_overwrites_only_when_told(
    chapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = gleak("copy", "1")
    assert (said.exit_code, said.output) == (0, "01_a.ipynb\n")
    assert notebooks.read(Path("01_a.ipynb")) == coursework.student(solved())
    said = gleak("copy", "01", "--out", "class")
    assert said.output == f"{Path('class') / '01_a.ipynb'}\n"
    Path("01_a.ipynb").write_text("mine")
    said = gleak("copy", "01")
    assert (said.exit_code, said.stdout) == (2, "")
    assert said.stderr == "gleak: 01_a.ipynb is there already: add --force to overwrite it\n"
    assert Path("01_a.ipynb").read_text() == "mine"
    assert gleak("copy", "01", "--force").exit_code == 0
    assert notebooks.read(Path("01_a.ipynb")) == coursework.student(solved())


def test_copy_never_overwrites_the_chapter(chapter: Path) -> None:
    before = chapter.read_bytes()
    said = gleak("copy", "01", "--out", chapter.parent, "--force")
    assert said.exit_code == 2
    assert "is the chapter itself: choose another folder" in said.stderr
    assert chapter.read_bytes() == before
    assert "known: 01_a, 02_b" in gleak("copy", "77").stderr


def test_check_says_a_line_for_each_and_its_status(
    chapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = [Outcome("ex-s-double", "passed"), Outcome("ex-s-halve", "failed", "too much")]
    asked: list[tuple[str, float]] = []

    def check(student: Any, own: Any, *, name: str, timeout: float) -> list[Outcome]:
        assert own == solved()
        asked.append((name, timeout))
        return ended

    monkeypatch.setattr(coursework, "check", check)
    file = tmp_path / "01_a (1) Ann.ipynb"
    file.write_text(notebooks.text(answered(**RIGHT)))
    said = gleak("check", file, "--timeout", "9")
    assert said.exit_code == 1
    assert said.stdout == (
        "passed        ex-s-double\nfailed        ex-s-halve: too much\n1 of 2 passed\n"
    )
    ended[1] = Outcome("ex-s-halve", "passed")
    other = file.rename(tmp_path / "homework.ipynb")
    said = gleak("check", other, "--chapter", "1")
    assert (said.exit_code, said.stdout.splitlines()[-1]) == (0, "2 of 2 passed")
    assert asked == [("01_a", 9.0), ("01_a", coursework.PATIENCE)]


def test_check_refuses_in_sentences(chapter: Path, tmp_path: Path) -> None:
    file = tmp_path / "homework.ipynb"
    assert f"there is no notebook {file}" in gleak("check", file).stderr
    file.write_text("{}")
    assert "is not a whole notebook" in gleak("check", file).stderr
    file.write_text(notebooks.text(answered(**RIGHT)))
    said = gleak("check", file)
    assert (said.exit_code, said.stderr) == (
        2,
        "gleak: the name homework.ipynb tells no chapter: say which one, --chapter 01\n",
    )
    said = gleak("check", file, "--chapter", "02")
    assert "02_b has no exercise with a check" in said.stderr
