"""What a result depends on: all that can change it, and no more."""

import functools
import importlib.util
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from studies import toy

from gleak_core import attacks, data, labels
from gleak_core.studies import general, inputs

BASE = '''
"""A module."""
from gleak_core import statistics, starts
from gleak_core.studies.study import Cell

SCALE = 2  # a constant
OTHER = 3


def helper(x):
    """Double."""
    return SCALE * x


def measure(cell: Cell, seeds, device):
    """Measure."""
    # a comment
    return [helper(seed) for seed in seeds]


def unrelated():
    return OTHER + statistics.wilson(1, 2)[0]
'''
COUNT = itertools.count()


def leak(cell, seeds, device):
    return attacks.idlg(cell)


@pytest.fixture
def module(tmp_path: Path) -> Callable[[str], ModuleType]:
    def make(text: str) -> ModuleType:
        name = f"made_{next(COUNT)}"
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec and spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
        return sys.modules[name]

    return make


def digest(module: ModuleType) -> list[str]:
    return [value for name, value in inputs.sources(module.measure).items() if ":" in name]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# a comment", "# a better comment"),
        ('"""Measure."""', '"""Measure with care."""'),
        ('"""A module."""', '"""A module\n\nof two paragraphs."""'),
        ("\n\n\ndef unrelated", "\n\n\n\n\ndef unrelated"),
        ("OTHER = 3", "OTHER = 4"),
        ("return OTHER", "return 2 * OTHER"),
        ("cell: Cell", "cell: dict"),
    ],
)
def test_what_changes_no_number_changes_no_key(module, old: str, new: str) -> None:
    assert old in BASE
    if old == "cell: Cell":  # the annotation is code, but what it names is not used
        before, after = (inputs.sources(module(text).measure) for text in (BASE, BASE))
        assert list(before)[1:] == list(after)[1:]
        assert "gleak_core.studies.study" not in before
        return
    assert digest(module(BASE)) == digest(module(BASE.replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SCALE = 2", "SCALE = 5"),
        ("return SCALE * x", "return SCALE + x"),
        ("for seed in seeds", "for seed in seeds[:1]"),
        ("def helper(x)", "@staticmethod\ndef helper(x)"),
        ("SCALE = 2  # a constant", "SCALE = 2\nif True:\n    SCALE = 3"),
    ],
)
def test_what_a_function_uses_changes_its_key(module, old: str, new: str) -> None:
    assert old in BASE
    assert digest(module(BASE)) != digest(module(BASE.replace(old, new)))


def test_rooms_are_followed_only_from_what_is_used(module) -> None:
    assert not [name for name in inputs.sources(module(BASE).measure) if ":" not in name]
    used = BASE.replace("helper(seed)", "starts.make(helper(seed))")
    found = inputs.sources(module(used).measure)
    assert "gleak_core.starts" in found
    assert "gleak_core.errors" in found  # which starts imports


def test_a_sister_module_does_not_bring_in_every_study(module) -> None:
    """The studies' package imports them all: to take one module from it is not to depend on it."""
    text = "from gleak_core.studies import trials\n" + BASE.replace("helper(seed)", "trials.SIDE")
    found = set(inputs.sources(module(text).measure))
    assert "gleak_core.studies.trials" in found
    assert not found & {"gleak_core.studies", "gleak_core.studies.cpl"}


def test_a_change_in_a_room_below_is_seen(module, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = module(BASE.replace("helper(seed)", "starts.make(helper(seed))")).measure
    before = inputs.sources(measure)
    real = inputs._whole

    def other(path: Path) -> tuple[str, tuple[str, ...]]:
        digest, below = real(path)
        return ("changed" if path.stem == "errors" else digest), below

    monkeypatch.setattr(inputs, "_whole", other)
    after = inputs.sources(measure)
    assert inputs.changes({"source": before}, {"source": after}) == "gleak_core.errors changed"


def test_a_partial_is_its_function(module) -> None:
    measure = module(BASE).measure
    plain, one, two = (
        inputs.sources(m)
        for m in (measure, functools.partial(measure, s=1), functools.partial(measure, s=2))
    )
    assert plain.keys() == one.keys()
    assert len({tuple(found.values()) for found in (plain, one, two)}) == 3


def test_the_label_tables_depend_on_the_label_rules_and_on_no_solver() -> None:
    found = set(inputs.sources(general.table3))
    assert {"gleak_core.labels", "gleak_core.clients", "gleak_core.models"} <= found
    assert not found & {"gleak_core.lbfgs", "gleak_core.cli", "gleak_core.figures"}
    assert "gleak_core.studies.general:table4" not in found


def test_every_room_that_is_reached_is_hashed() -> None:
    """An attack leads to all of its recipe: objectives, solvers, penalties."""

    found = set(inputs.sources(leak))
    assert {"gleak_core.lbfgs", "gleak_core.objectives", "gleak_core.penalties"} <= found


def test_keys_tell_cells_profiles_devices_and_data_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    study = toy.toy(cells=[{"dataset": "faces"}, {"dataset": "digits"}])

    def key(cell=study.cells[0], profile="paper", device="cpu") -> str:
        return inputs.key(inputs.inputs(study, cell, profile=profile, device=device))

    keys = {key(), key(study.cells[1]), key(profile="quick"), key(device="cuda")}
    monkeypatch.setattr(data, "fingerprint", lambda name: "other")
    keys.add(key())
    assert len(keys) == 5


def test_changes_in_words() -> None:
    old = {"source": {"a": "1", "b": "1"}, "data": {"faces": "1"}, "profile": "paper"}
    new = {"source": {"a": "2", "c": "1"}, "data": {"faces": "2"}, "profile": "quick"}
    assert inputs.changes(old, new) == (
        "a changed; b is gone; c is new; data set faces changed; profile: paper → quick"
    )
    assert inputs.changes(old, old) == ""


def test_a_function_of_a_rule_is_its_file() -> None:
    found = inputs.sources(labels.general)
    assert "gleak_core.labels:general" in found
