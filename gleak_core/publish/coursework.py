"""Coursework from one source: the student's copy of a chapter, and what became of the answers.

A chapter as committed holds its exercises solved, and passes its own checks in every run. A build
exercise is a code cell tagged `exercise`, its solution between two marker lines, and right after it
a cell tagged `exercise-check`. Both begin with the label of the {exercise} in the text: `# ex-…`.
"""

import builtins
import os
import re
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gleak_core.errors import GleakError
from gleak_core.files import atomic_write
from gleak_core.publish import execute, notebooks

__all__ = ["PATIENCE", "Exercise", "Outcome", "attempt", "check", "exercises", "student"]

State = Literal["passed", "failed", "not answered", "not there"]

PATIENCE = 120.0  # seconds per cell: a student's endless loop must end, too
_BEGIN, _END = "### BEGIN SOLUTION", "### END SOLUTION"
_LIKE_A_MARKER = re.compile(r"#+\s*(begin|end)\b.*solution", re.IGNORECASE)
_LABEL = re.compile(r"#\s*(ex-\w[\w-]*)")
_SETUP = "setup-for-exercises"
_MIME = "application/vnd.gleak.exercise+json"  # nothing that an answer prints looks like it


@dataclass(frozen=True)
class Exercise:
    """A build exercise: its label, where its cell stands, its solution and its check."""

    label: str
    index: int
    solution: str
    check: str


@dataclass(frozen=True)
class Outcome:
    """What became of the answer to one exercise; `message` says why it failed."""

    label: str
    state: State
    message: str = ""

    def __str__(self) -> str:
        return f"{self.state:<13} {self.label}" + (f": {self.message}" if self.message else "")


# --- reading a chapter -------------------------------------------------------------------------


def exercises(notebook: Any) -> list[Exercise]:
    """Return the build exercises of a chapter, or say which cell is malformed, and its cure."""
    asked, found = _asked(notebook), dict[str, Exercise]()
    for index, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] != "code":
            continue
        if "exercise" in _tags(cell):
            one = _exercise(notebook, index)
            if one.label in found:
                raise _refusal(cell, f"has the label of another: give {one.label} to one exercise")
            if one.label not in asked:
                raise _refusal(
                    cell, f"belongs to no text: write an {{exercise}} with `:label: {one.label}`"
                )
            found[one.label] = one
        elif any(map(_LIKE_A_MARKER.match, map(str.strip, cell["source"].splitlines()))):
            raise _refusal(cell, "holds a solution: tag it 'exercise', or remove the markers")
        elif "exercise-check" in _tags(cell) and index - 1 not in {e.index for e in found.values()}:
            raise _refusal(cell, "checks no exercise: put it right after a cell tagged 'exercise'")
    return list(found.values())


def _exercise(notebook: Any, index: int) -> Exercise:
    cell, *rest = notebook["cells"][index : index + 2]
    label = _label(cell)
    if label is None:
        raise _refusal(cell, "does not say which exercise it is: begin it with `# ex-…`, its label")
    if not _regions(cell):
        raise _refusal(cell, f"holds no solution: put one between `{_BEGIN}` and `{_END}`")
    if not rest or "exercise-check" not in _tags(rest[0]) or _label(rest[0]) != label:
        raise _refusal(
            cell,
            "is not followed by its check: add a code cell tagged 'exercise-check' "
            f"that begins with `# {label}`",
        )
    return Exercise(label, index, cell["source"], rest[0]["source"])


def _regions(cell: Any) -> list[tuple[int, int]]:
    """Return where each solution begins and ends, as the numbers of its two marker lines."""
    found: list[tuple[int, int]] = []
    begun: int | None = None
    for number, line in enumerate(map(str.strip, cell["source"].splitlines())):
        if line == _BEGIN and begun is None:
            begun = number
        elif line == _BEGIN:
            raise _refusal(cell, f"begins a solution in a solution: put `{_END}` between the two")
        elif line == _END and begun is None:
            raise _refusal(cell, f"ends a solution that never began: put `{_BEGIN}` before it")
        elif line == _END and begun is not None:
            found.append((begun, number))
            begun = None
        elif _LIKE_A_MARKER.match(line):
            raise _refusal(cell, f"has the marker `{line}`: write `{_BEGIN}` or `{_END}`")
    if begun is not None:
        raise _refusal(cell, f"begins a solution that never ends: put `{_END}` after it")
    return found


def _asked(notebook: Any) -> set[str]:
    """Return the labels of all {exercise} directives."""
    found: set[str] = set()
    for cell in notebook["cells"]:
        if cell["cell_type"] != "markdown":
            continue
        lines = cell["source"].splitlines()
        for first, after in _directives(cell, "exercise"):
            said = re.search(r"(?m)^\s*:label:\s*(\S+)", "\n".join(lines[first:after]))
            if said and said[1] in found:
                raise _refusal(cell, f"uses the label {said[1]} again: give each exercise its own")
            found |= {said[1]} if said else set()
    return found


def _directives(cell: Any, kind: str) -> Iterator[tuple[int, int]]:
    """Yield the first line of each directive of a kind, and the line after its last."""
    lines, after = cell["source"].splitlines(), 0
    for first, line in enumerate(lines):
        opened = re.match(rf"\s*(`{{3,}}|~{{3,}}|:{{3,}})\{{{kind}\}}", line)
        if first < after or not opened:
            continue
        closing = re.compile(rf"\s*{opened[1]}{opened[1][0]}*\s*")
        ends = (n for n, later in enumerate(lines) if n > first and closing.fullmatch(later))
        after = next(ends, 0) + 1
        if after == 1:
            raise _refusal(cell, f"never closes `{line.strip()}`: end it with `{opened[1]}`")
        yield first, after


def _tags(cell: Any) -> list[str]:
    return cell["metadata"].get("tags", [])


def _label(cell: Any) -> str | None:
    found = _LABEL.match(notebooks.head(cell))
    return found[1] if found else None


def _refusal(cell: Any, problem: str) -> GleakError:
    place = f" {cell['id']}" if "id" in cell else ""
    return GleakError(f"{cell['cell_type']} cell{place} (`{notebooks.head(cell)}`) {problem}")


# --- the student's copy ------------------------------------------------------------------------


def student(notebook: Any) -> Any:
    """Return the copy for students: no solution, no check, no output."""
    found = {one.index: one.label for one in exercises(notebook)}
    copy = deepcopy(notebook)
    copy["cells"] = []
    for index, cell in enumerate(deepcopy(notebook["cells"])):
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
        if cell["cell_type"] == "markdown":
            cell["source"] = _without_solutions(cell)
        if index in found:
            cell["source"] = _unsolved(cell, found[index])
            cell["metadata"]["tags"] = [tag for tag in _tags(cell) if tag != "hide-cell"]
        if index - 1 not in found and (cell["cell_type"] != "markdown" or cell["source"].strip()):
            copy["cells"].append(cell)
    return copy


def _todo(label: str) -> str:
    return f"{label}: your answer goes here"


def _unsolved(cell: Any, label: str) -> str:
    lines = cell["source"].splitlines()
    for begin, end in reversed(_regions(cell)):
        indent = lines[begin].partition("#")[0]
        lines[begin : end + 1] = [f'{indent}raise NotImplementedError("{_todo(label)}")']
    return "\n".join(lines)


def _without_solutions(cell: Any) -> str:
    lines = cell["source"].splitlines()
    for first, after in reversed(list(_directives(cell, "solution"))):
        while lines[after : after + 1] == [""]:  # or two paragraphs' worth of blanks would stay
            after += 1
        del lines[first:after]
    kept = "\n".join(lines).strip("\n")
    if "{solution" in kept:
        raise _refusal(
            cell, "shows a solution that cannot be cut out: write it as ```{solution} ex-…"
        )
    return kept


# --- checking a student's notebook -------------------------------------------------------------


def check(
    answered: Any, chapter: Any, *, name: str = "chapter", timeout: float = PATIENCE
) -> list[Outcome]:
    """Run a student's answers against the hidden checks, each on its own, in the smoke profile.

    Nothing else of the student's notebook runs, and one wrong answer spoils no other.
    """
    found = exercises(chapter)
    if not found:
        raise GleakError(f"{name} has no exercise with a check: there is nothing to check")
    answers, outcomes = _answers(answered, [one.label for one in found])
    while waiting := {label: a for label, a in answers.items() if label not in outcomes}:
        outcomes |= _run(chapter, found, waiting, name=name, timeout=timeout)
    return [outcomes[one.label] for one in found]


def attempt(label: str, answer: str, check: str) -> None:
    """Run an answer and its check inside the chapter's kernel, and display how they ended."""
    from IPython.core.getipython import get_ipython
    from IPython.display import publish_display_data

    shell: Any = get_ipython()
    before, ended = dict(shell.user_ns), Outcome(label, "passed")
    name = ""
    try:
        for source in map(shell.transform_cell, (answer, check)):
            name = shell.compile.cache(source)  # so that inspect.getsource finds it
            exec(compile(source, name, "exec", dont_inherit=True), shell.user_ns)
    except BaseException as error:  # SystemExit, too, is only a wrong answer
        ended = _judged(label, error, name)
    if getattr(shell, "exit_now", False):
        os._exit(1)  # exit() lets a kernel go on for a moment: end it where the blame is clear
    for name in shell.user_ns.keys() & vars(builtins).keys():  # `sum = 0` would hide ours
        del shell.user_ns[name]
    shell.user_ns.update(before)  # an answer may have taken a name that later cells need
    publish_display_data({_MIME: {"state": ended.state, "message": ended.message}})


def _judged(label: str, error: BaseException, source: str) -> Outcome:
    if isinstance(error, NotImplementedError) and str(error) in ("", _todo(label)):
        return Outcome(label, "not answered")
    said = str(error).strip()
    if not isinstance(error, AssertionError):
        said = traceback.format_exception_only(error)[-1].strip()
    elif not said:  # then the line itself says most
        frames = traceback.extract_tb(error.__traceback__)
        said = "".join([frame.line or "" for frame in frames if frame.filename == source][-1:])
    return Outcome(label, "failed", (said or "AssertionError").splitlines()[0])


def _answers(notebook: Any, labels: Sequence[str]) -> tuple[dict[str, str], dict[str, Outcome]]:
    """Return the source of each answer, and the outcomes that are known before anything runs."""
    cells = [c for c in notebooks.code_cells(notebook) if "exercise-check" not in _tags(c)]
    answers, known = dict[str, str](), dict[str, Outcome]()
    for label in labels:
        sources = [cell["source"] for cell in cells if _label(cell) == label]
        if not sources:
            known[label] = Outcome(label, "not there")
        elif len(sources) > 1:
            says = f"{len(sources)} cells begin with `# {label}`: keep one of them"
            known[label] = Outcome(label, "failed", says)
        else:
            answers[label] = sources[0]
    return answers, known


def _run(
    chapter: Any,
    found: Sequence[Exercise],
    answers: Mapping[str, str],
    *,
    name: str,
    timeout: float,
) -> dict[str, Outcome]:
    """Execute the chapter with some answers in it, and return what became known.

    An answer that ends its kernel, or does not end, is all that a run then tells: the rest is asked
    again without it.
    """
    current = [0]

    def watch(event: execute.Event) -> None:
        if event.kind == "cell":
            current[0] = event.done

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        root = Path(folder)  # a project of its own: what answers write, and the page, go with it
        path = root / "chapters" / f"{name}.ipynb"
        atomic_write(path, notebooks.text(_with_answers(chapter, found, answers)))
        [ran] = execute.run(root=root, device="cpu", timeout=timeout, progress=watch)
        page = notebooks.read(ran.path) if ran.status == "executed" else None
    at = {one.index: one.label for one in found if one.label in answers}
    if page is not None:
        return {label: _told(label, page["cells"][index]) for index, label in at.items()}
    if current[0] in at:
        label, said = at[current[0]], ran.message.splitlines()[0].partition(": ")[2]
        return {label: Outcome(label, "failed", said.partition(": ")[0])}  # without our advice
    raise GleakError(
        f"{ran.message}\nthese lines are the chapter's own: tag every cell that they need "
        f"'{_SETUP}', or look for an answer that changes what they need"
    )


def _with_answers(chapter: Any, found: Sequence[Exercise], answers: Mapping[str, str]) -> Any:
    """Return the chapter to run: an answer with its check, then the chapter's own solution with it.

    So later cells find what the chapter defines, whatever the answer was, and a broken check is no
    student's fault. Cells that no exercise needs do nothing; none is left out, for a message about
    a cell counts them.
    """
    copy = deepcopy(chapter)
    copy["metadata"].pop("gleak", None)  # what the chapter reads does not matter to this run
    cells = copy["cells"]
    if notebooks.tagged(copy, _SETUP):
        for cell in notebooks.code_cells(copy):
            if not {"parameters", _SETUP} & set(_tags(cell)):
                cell["source"] = "pass"
    for one in found:
        words = (one.label, answers.get(one.label, ""), one.check)
        cells[one.index]["source"] = (
            f"from {__name__} import attempt as _attempt\n_attempt(*{words!r})"
            if one.label in answers
            else "pass"
        )
        cells[one.index + 1]["source"] = f"{one.solution}\n\n{one.check}"
    return copy


def _told(label: str, cell: Any) -> Outcome:
    told = [o["data"][_MIME] for o in cell["outputs"] if _MIME in o.get("data", {})]
    return Outcome(label, **told[-1]) if told else Outcome(label, "failed", "it ended too early")
