"""What is kept of a run is what the run would say again, and nothing depends on its being there."""

import math
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gleak_core import data, locks
from gleak_core.errors import GleakError
from gleak_core.studies import cafe_attacks, inputs, kept

MODULE = """
    from gleak_core.studies.kept import kept

    calls = []
    FACTOR = {factor}

    @kept(reads=lambda number, *_: ("photographs",))
    def double(number, more=()):
        calls.append(number)
        return [FACTOR * number, float("nan"), {{"name": (1, 2)}}]
"""

Load = Callable[..., ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Load:
    """Return what writes and imports a module with a function whose results are kept."""
    monkeypatch.setattr(kept, "FOLDER", tmp_path / "kept")

    def loaded(name: str, factor: int = 2) -> ModuleType:
        path = tmp_path / f"{name}.py"
        path.write_text(textwrap.dedent(MODULE.format(factor=factor)))
        inputs._part.cache_clear()  # as in a new process
        module = ModuleType(name)
        module.__file__ = str(path)
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
        return module

    return loaded


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "kept").glob("*.json"))


def test_a_run_is_made_once_and_says_what_it_took(load: Load, tmp_path: Path) -> None:
    module = load("one")
    first, seconds = module.double(3)
    again, the_same = module.double(3)
    assert module.calls == [3]
    assert seconds == the_same > 0
    assert math.isnan(first[1])
    assert repr(first) == repr(again) == repr([6, math.nan, {"name": [1, 2]}])
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("other", [(4,), (3, (1,)), (3.0,)])
def test_other_arguments_are_another_run(load: Load, other: tuple[Any, ...]) -> None:
    module = load("two")
    module.double(3)
    module.double(*other)
    assert module.calls == [3, other[0]]


def test_other_code_is_another_run(load: Load) -> None:
    before = load("same")
    after = load("same", factor=5)  # in the same file
    assert [before.double(3)[0][0], after.double(3)[0][0]] == [6, 15]
    assert [load("same").double(3)[0][0], before.calls] == [6, [3]]


def test_data_library_or_machine_make_another_run(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("other")
    module.double(3)
    monkeypatch.setattr(data, "fingerprint", lambda name: "others")
    module.double(3)
    monkeypatch.setattr(kept.torch, "__version__", "0.0")
    module.double(3)
    monkeypatch.setattr(kept.devices, "describe", lambda place: "a GPU")
    module.double(3)
    module.double(3)
    assert module.calls == [3] * 4


def test_a_run_that_another_process_is_making_is_waited_for(load: Load, tmp_path: Path) -> None:
    module = load("waits")
    module.double(3)
    (path,) = files(tmp_path)
    text = path.read_text()
    path.unlink()
    answers: list[Any] = []
    with locks.held(path.with_suffix(".lock")):  # as the other holds it
        waiting = threading.Thread(target=lambda: answers.append(module.double(3)))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        path.write_text(text)
    waiting.join(30)
    assert len(answers) == 1
    assert module.calls == [3]


def test_a_torn_file_is_made_again(load: Load, tmp_path: Path) -> None:
    module = load("torn")
    module.double(3)
    (path,) = files(tmp_path)
    whole = path.read_text()
    for torn in ("", whole[:-4], "[1]", "3"):
        path.write_text(torn)
        assert module.double(3)[0][0] == 6
    assert module.calls == [3] * 5


@pytest.mark.parametrize("error", [GleakError("cannot write: free some space"), OSError(5, "no")])
def test_where_nothing_can_be_written_the_run_still_counts(
    load: Load, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(path: Path, content: str) -> None:
        raise error

    module = load("full")
    monkeypatch.setattr(kept, "atomic_write", full)
    assert [module.double(3)[0][0] for _ in range(2)] == [6, 6]
    assert module.calls == [3, 3]


def test_a_run_that_fails_is_not_kept(load: Load, tmp_path: Path) -> None:
    module = load("fails")
    with pytest.raises(TypeError):
        module.double(None)
    assert files(tmp_path) == []


def test_no_number_depends_on_what_is_kept() -> None:
    reached = inputs.sources(cafe_attacks.by_method)
    assert "gleak_core.studies.cafe_pools" in reached
    assert not {"gleak_core.studies.kept", "gleak_core.studies.inputs"} & {*reached}
