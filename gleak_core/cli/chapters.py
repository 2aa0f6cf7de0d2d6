"""`gleak run`, `gleak refresh`, `gleak book`: from notebook to page."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gleak_core.publish.execute import Event, Outcome, Progress

__all__ = ["book", "numbered", "refresh", "run"]

FAILED = 1

Chapters = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="CHAPTER", help="Number, name or path (default: all).", show_default=False
    ),
]
Profile = Annotated[
    str, typer.Option(help="smoke shows that it works; quick and paper measure.", show_default=True)
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", "-j", help="Chapters at a time (default: one per core).", min=1),
]
Params = Annotated[
    list[str] | None,
    typer.Option(
        "--param", "-p", metavar="NAME=VALUE", help="Set a parameter.", show_default=False
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Run also what is up to date.")]
Timeout = Annotated[
    float | None, typer.Option(help="Seconds a cell may take.", min=1, show_default=False)
]


def run(
    chapters: Chapters = None,
    profile: Profile = "smoke",
    device: Device = "auto",
    jobs: Jobs = None,
    param: Params = None,
    force: Force = False,
    timeout: Timeout = None,
    why: Annotated[bool, typer.Option("--why", help="Only say what would run, and why.")] = False,
    list_: Annotated[
        bool, typer.Option("--list", help="Only list the chapters and their parameters.")
    ] = False,
) -> None:
    """Execute the chapters that are stale, with your parameters, and keep the finished pages."""
    from gleak_core.publish import execute, parameters, staleness

    names, values = numbered(chapters), parameters.parse(param or [])
    if list_ or why:
        for one in execute.plan(names, profile=profile, device=device, params=values):
            typer.echo(f"{one.chapter}: {staleness.why(one)}")
            if list_:
                for name, value in one.values.items():
                    typer.echo(f"    {name} = {value!r}")
        return
    with _bars() as progress:
        outcomes = execute.run(
            names,
            profile=profile,
            device=device,
            jobs=jobs,
            params=values,
            force=force,
            timeout=timeout,
            progress=progress,
        )
    _conclude(outcomes)


def refresh(chapters: Chapters = None, jobs: Jobs = None, timeout: Timeout = None) -> None:
    """Run chapters in place: the committed outputs that `make test` compares with."""
    from gleak_core.publish import execute

    with _bars() as progress:
        outcomes = execute.refresh(
            numbered(chapters), jobs=jobs, timeout=timeout, progress=progress
        )
    _conclude(outcomes)


def book(
    profile: Profile = "smoke",
    device: Device = "auto",
    jobs: Jobs = None,
    timeout: Timeout = None,
    open_: Annotated[bool, typer.Option("--open", help="Open it in your browser.")] = False,
) -> None:
    """Build the static book, executing first what is stale, and say where it is."""
    from gleak_core.publish.book import build

    started = time.perf_counter()
    with _bars() as progress:
        made = build(
            profile=profile,
            device=device,
            jobs=jobs,
            timeout=timeout,
            open=open_,
            progress=progress,
        )
    took = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in made.seconds.items())
    state = "built" if made.rebuilt else "up to date"
    typer.echo(
        f"the book is {state} after {time.perf_counter() - started:.1f} s ({took})", err=True
    )
    typer.echo(made.index.resolve().as_uri())


def numbered(chapters: Sequence[str] | None) -> list[str]:
    """Let `1` mean chapter 01."""
    return [name.zfill(2) if name.isdigit() else name for name in chapters or ()]


def _bars() -> "AbstractContextManager[Progress]":
    """Show bars on a terminal, and elsewhere a line for each chapter that has ended."""
    from rich.console import Console

    from gleak_core.publish.progress import bars

    console = Console(stderr=True)  # stdout is for what a script wants: the pages' paths
    return bars(console) if console.is_terminal else nullcontext(_line)


def _line(event: "Event") -> None:
    if event.kind not in ("cell", "waiting"):
        typer.echo(f"{event.kind:<11} {event.chapter} ({event.seconds:.1f} s)", err=True)


def _conclude(outcomes: "Sequence[Outcome]") -> None:
    """Name the pages on stdout and the failures on stderr."""
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    for outcome in outcomes:
        if outcome not in failed:
            typer.echo(outcome.path)
    for outcome in failed:
        typer.echo(f"gleak: {outcome.message}", err=True)
    if failed:
        raise typer.Exit(FAILED)
