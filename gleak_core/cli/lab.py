"""`gleak lab`."""

from typing import Annotated

import typer

__all__ = ["lab"]


def lab(
    record: Annotated[
        bool,
        typer.Option("--record", help="Train the weights and run the filmstrip's attack again."),
    ] = False,
) -> None:
    """Build the lab's page: tapes from the library, kernels from C, everything in one file."""
    from importlib.util import find_spec

    from gleak_core.files import ROOT
    from gleak_core.lab import kernels, page, recorded

    if find_spec("ziglang"):
        kernels.write()
    else:
        kernels.committed()  # refuses when their source has changed
        typer.echo("no zig compiler here: the committed kernels are of this source, and are taken")
    if record:
        recorded.write()
    made = page.write()
    typer.echo(f"{made.relative_to(ROOT)}: {made.stat().st_size / 1000:.0f} kB")
