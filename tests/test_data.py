"""The private batch: what is chosen, how it is resized, and what is refused."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gleak_core import data, files
from gleak_core.data import Batch
from gleak_core.datasets import pictures, sampling
from gleak_core.errors import GleakError

EMBEDDED = ("photographs", "faces", "digits")


def refuses(kind: type[Exception], *words: str):
    """Expect an error that is one sentence and holds these words."""
    return pytest.raises(kind, match=".*".join(map(re.escape, words)))


# --- choosing -----------------------------------------------------------------------------------

LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=40).map(np.array)
SEEDS = st.integers(0, 2**64)


@given(LABELS, SEEDS, st.data())
def test_balanced_choice_takes_classes_in_rounds(labels, seed, draw) -> None:
    n = draw.draw(st.integers(1, len(labels)))
    chosen = sampling.pick(labels, n, seed, balanced=True)
    assert len(set(chosen.tolist())) == n
    there, taken = np.bincount(labels, minlength=6), np.bincount(labels[chosen], minlength=6)
    # Within one of each other, except where a class has run out.
    most = taken.max()
    assert all(t >= most - 1 or t == h for t, h in zip(taken, there, strict=True))
    if n <= len(np.unique(labels)):
        assert most == 1


@given(LABELS, SEEDS, st.booleans(), st.data())
def test_a_larger_batch_only_appends(labels, seed, balanced, draw) -> None:
    n = draw.draw(st.integers(1, len(labels)))
    whole = sampling.pick(labels, len(labels), seed, balanced)
    assert sampling.pick(labels, n, seed, balanced).tolist() == whole[:n].tolist()
    assert sorted(whole) == list(range(len(labels)))


@given(SEEDS, st.integers(1, 60))
def test_a_shuffle_is_a_permutation_that_the_seed_decides(seed, count) -> None:
    once, again = sampling.shuffled(count, seed), sampling.shuffled(count, seed)
    assert once.tolist() == again.tolist()
    assert sorted(once) == list(range(count))


def test_unbalanced_choice_is_uniform() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    draws = np.concatenate([labels[sampling.pick(labels, 5, s, False)] for s in range(600)])
    assert abs(draws.mean() - 0.1) < 4 * np.sqrt(0.1 * 0.9 / len(draws))
    first = np.concatenate([sampling.pick(labels, 1, s, False) for s in range(3000)])
    assert np.bincount(first, minlength=100).min() > 0


def test_the_stream_of_a_seed_never_changes() -> None:
    # Written down once: another machine, NumPy or year must give the same batches.
    assert sampling.shuffled(10, 0).tolist() == [3, 2, 1, 8, 6, 0, 7, 4, 5, 9]
    assert data.sample("photographs", 6).indices.tolist() == [196, 92, 182, 223, 32, 59]
    assert data.sample("digits", 4, seed=7, balanced=False).indices.tolist() == [
        1207,
        1585,
        1520,
        614,
    ]


def test_another_process_gives_the_same_pixels() -> None:
    script = (
        "from pathlib import Path; from gleak_core import files;"
        "from gleak_core.datasets import registry, sampling, shelf;"
        "entry = registry.entry('photographs');"
        "source = shelf.open_place(entry, shelf.find(entry, Path('nowhere')));"
        "chosen = sampling.pick(source.labels, 3, 5, True);"
        "print(files.sha256_bytes(source.read(chosen, 16).tobytes()))"
    )
    there = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    here = data.sample("photographs", 3, size=16, seed=5).images.mul(255).round().byte()
    pixels = here.permute(0, 2, 3, 1).contiguous().numpy()
    assert there.stdout.strip() == files.sha256_bytes(pixels.tobytes())


@cache
def loaded(name: str) -> data.Dataset:
    return data.load(name)


# --- sample -------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(EMBEDDED), st.integers(1, 30), st.integers(0, 1000), st.sampled_from([1, 3]))
def test_a_sample_agrees_with_the_loaded_set(name, n, seed, channels) -> None:
    whole = loaded(name)
    stored = whole.images.shape[1]
    batch = data.sample(name, n, size=stored, seed=seed, channels=channels)
    again = data.sample(name, n, size=stored, seed=seed, channels=channels)
    assert torch.equal(batch.images, again.images)
    assert batch.images.shape == (n, channels, stored, stored)
    assert batch.labels.tolist() == whole.labels[batch.indices.numpy()].tolist()
    assert batch.classes == whole.class_names
    counts = torch.bincount(batch.labels, minlength=len(batch.classes))
    assert counts.max() - counts.min() <= 1
    pixels = pictures.to_channels(whole.images[batch.indices.numpy()], channels)
    assert np.array_equal(batch.images.mul(255).round().numpy(), pixels.transpose(0, 3, 1, 2))


def test_chosen_labels_come_in_their_order() -> None:
    batch = data.sample("photographs", labels=[3, 3, 7], seed=2)
    assert batch.labels.tolist() == [3, 3, 7]
    assert batch.indices[0] != batch.indices[1]
    assert data.sample("photographs", 3, labels=torch.tensor([3, 3, 7])).labels[2] == 7


def test_chosen_classes_keep_their_numbers() -> None:
    batch = data.sample("photographs", 10, classes=["cat", "temple"])
    assert {batch.classes[k] for k in batch.labels.tolist()} == {"cat", "temple"}
    assert sorted(torch.bincount(batch.labels).tolist())[-2:] == [5, 5]
    assert len(batch.classes) == 10


def test_chosen_indices_are_exact_and_may_repeat() -> None:
    batch = data.sample("digits", indices=[5, 0, 5], size=8)
    assert batch.indices.tolist() == [5, 0, 5]
    assert torch.equal(batch.images[0], batch.images[2])
    assert not torch.equal(batch.images[0], batch.images[1])


def test_defaults_are_those_of_the_registry() -> None:
    for name in EMBEDDED:
        entry, batch = data.info(name), data.sample(name)
        assert batch.images.shape == (1, entry.channels, entry.default_size, entry.default_size)
        assert batch.name == name


def test_faces_stand_for_one_person_each() -> None:
    faces = data.sample("faces", 100, size=25)
    assert faces.labels.tolist() == faces.indices.tolist()
    assert sorted(faces.labels.tolist()) == list(range(100))
    assert torch.equal(faces.images[:, 0], faces.images[:, 2])


def test_photographs_are_many_different_crops() -> None:
    batch = data.sample("photographs", 240, size=16)
    assert torch.bincount(batch.labels).tolist() == [24] * 10
    assert len({image.numpy().tobytes() for image in batch.images}) == 240
    assert data.sample("photographs", size=224).images.shape == (1, 3, 224, 224)


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"n": 0}, ValueError, ("n cannot be 0", "1 or more")),
        ({"n": 241}, ValueError, ("n=241", "240 images")),
        ({"n": 25, "classes": ["cat"]}, ValueError, ("n=25", "24 images")),
        ({"n": 1.5}, TypeError, ("n must be a whole number, got 1.5",)),
        ({"size": 0}, ValueError, ("size cannot be 0", "1 to 224")),
        ({"size": 225}, ValueError, ("size cannot be 225", "1 to 224")),
        ({"size": "32"}, TypeError, ("size must be a whole number",)),
        ({"seed": -1}, ValueError, ("seed cannot be -1",)),
        ({"channels": 2}, ValueError, ("channels cannot be 2",)),
        ({"labels": [10]}, ValueError, ("label cannot be 10", "0 to 9")),
        ({"labels": [0] * 25}, ValueError, ("25 images of label 0", "24")),
        ({"labels": []}, ValueError, ("a batch of 1 needs", "got 0")),
        ({"labels": [1, 2], "n": 3}, ValueError, ("a batch of 3 needs", "got 2")),
        ({"indices": [240]}, ValueError, ("index cannot be 240", "0 to 239")),
        ({"indices": [-1]}, ValueError, ("index cannot be -1",)),
        ({"labels": [1], "indices": [1]}, ValueError, ("labels= and indices= exclude",)),
        ({"classes": ["cat"], "labels": [1]}, ValueError, ("classes= and labels= exclude",)),
        ({"classes": ["roket"]}, ValueError, ("unknown class 'roket'", "did you mean 'rocket'")),
    ],
)
def test_impossible_requests_are_refused(arguments, kind, words) -> None:
    with refuses(kind, *words):
        data.sample("photographs", **arguments)


def test_an_unknown_set_is_refused_with_the_nearest_name() -> None:
    with refuses(ValueError, "unknown data set 'cifar'", "did you mean 'cifar"):
        data.sample("cifar", 1)


# --- Batch --------------------------------------------------------------------------------------


def batch_of(n: int = 4, **changes) -> Batch:
    fields = {
        "images": torch.rand(n, 3, 5, 5),
        "labels": torch.arange(n) % 3,
        "classes": ("a", "b", "c"),
        "name": "made up",
        "indices": torch.arange(n) + 10,
    }
    return Batch(**fields | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": torch.rand(4, 5, 5)}, ("(4, 5, 5)", "(B, C, H, W)")),
        ({"images": torch.rand(0, 3, 5, 5)}, ("at least one image",)),
        ({"images": torch.zeros(4, 3, 5, 5, dtype=torch.uint8)}, ("uint8", "divide by 255")),
        ({"images": torch.full((4, 3, 5, 5), torch.nan)}, ("NaN",)),
        ({"images": torch.full((4, 3, 5, 5), torch.inf)}, ("infinite",)),
        ({"images": torch.full((4, 3, 5, 5), 1.5)}, ("1.5", "clamp")),
        ({"images": torch.full((4, 3, 5, 5), -0.1)}, ("-0.1", "clamp")),
        ({"labels": torch.arange(3)}, ("batch of 4 needs 4 labels", "(3,)")),
        ({"labels": torch.zeros(4, 1, dtype=torch.int64)}, ("4 labels in one row", "(4, 1)")),
        ({"labels": torch.zeros(4)}, ("labels are torch.float32", ".long()")),
        ({"labels": torch.tensor([0, 1, 2, 3])}, ("labels run from 0 to 3", "3 classes")),
        ({"labels": torch.tensor([0, -1, 2, 1])}, ("labels run from -1",)),
        ({"indices": torch.arange(5)}, ("batch of 4 needs 4 indices",)),
        ({"classes": ()}, ("0 classes",)),
    ],
)
def test_an_inconsistent_batch_cannot_be_made(changes, words) -> None:
    with refuses(ValueError, *words):
        batch_of(**changes)


def test_twelve_images_need_twelve_labels() -> None:
    with refuses(ValueError, "batch of 12 needs 12 labels", "(9,)", "one per image"):
        batch_of(12, labels=torch.zeros(9, dtype=torch.int64))


@given(st.integers(1, 8), st.data())
def test_sub_batches_are_consistent(n, draw) -> None:
    batch = batch_of(n)
    chosen = draw.draw(st.lists(st.integers(-n, n - 1), min_size=1, max_size=10))
    for key in (chosen, np.array(chosen), torch.tensor(chosen)):
        part = batch[key]
        assert torch.equal(part.images, batch.images[chosen])
        assert torch.equal(part.labels, batch.labels[chosen])
        assert torch.equal(part.indices, batch.indices[chosen])
    assert torch.equal(batch[chosen[0]].images, batch.images[[chosen[0]]])
    assert batch[n // 2 :].indices.tolist() == batch.indices[n // 2 :].tolist()
    assert [one.indices.item() for one in batch] == batch.indices.tolist()


def test_a_position_that_is_not_there_is_refused() -> None:
    with refuses(IndexError, "position 4", "batch of 4", "0 to 3"):
        batch_of(4)[4]
    with refuses(ValueError, "at least one image"):
        batch_of(4)[2:2]


def test_a_batch_moves_and_changes_type() -> None:
    batch = batch_of().to(dtype=torch.float64)
    assert batch.images.dtype == torch.float64
    assert batch.labels.dtype == torch.int64
    meta = batch_of()
    assert meta.to("cpu").images.device == torch.device("cpu")
    with pytest.raises(AttributeError):
        batch.name = "x"  # type: ignore[misc]


def test_a_batch_prints_in_one_line() -> None:
    text = repr(data.sample("photographs", 8, labels=[1] * 8))
    assert text == (
        "Batch(photographs: 8 × 3×32×32 float32 in [0, 1]; labels 1 1 1 1 1 1 …: "
        "cat, cat, cat, cat, cat, cat …)"
    )
    assert repr(data.load("digits")) == "Dataset(digits: 1797 × 8×8×1 uint8, 10 classes)"


# --- resizing and channels ----------------------------------------------------------------------


@given(st.integers(0, 255), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]))
def test_an_even_image_stays_even(value, before, after, channels) -> None:
    images = np.full((2, before, before, channels), value, np.uint8)
    assert (pictures.resize_all(images, after) == value).all()
    assert (pictures.to_channels(images, 4 - channels) == value).all()


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((1, 64, 64, 1), np.uint8)
    stripes[:, :, ::2] = (
        255  # the finest pattern there is: sampling points would see black or white
    )
    small = pictures.resize_all(stripes, 16)
    assert abs(small[:, :, 1:-1].astype(float) - 127.5).max() < 1.5


def test_resizing_agrees_with_an_independent_filter() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    ours = pictures.resize_all(images, 9)
    planes = torch.from_numpy(images).permute(0, 3, 1, 2).double()
    theirs = torch.nn.functional.interpolate(planes, size=9, mode="bilinear", antialias=True)
    assert (theirs.permute(0, 2, 3, 1).numpy() - ours).max() < 1.01


def test_grey_is_luma() -> None:
    colours = np.array([[[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]], np.uint8)
    assert pictures.to_channels(colours, 1).ravel().tolist() == [76, 150, 29]


# --- your own picture ---------------------------------------------------------------------------


def save(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    picture = Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(path)
    return path


def test_the_centre_of_a_picture_is_taken(tmp_path: Path) -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = (255, 128, 0)
    batch = data.from_image(save(tmp_path / "wide.png", wide), size=8, label=3)
    assert batch.images.shape == (1, 3, 8, 8)
    assert torch.equal(batch.images[0, :, 4, 4], torch.tensor([255, 128, 0]) / 255)
    assert batch.images[0, 0].min() == 1  # nothing of the black sides
    assert batch.labels.tolist() == [3]
    assert batch.name == "wide.png"
    assert len(batch.classes) == 10


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "RGBA", "LA", "P", "I;16"])
def test_every_kind_of_png_becomes_rgb_or_grey(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        save(tmp_path / "a.png", np.full((9, 9), 65535, np.uint16))
    else:
        save(tmp_path / "a.png", np.full((9, 9, 3), 255, np.uint8), mode)
    for channels in (1, 3):
        batch = data.from_image(tmp_path / "a.png", channels=channels)
        assert batch.images.shape == (1, channels, 32, 32)
        assert (batch.images == 1).all()


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    clear = np.zeros((8, 8, 4), np.uint8)
    assert (data.from_image(save(tmp_path / "a.png", clear)).images == 1).all()


def test_a_cmyk_jpeg_and_a_turned_jpeg_are_read(tmp_path: Path) -> None:
    save(tmp_path / "cmyk.jpg", np.full((9, 9, 3), 200, np.uint8), "CMYK")
    assert abs(data.from_image(tmp_path / "cmyk.jpg").images - 200 / 255).max() < 0.05
    upper = np.zeros((40, 40, 3), np.uint8)
    upper[:20] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # held upside down
    Image.fromarray(upper).save(tmp_path / "turned.jpg", exif=exif)
    image = data.from_image(tmp_path / "turned.jpg").images[0, 0]
    assert image[:12].mean() < 0.1 < 0.9 < image[20:].mean()


def test_a_huge_picture_is_shrunk_without_a_warning(tmp_path: Path) -> None:
    Image.new("RGB", (10_000, 9_500), (10, 200, 30)).save(tmp_path / "huge.jpg")
    images = data.from_image(tmp_path / "huge.jpg", size=16).images
    assert abs(images[0, 1] * 255 - 200).max() < 3


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("text.png", b"not a picture at all", ("not a PNG or JPEG",)),
        ("empty.jpg", b"", ("not a PNG or JPEG",)),
        ("gif.png", b"GIF89a\x01\x00\x01\x00\x00\x00\x00;", ("not a PNG or JPEG",)),
        ("folder.png", None, ("is a folder",)),
    ],
)
def test_a_file_that_is_no_picture_is_refused(tmp_path: Path, name, content, words) -> None:
    path = tmp_path / name
    path.mkdir() if content is None else path.write_bytes(content)
    with refuses(GleakError, name, *words):
        data.from_image(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@settings(max_examples=25, deadline=None)
@given(cut=st.floats(0.02, 0.98))
def test_a_picture_that_breaks_off_is_refused(tmp_path_factory, suffix, cut) -> None:
    path = tmp_path_factory.mktemp("cut") / f"a{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    content = save(path, noise).read_bytes()
    path.write_bytes(content[: int(len(content) * cut)])
    with pytest.raises(GleakError, match=r"damaged picture|not a PNG or JPEG"):
        data.from_image(path)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch) -> None:
    path = save(tmp_path / "bomb.png", np.zeros((30, 30), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with refuses(GleakError, "bomb.png", "more pixels than is safe", "shrink it"):
        data.from_image(path)


def test_impossible_arguments_of_a_picture_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.zeros((9, 9, 3), np.uint8))
    with refuses(GleakError, "there is no picture", "missing.png"):
        data.from_image(tmp_path / "missing.png")
    with refuses(ValueError, "label cannot be 10", "0 to 9"):
        data.from_image(path, label=10)
    with refuses(ValueError, "size cannot be 0"):
        data.from_image(path, size=0)
    with refuses(ValueError, "number of classes cannot be 1"):
        data.from_image(path, classes=1)
    assert data.from_image(path, label=1, classes=["no", "yes"]).classes == ("no", "yes")
