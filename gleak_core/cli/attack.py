"""`gleak attack`: leak your own picture."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gleak_core.defences import Defence
    from gleak_core.observation import Observation, Reconstruction

__all__ = ["DEFENCES", "attack", "defend"]

ATTACKS = ("idlg", "dlg")
CLASSES = 10
# name: (what stands after the =, how many numbers that is)
DEFENCES: Mapping[str, tuple[str, int]] = {
    "gaussian": ("STD", 1),
    "laplacian": ("STD", 1),
    "half": ("", 0),
    "bfloat16": ("", 0),
    "int8": ("", 0),
    "prune": ("SHARE", 1),
    "clip": ("NORM", 1),
    "dp": ("NORM:MULTIPLIER", 2),
}
_SPELLINGS = ", ".join(f"{name}={v}" if v else name for name, (v, _) in DEFENCES.items())


def attack(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A PNG or JPEG of your own.")],
    method: Annotated[str, typer.Option("--attack", help=f"{' or '.join(ATTACKS)}.")] = "idlg",
    size: Annotated[
        int, typer.Option(help="Its central square is resized to so many pixels.", min=8, max=224)
    ] = 32,
    start: Annotated[
        str,
        typer.Option(
            help="Where it begins: grey, uniform noise, level-2, or normal as DLG was published."
        ),
    ] = "grey",
    steps: Annotated[int, typer.Option(help="Steps of the optimiser.", min=1)] = 3000,
    restarts: Annotated[
        int, typer.Option(help="Try so many starts, until one succeeds.", min=1)
    ] = 3,
    defence: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=VALUE]",
            help=f"Defend the gradient first; may be repeated. {_SPELLINGS}.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Fixes weights, starts and noise.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the pictures (default: gleak-attack-IMAGE).", show_default=False
        ),
    ] = None,
) -> None:
    """Leak your own picture: share nothing but its gradient, and rebuild it from that."""
    import torch

    from gleak_core import clients, data, figures, metrics, models, starts
    from gleak_core.device import pick
    from gleak_core.errors import choose

    choose("attack", method, ATTACKS)
    starts.find(start)
    guard, where = defend(defence or ()), pick(device)
    batch = data.from_image(image, size, classes=CLASSES)
    folder = out or Path(f"gleak-attack-{image.stem}")
    _try_writing(folder)  # before the work, not after

    if where.type == "cpu":
        # Convolutions this small were seen to run ten times slower on two threads than on one.
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    model = models.lenet(classes=CLASSES, size=size, seed=seed).to(where)
    seen = clients.fedsgd(model, batch, defence=guard, seed=seed)
    typer.echo(f"{seen}\n")
    try:
        found, tried = _leak(seen, method, start=start, steps=steps, restarts=restarts, seed=seed)
    except KeyboardInterrupt:
        typer.echo("\ninterrupted; nothing was written", err=True)
        raise typer.Exit(130) from None
    score = metrics.score(found, batch)
    decibel = score.psnr[0, 0].clamp(max=metrics.PSNR_CAP)

    starts_said = "1 start" if tried == 1 else f"{tried} starts"
    typer.echo(f"{found}\n{score}\n")
    if found.status[0] == "solved":
        typer.echo(
            f"solved: after {starts_said} the gradients agree, "
            f"so the attacker may trust that this is {image.name}, without ever having seen it"
        )
    else:
        typer.echo(
            f"not solved: after {starts_said} the gradients still differ by {found.loss[0]:.2g}, "
            "so the attacker knows that he may not have the picture; "
            "try more --steps, more --restarts or another --seed"
        )
    words = f"{image.name} and what {found.attack} made of its gradient ({decibel:.0f} dB)"
    pair = {found.attack: [batch.images[0], found.images[0, 0]]}
    before_after = figures.strip(
        pair, titles=("private", f"rebuilt, {decibel:.0f} dB"), alt=f"{words}."
    )
    film = figures.filmstrip(
        _until_solved(found),
        private=batch.images,
        names=[found.attack],
        alt=f"From noise, step by step: {words}.",
    )
    typer.echo(before_after.save(folder / "before-after.png"))
    typer.echo(film.save(folder / "filmstrip.png"))


def defend(specs: Iterable[str]) -> "Defence | None":
    """Read defences as written on the command line, e.g. `clip=1` and `gaussian=0.001`."""
    from gleak_core import defences
    from gleak_core.errors import choose

    builders: Mapping[str, Callable[..., Defence]] = {
        **{name: getattr(defences, name) for name in DEFENCES},
        "gaussian": lambda std: defences.gaussian(std=std),
        "laplacian": lambda std: defences.laplacian(std=std),
    }
    chain = []
    for spec in specs:
        name, _, text = spec.partition("=")
        what, count = DEFENCES[choose("defence", name, DEFENCES)]
        try:
            values = [float(part) for part in text.split(":")] if text else []
        except ValueError:
            values = []
        if len(values) != count or (text and not count):
            wanted = f"{name}={what}" if count else name
            raise ValueError(f"--defence {spec!r} is not {wanted}: write numbers, as in prune=0.2")
        chain.append(builders[name](*values))
    return defences.compose(*chain) if chain else None


def _leak(
    seen: "Observation", method: str, *, start: str, steps: int, restarts: int, seed: int
) -> "tuple[Reconstruction, int]":
    """Attack until a start succeeds; return the one with the lowest loss and how many it took.

    One start after the other, unlike anywhere else: most first starts succeed, and you are waiting.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from gleak_core import attacks

    err = Console(stderr=True)
    columns = (
        TextColumn("start {task.fields[number]} of {task.fields[most]}"),
        BarColumn(),
        TextColumn("gradient distance {task.fields[loss]:.1e}"),
        TimeRemainingColumn(),
    )
    best: Reconstruction | None = None
    tried = 0
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        while tried < restarts and not (best and best.status[0] == "solved"):
            task = bar.add_task("", number=tried + 1, most=restarts, loss=float("inf"))
            found = getattr(attacks, method)(
                seen,
                start=start,
                steps=steps,
                seed=seed + tried,
                every=max(1, steps // 60),
                stop=attacks.SOLVED / 100,
                progress=lambda done, total, loss, task=task: bar.update(
                    task, completed=done, total=total, loss=loss
                ),
            )
            bar.remove_task(task)
            tried += 1
            if best is None or found.loss[0] < best.loss[0]:
                best = found
    assert best is not None  # restarts ≥ 1
    return best, tried


def _until_solved(found: "Reconstruction") -> "Reconstruction":
    """Leave out the frames of a finished attack that has stood still."""
    history = found.history
    steps = int((~history.loss[:, 0].isnan()).sum()) - 1
    shown = int((history.frame_steps < steps).sum()) + 1  # and the first that shows the result
    frames = {"frame_steps": history.frame_steps[:shown], "frames": history.frames[:shown]}
    return replace(found, history=replace(history, **frames))


def _try_writing(folder: Path) -> None:
    from gleak_core.doctor import try_writing
    from gleak_core.errors import GleakError

    try:
        try_writing(folder)
    except OSError as error:
        raise GleakError(
            f"cannot write into {folder} ({error.strerror}): choose another folder with --out"
        ) from error
