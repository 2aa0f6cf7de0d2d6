"""`gleak attack`: leak your own picture."""

import typer

def attack() -> None:
    """Later."""
    typer.echo("x")
