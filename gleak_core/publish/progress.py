"""Bars for a run in the terminal: one line per chapter, one step per cell."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from gleak_core.publish.execute import Event, Progress

__all__ = ["bars"]

_WORDS = {
    "cell": "running",
    "executed": "[green]executed[/green]",
    "up to date": "[dim]up to date[/dim]",
    "failed": "[red]failed[/red]",
    "waiting": "[yellow]waiting for another run[/yellow]",
}


@contextmanager
def bars(console: Console | None = None) -> Iterator[Progress]:
    """Show what `execute.run` tells while the block lasts: `run(progress=report)`."""
    columns = ("{task.description}", "{task.fields[state]}")
    with Bars(
        *(TextColumn(column) for column in columns),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    ) as shown:
        tasks: dict[str, TaskID] = {}

        def report(event: Event) -> None:
            if event.chapter not in tasks:
                tasks[event.chapter] = shown.add_task(event.chapter, total=None, state="")
            task = tasks[event.chapter]
            if event.kind == "cell":
                shown.update(task, completed=event.done, total=event.total, state="running")
                return
            shown.update(task, state=_WORDS[event.kind])
            if event.kind in ("executed", "up to date", "failed"):
                shown.stop_task(task)
            if event.kind in ("executed", "up to date"):
                total = next(t.total for t in shown.tasks if t.id == task) or 1
                shown.update(task, completed=total, total=total)

        yield report
