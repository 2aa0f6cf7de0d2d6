"""What may be published: a strict Sphinx build would let everything below pass.

Each rule is a small function that yields sentences; a notebook goes on only if none has anything to
say. `EXECUTED` holds for pages of the book, `COMMITTED` for the chapters in the repository.
"""

import base64
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gleak_core.errors import GleakError
from gleak_core.files import ROOT
from gleak_core.publish import notebooks, sanitise
from gleak_core.publish.parameters import Declared, ParameterError, declared

__all__ = ["COMMITTED", "EXECUTED", "WHOLE", "Case", "GateRefused", "Rule", "check", "require"]

_LINE = 80  # longer code lines are cut off on the page


class GateRefused(GleakError):
    """A notebook that must not be published, with every reason."""

    def __init__(self, name: str, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(
            f"{name} cannot be published:\n" + "\n".join(f"  - {p}" for p in self.problems)
        )


@dataclass(frozen=True)
class Case:
    """A notebook before the gate, and what is expected of it."""

    notebook: Any
    name: str
    root: Path = ROOT
    profile: str | None = None
    parameters: Mapping[str, Any] | None = None

    @property
    def cells(self) -> list[tuple[str, Any]]:
        """The code cells, each with the words that say which one is meant."""
        return [
            (f"code cell {number} (`{notebooks.head(cell)}`)", cell)
            for number, cell in enumerate(notebooks.code_cells(self.notebook), 1)
        ]

    @property
    def outputs(self) -> Iterator[tuple[str, Any, Any]]:
        """Every output, with its cell."""
        for where, cell in self.cells:
            for output in cell["outputs"]:
                yield where, cell, output

    @property
    def run(self) -> Mapping[str, Any]:
        """What the notebook says about its run."""
        return self.notebook["metadata"].get("gleak", {}).get("run", {})

    @cached_property
    def declared(self) -> Declared:
        """The parameters cell as it stands."""
        return declared(self.name, self.notebook)


Rule = Callable[[Case], Iterable[str]]


def counted(case: Case) -> Iterator[str]:
    """Cells ran once each, from top to bottom."""
    for number, (where, cell) in enumerate(case.cells, 1):
        if not cell["source"].strip():
            yield f"code cell {number} is empty: delete it"
        elif cell["execution_count"] != number:
            yield (
                f"{where} has execution count {cell['execution_count']}, not {number}: "
                "run the chapter from top to bottom"
            )


def ended(case: Case) -> Iterator[str]:
    """The run reached its end."""
    papermill = case.notebook["metadata"].get("papermill", {})
    if papermill.get("exception") or not papermill.get("end_time", True):
        yield "the run did not reach its end: run it again"
    for where, cell in case.cells:
        if cell["metadata"].get("papermill", {}).get("status", "completed") != "completed":
            yield f"{where} did not complete: run it again"


def recorded(case: Case) -> Iterator[str]:
    """The page says when, where and how it ran."""
    missing = {"profile", "device", "seconds", "date", "versions", "parameters"} - case.run.keys()
    if missing:
        yield f"there is no record of the run ({', '.join(sorted(missing))}): use `gleak run`"


def unrecorded(case: Case) -> Iterator[str]:
    """A committed chapter carries nothing that differs from run to run."""
    if case.run:
        yield "the record of a run is no part of a committed chapter: use `make refresh`"
    noisy = notebooks.text(case.notebook) != notebooks.text(
        notebooks.clean(deepcopy(case.notebook))
    )
    if noisy:
        yield "it carries run metadata (papermill, execution, versions): use `make refresh`"


def has_outputs(case: Case) -> Iterator[str]:
    """A stripped notebook passes nbval, because nothing is compared."""
    if not any(True for _ in case.outputs):
        yield "it has no outputs at all: it was stripped or never ran"


def is_compared(case: Case) -> Iterator[str]:
    """At least one output is held against a new run by nbval."""
    ignored = {"nbval-ignore-output", "nbval-skip"}
    compared = any(
        output["output_type"] == "stream" or output.get("data", {}).keys() - {"image/png"}
        for _, cell, output in case.outputs
        if not ignored & set(cell["metadata"].get("tags", []))
        and not re.search(r"#\s*(NBVAL_(IGNORE_OUTPUT|SKIP)|PYTEST_VALIDATE)", cell["source"])
    )
    if not compared:
        yield "nbval would compare none of its outputs: leave one cell without nbval-ignore-output"


def no_errors(case: Case) -> Iterator[str]:
    """No stored exception."""
    for where, _, output in case.outputs:
        if output["output_type"] == "error":
            yield f"{where} ended in {output['ename']}: {output['evalue']}"


def no_warnings(case: Case) -> Iterator[str]:
    """Nothing on standard error: warnings belong mended, not published."""
    for where, _, output in case.outputs:
        if output["output_type"] == "stream" and output["name"] == "stderr":
            first = output["text"].strip().splitlines()[:1] or [""]
            yield f"{where} wrote to standard error: {first[0][:120]}"


def right_profile(case: Case) -> Iterator[str]:
    """The page is of the profile that the book is built for."""
    ran = case.run.get("profile")
    if case.profile is not None and ran is not None and ran != case.profile:
        yield f"it ran with profile {ran}, and the book is built for {case.profile}"


def truthful(case: Case) -> Iterator[str]:
    """The parameters on the page, in the record, and asked for, are the same."""
    try:
        shown = dict(case.declared.values)
    except ParameterError as error:
        yield str(error)
        return
    for title, values in (("record", case.run.get("parameters")), ("request", case.parameters)):
        if values is None:
            continue
        for name in sorted(shown.keys() | values.keys()):
            if _plain(shown.get(name)) != _plain(values.get(name)):
                yield (
                    f"the page shows {name} = {shown.get(name)!r}, "
                    f"but the {title} says {values.get(name)!r}"
                )


def smoke_by_default(case: Case) -> Iterator[str]:
    """Committed chapters are smoke runs, on whatever device there is."""
    try:
        values = case.declared.values
    except ParameterError as error:
        yield str(error)
        return
    if values["profile"] != "smoke":
        yield f'its default profile is {values["profile"]!r}: set `profile = "smoke"`'
    if values.get("device", "auto") != "auto":
        yield f'its default device is {values["device"]!r}: set `device = "auto"`'


def known_types(case: Case) -> Iterator[str]:
    """Outputs are of the few types that are harmless, and hold what their type promises."""
    for where, _, output in case.outputs:
        for mime, content in output.get("data", {}).items():
            if mime not in _TYPES:
                yield f"{where} has an output of type {mime}: allowed are {', '.join(_TYPES)}"
            else:
                for problem in _TYPES[mime](content):
                    yield f"{where}: {problem}"
        words = output.get("metadata", {}).get("image/png", {})
        for name in ("alt", "caption"):
            if re.search(r"[<>]", str(words.get(name, ""))):
                yield f"{where}: the {name} of its picture holds markup"


def alt_text(case: Case) -> Iterator[str]:
    """Every picture has words that stand for it."""
    for where, cell in case.cells:
        pictures = [o for o in cell["outputs"] if "image/png" in o.get("data", {})]
        of_cell = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "").strip()
        if of_cell or not pictures:
            continue
        if len(pictures) > 1:
            yield f"{where} shows {len(pictures)} pictures: one each, or alt text for the cell"
        elif not str(pictures[0]["metadata"].get("image/png", {}).get("alt", "")).strip():
            yield f"{where} shows a picture without alt text: use gleak_core.figures"


def no_machine_paths(case: Case) -> Iterator[str]:
    """Nothing tells on whose machine the page was made."""
    places = [str(case.root.resolve()), str(Path.home()), tempfile.gettempdir()]
    if len(case.root.resolve().parent.parts) > 1:
        places.append(str(case.root.resolve().parent))
    pattern = re.compile(
        rf"(?<![\w./])({'|'.join(re.escape(p) for p in places if p != '/')})(?=[/\s\"':;,)<]|$)"
        r"|(?<![\w.])/(tmp|home|Users|root)/\S|\b[A-Za-z]:\\+Users|site-packages"
    )
    for where, _, output in case.outputs:
        for found in filter(None, map(pattern.search, _texts(output))):
            yield f"{where} shows a path of this machine: {found.string[found.start() :][:60]!r}"


def no_addresses(case: Case) -> Iterator[str]:
    """Nothing prints a memory address, which is another one in every run."""
    for where, _, output in case.outputs:
        for found in filter(None, (re.search(r"\bat 0x[0-9a-f]{6,}", t) for t in _texts(output))):
            yield f"{where} shows a memory address ({found.group()}): print something that stays"


def short_lines(case: Case) -> Iterator[str]:
    """Code fits on the page."""
    for where, cell in case.cells:
        longest = max(map(len, cell["source"].splitlines()), default=0)
        if longest > _LINE:
            yield f"{where} has a line of {longest} characters: break it at {_LINE}"


def titled(case: Case) -> Iterator[str]:
    """The chapter begins with its title."""
    first = next(iter(case.notebook["cells"]), {"cell_type": "", "source": ""})
    if first["cell_type"] != "markdown" or not first["source"].lstrip().startswith("# "):
        yield "its first cell does not begin with a title: `# …`"


WHOLE: tuple[Rule, ...] = (ended, counted, no_errors)
_SAFE: tuple[Rule, ...] = (
    *WHOLE, has_outputs, no_warnings, truthful, known_types, alt_text, no_machine_paths,
    no_addresses, titled,
)  # fmt: skip
EXECUTED: tuple[Rule, ...] = (*_SAFE, recorded, right_profile)
COMMITTED: tuple[Rule, ...] = (*_SAFE, unrecorded, smoke_by_default, is_compared, short_lines)


def check(
    notebook: Any,
    *,
    profile: str,
    parameters: Mapping[str, Any] | None = None,
    name: str = "the notebook",
    root: Path = ROOT,
) -> None:
    """Refuse an executed page that must not be published, naming every reason at once."""
    require(EXECUTED, notebook, name=name, root=root, profile=profile, parameters=parameters)


def require(rules: Iterable[Rule], notebook: Any, **expected: Any) -> None:
    """Raise `GateRefused` with everything that the rules have to say."""
    case = Case(notebook, **expected)
    problems = dict.fromkeys(problem for rule in rules for problem in rule(case))
    if problems:
        raise GateRefused(case.name, problems)


def _png(content: str) -> list[str]:
    try:
        right = base64.b64decode(content).startswith(b"\x89PNG\r\n\x1a\n")
    except ValueError:
        right = False
    return [] if right else ["its image/png output is not a PNG picture"]


_TYPES: dict[str, Callable[[str], list[str]]] = {
    "text/plain": lambda content: [],
    "text/html": sanitise.markup_problems,
    "text/markdown": sanitise.markdown_problems,
    "text/latex": sanitise.latex_problems,
    "image/png": _png,
}


def _plain(value: Any) -> Any:
    """Return a value as JSON would bring it back: tuples become lists."""
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in an output except pictures."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if name != "image/png" or not isinstance(inner, str):
                yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
