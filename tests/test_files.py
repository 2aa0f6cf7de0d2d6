import errno
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gleak_core import files
from gleak_core.errors import GleakError


def left_over(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_what_is_written_is_there_whole_and_alone(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "down" / "a.txt"
    files.atomic_write(target, "über")
    assert target.read_bytes() == "über".encode()
    files.atomic_write(target, b"\x00\xff")
    assert target.read_bytes() == b"\x00\xff"
    assert left_over(target.parent) == ["a.txt"]


def test_a_new_file_gets_the_mode_that_any_new_file_would_have(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.atomic_write(tmp_path / "a", "x")
        assert os.umask(0o027) == 0o027  # asking for the umask did not change it
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_a_failure_keeps_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(error), files.atomic(target) as scratch:
        scratch.write_text("half of the ne")
        raise error
    assert target.read_text() == "old"
    assert left_over(tmp_path) == ["a.txt"]


def test_kill_minus_nine_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    code = (
        "import os, signal, sys; from pathlib import Path; from gleak_core.files import atomic\n"
        "with atomic(Path(sys.argv[1])) as scratch:\n"
        "    scratch.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    died = subprocess.run([sys.executable, "-c", code, str(target)])
    assert died.returncode == -signal.SIGKILL
    assert target.read_text() == "old"
    files.atomic_write(target, "new")  # what the dead left behind is in nobody's way
    assert target.read_text() == "new"


def test_a_full_disk_is_one_sentence_and_nothing_half_written(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with (
        pytest.raises(GleakError, match=r"No space left on device.*free some space"),
        files.atomic(target) as scratch,
    ):
        scratch.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert target.read_text() == "old"
    assert left_over(tmp_path) == ["a.txt"]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GleakError, match=r"cannot write into .*file.*choose another"):
        files.atomic_write(tmp_path / "file" / "a.txt", "x")


def test_a_folder_in_the_way_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "inside").write_text("")
    with pytest.raises(GleakError, match="cannot write"):
        files.atomic_write(tmp_path / "a", "x")
    assert left_over(tmp_path) == ["a"]


@pytest.mark.parametrize("content", [b"", b"abc", bytes(range(256)) * 4096])
def test_hashes_agree_with_hashlib(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    expected = hashlib.sha256(content).hexdigest()
    assert files.sha256(tmp_path / "a") == files.sha256_bytes(content) == expected


def test_the_data_folder_is_what_the_variable_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLEAK_DATA", str(tmp_path))
    assert files.data_home() == tmp_path
    monkeypatch.setenv("GLEAK_DATA", "~/sets")
    assert files.data_home() == Path.home() / "sets"
    monkeypatch.delenv("GLEAK_DATA")
    assert files.data_home().name == "gleak"


def test_the_root_is_the_checkout() -> None:
    assert (files.ROOT / "pyproject.toml").is_file()
    assert files.FACTS == files.ROOT / "data"
    assert files.BUILD == files.ROOT / "_build"
