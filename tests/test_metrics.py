import math
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import (
    mean_squared_error,
    peak_signal_noise_ratio,
    structural_similarity,
)
from support import random_batch
from torch import Tensor

from gleak_core import metrics
from gleak_core.metrics import NotAvailable, Score, score
from gleak_core.observation import History, Reconstruction, Status


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def values(measure: Tensor | NotAvailable) -> Tensor:
    assert isinstance(measure, Tensor), measure
    return measure


def reference_ssim(x: Tensor, y: Tensor, **options) -> float:
    return np.asarray(structural_similarity(x.numpy(), y.numpy(), **options)).item()


def reconstruction(
    pictures: Tensor, labels: Tensor | None = None, status: Status = "solved"
) -> Reconstruction:
    trials = len(pictures)
    return Reconstruction(
        images=pictures,
        labels=labels,
        loss=torch.zeros(trials),
        status=(status,) * trials,
        history=History(
            torch.zeros(0), torch.zeros(0, trials), torch.zeros(0), pictures.new_zeros(0)
        ),
        evaluations=torch.ones(trials),
        seconds=0.0,
        attack="none",
    )


# --- single measures against scikit-image ----------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 7, 9), (3, 64, 17)])
def test_measures_equal_scikit_image(shape: tuple[int, int, int]) -> None:
    for seed in range(4):
        true = images(2, 5, *shape, seed=seed)
        found = (true + (seed + 1) * 0.1 * images(2, 5, *shape, seed=50 + seed)).clamp(0, 1)
        mse, psnr, ssim = (m(found, true) for m in (metrics.mse, metrics.psnr, metrics.ssim))
        assert mse.shape == psnr.shape == ssim.shape == (2, 5)
        for t in range(2):
            for b in range(5):
                x, y = found[t, b].numpy(), true[t, b].numpy()
                alike = reference_ssim(true[t, b], found[t, b], channel_axis=0, data_range=1)
                assert mse[t, b].item() == pytest.approx(mean_squared_error(y, x), rel=1e-12)
                assert psnr[t, b].item() == pytest.approx(
                    peak_signal_noise_ratio(y, x, data_range=1), rel=1e-12
                )
                assert ssim[t, b].item() == pytest.approx(alike, abs=1e-9)


def test_ssim_with_another_window_and_range() -> None:
    x, y = 255 * images(1, 20, 20), 255 * images(1, 20, 20, seed=1)
    expected = reference_ssim(x[0], y[0], win_size=11, data_range=255)
    ours = metrics.ssim(x, y, window=11, data_range=255)
    assert ours.item() == pytest.approx(expected, abs=1e-9)


def test_ssim_of_many_images_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = images(3, 7, 3, 16, 16), images(7, 3, 16, 16, seed=1)
    whole = metrics.ssim(x, y)
    monkeypatch.setattr("gleak_core.alignment._chunk", lambda shape: 4)
    assert torch.equal(metrics.ssim(x, y), whole)


def test_single_precision_is_computed_in_double() -> None:
    x = images(3, 16, 16).float()
    nearly = x + 1e-4
    assert metrics.mse(nearly, x).dtype == torch.float64
    expected = reference_ssim(x.double(), nearly.double(), channel_axis=0, data_range=1)
    assert metrics.ssim(nearly, x).item() == pytest.approx(expected, abs=1e-9)


def test_psnr_of_cafe_by_hand() -> None:
    true, found = images(2, 3, 6, 6), images(2, 3, 6, 6, seed=1)
    true[:, 1] *= 0.25  # a dark channel has a peak of its own
    for n in range(2):
        total = 0.0
        for c in range(3):
            x, y = true[n, c].numpy(), found[n, c].numpy()
            total += 20 * math.log10(x.max()) - 10 * math.log10(((x - y) ** 2).mean())
        assert metrics.psnr_cafe(found, true)[n].item() == pytest.approx(total / 3, rel=1e-12)
    assert (metrics.psnr_cafe(found, true) < metrics.psnr(found, true)).all()
    true[0, 2] = 0
    assert metrics.psnr_cafe(found, true).isnan().tolist() == [True, False]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), near=st.floats(0.01, 0.4), more=st.floats(1.01, 2))
def test_measures_are_symmetric_and_monotone(seed: int, near: float, more: float) -> None:
    true, noise = images(2, 2, 3, 8, 8, seed=seed)
    a, b = true + near * noise, true + near * more * noise
    for measure in (metrics.mse, metrics.psnr, metrics.ssim):
        torch.testing.assert_close(measure(a, true), measure(true, a), rtol=1e-12, atol=1e-12)
    assert (metrics.mse(a, true) < metrics.mse(b, true)).all()
    assert (metrics.psnr(a, true) > metrics.psnr(b, true)).all()
    assert (metrics.ssim(a, true).abs() <= 1).all()


def test_exact_recovery() -> None:
    x = images(2, 3, 8, 8)
    assert metrics.mse(x, x).tolist() == [0, 0]
    assert metrics.psnr(x, x).tolist() == [math.inf] * 2
    torch.testing.assert_close(metrics.ssim(x, x), torch.ones(2, dtype=torch.float64))


def test_single_measures_refuse_wrong_shapes() -> None:
    x = images(2, 3, 8, 8)
    for measure in (metrics.mse, metrics.psnr, metrics.ssim, metrics.psnr_cafe):
        with pytest.raises(ValueError, match=r"agree in their last dimensions .*\(2, 3, 8, 9\)"):
            measure(x, images(2, 3, 8, 9))
        with pytest.raises(ValueError, match="agree in their last dimensions"):
            measure(x, images(3, 3, 8, 8))
        with pytest.raises(ValueError, match="agree in their last dimensions"):
            measure(images(8, 8), images(8, 8))
    for window in (4, 9, 1):
        with pytest.raises(ValueError, match=f"window of {window} on images of 8×8 pixels"):
            metrics.ssim(x, x, window=window)


# --- rates and labels ------------------------------------------------------------------------


def test_success_rate() -> None:
    errors = torch.tensor([0.0, 9.99e-4, 1e-3, 0.5, math.nan, math.inf])
    assert metrics.asr(errors) == pytest.approx(2 / 6)
    assert metrics.asr(errors, threshold=0.6) == pytest.approx(4 / 6)
    with pytest.raises(ValueError, match="no success rate of no images"):
        metrics.asr(torch.zeros(0))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-1, 5), st.integers(-1, 5)), min_size=1, max_size=10),
    st.randoms(use_true_random=False),
)
def test_label_accuracy_is_multiset_overlap(pairs: list[tuple[int, int]], random) -> None:
    found, true = [p[0] for p in pairs], [p[1] for p in pairs]
    left, hits = list(true), 0
    for k in found:
        if k in left:
            left.remove(k)
            hits += 1
    ours = metrics.label_accuracy(torch.tensor(found), torch.tensor(true))
    assert ours.item() == pytest.approx(hits / len(true))
    random.shuffle(found)
    assert metrics.label_accuracy(torch.tensor(found), torch.tensor(true)) == ours


def test_label_accuracy_by_trial() -> None:
    found = torch.tensor([[1, 1, 2], [2, 1, 0], [3, 3, 3]])
    accuracy = metrics.label_accuracy(found, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(accuracy, torch.tensor([2 / 3, 1, 0], dtype=torch.float64))
    with pytest.raises(ValueError, match="as many found ones as true ones"):
        metrics.label_accuracy(torch.tensor([1, 2]), torch.tensor([1, 2, 3]))


# --- LPIPS -----------------------------------------------------------------------------------


def test_lpips_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    x = images(2, 3, 32, 32)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    answer = metrics.lpips(x, x)
    assert isinstance(answer, NotAvailable) and not answer
    assert str(answer) == "not available (LPIPS needs the package lpips: pip install lpips)"
    assert f"{answer:.3f}" == str(answer)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    assert "put alexnet-owt-7be5be79.pth into" in str(metrics.lpips(x, x))


@pytest.fixture
def fake_lpips(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """The package and the weights stood in for by the mean distance of RGB images in [0, 1]."""

    class Net(torch.nn.Module):
        def __init__(self, net: str, verbose: bool) -> None:
            super().__init__()
            assert net == "alex"

        def forward(self, a: Tensor, b: Tensor, normalize: bool) -> Tensor:
            assert normalize and a.shape[1] == 3 and a.dtype == torch.float32
            assert a.isfinite().all()
            return (a - b).abs().mean((1, 2, 3), keepdim=True)

    package = types.ModuleType("lpips")
    package.LPIPS = Net  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "lpips", package)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth").touch()
    metrics._perceptual.cache_clear()
    yield
    metrics._perceptual.cache_clear()


@pytest.mark.usefixtures("fake_lpips")
def test_lpips_is_used_when_it_is_there() -> None:
    for channels in (1, 3):
        x, y = images(2, 4, channels, 32, 32), images(2, 4, channels, 32, 32, seed=1)
        expected = (x - y).abs().mean((2, 3, 4))
        torch.testing.assert_close(values(metrics.lpips(x, y)), expected, rtol=1e-5, atol=0)
    assert "1 or 3 channels" in str(metrics.lpips(images(2, 2, 32, 32), images(2, 2, 32, 32)))
    assert "at least 32×32" in str(metrics.lpips(images(2, 3, 8, 8), images(2, 3, 8, 8)))


@pytest.mark.usefixtures("fake_lpips")
def test_lpips_enters_the_score() -> None:
    batch = random_batch(2, size=32)
    found = batch.images.clone()[None]
    found[0, 1, 0, 0, 0] = math.nan
    result = score(found, batch)
    assert values(result.lpips)[0, 0] == 0 and values(result.lpips)[0, 1].isnan()
    assert "lpips" in result.table() and "LPIPS  0.000" not in str(result)
    assert result.mean("lpips") == 0


# --- the score -------------------------------------------------------------------------------


def test_score_aligns_first() -> None:
    batch = random_batch(4, size=8)
    places = torch.tensor([[2, 0, 3, 1], [1, 3, 0, 2]])
    found = reconstruction(batch.images[places] + 0.01, batch.labels[places])
    result = score(found, batch)
    assert torch.equal(places.gather(1, result.order), torch.arange(4).expand(2, 4))
    expected = metrics.mse((batch.images + 0.01).clamp(max=1), batch.images).expand(2, 4)
    torch.testing.assert_close(result.mse, expected)
    torch.testing.assert_close(result.psnr, -10 * torch.log10(expected))
    assert result.asr == 1 and result.status == ("solved", "solved")
    assert values(result.label_accuracy).tolist() == [1, 1]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), broken=st.booleans())
def test_score_does_not_depend_on_the_order_of_the_batch(seed: int, broken: bool) -> None:
    batch = random_batch(5, classes=3, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    found = torch.rand((2, 5, 3, 8, 8), generator=generator)
    if broken:
        found[:, 2, 0] = math.nan
    labels = torch.randint(0, 3, (2, 5), generator=generator)
    place = torch.randperm(5, generator=generator)
    one = score(found, batch, labels=labels)
    two = score(found[:, place], batch, labels=labels[:, place])
    for name in ("mse", "psnr", "ssim", "failed", "label_accuracy"):
        torch.testing.assert_close(
            getattr(one, name), getattr(two, name), rtol=0, atol=0, equal_nan=True
        )


def test_labels_pin_in_the_score() -> None:
    batch = random_batch(2)
    swapped = batch.images.flip(0)[None]
    assert score(swapped, batch).order.tolist() == [[1, 0]]
    assert score(swapped, batch, labels=torch.tensor([[0, 1]])).order.tolist() == [[0, 1]]


def test_each_image_against_its_own_trial() -> None:
    batch = random_batch(4)
    found = reconstruction(batch.images[:, None], batch.labels[:, None])
    result = score(found, batch)
    assert result.mse.shape == (4, 1) and result.mse.max() == 0
    assert result.image.tolist() == [[0], [1], [2], [3]]
    shifted = score(batch.images.roll(1, 0)[:, None], batch)
    assert shifted.mse.min() > 0.01, "trials are not matched with each other"


def test_restarts_side_by_side_are_held_against_the_same_image() -> None:
    batch = random_batch(3)
    result = score(batch.images.repeat_interleave(2, 0)[:, None], batch)
    assert result.image.flatten().tolist() == [0, 0, 1, 1, 2, 2]
    assert result.mse.max() == 0


def test_one_image_many_trials_and_a_bare_batch() -> None:
    batch = random_batch(1)
    assert score(torch.rand(5, 1, 3, 8, 8), batch).mse.shape == (5, 1)
    batch = random_batch(3)
    assert score(batch.images, batch).mse.tolist() == [[0, 0, 0]]


def test_images_are_clipped_before_they_are_compared() -> None:
    batch = random_batch(2)
    found = torch.where(batch.images > 0.5, batch.images, batch.images - 5).clone()
    result = score(found, batch)
    clipped = metrics.mse(found.clamp(0, 1), batch.images)
    torch.testing.assert_close(result.mse, clipped[None])


def test_exact_recovery_never_averages_to_infinity() -> None:
    batch = random_batch(2)
    found = batch.images.clone()[None]
    found[0, 1] = (found[0, 1] + 0.1).clamp(max=1)
    result = score(found, batch)
    assert result.psnr[0, 0] == math.inf
    other = result.psnr[0, 1].item()
    for answer in (result.mean("psnr"), result.median("psnr"), result.table().psnr.mean()):
        assert answer == pytest.approx((metrics.PSNR_CAP + other) / 2)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_broken_images_are_counted_and_never_scored(bad: float) -> None:
    batch = random_batch(4)
    found = batch.images.clone()[None]
    found[0, 2, 1, 3, 3] = bad
    result = score(found, batch)
    assert result.failed.tolist() == [[False, False, True, False]]
    for measure in (result.mse, result.psnr, values(result.ssim)):
        assert measure.isnan().tolist() == result.failed.tolist()
    assert result.asr == 0.75
    assert result.mean("mse") == 0
    assert "failed 1 image with non-finite pixels" in str(result)
    table = result.table()
    assert table.failed.sum() == 1 and table.leaked.sum() == 3
    assert bool(table.mse.isna()[2])


def test_medians_rank_broken_images_last() -> None:
    batch = random_batch(3)
    found = torch.stack([batch.images[0], (batch.images[1] + 0.2).clamp(max=1), batch.images[2]])
    found[2] = math.nan
    result = score(found, batch)
    # Worst is the broken one, so the middle is the shifted one, in every measure.
    assert result.median("mse") == pytest.approx(result.mse[0, 1].item())
    assert result.median("psnr") == pytest.approx(result.psnr[0, 1].item())
    assert result.median("ssim") == pytest.approx(values(result.ssim)[0, 1].item())
    found[1] = math.nan
    middle = score(found, batch).median("psnr")
    assert isinstance(middle, float) and math.isnan(middle)
    found[0] = math.nan
    everything = score(found, batch)
    assert everything.asr == 0
    mean = everything.mean("mse")
    assert isinstance(mean, float) and math.isnan(mean)


def test_table_has_one_tidy_row_per_trial_and_image() -> None:
    batch = random_batch(3)
    result = score(reconstruction(batch.images.flip(0)[None].expand(2, -1, -1, -1, -1)), batch)
    table = result.table()
    assert list(table) == [
        "trial", "image", "found", "mse", "psnr", "ssim", "leaked", "failed", "status",
    ]  # fmt: skip
    assert table.trial.tolist() == [0, 0, 0, 1, 1, 1]
    assert table.image.tolist() == [0, 1, 2] * 2
    assert table.found.tolist() == [2, 1, 0] * 2
    assert (table.psnr == metrics.PSNR_CAP).all() and table.leaked.dtype == np.bool_
    assert (table.status == "solved").all()
    labelled = score(batch.images, batch, labels=batch.labels).table()
    assert labelled.label_accuracy.tolist() == [1, 1, 1]


def test_words() -> None:
    batch = random_batch(4)
    text = str(score(batch.images[None] * 0.99, batch, labels=batch.labels[None]))
    assert "4 of 4 images leaked (MSE < 0.001; 1 trial of 4 images, aligned)" in text
    assert "labels 100 % right" in text
    assert "failed 0 images" in text
    assert "LPIPS  not available (" in text
    assert "labels not available (no labels were recovered)" in str(score(batch.images, batch))
    tiny = random_batch(2, size=4)
    result = score(tiny.images, tiny)
    assert "SSIM not available (SSIM needs images of 7×7 pixels)" in str(result)
    assert "ssim" not in result.table() and isinstance(result.mean("ssim"), NotAvailable)


def test_threshold_is_the_callers() -> None:
    batch = random_batch(2)
    found = (batch.images + 0.05).clamp(max=1)
    assert score(found, batch).asr == 0
    assert score(found, batch, threshold=0.01).asr == 1
    assert isinstance(replace(score(found, batch), threshold=0.01), Score)


def test_score_refuses_what_it_cannot_compare() -> None:
    batch = random_batch(4)
    for shape in [(3, 1, 3, 8, 8), (2, 3, 3, 8, 8), (3, 8, 8), (0, 4, 3, 8, 8), (5,)]:
        with pytest.raises(ValueError, match="cannot be held against a batch of 4: pass"):
            score(torch.zeros(shape), batch)
    with pytest.raises(ValueError, match="agree in their last dimensions"):
        score(torch.zeros(1, 4, 3, 9, 9), batch)
    with pytest.raises(ValueError, match=r"4 found images need as many labels, got \(3,\)"):
        score(batch.images, batch, labels=torch.zeros(3))
    with pytest.raises(ValueError, match="did you mean 'psnr'"):
        score(batch.images, batch).median("pnsr")
