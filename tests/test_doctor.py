import re
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from gleak_core import data, doctor
from gleak_core.doctor import Finding
from gleak_core.errors import GleakError
from gleak_core.files import ROOT


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A checkout with just what the doctor reads."""
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def look(topic: str, root: Path = ROOT) -> dict[str, Finding]:
    return {f.name: f for f in doctor.EXAMINATIONS[topic](root)}


def test_this_machine_works_and_every_fault_has_a_cure() -> None:
    findings = doctor.examine()
    assert doctor.works(findings)
    assert [f.topic for f in findings] == sorted(
        (f.topic for f in findings), key=list(doctor.EXAMINATIONS).index
    )
    assert all(f.cure for f in findings if f.state != "ok")
    assert not any(f.cure for f in findings if f.state == "ok")


def test_versions_are_compared_with_the_constraints(project: Path) -> None:
    lock = project / "constraints.txt"
    lock.write_text(re.sub(r"(?m)^numpy==.*$", "numpy==1.0.0", lock.read_text()))
    found = look("versions", project)
    assert found["numpy"].state == "warn"
    assert found["numpy"].says.endswith("tested with 1.0.0")
    assert found["numpy"].cure == "make setup"
    assert found["typer"].state == "ok"


def test_a_build_for_one_device_is_the_tested_version(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested = doctor.pinned(project / "constraints.txt")
    monkeypatch.setattr(doctor, "version", lambda name: f"{tested[name]}+cpu")
    assert look("versions", project)["torch"].state == "ok"


def test_only_the_core_is_essential(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name in ("torch", "papermill"):
            raise PackageNotFoundError(name)
        return doctor.pinned(project / "constraints.txt")[name]

    monkeypatch.setattr(doctor, "version", version)
    found = look("versions", project)
    assert (found["torch"].state, found["papermill"].state) == ("broken", "missing")
    assert not doctor.works(list(found.values()))
    assert doctor.works([found["papermill"]])


def test_markers_of_the_constraints_are_obeyed(tmp_path: Path) -> None:
    lock = tmp_path / "constraints.txt"
    lock.write_text(
        "# a comment\nnumpy==1.0 ; python_full_version < '3.0'\n"
        "numpy==2.0 ; python_full_version >= '3.0'\nScikit_Image==3.0  # spelt its own way\n\n"
    )
    assert doctor.pinned(lock) == {"numpy": "2.0", "scikit-image": "3.0"}


def test_outside_a_checkout_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    found = look("versions", tmp_path)
    assert found["packages"].state == "warn"
    assert "checkout" in found["packages"].cure


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("operator torchvision::nms does not exist"),
        ImportError("no module torch"),
        OSError("libcudart.so.13: cannot open shared object file"),
    ],
)
def test_a_torch_that_does_not_start_is_broken(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> None:
        raise error

    monkeypatch.setattr(doctor.importlib, "import_module", refuse)
    found = look("device")
    assert found["torch"].state == "broken"
    assert str(error) in found["torch"].says
    assert "make setup" in found["torch"].cure
    assert look("data")["data sets"].state == "broken"


def test_a_missing_gpu_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert look("device")["gpu"].state == "ok"
    assert look("device")["gpu"].says.startswith("none")


def test_absent_sets_come_with_the_command_that_brings_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLEAK_DATA", str(tmp_path))
    found = look("data")
    assert tuple(found) == data.names()
    assert found["photographs"].state == found["digits"].state == "ok"
    assert found["mnist"].state == "missing"
    assert found["mnist"].cure == "gleak data fetch mnist"
    assert doctor.works(list(found.values()))


def test_a_changed_pack_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLEAK_DATA", str(tmp_path))
    (tmp_path / "mnist.npz").write_bytes(b"not what it was")
    found = look("data")["mnist"]
    assert found.state == "warn"
    assert found.cure == "gleak data verify mnist"


def test_a_set_that_cannot_be_asked_for_does_not_stop_the_report(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def status(name: str) -> Iterator[None]:
        raise GleakError("its file has changed")

    monkeypatch.setattr(data, "status", status)
    found = look("data")
    assert {f.state for f in found.values()} == {"warn"}
    assert found["faces"].says == "its file has changed"


def test_a_full_disk_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    found = look("disk", tmp_path)
    assert found["space"].state == "warn"
    assert "free some space" in found["space"].cure
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**40))
    assert look("disk", tmp_path)["space"].state == "ok"


def test_a_build_folder_that_cannot_be_written_is_broken(tmp_path: Path) -> None:
    (tmp_path / "_build").write_text("a file in its place")
    found = look("disk", tmp_path)["build folder"]
    assert found.state == "broken"
    assert "cannot write into" in found.says


def test_looking_at_the_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    look("disk", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_browser_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = look("browser")["chromium"]
    assert (found.state, found.cure) == ("missing", "apt-get install chromium")
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if "google" in name else None)
    assert look("browser")["chromium"].says == "/bin/google-chrome"
