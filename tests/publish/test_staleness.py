"""Why a chapter is stale, in words; no kernel starts here."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from publish.conftest import Write

from gleak_core.errors import GleakError
from gleak_core.publish import execute, staleness


def finish(root: Path, date: str = "2026-01-01 00:00:00", **options: Any) -> staleness.Plan:
    """Pretend that a chapter was executed as planned."""
    [plan] = execute.plan(["01_a"], root=root, device="cpu", **options)
    run = {"profile": plan.values["profile"], "date": date, "key": plan.key, "inputs": plan.inputs}
    plan.target.parent.mkdir(parents=True, exist_ok=True)
    plan.target.write_text(json.dumps({"metadata": {"gleak": {"run": run}}}))
    return plan


def why(root: Path, **options: Any) -> str:
    return execute.why_stale("01_a", root=root, device="cpu", **options)


@pytest.fixture
def chapter(write: Write) -> Path:
    return write("01_a", "print(seed)")


def test_never_executed_then_up_to_date(project: Path, chapter: Path) -> None:
    assert why(project) == "never executed with profile smoke"
    finish(project)
    assert why(project) == "up to date"
    assert why(project, profile="quick") == "never executed with profile quick"


def test_each_change_has_its_words(project: Path, chapter: Path, write: Write) -> None:
    finish(project)
    core = project / "gleak_core"
    (core / "models.py").write_text("width = 13\n")
    assert why(project) == "gleak_core/models.py changed"
    (core / "models.py").unlink()
    (core / "data.py").write_text("")
    assert why(project) == "gleak_core/data.py is new; gleak_core/models.py is gone"
    (core / "data.py").unlink()
    (core / "models.py").write_text("width = 12\n")
    assert why(project) == "up to date"
    (project / "constraints.txt").write_text("numpy==3\n")
    assert why(project) == "constraints.txt changed"
    (project / "constraints.txt").write_text("numpy==2.0\n")
    assert why(project, params={"seed": 1}) == "parameter seed: 0 → 1"
    write("01_a", "print(seed + 1)")
    assert why(project, params={"seed": 1}) == "the chapter itself changed; parameter seed: 0 → 1"


def test_outputs_and_the_publishing_rooms_do_not_matter(project: Path, chapter: Path) -> None:
    finish(project)
    (project / "gleak_core" / "publish").mkdir()
    (project / "gleak_core" / "publish" / "book.py").write_text("")
    (project / "gleak_core" / "cli.py").write_text("")
    (project / "gleak_core" / "__pycache__").mkdir()
    (project / "gleak_core" / "__pycache__" / "models.pyc").write_text("")
    content = json.loads(chapter.read_text())
    content["cells"][2]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "0"}]
    content["cells"][2]["execution_count"] = 2
    chapter.write_text(json.dumps(content))
    assert why(project) == "up to date"


@pytest.mark.parametrize("part", ["source", "tags", "kind"])
def test_source_tags_and_kind_of_a_cell_matter(project: Path, chapter: Path, part: str) -> None:
    finish(project)
    content = json.loads(chapter.read_text())
    cell = content["cells"][2]
    if part == "source":
        cell["source"] = "print( seed)"
    elif part == "tags":
        cell["metadata"]["tags"] = ["hide-input"]
    else:
        content["cells"][2] = {
            "cell_type": "markdown", "id": "x", "metadata": {}, "source": cell["source"],
        }  # fmt: skip
    chapter.write_text(json.dumps(content))
    assert why(project) == "the chapter itself changed"


def test_data_sets_and_files_that_a_chapter_names(
    project: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    prints = {"photographs": "1", "mnist": "absent"}
    monkeypatch.setattr(staleness, "_fingerprint", prints.__getitem__)
    (project / "paper.toml").write_text("a = 1\n")
    write("01_a", "1", data=["photographs", "mnist"], reads=["paper.toml"])
    finish(project)
    prints["photographs"] = "2"
    (project / "paper.toml").write_text("a = 2\n")
    assert why(project) == "data set photographs changed; paper.toml changed"
    (project / "paper.toml").unlink()
    with pytest.raises(GleakError, match=r"paper.toml, which cannot be read .*gleak.reads"):
        why(project)


def test_fingerprints_are_those_of_the_data_room() -> None:
    from gleak_core import data

    assert staleness._fingerprint("digits") == data.fingerprint("digits")


def test_the_device_class_matters(
    project: Path, chapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(project)
    monkeypatch.setattr(staleness, "pick_device", lambda name: "cuda")
    assert why(project) == "parameter device: 'cpu' → 'cuda'; device: cpu → cuda"


def test_compared_with_the_newest_run_of_the_profile(project: Path, chapter: Path) -> None:
    finish(project, "2026-01-02 00:00:00", params={"seed": 1})
    finish(project, "2026-01-01 00:00:00", params={"seed": 2})
    assert why(project, params={"seed": 3}) == "parameter seed: 1 → 3"


def test_a_damaged_page_is_not_fresh(project: Path, chapter: Path) -> None:
    plan = finish(project)
    plan.target.write_text(plan.target.read_text()[:-20])
    assert why(project) == "never executed with profile smoke"


def test_chapters_are_found_by_their_beginning(project: Path, write: Write) -> None:
    write("01_a")
    write("02_b")
    found = execute.plan(["02", "chapters/01_a.ipynb"], root=project, device="cpu")
    assert [plan.chapter for plan in found] == ["01_a", "02_b"]
    with pytest.raises(ValueError, match="unknown chapter '03_a': did you mean '01_a'"):
        execute.plan(["03_a"], root=project)


def test_no_chapter_and_a_broken_chapter_are_sentences(project: Path, write: Write) -> None:
    with pytest.raises(GleakError, match="there is no chapter in"):
        execute.plan(root=project)
    write("01_a").write_text('{"cells": [')
    with pytest.raises(GleakError, match=r"01_a\.ipynb is not a whole notebook"):
        execute.plan(root=project)
    write("01_a").write_text('{"cells": [{"cell_type": "poem"}], "metadata": {}}')
    with pytest.raises(GleakError, match=r"01_a\.ipynb is not a (valid|whole) notebook"):
        execute.plan(root=project)


def test_no_gpu_is_a_sentence(project: Path, chapter: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(GleakError, match="sees no GPU here"):
        execute.run(root=project, device="cuda")
    assert not (project / "_build").exists()
    assert os.listdir(project / "chapters") == ["01_a.ipynb"]  # noqa: PTH208
