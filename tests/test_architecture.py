"""The house's two laws: an import runs only downward, and no attack reaches the private batch."""

import ast
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

import gleak_core
from gleak_core import clients, models
from gleak_core.observation import CAPABILITIES, Observation

PACKAGE = Path(gleak_core.__file__).parent
FLOORS = {
    "cli": 6,
    "publish": 5,
    "lab": 4,
    "studies": 4,
    "attacks": 3,
    "figures": 3,
    "claims": 3,
    "objectives": 2,
    "labels": 2,
    "analytic": 2,
    "cafe": 2,
    "text": 2,
    "clients": 2,
    "metrics": 2,
    "statistics": 2,
    "observation": 1,
    "papers": 1,
    "starts": 1,
    "stacks": 1,
    "solvers": 1,
    "data": 1,
    "models": 1,
    "defences": 1,
    "alignment": 1,
    "errors": 0,
    "files": 0,
    "device": 0,
    "locks": 0,
    "provenance": 0,
}
# Rooms that were split: the part belongs to the room, which alone may be imported from outside.
PARTS = {
    "doctor": "cli",
    "layers": "models",
    "resnet": "models",
    "vertical": "models",
    "datasets": "data",
    "distances": "objectives",
    "closed_form": "objectives",
    "lanes": "objectives",
    "lane_maps": "objectives",
    "lane_kernels": "objectives",
    "preimage": "analytic",
    "penalties": "objectives",
    "pool": "solvers",
    "recipes": "attacks",
    "engine": "attacks",
    "simulation": "attacks",
    "lbfgs": "solvers",
    "descent": "solvers",
    "text_observation": "observation",
    "sentences": "clients",
    "training": "clients",
    "samplers": "clients",
    "standing": "clients",
    "aligned": "attacks",
    "aggregated": "cafe",
    "untold": "cafe",
    "scrubber": "figures",
}
ATTACKER = {
    "attacks", "labels", "objectives", "solvers", "starts", "stacks", "analytic", "cafe", "text",
    "observation",
}  # fmt: skip
PRIVATE = {"data", "clients", "metrics", "statistics", "alignment", "models", "defences"}


def room(module: str) -> str:
    """Return the room of `gleak_core.x.y`."""
    name = module.split(".")[1]
    return PARTS.get(name, name)


def imports(source: str) -> set[str]:
    """Return the rooms a source imports, wherever in the file the import stands."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            assert "gleak_core" not in names, "import the rooms by name: they can be checked"
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only: they can be checked"
            base = node.module or ""
            names = [f"{base}.{a.name}" for a in node.names] if base == "gleak_core" else [base]
        else:
            continue
        found |= {n for n in names if n.startswith("gleak_core.") and "__version__" not in n}
    return {room(n) for n in found}


def graph() -> dict[str, set[str]]:
    edges: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if parts == ("gleak_core", "__init__"):
            continue
        here = room(".".join(parts))
        edges.setdefault(here, set()).update(imports(path.read_text()) - {here})
    return edges


GRAPH = graph()


@pytest.mark.parametrize("here", sorted(GRAPH))
def test_imports_run_downward(here: str) -> None:
    assert here in FLOORS, f"{here} has no floor: give it one, or name its room in PARTS"
    ground = {"errors", "files", "device", "locks", "provenance"}  # floor 0: may use each other
    upward = {r for r in GRAPH[here] if FLOORS[r] >= FLOORS[here]} - (ground & GRAPH[here])
    assert not upward, f"{here} (floor {FLOORS[here]}) imports upward or sideways: {upward}"


@pytest.mark.parametrize("here", sorted(ATTACKER & set(GRAPH)))
def test_the_wall_holds(here: str) -> None:
    seen, todo = set(), [here]
    while todo:
        for other in GRAPH.get(todo.pop(), set()) - seen:
            seen.add(other)
            todo.append(other)
    assert not seen & PRIVATE, f"{here} can reach {seen & PRIVATE}: an attacker has no such room"


def test_the_check_sees_every_kind_of_import() -> None:
    assert imports("import gleak_core.data") == {"data"}
    assert imports("def f():\n    from gleak_core import clients, errors") == {"clients", "errors"}
    assert imports("from gleak_core.publish.gate import check") == {"publish"}


def tensors(thing: object, depth: int = 0):
    """Yield every tensor reachable from an object."""
    if isinstance(thing, torch.Tensor):
        yield thing
    elif isinstance(thing, nn.Module):
        for module in thing.modules():
            yield from tensors({k: v for k, v in vars(module).items() if k != "_modules"})
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from tensors(value, depth + 1)
    elif isinstance(thing, list | tuple):
        for value in thing:
            yield from tensors(value, depth + 1)
    elif is_dataclass(thing):
        for f in fields(thing):
            yield from tensors(getattr(thing, f.name), depth + 1)


VERTICAL = models.vertical_net(classes=5, size=8, workers=4, seed=1).double()
PROTOCOLS = {
    "fedsgd": lambda net, batch, give: clients.fedsgd(net, batch, give=give),
    "each": lambda net, batch, give: clients.fedsgd(net, batch, each=True, give=give),
    "local_steps": lambda net, batch, give: clients.local_steps(
        net, batch, steps=2, rate=0.123, give=give
    ),
    "fedavg": lambda net, batch, give: clients.fedavg(net, batch, epochs=2, rate=0.123, give=give),
    "several": lambda net, batch, give: clients.several(
        net, batch, updates=2, rate=0.123, give=give
    ),
    "vertical": lambda net, batch, give: clients.vertical(VERTICAL, batch, give=give),
    "horizontal": lambda net, batch, give: clients.horizontal(
        net, [batch[:2], batch[2:]], give=give
    ),
}


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_an_observation_holds_no_image_and_no_weight_that_was_not_given(
    protocol: str, tiny_net: nn.Module, tiny_batch
) -> None:
    seen: Observation = PROTOCOLS[protocol](tiny_net, tiny_batch, ("batch_size",))
    secret = {tiny_batch.images.numel(), tiny_batch.images[0].numel()}
    own = [*tiny_net.parameters(), *VERTICAL.parameters()]
    assert "0.123" not in repr(seen)  # nor in words: a rate is given, or it is not
    for tensor in tensors(seen):
        assert tensor.numel() not in secret or tensor.is_meta
        if not tensor.is_meta:
            assert all(tensor.data_ptr() != p.data_ptr() for p in own)
            assert not any(tensor.shape == p.shape and torch.equal(tensor, p) for p in own)


def test_every_capability_is_withheld_unless_declared(tiny_net: nn.Module, tiny_batch) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch, give=())
    assert list(seen.given) == []
    text = repr(seen)
    assert all(name in text.split("not given")[1] for name in CAPABILITIES)
