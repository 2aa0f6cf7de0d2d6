"""All tapes of the page as one piece of JSON: what batches of different sizes share stands once."""

from collections.abc import Sequence
from typing import Any

from gleak_core.errors import GleakError
from gleak_core.lab import steps
from gleak_core.lab.tape import Tape

__all__ = ["bundle", "merged"]


def bundle() -> dict[str, Any]:
    """Return the tapes by what they compute: `gradient`, `open` and one for each attack.

    A batch of one picture has a tape of its own, `one`; in that of the others, `more`, a number
    that depends on the batch is `{"by": [of two pictures, of three, …]}`.
    """
    net = steps.network()
    made = {
        "gradient": [steps.gradient(net, n)[0] for n in steps.BATCHES],
        "open": [steps.gradient(steps.open_network(), n)[0] for n in steps.BATCHES],
    }
    for name, attack in steps.ATTACKS.items():
        made[name] = [steps.step(net, attack, n) for n in steps.BATCHES]
    return {
        name: {"one": tapes[0].parts(), "more": merged(tapes[1:])} for name, tapes in made.items()
    }


def merged(tapes: Sequence[Tape]) -> Any:
    """Return tapes of the same steps as one."""
    return _merge([tape.parts() for tape in tapes])


def _merge(values: list[Any]) -> Any:
    first = values[0]
    if all(value == first for value in values):
        return first
    if all(isinstance(value, dict) and value.keys() == first.keys() for value in values):
        return {key: _merge([value[key] for value in values]) for key in first}
    if all(isinstance(value, list) and len(value) == len(first) for value in values):
        return [_merge(list(each)) for each in zip(*values, strict=True)]
    if all(isinstance(value, int | float) for value in values):
        return {"by": values}
    raise GleakError(
        "the tapes of batches of two and more do not have the same steps: "
        "give each batch a tape of its own in gleak_core.lab.bundle"
    )
