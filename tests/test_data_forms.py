"""The forms in which a set can lie on disk, each as a tiny file in the real format."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from gleak_core import data, files
from gleak_core.datasets import archives, packed, shelf
from gleak_core.errors import GleakError

REGISTRY = files.FACTS


@pytest.fixture
def home(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("GLEAK_DATA", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def accept(tmp_path: Path, monkeypatch):
    """Return a function that makes the registry expect the archives that a test has written."""

    def rewrite(*paths: Path) -> None:
        text = (REGISTRY / "datasets.toml").read_text()
        for path in paths:
            head, tail = text.split(f'file = "{path.name}"')
            _, rest = tail.split("urls", 1)
            text = (
                f'{head}file = "{path.name}"\nbytes = {path.stat().st_size}\n'
                f'sha256 = "{files.sha256(path)}"\nurls{rest}'
            )
        facts = tmp_path / f"facts{len(paths)}"
        facts.mkdir()
        (facts / "datasets.toml").write_text(text)
        monkeypatch.setattr(files, "FACTS", facts)

    return rewrite


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# --- published files, written by hand -----------------------------------------------------------


def write_idx(path: Path, array: np.ndarray) -> Path:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    content = header + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_mnist(root: Path, suffix: str = ".gz") -> tuple[np.ndarray, np.ndarray, list[Path]]:
    images, labels = noise(14, 28, 28), np.arange(14, dtype=np.uint8) % 10
    parts = {
        "train-images-idx3-ubyte": images[:10],
        "train-labels-idx1-ubyte": labels[:10],
        "t10k-images-idx3-ubyte": images[10:],
        "t10k-labels-idx1-ubyte": labels[10:],
    }
    paths = [write_idx(root / f"{name}{suffix}", part) for name, part in parts.items()]
    return images[..., None], labels, paths


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def planes(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def write_cifar10(root: Path) -> tuple[np.ndarray, np.ndarray, list[Path]]:
    images, labels = noise(12, 32, 32, 3), np.arange(12, dtype=np.uint8) % 10
    records = np.concatenate([labels[:, None], planes(images)], axis=1)
    files_ = [f"data_batch_{k}.bin" for k in range(1, 6)] + ["test_batch.bin"]
    members = {
        f"cifar-10-batches-bin/{name}": records[2 * k : 2 * k + 2].tobytes()
        for k, name in enumerate(files_)
    }
    names = "airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n"
    members["cifar-10-batches-bin/batches.meta.txt"] = names.encode()
    return images, labels, [write_tar(root / "cifar-10-binary.tar.gz", members)]


def write_cifar100(root: Path) -> tuple[np.ndarray, np.ndarray, list[Path]]:
    images, fine = noise(6, 32, 32, 3), np.array([99, 3, 50, 7, 0, 3], np.uint8)
    coarse = np.full((6, 1), 19, np.uint8)
    records = np.concatenate([coarse, fine[:, None], planes(images)], axis=1)
    members = {
        "cifar-100-binary/train.bin": records[:4].tobytes(),
        "cifar-100-binary/test.bin": records[4:].tobytes(),
        "cifar-100-binary/fine_label_names.txt": "".join(f"fine{k}\n" for k in range(100)).encode(),
    }
    return images, fine, [write_tar(root / "cifar-100-binary.tar.gz", members)]


def write_svhn(root: Path) -> tuple[np.ndarray, np.ndarray, list[Path]]:
    images, labels = noise(12, 32, 32, 3), np.arange(12) % 10
    root.mkdir(parents=True, exist_ok=True)
    paths = [root / "train_32x32.mat", root / "test_32x32.mat"]
    for path, part in zip(paths, (slice(0, 8), slice(8, 12)), strict=True):
        y = np.where(labels[part] == 0, 10, labels[part]).astype(np.uint8)[:, None]
        savemat(path, {"X": images[part].transpose(1, 2, 3, 0), "y": y}, do_compression=True)
    return images, labels, paths


def jpeg(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(array).save(content, "JPEG", quality=95)
    return content.getvalue()


def write_lfw(root: Path) -> tuple[np.ndarray, np.ndarray, list[Path]]:
    original = np.zeros((250, 250, 3), np.uint8)
    original[80:170, 80:170] = 255  # what the documented crop keeps
    people = {"Zoe_Last": 14, "Al_First": 15, "Too_Few": 13}
    members = {
        f"lfw/{person}/{person}_{k:04}.jpg": jpeg(original)
        for person, count in people.items()
        for k in range(1, count + 1)
    }
    path = write_tar(root / "lfw.tgz", members)
    return np.full((29, 90, 90, 3), 255, np.uint8), np.repeat([0, 1], [15, 14]), [path]


WRITERS = {
    "mnist": write_mnist,
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "svhn": write_svhn,
    "lfw": write_lfw,
}


@pytest.mark.parametrize("name", WRITERS)
def test_published_files_are_packed_pixel_by_pixel(name: str, home: Path, accept) -> None:
    images, labels, paths = WRITERS[name](home / "downloads")
    accept(*paths)
    assert data.fingerprint(name) == "absent"
    assert data.status(name).command == f"gleak data pack {name}"
    assert data.pack(name) == home / f"{name}.npz"
    whole = data.load(name)
    slack = 12 if name == "lfw" else 0  # JPEG rings at the edge of the crop
    assert abs(whole.images.astype(int) - images).max() <= slack
    assert whole.labels.tolist() == labels.tolist()
    assert data.verify(name).verdict == "ok"
    assert "its published archives" in data.verify(name).sentence
    batch = data.sample(name, 2, size=8)
    assert batch.images.shape[2:] == (8, 8)


def test_class_names_of_published_files(home: Path, accept) -> None:
    paths = [p for name in WRITERS for p in WRITERS[name](home / "downloads")[2]]
    accept(*paths)
    for name in WRITERS:
        data.pack(name)
    assert data.load("cifar10").class_names[3] == "cat"
    assert data.load("cifar100").class_names[99] == "fine99"
    assert data.load("mnist").class_names == data.load("svhn").class_names == tuple("0123456789")
    assert data.load("lfw").class_names == ("Al_First", "Zoe_Last")


def test_an_archive_with_another_hash_is_not_read(home: Path) -> None:
    write_cifar10(home / "downloads")
    with pytest.raises(GleakError, match=r"not the file in .*delete it and run `gleak data fetch"):
        data.pack("cifar10")
    assert not list(home.glob("*.npz"))


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.97])
def test_a_damaged_archive_is_one_sentence(name: str, keep: float, home: Path, accept) -> None:
    *_, paths = WRITERS[name](home / "downloads")
    for path in paths:
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])
    accept(*paths)
    with pytest.raises(GleakError, match=r"cannot read .*damaged or incomplete: delete it"):
        data.pack(name)
    assert [p.name for p in home.iterdir()] == ["downloads"]


# --- torchvision's folder -----------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_torchvisions_mnist_is_read_where_it_lies(home: Path, suffix: str) -> None:
    images, labels, _ = write_mnist(home / "torchvision/MNIST/raw", suffix)
    whole = data.load("mnist")
    assert np.array_equal(whole.images, images)
    assert whole.labels.tolist() == labels.tolist()
    assert data.status("mnist").form == "torchvision"
    if not suffix:  # the same files through torchvision itself
        theirs = datasets.MNIST(home / "torchvision", train=False)
        assert np.array_equal(theirs.data.numpy()[..., None], whole.images[10:])


def test_torchvisions_svhn_is_read_where_it_lies(home: Path, monkeypatch) -> None:
    images, labels, paths = write_svhn(home / "torchvision")
    whole = data.load("svhn")
    assert np.array_equal(whole.images, images)
    assert whole.labels.tolist() == labels.tolist()
    md5 = hashlib.md5(paths[0].read_bytes()).hexdigest()
    monkeypatch.setitem(datasets.SVHN.split_list, "train", ["", paths[0].name, md5])
    theirs = datasets.SVHN(home / "torchvision", split="train")
    assert theirs.labels.tolist() == whole.labels[:8].tolist()
    assert np.array_equal(theirs.data.transpose(0, 2, 3, 1), whole.images[:8])


def write_pickled_cifar10(root: Path, monkeypatch) -> tuple[np.ndarray, np.ndarray]:
    images, labels = noise(12, 32, 32, 3), np.arange(12) % 10
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    lists: list[list[str]] = []
    for k, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        part = slice(2 * k, 2 * k + 2)
        content = pickle.dumps({"data": planes(images[part]), "labels": labels[part].tolist()})
        (folder / name).write_bytes(content)
        lists.append([name, hashlib.md5(content).hexdigest()])
    meta = pickle.dumps({"label_names": [f"class{k}" for k in range(10)]})
    (folder / "batches.meta").write_bytes(meta)
    monkeypatch.setattr(datasets.CIFAR10, "train_list", lists[:5])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", lists[5:])
    md5 = {"filename": "batches.meta", "key": "label_names", "md5": hashlib.md5(meta).hexdigest()}
    monkeypatch.setattr(datasets.CIFAR10, "meta", md5)
    return images, labels


def test_torchvisions_pickles_are_opened_by_pack_alone(home: Path, monkeypatch) -> None:
    images, labels = write_pickled_cifar10(home / "torchvision", monkeypatch)
    with pytest.raises(data.MissingData, match="`gleak data pack cifar10`"):
        data.load("cifar10")
    data.pack("cifar10")
    whole = data.load("cifar10")
    assert np.array_equal(whole.images, images)
    assert whole.labels.tolist() == labels.tolist()
    assert whole.class_names[3] == "class3"


def test_a_pickle_with_another_checksum_is_never_opened(home: Path, monkeypatch) -> None:
    write_pickled_cifar10(home / "torchvision", monkeypatch)

    class Trap:
        def __reduce__(self):
            return (Path.touch, (home / "sprung",))

    (home / "torchvision/cifar-10-batches-py/data_batch_1").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(GleakError, match="cannot read"):
        data.pack("cifar10")
    assert not (home / "sprung").exists()


def test_pack_takes_a_folder_that_it_is_given(home: Path, tmp_path: Path) -> None:
    write_mnist(tmp_path / "elsewhere/MNIST/raw")
    data.pack("mnist", tmp_path / "elsewhere", limit=10)
    whole = data.load("mnist")
    assert sorted(whole.labels.tolist()) == list(range(10))  # balanced
    assert "10 of 14 images, from torchvision's download" in data.verify("mnist").sentence
    with pytest.raises(GleakError, match=r"holds nothing that mnist .*train-images-idx3-ubyte\.gz"):
        data.pack("mnist", tmp_path)
    with pytest.raises(ValueError, match="limit=99 is not possible: keep 1 to 14"):
        data.pack("mnist", tmp_path / "elsewhere", limit=99)


# --- folders of pictures ------------------------------------------------------------------------


def write_pictures(root: Path, classes: dict[str, int], size=(8, 8), suffix: str = ".png") -> None:
    for k, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture = Image.new("RGB", size, (10 * k, i, 200))
            picture.save(root / name / f"{i:02}{suffix}")


def test_lfw_keeps_people_with_enough_pictures(home: Path) -> None:
    write_pictures(home / "lfw", {"Ann": 14, "Bob": 13, "Cy": 15}, size=(90, 90))
    whole = data.load("lfw")
    assert whole.class_names == ("Ann", "Cy")
    assert np.bincount(whole.labels).tolist() == [14, 15]
    assert whole.images[:, 0, 0, 1].tolist() == [*range(14), *range(15)]
    check = data.verify("lfw")
    assert check.verdict == "unrecorded"
    assert check.sha256 == data.fingerprint("lfw")


def test_only_lfw_originals_are_cropped(home: Path) -> None:
    write_pictures(home / "lfw", {"Ann": 14})
    original = np.zeros((250, 250, 3), np.uint8)
    original[80:170, 80:170] = 255
    Image.fromarray(original).save(home / "lfw/Ann/00.png")
    framed = np.zeros((100, 100, 3), np.uint8)
    framed[3:97, 3:97] = 255
    Image.fromarray(framed).save(home / "lfw/Ann/01.png")
    images = data.load("lfw").images
    assert images[0].min() == 255
    assert images[1].min() < 50  # its frame is still there


def test_imagenet_folders_drop_their_numbers_where_names_stay_different(home: Path) -> None:
    folders = {"n01440764_tench": 1, "n02012849_crane": 1, "n03126707_crane": 2}
    write_pictures(home / "imagenet_samples", folders, size=(50, 20), suffix=".JPEG")
    (home / "imagenet_samples/n01440764_tench/notes.txt").write_text("not a picture")
    (home / "imagenet_samples/n01440764_tench/.hidden.jpg").write_text("not a picture")
    batch = data.sample("imagenet", 4, size=16, balanced=False)
    assert batch.classes == ("tench", "n02012849_crane", "n03126707_crane")
    assert sorted(batch.labels.tolist()) == [0, 1, 2, 2]
    assert data.load("imagenet").images.shape == (4, 224, 224, 3)


def test_linnaeus_joins_its_train_and_test_folders(home: Path) -> None:
    write_pictures(home / "linnaeus5/train", {"berry": 3, "dog": 2})
    write_pictures(home / "linnaeus5/test", {"berry": 1, "dog": 1})
    whole = data.load("linnaeus5")
    assert whole.class_names == ("berry", "dog")
    assert np.bincount(whole.labels).tolist() == [4, 3]
    data.pack("linnaeus5", limit=4)
    assert data.status("linnaeus5").form == "packed"
    assert np.bincount(data.load("linnaeus5").labels).tolist() == [2, 2]


def test_a_broken_picture_in_a_folder_is_named(home: Path) -> None:
    write_pictures(home / "linnaeus5", {"berry": 2})
    (home / "linnaeus5/berry/01.png").write_bytes(b"broken")
    assert data.sample("linnaeus5", indices=[0]).labels.tolist() == [0]
    with pytest.raises(GleakError, match=r"01\.png is not a PNG or JPEG"):
        data.load("linnaeus5")


def test_a_set_too_large_for_memory_is_refused(home: Path, monkeypatch) -> None:
    write_pictures(home / "linnaeus5", {"berry": 2})
    monkeypatch.setattr("gleak_core.datasets.source._MOST_BYTES", 1000)
    with pytest.raises(GleakError, match="do not fit in memory: pack a part"):
        data.load("linnaeus5")
    assert len(data.sample("linnaeus5", 2)) == 2


# --- packs --------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {
    "images": noise(4, 32, 32, 3),
    "labels": np.array([0, 1, 1, 0]),
    "class_names": np.array(["cat", "dog"]),
}


def test_a_pack_comes_back_as_it_was(home: Path) -> None:
    np.savez(home / "cifar10.npz", **GOOD)
    whole = data.load("cifar10")
    assert np.array_equal(whole.images, GOOD["images"])
    assert whole.labels.tolist() == [0, 1, 1, 0]
    assert whole.class_names == ("cat", "dog")
    assert whole.info.title == "CIFAR-10"
    batch = data.sample("cifar10", 2, seed=1)
    assert sorted(batch.labels.tolist()) == [0, 1]
    check = data.verify("cifar10")
    assert check.verdict == "unrecorded"
    assert files.sha256(home / "cifar10.npz") == check.sha256
    assert check.sha256 in check.sentence


def test_what_a_set_gives_cannot_be_changed_for_others(home: Path) -> None:
    np.savez(home / "cifar10.npz", **GOOD)
    data.load("cifar10").images[:] = 0
    assert np.array_equal(data.load("cifar10").images, GOOD["images"])
    with pytest.raises(ValueError, match="read-only"):
        data.load("cifar10").labels[0] = 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": noise(4, 32, 32, 3).astype(np.float32)}, "images are float32"),
        ({"images": noise(4, 32, 32)}, r"images are uint8 \(4, 32, 32\)"),
        ({"images": noise(4, 32, 32, 4)}, r"not uint8 \(N, S, S, 1 or 3\)"),
        ({"images": noise(4, 32, 16, 3)}, "not square"),
        ({"images": noise(0, 32, 32, 3), "labels": np.arange(0)}, "empty"),
        ({"labels": np.array([0, 1, 1])}, "4 images have labels"),
        ({"labels": np.array([0.0, 1, 1, 0])}, "have labels float64"),
        ({"labels": np.array([0, 1, 2, 0])}, "labels run to 2 but there are 2 class names"),
        ({"labels": np.array([0, 1, -1, 0])}, "labels run"),
        ({"class_names": np.array([b"cat", b"dog"])}, "class_names are"),
        ({"class_names": np.array(["cat", "dog"], dtype=object)}, "cannot read"),
    ],
)
def test_a_pack_that_does_not_fit_together_is_refused(home: Path, changes, words: str) -> None:
    np.savez(home / "cifar10.npz", **GOOD | changes)
    with pytest.raises(GleakError, match=words):
        data.load("cifar10")
    assert data.verify("cifar10").verdict == "corrupt"


def test_a_pickle_in_a_pack_is_never_opened(home: Path) -> None:
    class Trap:
        def __reduce__(self):
            return (Path.touch, (home / "sprung",))

    names = np.array([Trap(), Trap()], dtype=object)
    trapped: dict[str, Any] = GOOD | {"class_names": names}
    np.savez(home / "cifar10.npz", **trapped)
    with pytest.raises(GleakError, match="cannot read"):
        data.load("cifar10")
    (home / "cifar10.npz").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(GleakError, match="cannot read"):
        data.load("cifar10")
    assert not (home / "sprung").exists()


@pytest.mark.parametrize("missing", list(GOOD))
def test_a_pack_without_an_array_is_refused(home: Path, missing: str) -> None:
    np.savez(home / "cifar10.npz", **{k: v for k, v in GOOD.items() if k != missing})
    with pytest.raises(GleakError, match=rf"cannot read .*{missing}.*delete it and make it again"):
        data.load("cifar10")


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_a_pack_that_breaks_off_is_refused(home: Path, keep: float) -> None:
    np.savez(home / "cifar10.npz", **GOOD)
    content = (home / "cifar10.npz").read_bytes()
    (home / "cifar10.npz").write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(GleakError, match=r"cannot read .*delete it"):
        data.load("cifar10")
    assert data.verify("cifar10").verdict == "corrupt"


def make_pack(home: Path, count: int = 4) -> Path:
    path = home / "cifar10.npz"
    images, labels = GOOD["images"][:count], GOOD["labels"][:count]
    packed.write(path, images, labels, ("cat", "dog"), f"{count} of {count} images, from a test")
    return path


def test_a_pack_that_changed_is_corrupt_and_not_loaded(home: Path) -> None:
    path = make_pack(home)
    assert data.verify("cifar10").verdict == "ok"
    changed: dict[str, Any] = GOOD | {"labels": np.array([1, 1, 1, 1])}
    np.savez(path, **changed)
    check = data.verify("cifar10")
    assert check.verdict == "corrupt"
    assert "has changed since it was packed" in check.sentence
    with pytest.raises(GleakError, match="delete it and pack it again"):
        data.load("cifar10")
    (home / "packed.toml").unlink()  # the cure for a file replaced on purpose
    assert data.load("cifar10").labels.tolist() == [1, 1, 1, 1]


def test_a_crash_between_record_and_move_leaves_a_valid_pack(home: Path, monkeypatch) -> None:
    path = make_pack(home, 2)
    old = path.read_bytes()

    def crash(self: Path, target: Path) -> None:
        raise KeyboardInterrupt if target == path else AssertionError

    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda s, t: crash(s, t) if t == path else replace(s, t))
    with pytest.raises(KeyboardInterrupt):
        make_pack(home, 4)
    assert path.read_bytes() == old
    assert data.verify("cifar10").verdict == "ok"
    assert sorted(p.name for p in home.iterdir()) == ["cifar10.npz", "packed.toml"]


def test_the_book_of_packs_keeps_other_sets(home: Path) -> None:
    make_pack(home)
    write_pictures(home / "linnaeus5", {"berry": 2})
    data.pack("linnaeus5")
    assert data.verify("cifar10").verdict == data.verify("linnaeus5").verdict == "ok"
    assert make_pack(home).read_bytes() == make_pack(home).read_bytes()
    assert len(packed.recorded(home / "cifar10.npz")) == 1
    (home / "packed.toml").write_text("not [ toml")
    with pytest.raises(GleakError, match=r"packed\.toml .*delete it and pack the sets again"):
        data.load("cifar10")


def test_a_known_pack_is_vouched_for(home: Path, tmp_path: Path, monkeypatch) -> None:
    np.savez(home / "cifar10.npz", **GOOD)
    digest = files.sha256(home / "cifar10.npz")
    text = (REGISTRY / "datasets.toml").read_text()
    known = data.info("cifar10").known_packs[0].sha256
    (tmp_path / "datasets.toml").write_text(text.replace(known, digest))
    monkeypatch.setattr(files, "FACTS", tmp_path)
    assert data.verify("cifar10").verdict == "ok"
    assert data.status("cifar10").verdict == "ok"


# --- what is where ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "svhn", "lfw"])
def test_a_missing_set_names_its_command(name: str, home: Path) -> None:
    for call in (data.load, data.sample, data.verify, data.pack):
        with pytest.raises(data.MissingData, match=f"run `gleak data fetch {name}`") as caught:
            call(name)
        assert str(home) in str(caught.value)
    assert data.fingerprint(name) == "absent"
    status = data.status(name)
    assert (status.here, status.path, status.command) == (False, None, f"gleak data fetch {name}")


@pytest.mark.parametrize("name", ["imagenet", "linnaeus5"])
def test_a_missing_folder_names_its_page_and_layout(name: str, home: Path) -> None:
    entry = data.info(name)
    with pytest.raises(data.MissingData) as caught:
        data.load(name)
    assert entry.page in str(caught.value)
    assert entry.layout in str(caught.value)
    assert data.fingerprint(name) == "absent"


def test_a_pack_is_preferred_to_a_folder_and_a_folder_to_torchvision(home: Path) -> None:
    write_pictures(home / "lfw", {"Ann": 14})
    assert data.status("lfw").form == "folder"
    np.savez(home / "lfw.npz", **GOOD)
    assert data.status("lfw").form == "packed"
    assert data.load("lfw").class_names == ("cat", "dog")
    write_mnist(home / "torchvision/MNIST/raw")
    assert data.status("mnist").form == "torchvision"
    np.savez(home / "mnist.npz", **GOOD)
    assert data.status("mnist").form == "packed"


def test_a_fingerprint_follows_the_contents(home: Path) -> None:
    embedded = [data.fingerprint(name) for name in ("photographs", "faces", "digits")]
    assert len(set(embedded)) == 3
    assert all(len(mark) == 64 for mark in embedded)
    write_pictures(home / "linnaeus5", {"berry": 2})
    marks = [data.fingerprint("linnaeus5")]
    Image.new("RGB", (8, 8), "red").save(home / "linnaeus5/berry/00.png")
    marks.append(data.fingerprint("linnaeus5"))
    (home / "linnaeus5/berry").rename(home / "linnaeus5/dog")
    marks.append(data.fingerprint("linnaeus5"))
    data.pack("linnaeus5")
    marks.append(data.fingerprint("linnaeus5"))
    assert len(set(marks)) == 4
    assert marks[-1] == data.fingerprint("linnaeus5")


def test_a_fingerprint_hashes_a_file_once(home: Path, monkeypatch) -> None:
    np.savez(home / "cifar10.npz", **GOOD)
    first = data.fingerprint("cifar10")
    monkeypatch.setattr(files, "sha256", lambda path: pytest.fail("hashed again"))
    assert data.fingerprint("cifar10") == first


def test_a_file_in_place_of_the_data_folder_is_no_crash(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GLEAK_DATA", str(tmp_path / "file"))
    for name in data.names():
        data.status(name)
    with pytest.raises(data.MissingData):
        data.load("cifar10")


def test_embedded_sets_are_not_packed(home: Path) -> None:
    with pytest.raises(GleakError, match="faces needs no packing"):
        data.pack("faces")


def test_every_downloadable_set_has_its_reader() -> None:
    kinds = {name: data.info(name).kind for name in data.names()}
    assert {n for n, kind in kinds.items() if kind == "download"} == set(archives.READERS)
    assert set(archives.TORCHVISION) <= set(archives.READERS)
    assert shelf.downloads(Path("a")) == Path("a/downloads")
