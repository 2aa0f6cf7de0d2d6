"""`gleak …`: the library and the book from a terminal.

Heavy imports stand inside the commands, so that `gleak --help` answers at once.
"""

import os
import sys
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from gleak_core import __version__
from gleak_core.cli import attack, chapters, data, health, lab, studies, teach
from gleak_core.errors import GleakError

__all__ = ["app", "main"]

REFUSED = 2
INTERRUPTED = 130


class Sentences(TyperGroup):
    """Commands whose failures are one sentence; --debug shows where it came from."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command and turn what the user can mend into a sentence and an exit code."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _interrupted()
        except (GleakError, ValueError, OSError, MemoryError) as error:
            if isinstance(error, BrokenPipeError) or ctx.params["debug"]:
                raise
            typer.echo(f"gleak: {_sentence(error)}", err=True)
            raise typer.Exit(REFUSED) from error


app = typer.Typer(
    cls=Sentences,
    help="Gradient leakage, reproduced: run the attacks, the chapters and the book.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich's help pages cost 0.3 s at every start
    pretty_exceptions_enable=False,
)
app.command("doctor")(health.doctor)
app.add_typer(data.app, name="data")
app.command("run")(chapters.run)
app.command("refresh")(chapters.refresh)
app.command("book")(chapters.book)
app.command("attack")(attack.attack)
app.command("lab")(lab.lab)
app.command("study")(studies.study)
app.command("scoreboard")(studies.scoreboard)
app.add_typer(teach.app, name="teach")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gleak {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="GLEAK_DEBUG", help="Show tracebacks.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run `gleak`."""
    try:
        app()
    except KeyboardInterrupt:  # between two commands, or while importing one
        try:
            _interrupted()
        except typer.Exit:
            sys.stdout.flush()
            os._exit(INTERRUPTED)


def _interrupted() -> NoReturn:
    typer.echo(
        "\ninterrupted; what was finished is kept; run the same command again to go on", err=True
    )
    raise typer.Exit(INTERRUPTED)


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    if isinstance(error, MemoryError):
        return "not enough memory: use fewer --jobs, a smaller size or a smaller profile"
    return str(error) or type(error).__name__
