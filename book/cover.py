"""Make `_static/cover.png`: a real run of iDLG, so that the cover shows what the book measures.

Run `.venv/bin/python book/cover.py`; it takes about a minute and is not part of the build.
"""

from pathlib import Path

import torch

from gleak_core import attacks, clients, data, figures, models

torch.set_num_threads(1)
batch = data.sample("photographs", indices=[1], size=32)
model = models.lenet(classes=len(batch.classes), size=32, seed=0)
seen = clients.fedsgd(model, batch)
found = attacks.idlg(seen, published=True, start="uniform", steps=100, seed=0, every=1)
print(found)
shown = [0, 2, 5, 20, 100]
frames = [found.history.frames[step, 0, 0] for step in shown]
figure = figures.strip(
    {"": [*frames, batch.images[0]]},
    titles=[*("noise" if step == 0 else f"step {step}" for step in shown), "the private picture"],
    alt="Coloured noise becomes the portrait of an astronaut.",
)
figure.save(Path(__file__).parent / "_static" / "cover.png")
