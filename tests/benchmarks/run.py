"""How fast the attacks are, against the textbook loop: same pictures, same run, ratios.

Run by `make bench`; never asserted in a test. It measures on one thread in CPU-seconds (on a GPU
in seconds by the clock). The textbook loops, and what is not timed, run beside the rest, in a
process of their own, for they take as long as all the rest together.
"""

import argparse
import json
import subprocess
import sys
import time
from datetime import UTC, datetime

import measure
import pandas as pd
import torch

from gleak_core.device import describe, pick
from gleak_core.files import BUILD, ROOT, atomic_write
from gleak_core.provenance import state
from gleak_core.publish import speed

BESIDE = ("loop", "better", "robustness")  # what takes long, or is not timed at all


def main() -> None:
    """Measure, print what came out, and write the rows and the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=measure.PARTS, default=list(measure.PARTS))
    parser.add_argument("--textbook", type=int, default=8, help="pictures for the textbook loop")
    parser.add_argument("--better", type=int, default=4, help="pictures for its better versions")
    parser.add_argument("--noisy", type=int, default=8, help="pictures for the noise")
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--keep", action="store_true", help="write data/results, for the book: what --only names"
    )
    parser.add_argument("--part", nargs="+", choices=measure.PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = pick(options.device).type
    scale = measure.Scale(
        textbook=options.textbook,
        better=options.better,
        noisy=options.noisy,
        repeats=options.repeats,
        device=device,
    )
    if options.part:
        print(json.dumps([row for part in options.part for row in measure.PARTS[part](scale)]))
        return

    began, rows, child = time.monotonic(), [], None
    beside = [name for name in options.only if name in BESIDE]
    for name in sorted(set(options.only) - set(BESIDE), key=list(measure.PARTS).index):
        if name != "evaluation" and beside and child is None:  # that is timed alone
            child = aside(beside, options)
        say(f"{name} …")
        rows += measure.PARTS[name](scale)
    if beside:
        child = child or aside(beside, options)
        say("waiting for the textbook loops …")
        said, _ = child.communicate()
        if child.returncode:
            sys.exit("what ran beside failed: see above")
        rows += json.loads(said.splitlines()[-1])

    frame = pd.DataFrame(rows)
    for name, value in provenance(device).items():
        frame[name] = value
    path = ROOT / speed.ROWS if options.keep else BUILD / "benchmarks" / speed.ROWS.name
    if options.keep and path.exists():  # what was not measured again stays, with its own commit
        frame = speed.merged(speed.read(path), frame)
    atomic_write(path, frame.to_csv(index=False, float_format="%.5g"))
    read = speed.read(path)
    for table in speed.tables(read).values():
        print(table, end="\n\n")
    print(speed.figure(read).save(BUILD / "benchmarks" / "speed.png"))
    print(f"{path}: {len(frame)} rows in {time.monotonic() - began:.0f} s")


def aside(parts: list[str], options: argparse.Namespace) -> "subprocess.Popen[str]":
    """Start some parts in a process of their own."""
    words = [sys.executable, __file__, "--part", *parts, "--device", options.device]
    for name in ("textbook", "better", "noisy"):
        words += [f"--{name}", str(getattr(options, name))]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def provenance(device: str) -> dict[str, str]:
    """Say what the rows were measured with."""
    git = state(ROOT)
    return {
        "device": describe(device),
        "torch": torch.__version__,
        "commit": f"{git['commit']}{' (modified)' if git['modified'] else ''}",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def say(text: str) -> None:
    """Tell someone who waits."""
    print(f"[{datetime.now(UTC):%H:%M:%S}] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
