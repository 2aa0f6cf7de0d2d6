"""`gleak study`, `gleak scoreboard`: measure what the papers printed, and hold it against them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from gleak_core.studies.runner import Event, Executor, Outcome

__all__ = ["scoreboard", "study"]

FAILED = 1


def study(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="STUDY",
            help="As gen.table3, or a paper: gen (default: all).",
            show_default=False,
        ),
    ] = None,
    profile: Annotated[str, typer.Option(help="smoke, quick or paper: how many trials.")] = "paper",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            help="Processes (default: one per core, one for a GPU).",
            min=1,
            show_default=False,
        ),
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler.", show_default=False)
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(help="Trials per cell (default: the profile's).", min=1, show_default=False),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what is there, what is not, and its cost.")
    ] = False,
    cells: Annotated[bool, typer.Option("--cells", help="With --plan: a line per cell.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Measure also what is there.")] = False,
) -> None:
    """Measure tables and figures of the papers: only what is missing or stale."""  # fmt: skip
    from gleak_core import studies
    from gleak_core.studies import runner

    chosen = studies.select(names or [])
    if plan:
        found = runner.plan(chosen, profile=profile, device=device, trials=trials)
        for line in studies.report(found, device=device, cells=cells):
            typer.echo(line)
        return
    if scheduler and jobs:
        raise ValueError("--jobs and --scheduler exclude each other: give one of them")
    written = [one for one in chosen if one.measure]
    lacking = [one.id for one in chosen if not one.measure]
    if not written or set(lacking) & set(names or []):
        raise ValueError(f"not written yet, they come with their chapters: {', '.join(lacking)}")
    todo = runner.plan(written, profile=profile, device=device, trials=trials, force=force)
    with _executor(jobs, scheduler, device) as (execute, workers):
        for line in studies.report(todo):
            typer.echo(line, err=True)
        with _progress() as progress:
            outcomes = runner.run(
                written,
                profile=profile,
                device=device,
                trials=trials,
                force=force,
                execute=execute,
                workers=workers,
                progress=progress,
            )
    _conclude(outcomes)


def scoreboard(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ID", help="As gen.table3, or a paper: gen (default: all).", show_default=False
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="As a list of objects.")] = False,
) -> None:
    """Show every published table, figure and claim, what we found, and the verdict."""  # fmt: skip
    import json

    from gleak_core.studies import scoreboard

    lines = scoreboard.lines(names or [])
    if json_:
        typer.echo(json.dumps([line.record() for line in lines], indent=1, allow_nan=False))
        return
    width = max(len(line.id) for line in lines)
    for line in lines:
        typer.echo(f"{line.id:<{width}}  {line.verdict:<18}  {line.summary}")


def _executor(
    jobs: int | None, scheduler: str | None, device: str
) -> "AbstractContextManager[tuple[Executor, int]]":
    """Give what runs the blocks, and how many it runs at once."""
    from gleak_core.device import pick
    from gleak_core.provenance import cores
    from gleak_core.studies import cluster, runner, workers

    if scheduler:
        return cluster.connect(scheduler)
    if jobs is None:
        jobs = 1 if pick(device).type == "cuda" else cores()
    return nullcontext((workers.processes(jobs) if jobs > 1 else runner.here, jobs))


@contextmanager
def _progress() -> "Iterator[Callable[[Event], None]]":
    """Show a bar on a terminal, and elsewhere a line now and then."""
    import time

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from gleak_core.studies import human

    console = Console(stderr=True)
    if not console.is_terminal:
        last = [0.0]

        def line(event: "Event") -> None:
            now = time.monotonic()
            if event.message or event.done == event.total or now - last[0] > 20:
                last[0] = now
                said = event.message or f"{event.done} of {event.total} blocks"
                left = f", about {human(event.left)} left" if event.left else ""
                typer.echo(f"{event.study}: {said}{left}", err=True)

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"),
               TimeElapsedColumn())  # fmt: skip
    with Progress(*columns, console=console) as bars:
        shown: dict[str, Any] = {}

        def move(event: "Event") -> None:
            if event.study not in shown:
                shown[event.study] = bars.add_task(event.study, total=event.total or 1, said="")
            said = event.message or f"{event.done}/{event.total}, {human(event.left)} left"
            bars.update(shown[event.study], completed=event.done, total=event.total or 1, said=said)

        yield move


def _conclude(outcomes: "Sequence[Outcome]") -> None:
    for outcome in outcomes:
        typer.echo(f"{outcome.study}: {outcome.rows} new rows")
        for words in outcome.left_out:
            typer.echo(f"gleak: {words}", err=True)
    failures = [words for outcome in outcomes for words in outcome.failures]
    for words in failures:
        typer.echo(f"gleak: {words}", err=True)
    if failures:
        raise typer.Exit(FAILED)
