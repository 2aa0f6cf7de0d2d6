"""`gleak attack`: leak your own picture."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from gleak_core.defences import Defence
    from gleak_core.observation import Observation, Reconstruction

__all__ = ["ATTACKS", "DEFENCES", "attack", "defend", "threads"]

ATTACKS: Mapping[str, str] = {
    "auto": "analytic, and idlg where that fails",
    "analytic": "linear algebra, for an exact gradient",
    "cpl": "",
    "dlg": "",
    "general": "",
    "grad_inversion": "its starts are a group",
    "idlg": "",
    "inverting_gradients": "",
}
CLASSES = 10
RESTARTS = 3
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
_NAMES = ", ".join(f"{name} ({what})" if what else name for name, what in ATTACKS.items())
_SPELLINGS = ", ".join(f"{name}={v}" if v else name for name, (v, _) in DEFENCES.items())


def attack(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A PNG or JPEG of your own.")],
    method: Annotated[str, typer.Option("--attack", help=f"{_NAMES}.")] = "auto",
    size: Annotated[
        int, typer.Option(help="Its central square is resized to so many pixels.", min=8, max=224)
    ] = 32,
    start: Annotated[
        str | None,
        typer.Option(
            help="Where the optimiser begins: grey, uniform noise, level-2, normal as DLG was "
            "published, … (default: the attack's own).",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Steps of the optimiser (default: the attack's own).", min=1, show_default=False
        ),
    ] = None,
    restarts: Annotated[
        int | None,
        typer.Option(
            help=f"Starts side by side; the best one counts (default: {RESTARTS}).",
            min=1,
            show_default=False,
        ),
    ] = None,
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
    if start is not None:
        starts.find(start)
    if method == "analytic" and (start, steps, restarts) != (None, None, None):
        raise ValueError(
            "the analytic recursion solves equations: leave out --start, --steps and --restarts, "
            "or take another --attack"
        )
    guard, where = defend(defence or ()), pick(device)
    batch = data.from_image(image, size, classes=CLASSES)
    folder = out or Path(f"gleak-attack-{image.stem}")
    _try_writing(folder)  # before the work, not after

    if where.type == "cpu":
        # Convolutions this small were seen to run ten times slower on two threads than on one.
        torch.set_num_threads(threads(os.environ.get("OMP_NUM_THREADS", "")))
    model = models.lenet(classes=CLASSES, size=size, seed=seed).to(where)
    seen = clients.fedsgd(model, batch, defence=guard, seed=seed)
    typer.echo(f"{seen}\n")
    try:
        tried = (
            None if method not in ("auto", "analytic") else _solve(seen, fall_back=method == "auto")
        )
        if tried is None:
            name = "idlg" if method == "auto" else method
            changed = {k: v for k, v in (("start", start), ("steps", steps)) if v is not None}
            tried = _optimise(seen, name, restarts or RESTARTS, seed=seed, **changed)
    except KeyboardInterrupt:
        typer.echo("\ninterrupted; nothing was written", err=True)
        raise typer.Exit(130) from None
    interrupted = "interrupted" in tried.status
    found = tried.best(tried.trials)
    score = metrics.score(found, batch)
    decibel = score.psnr[0, 0].clamp(max=metrics.PSNR_CAP)
    moved = len(found.history.frame_steps) > 1

    typer.echo(f"{found}\n{score}\n")
    typer.echo(_verdict(found, image.name, f"after {_count(tried.trials)}" if moved else ""))
    words = f"{image.name} and what {found.attack} made of its gradient ({decibel:.0f} dB)"
    pair = {found.attack: [batch.images[0], found.images[0, 0]]}
    before_after = figures.strip(
        pair, titles=("private", f"rebuilt, {decibel:.0f} dB"), alt=f"{words}."
    )
    typer.echo(before_after.save(folder / "before-after.png"))
    if moved:
        film = figures.filmstrip(
            _until_solved(found),
            private=batch.images,
            names=[found.attack],
            alt=f"From the start, step by step: {words}.",
        )
        typer.echo(film.save(folder / "filmstrip.png"))
    else:
        typer.echo("no filmstrip: linear algebra takes no steps; --attack idlg makes one")
    if interrupted:
        typer.echo("interrupted; the best picture so far was written", err=True)
        raise typer.Exit(130)


def threads(wish: str) -> int:
    """Return the first positive number in what OMP_NUM_THREADS says, at most all cores; else 1."""
    numbers = (int(part) for part in wish.split(",") if part.strip().isdecimal())
    return min(next((n for n in numbers if n > 0), 1), os.cpu_count() or 1)


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


def _solve(seen: "Observation", *, fall_back: bool) -> "Reconstruction | None":
    """Solve for the picture by linear algebra; None, and a word, if that fails and may."""
    from gleak_core import attacks
    from gleak_core.errors import GleakError

    try:
        found = attacks.analytic(seen)
    except GleakError as error:
        if not fall_back:
            raise
        typer.echo(f"{error}: idlg goes on\n")
        return None
    if fall_back and found.status[0] != "solved":
        typer.echo("linear algebra does not solve this gradient: idlg goes on\n")
        return None
    return found


def _optimise(
    seen: "Observation", name: str, restarts: int, *, seed: int, **changed: Any
) -> "Reconstruction":
    """Attack from several starts side by side: registers have room for all of them."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from gleak_core import attacks

    err = Console(stderr=True)
    columns = (
        TextColumn(f"{name}, {_count(restarts)}"),
        BarColumn(),
        TextColumn("best loss {task.fields[loss]:.1e}"),
        TimeRemainingColumn(),
    )
    steps = changed.get("steps", attacks.RECIPES[name].steps)
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("", loss=float("inf"))
        return attacks.ATTACKS[name](
            seen,
            **changed,
            trials=restarts,
            seed=seed,
            every=max(1, steps // 60),
            on_interrupt="keep",
            progress=lambda done, total, loss: bar.update(
                task, completed=done, total=total, loss=loss
            ),
        )


def _verdict(found: "Reconstruction", name: str, when: str) -> str:
    """Say what the attacker may conclude."""
    when = f"{when} " if when else ""
    if found.status[0] == "solved":
        return (
            f"solved by {found.attack}: {when}the gradients agree, "
            f"so the attacker may trust that this is {name}, without ever having seen it"
        )
    said = "interrupted" if found.status[0] == "interrupted" else "not solved"
    cure = "more --steps, more --restarts, another --attack or another --seed"
    return (
        f"{said}: {when}the loss is still {found.loss[0]:.2g}, "
        "so the attacker knows that he may not have the picture; "
        f"try {cure if when else '--attack idlg'}"
    )


def _count(starts: int) -> str:
    return "1 start" if starts == 1 else f"{starts} starts"


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
