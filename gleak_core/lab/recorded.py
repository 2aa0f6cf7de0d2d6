"""What the page holds that only a run can make: its pictures, trained weights, a filmstrip.

No two machines train to the same bits, so this is made once and kept (`recorded.json`).
"""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from gleak_core import attacks, clients, data
from gleak_core.datasets.embedded import CROPS
from gleak_core.files import atomic_write
from gleak_core.lab import steps
from gleak_core.layers import Network

__all__ = ["BEST", "committed", "pictures", "trained", "weights", "write"]

KEPT = Path(__file__).with_name("recorded.json")
BEST = {
    "astronaut": 10, "cat": 3, "coffee": 9, "flower": 23, "galaxies": 5,
    "motorcycle": 9, "retina": 18, "rocket": 3, "temple": 14, "tissue": 13,
}  # fmt: skip
"""A photograph → the crop of it that the page shows."""
SHOWN = "cat"  # the picture of the filmstrip, and the first that the page attacks
STRIP = (0, 50, 100, 200, 300, 500, 800)  # iterations that the filmstrip shows
EPOCHS, BATCH, RATE = 40, 20, 0.003  # of Adam; each epoch sees 200 crops


def pictures() -> data.Batch:
    """Return the pictures of the page, class by class."""
    every, crops = _crops()
    return every[[c * crops + crop for c, crop in enumerate(BEST.values())]]


def weights() -> dict[str, Tensor]:
    """Return the trained weights."""
    raw = np.frombuffer(base64.b64decode(committed()["weights"]), "<f2").astype(np.float32)
    net = steps.network()
    parts = torch.from_numpy(raw).split([p.numel() for p in net.parameters()])
    return {n: w.view_as(p) for (n, p), w in zip(net.named_parameters(), parts, strict=True)}


def trained() -> Network:
    """Train the page's network on the crops that it does not show, and a few that it does."""
    every, _ = _crops()
    net, stream = steps.network(), torch.Generator().manual_seed(0)
    own = torch.randperm(len(every), generator=stream)[:200]
    solver = torch.optim.Adam(net.parameters(), lr=RATE)
    for _ in range(EPOCHS):
        for part in own[torch.randperm(len(own), generator=stream)].split(BATCH):
            solver.zero_grad()
            F.cross_entropy(net(every.images[part]), every.labels[part]).backward()
            solver.step()
    return net


def write() -> None:
    """Make everything anew, which takes a minute."""
    flat = torch.cat([p.detach().flatten() for p in trained().parameters()])
    made = {
        "names": list(BEST),
        "pictures": _png(_row(pictures().images)),
        "strip": {"iterations": STRIP, "png": _png(_strip())},
        "weights": base64.b64encode(flat.numpy().astype("<f2").tobytes()).decode(),
    }
    atomic_write(KEPT, json.dumps(made, indent=1) + "\n")


def committed() -> dict[str, Any]:
    """Return what is kept."""
    return json.loads(KEPT.read_text(encoding="utf-8"))


def _crops() -> tuple[data.Batch, int]:
    """Return all crops of all photographs, in order, and how many there are of each."""
    crops = CROPS
    count = crops * len(BEST)
    every = data.sample("photographs", count, size=steps.SIZE, seed=0)
    return every[every.indices.argsort().tolist()], crops


def _strip() -> Tensor:
    """Return an attack's frames side by side (C, H, W), the private picture last."""
    private = pictures()[[list(BEST).index(SHOWN)]]
    seen = clients.fedsgd(steps.network(), private)
    found = attacks.idlg(seen, steps=STRIP[-1] + 1, every=1)
    past = found.history
    at = [int((past.frame_steps <= step).sum()) - 1 for step in STRIP]
    frames = past.frames[at, 0, 0].float()
    return _row(torch.cat([frames, private.images]))


def _row(images: Tensor) -> Tensor:
    return torch.cat(list(images), -1)


def _png(image: Tensor) -> str:
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "PNG", optimize=True)
    return base64.b64encode(held.getvalue()).decode()
