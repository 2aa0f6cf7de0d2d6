"""data/datasets.toml: every entry complete, every hash of an embedded file true."""

import dataclasses
import re
from pathlib import Path
from urllib.parse import urlparse

import pytest

from gleak_core import data, files
from gleak_core.datasets import archives, embedded, registry
from gleak_core.errors import GleakError

NAMES = (
    "photographs", "faces", "digits", "mnist", "cifar10", "cifar100", "svhn", "lfw", "imagenet",
    "linnaeus5",
)  # fmt: skip
HASH = re.compile(r"[0-9a-f]{64}")


def test_every_promised_set_is_there() -> None:
    assert data.names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_is_complete(name: str) -> None:
    entry = data.info(name)
    for text in (entry.title, entry.licence, entry.citation, entry.note):
        assert isinstance(text, str)
        assert len(text) > 4
    assert urlparse(entry.page).scheme in ("http", "https")
    height, width, channels = entry.shape
    assert height == width == entry.stored_size
    assert channels in (1, 3)
    assert entry.channels in (1, 3)
    assert 1 <= entry.default_size <= entry.largest_size
    assert entry.count >= entry.classes >= 2
    for part in (*entry.files, *entry.archives, *entry.known_packs):
        assert HASH.fullmatch(part.sha256)
    needed = {
        "embedded": bool(entry.files) and not entry.archives and not entry.folders,
        "download": bool(entry.archives) and name in archives.READERS,
        "folder": bool(entry.folders and entry.layout) and not entry.archives,
    }
    assert needed[entry.kind]
    for archive in entry.archives:
        assert archive.bytes > 0
        assert archive.urls
        assert all(urlparse(url).scheme in ("http", "https") for url in archive.urls)
        assert "/" not in archive.file


@pytest.mark.parametrize("name", ["photographs", "faces", "digits"])
def test_an_embedded_set_is_what_its_entry_says(name: str) -> None:
    entry, whole = data.info(name), data.load(name)
    for file in entry.files:
        assert files.sha256(embedded.locate(file)) == file.sha256
        assert file.licence
    assert whole.images.shape == (entry.count, *entry.shape)
    assert len(whole.class_names) == entry.classes
    assert sorted(set(whole.labels.tolist())) == list(range(entry.classes))
    assert data.verify(name).verdict == "ok"


def test_another_file_in_the_wheel_is_refused(monkeypatch) -> None:
    entry = data.info("digits")
    other = dataclasses.replace(entry.files[0], sha256="0" * 64)
    monkeypatch.setattr(registry, "entry", lambda name: dataclasses.replace(entry, files=(other,)))
    with pytest.raises(GleakError, match=r"another SHA-256.*install the version in constraints"):
        embedded.locate(other)
    with pytest.raises(GleakError, match=r"does not carry data/no\.png"):
        embedded.locate(dataclasses.replace(other, path="data/no.png"))
    with pytest.raises(GleakError, match="does not carry"):
        embedded.locate(dataclasses.replace(other, package="nosuchpackage"))
    assert data.verify("digits").verdict == "corrupt"
    status = data.status("digits")
    assert not status.here
    assert "constraints.txt" in status.command


@pytest.mark.parametrize(
    "text", ["[a\n", '[a]\ntitle = "no more"\n', "[a]\nsurprise = 1\n", "\xff\xfe"]
)
def test_a_broken_registry_is_one_sentence(tmp_path: Path, monkeypatch, text: str) -> None:
    (tmp_path / "datasets.toml").write_text(text, encoding="latin-1")
    monkeypatch.setattr(files, "FACTS", tmp_path)
    with pytest.raises(GleakError, match=r"cannot read the data registry .*restore it"):
        data.names()
    monkeypatch.setattr(files, "FACTS", tmp_path / "nowhere")
    with pytest.raises(GleakError, match="restore it"):
        data.info("a")
