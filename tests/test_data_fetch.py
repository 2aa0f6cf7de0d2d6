"""Downloading: whole and known, or nothing; from a server on this machine."""

import contextlib
import errno
import hashlib
import os
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from test_data_forms import accept, home, write_mnist  # noqa: F401  (fixtures)

from gleak_core import data, files
from gleak_core.datasets.download import download
from gleak_core.errors import GleakError

CONTENT = os.urandom(700_000)  # more than two pieces
GOOD = hashlib.sha256(CONTENT).hexdigest()


class Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        kinds = {
            "/good": (200, CONTENT, len(CONTENT)),
            "/other": (200, CONTENT[::-1], len(CONTENT)),
            "/cut": (200, CONTENT[:300_000], len(CONTENT)),
            "/short": (200, CONTENT[:300_000], 300_000),
            "/long": (200, CONTENT * 3, len(CONTENT) * 3),
            "/gone": (404, b"gone", 4),
        }
        code, content, length = kinds[self.path]
        self.send_response(code)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the client may well hang up
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def get(path: Path, *urls: str, progress=None) -> Path:
    return download(urls, path, len(CONTENT), GOOD, progress)


def test_a_good_download_arrives_whole(address: str, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    path = get(tmp_path / "new/a.bin", f"{address}/good", progress=lambda *p: seen.append(p))
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]
    assert seen[-1] == ("a.bin", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})


def test_a_file_address_works_too(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(CONTENT)
    assert get(tmp_path / "a.bin", (tmp_path / "there").as_uri()).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("other", "sent other bytes than the file we know"),
        ("cut", "broke off after 300000 of 700000 bytes|broke off"),
        ("short", "broke off after 300000 of 700000 bytes"),
        ("long", "sent more than the 700000 bytes"),
        ("gone", "answered 404"),
    ],
)
def test_a_bad_download_leaves_nothing(address: str, tmp_path: Path, kind: str, words) -> None:
    with pytest.raises(GleakError, match=words) as caught:
        get(tmp_path / "a.bin", f"{address}/{kind}")
    assert "nothing was kept: check the network and try again" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_download_leaves_the_old_file(address: str, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"old")
    with pytest.raises(GleakError):
        get(tmp_path / "a.bin", f"{address}/other")
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_the_next_address_is_tried(address: str, tmp_path: Path) -> None:
    path = get(tmp_path / "a.bin", f"{address}/gone", f"{address}/other", f"{address}/good")
    assert path.read_bytes() == CONTENT
    with pytest.raises(GleakError, match=r"/gone answered 404.*, and .*/cut broke off"):
        get(tmp_path / "b.bin", f"{address}/gone", f"{address}/cut")


def test_an_unreachable_host_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(GleakError, match=r"could not be reached \(.*refused"):
        get(tmp_path / "a.bin", "http://127.0.0.1:1/a")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(address: str, tmp_path: Path) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(tmp_path / "a.bin", f"{address}/good", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_sentence(
    address: str, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GleakError, match=r"cannot write into .*make the folder writable"):
        get(tmp_path / "file/a.bin", f"{address}/good")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(GleakError, match=r"cannot write into .*\(Permission denied\)"):
        get(tmp_path / "a.bin", f"{address}/good")


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    address: str, tmp_path: Path, monkeypatch
) -> None:
    opened = Path.open

    def full(self: Path, mode: str = "r", *args, **kwargs):
        file = opened(self, mode, *args, **kwargs)
        if "w" not in mode:
            return file

        class Full:
            def __enter__(self):
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def write(self, piece: bytes) -> int:
                raise OSError(errno.ENOSPC, "No space left on device")

        return Full()

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(GleakError, match=r"No space left on device\): free some space"):
        get(tmp_path / "a.bin", f"{address}/good")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


# --- fetch --------------------------------------------------------------------------------------


def serve(paths: list[Path], facts: Path) -> None:
    """Point the registry at the files themselves."""
    toml = facts / "datasets.toml"
    text = toml.read_text()
    for path in paths:
        text = text.replace(
            f"https://ossci-datasets.s3.amazonaws.com/mnist/{path.name}", path.as_uri()
        )
    toml.write_text(text.replace("https://storage.googleapis.com", "http://127.0.0.1:1"))


def test_fetch_downloads_checks_and_packs(home: Path, tmp_path: Path, accept) -> None:  # noqa: F811
    images, labels, paths = write_mnist(tmp_path / "server")
    accept(*paths)
    serve(paths, files.FACTS)
    seen: list[str] = []
    assert data.fetch("mnist", progress=lambda name, *_: seen.append(name)) == home / "mnist.npz"
    assert seen == [path.name for path in paths]
    whole = data.load("mnist")
    assert (whole.images == images).all()
    assert whole.labels.tolist() == labels.tolist()
    assert data.verify("mnist").verdict == "ok"
    for path in paths:  # a second time needs nothing of the server
        path.unlink()
    before = (home / "mnist.npz").stat().st_mtime_ns
    assert data.fetch("mnist").stat().st_mtime_ns == before
    (home / "mnist.npz").unlink()
    assert data.fetch("mnist") == home / "mnist.npz"


def test_fetch_mends_a_damaged_archive(home: Path, tmp_path: Path, accept) -> None:  # noqa: F811
    *_, paths = write_mnist(tmp_path / "server")
    accept(*paths)
    serve(paths, files.FACTS)
    (home / "downloads").mkdir()
    (home / "downloads" / paths[0].name).write_bytes(b"damaged")
    data.fetch("mnist")
    assert files.sha256(home / "downloads" / paths[0].name) == files.sha256(paths[0])


def test_a_failed_fetch_leaves_no_set(home: Path, tmp_path: Path, accept) -> None:  # noqa: F811
    *_, paths = write_mnist(tmp_path / "server")
    accept(*paths)
    serve(paths, files.FACTS)
    paths[3].write_bytes(b"x" * paths[3].stat().st_size)
    with pytest.raises(GleakError, match=f"could not download {paths[3].name}"):
        data.fetch("mnist")
    assert sorted(p.name for p in (home / "downloads").iterdir()) == sorted(
        p.name for p in paths[:3]
    )
    assert not (home / "mnist.npz").exists()


@pytest.mark.parametrize("name", ["imagenet", "linnaeus5"])
def test_what_cannot_be_fetched_names_page_and_layout(name: str, home: Path) -> None:  # noqa: F811
    entry = data.info(name)
    with pytest.raises(GleakError) as caught:
        data.fetch(name)
    assert entry.page in str(caught.value)
    assert entry.layout in str(caught.value)
    with pytest.raises(GleakError, match="faces needs no download"):
        data.fetch("faces")
    with pytest.raises(ValueError, match="unknown data set"):
        data.fetch("imagnet")
