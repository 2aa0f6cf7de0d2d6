"""`gleak teach …`: a chapter for students, and what became of their answers."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

FAILED = 1

app = typer.Typer(
    help="Make the students' copy of a chapter, and check their answers.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def copy(
    chapter: Annotated[str, typer.Argument(metavar="CHAPTER", help="Number, name or path.")],
    out: Annotated[
        Path, typer.Option(help="Folder for it (default: this one).", show_default=False)
    ] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Write the students' copy of a chapter: no solutions, no checks."""
    from gleak_core.cli.chapters import numbered
    from gleak_core.errors import GleakError
    from gleak_core.files import atomic_write
    from gleak_core.publish import coursework, notebooks

    [source] = notebooks.select(numbered([chapter])).values()
    target = out / source.name
    if target.exists() and target.samefile(source):
        raise GleakError(f"{target} is the chapter itself: choose another folder with --out")
    if target.exists() and not force:
        raise GleakError(f"{target} is there already: add --force to overwrite it")
    atomic_write(target, notebooks.text(coursework.student(notebooks.read(source))))
    typer.echo(target)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A student's notebook.")],
    chapter: Annotated[
        str | None,
        typer.Option(help="Its chapter (default: the one in FILE's name).", show_default=False),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds a cell may take.", min=1)] = 120,
) -> None:
    """Run the chapter's hidden checks on a student's answers."""
    from rich.console import Console

    from gleak_core.publish import coursework, notebooks

    answered = notebooks.read(file)
    name, source = _chapter(file, chapter)
    with Console(stderr=True).status(f"checking {file.name}"):
        outcomes = coursework.check(answered, notebooks.read(source), name=name, timeout=timeout)
    for outcome in outcomes:
        typer.echo(outcome)
    passed = sum(outcome.state == "passed" for outcome in outcomes)
    typer.echo(f"{passed} of {len(outcomes)} passed")
    if passed < len(outcomes):
        raise typer.Exit(FAILED)


def _chapter(file: Path, asked: str | None) -> tuple[str, Path]:
    """Find the chapter of a student's file, who may have put his own name beside it."""
    from gleak_core.cli.chapters import numbered
    from gleak_core.errors import GleakError
    from gleak_core.publish import notebooks

    named = [asked] if asked else [name for name in notebooks.find() if name in file.stem]
    if len(named) != 1:
        raise GleakError(f"the name {file.name} tells no chapter: say which one, --chapter 01")
    [found] = notebooks.select(numbered(named)).items()
    return found
