"""Where things lie, and writing them so that a crash leaves the old file or the new one."""

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from gleak_core.errors import GleakError

__all__ = [
    "BUILD",
    "FACTS",
    "ROOT",
    "atomic",
    "atomic_write",
    "data_home",
    "sha256",
    "sha256_bytes",
]

_CANNOT_WRITE = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EISDIR", "ENOTEMPTY")
    if hasattr(errno, name)
}

ROOT = Path(__file__).resolve().parent.parent
FACTS = ROOT / "data"
BUILD = ROOT / "_build"


def data_home() -> Path:
    """Return the folder of the downloaded data sets: `GLEAK_DATA`, or a user cache folder."""
    given = os.environ.get("GLEAK_DATA")
    return Path(given).expanduser() if given else Path(platformdirs.user_cache_dir("gleak"))


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a scratch path beside `path`; move it into place only if the block succeeds."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise GleakError(
            f"cannot write into {path.parent} ({error.strerror}): "
            "make the folder writable, free some space, or choose another one"
        ) from error
    os.close(handle)
    scratch = Path(name)
    try:
        yield scratch
        # mkstemp makes private files; what we publish gets the mode any new file would have.
        scratch.chmod(0o666 & ~_umask())
        scratch.replace(path)
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise  # the block read something else, and that failed
        raise GleakError(
            f"cannot write {path} ({error.strerror}): free some space or choose another folder"
        ) from error
    finally:
        scratch.unlink(missing_ok=True)


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write `content` to `path`, whole or not at all."""
    with atomic(path) as scratch:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)


def sha256_bytes(content: bytes) -> str:
    """Return the SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal, reading it in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
