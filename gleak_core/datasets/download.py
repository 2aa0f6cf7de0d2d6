"""Downloading: to a scratch file, compared with its SHA-256, then moved; or nothing at all."""

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gleak_core import files
from gleak_core.errors import GleakError

__all__ = ["Progress", "download"]

Progress = Callable[[str, int, int], None]
"""Called with the file's name, the bytes so far, and the bytes in all."""

_PIECE = 1 << 18
_TIMEOUT = 30.0  # seconds without a byte


class _Refused(Exception):
    """One address did not give the file; the next one may."""


def download(
    urls: Sequence[str], path: Path, size: int, sha256: str, progress: Progress | None = None
) -> Path:
    """Bring a file to `path` from the first address that gives exactly the expected bytes."""
    failures = []
    for url in urls:
        try:
            with files.atomic(path) as scratch:
                _receive(
                    url,
                    scratch,
                    size,
                    sha256,
                    lambda done: progress and progress(path.name, done, size),
                )
        except _Refused as failure:
            failures.append(f"{url} {failure}")
        else:
            return path
    raise GleakError(
        f"could not download {path.name}: {', and '.join(failures)}; nothing was kept: "
        f"check the network and try again, or bring the file to {path} yourself"
    )


def _receive(
    url: str, scratch: Path, size: int, sha256: str, report: Callable[[int], object]
) -> None:
    content, done = hashlib.sha256(), 0
    with scratch.open("wb") as file:
        for piece in _pieces(url):
            file.write(piece)
            content.update(piece)
            done += len(piece)
            report(done)
            if done > size:
                raise _Refused(f"sent more than the {size} bytes of the file we know")
    if done < size:
        raise _Refused(f"broke off after {done} of {size} bytes")
    if content.hexdigest() != sha256:
        raise _Refused(f"sent other bytes than the file we know (SHA-256 {content.hexdigest()})")


def _pieces(url: str) -> Iterator[bytes]:
    request = urllib.request.Request(url, headers={"User-Agent": "gleak"})
    # Only what the network does wrong is refused here: a full disk is the reader's own OSError.
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            while piece := answer.read(_PIECE):
                yield piece
    except urllib.error.HTTPError as error:
        raise _Refused(f"answered {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise _Refused(f"could not be reached ({error.reason})") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Refused(f"broke off ({error})") from error
