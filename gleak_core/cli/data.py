"""`gleak data …`: which pictures are here, and getting the others."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gleak_core.data import Entry, Status

__all__ = ["app"]

app = typer.Typer(
    help="List, fetch, pack and verify data sets.", no_args_is_help=True, rich_markup_mode=None
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A name that `gleak data list` shows.")]
Home = Annotated[
    Path | None,
    typer.Option(
        help="The data folder (default: $GLEAK_DATA, or a cache folder).",
        file_okay=False,
        show_default=False,
    ),
]


@app.command("list")
def list_(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Tell all about these.", show_default=False),
    ] = None,
    home: Home = None,
) -> None:
    """Show every data set and whether it is here; with a name, its source, terms and layout."""
    from gleak_core import data
    from gleak_core.files import data_home

    for name in names or ():
        _tell(data.info(name), data.status(name, home))
    if names:
        return
    line = "{:<12} {:>9}  {:>7}  {:<9}  {}"
    typer.echo(line.format("name", "images", "classes", "shape", "here"))
    for name in data.names():
        entry, status = data.info(name), data.status(name, home)
        here = _here(status) if status.here else f"no → {_how(entry, status)}"
        shape = "×".join(map(str, entry.shape))
        typer.echo(line.format(name, f"{entry.count:,}", entry.classes, shape, here))
    typer.echo(f"data folder: {home or data_home()}")


def _how(entry: "Entry", status: "Status") -> str:
    """Return the command that brings a set; laying out a folder takes more than a line."""
    return f"gleak data list {entry.name}" if entry.kind == "folder" else status.command


def _here(status: "Status") -> str:
    return f"{status.form}" if status.verdict == "ok" else f"{status.form}, {status.verdict}"


def _tell(entry: "Entry", status: "Status") -> None:
    shape = "×".join(map(str, entry.shape))
    facts = {
        "what": entry.title,
        "images": f"{entry.count:,} of {shape} in {entry.classes} classes",
        "page": entry.page,
        "licence": entry.licence,
        "cite": entry.citation,
        "here": f"{_here(status)} in {status.path}" if status.here else "no",
        "to get it": status.command,
    }
    typer.echo(entry.name)
    for fact, words in facts.items():
        if words:
            typer.echo(f"  {fact:<10} {words}")


@app.command()
def fetch(name: Name, home: Home = None) -> None:
    """Download a data set, check its hash, and pack it."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from gleak_core import data

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, transient=True) as bar:
        tasks: dict[str, int] = {}

        def progress(file: str, done: int, total: int) -> None:
            if file not in tasks:
                tasks[file] = bar.add_task(file, total=total)
            bar.update(tasks[file], completed=done)  # pyright: ignore[reportArgumentType]

        path = data.fetch(name, home, progress)
    typer.echo(f"{name} is in {path}")


@app.command()
def pack(
    name: Name,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Where the archives or class folders lie.", show_default=False),
    ] = None,
    home: Home = None,
    limit: Annotated[
        int | None, typer.Option(help="Keep so many images, balanced.", show_default=False)
    ] = None,
) -> None:
    """Make one .npz of a data set that lies on this machine in another form."""
    from gleak_core import data

    typer.echo(f"{name} is in {data.pack(name, source, home, limit)}")


@app.command()
def verify(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", show_default=False)] = None,
    home: Home = None,
) -> None:
    """Compare data sets with their recorded SHA-256 (default: all that are here)."""
    from gleak_core import data

    checks = [
        data.verify(name, home)
        for name in names or [n for n in data.names() if data.status(n, home).here]
    ]
    for check in checks:
        typer.echo(f"{check.verdict:<11}{check.sentence}")
    if any(check.verdict == "corrupt" for check in checks):
        raise typer.Exit(1)
