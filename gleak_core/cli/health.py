"""`gleak doctor`."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

__all__ = ["doctor"]

_MARKS = {"ok": "✓", "warn": "!", "missing": "–", "broken": "✗"}
_STYLES = {"ok": "green", "warn": "yellow", "missing": "dim", "broken": "bold red"}
# Of the packages that are as tested, the ones worth a line of their own.
_SHOWN = {"python", "torch", "torchvision", "numpy", "jupyter-book", "papermill"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Tell what works on this machine, and what to do about the rest."""
    from gleak_core.doctor import examine, works

    findings = examine()
    if as_json:
        report = {"works": works(findings), "findings": [asdict(f) for f in findings]}
        typer.echo(json.dumps(report, indent=1))
        raise typer.Exit(0 if works(findings) else 1)

    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    quiet = [
        f for f in findings if (f.topic, f.state) == ("versions", "ok") and f.name not in _SHOWN
    ]
    topic = ""
    for finding in (f for f in findings if f not in quiet):
        if finding.topic != topic:
            if topic == "versions" and quiet:
                console.print(Text(f"  {_MARKS['ok']} {len(quiet)} more packages as tested"))
            topic = finding.topic
            console.print(Text(topic, style="bold"))
        line = Text(f"  {_MARKS[finding.state]} ", style=_STYLES[finding.state])
        line.append(f"{finding.name:<14} ", style="default").append(finding.says, style="default")
        if finding.cure:
            line.append(f"  → {finding.cure}", style="cyan")
        console.print(line)
    broken = [f.name for f in findings if f.state == "broken"]
    if broken:
        console.print(Text(f"broken: {', '.join(broken)}", style="bold red"))
        raise typer.Exit(1)
    todo = sum(f.state != "ok" for f in findings)
    rest = f"; the {todo} lines with an arrow are optional" if todo else ""
    console.print(Text(f"gleak works here{rest}", style="bold green"))
