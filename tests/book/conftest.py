"""The book, built once."""

import shutil
from pathlib import Path

import pytest
from book.looking import without

from gleak_core import provenance
from gleak_core.files import ROOT
from gleak_core.publish import book as publishing
from gleak_core.publish import execute, notebooks, parameters, stage


@pytest.fixture(scope="session")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the book, built from the committed outputs.

    That these are what a run gives is nbval's to say: each chapter runs once for both.
    """
    if not notebooks.find(ROOT):
        without("there is no chapter yet")
    root = tmp_path_factory.mktemp("project")
    for place, path in {**stage.sources(ROOT), **_notebooks()}.items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, root / place)
    for one in execute.plan(root=root):
        page = notebooks.read(one.source)
        values = parameters.declared(one.chapter, page).rewrite(one.values)
        notebooks.tagged(page, "parameters")[0]["source"] = values
        page["metadata"]["gleak"]["run"] = {
            "profile": one.values["profile"],
            "device": one.inputs["device"],
            "parameters": dict(one.values),
            "key": one.key,
            "hardware": "the machine of the committed outputs",
            "seconds": 1.0,
            "date": "2026-01-01 00:00:00",
            "versions": {},
            **provenance.state(ROOT),
        }
        one.target.parent.mkdir(parents=True, exist_ok=True)
        one.target.write_text(notebooks.text(page), encoding="utf-8")
    book = publishing.build(root=root)
    assert {outcome.status for outcome in book.outcomes} == {"up to date"}
    return book.index.parent


def _notebooks() -> dict[Path, Path]:
    return {path.relative_to(ROOT): path for path in notebooks.find(ROOT).values()}
