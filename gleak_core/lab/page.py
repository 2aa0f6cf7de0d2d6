"""The lab as one file: markup, style, code, tapes, kernels, weights, pictures; nothing outside."""

import base64
import json
from pathlib import Path
from typing import Any

from torch import nn

from gleak_core.files import ROOT, atomic_write
from gleak_core.lab import kernels, recorded, steps
from gleak_core.lab.bundle import bundle

__all__ = ["PAGE", "build", "write"]

HERE = Path(__file__).parent
PAGE = ROOT / "book" / "_static" / "lab.html"


def build() -> str:
    """Return the page."""
    kept, net = recorded.committed(), steps.network()
    parts = {
        "names": kept["names"],
        "first": recorded.SHOWN,
        "pictures": kept["pictures"],
        "work": {
            "tapes": bundle(),
            "layers": {"lenet": _layers(net), "open": _layers(steps.open_network())},
            "trained": kept["weights"],
            "kernels": _base64(kernels.committed()),
        },
    }
    filled = {
        "/*CSS*/": _read("page.css"),
        "<!--STEPS-->": str(kept["strip"]["iterations"][-1]),
        "<!--STRIP-->": kept["strip"]["png"],
        "/*PARTS*/": json.dumps(parts, separators=(",", ":"), sort_keys=True),
        "/*WORK*/": _read("engine.js") + _read("worker.js"),
        "/*PAGE*/": _read("page.js"),
    }
    text = _read("page.html")
    for mark, inside in filled.items():
        before, found, after = text.partition(mark)
        assert found and "</script" not in inside, mark
        text = before + inside + after
    return text


def write() -> Path:
    """Build the page, and put it where the book serves it."""
    atomic_write(PAGE, build())
    return PAGE


def _layers(net: nn.Module) -> list[dict[str, Any]]:
    """Return the parameters in the order in which they are drawn, with what their range needs."""
    fans = {n: p.shape[1:].numel() for n, p in net.named_parameters() if n.endswith("weight")}
    return [
        {"name": n, "size": p.numel(), "fan": fans[n.rpartition(".")[0] + ".weight"]}
        for n, p in net.named_parameters()
    ]


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")
