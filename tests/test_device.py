import pytest
import torch

from gleak_core import device
from gleak_core.errors import GleakError


def test_auto_takes_the_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.pick().type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.pick().type == device.pick("cuda").type == "cuda"
    assert device.pick("cpu").type == "cpu"


def test_a_gpu_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(GleakError, match="sees no GPU here: use --device cpu"):
        device.pick("cuda")


def test_another_name_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ValueError, match="did you mean 'cuda'"):
        device.pick("cude")


def test_the_ledger_names_the_hardware() -> None:
    said = device.describe("cpu")
    assert said.startswith("CPU (")
    assert f"{torch.get_num_threads()} threads" in said


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_in_another_order_agree_within_the_tolerance_and_mistakes_do_not(
    dtype: torch.dtype,
) -> None:
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0), dtype=dtype)
    within = device.tolerance(dtype)
    there, back = x.sum(), x.flip(0).view(100, 1000).sum(0).sum()
    torch.testing.assert_close(there, back, rtol=within.rtol, atol=within.atol)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(there, back * 1.01, rtol=within.rtol, atol=within.atol)


def test_a_gpu_gets_more_slack() -> None:
    cpu, gpu = device.tolerance(torch.float32), device.tolerance(torch.float32, "cuda")
    assert gpu.rtol > cpu.rtol
    assert gpu.atol > cpu.atol


def test_a_picked_device_computes_in_full_precision() -> None:
    torch.backends.cudnn.allow_tf32 = True
    device.pick("cpu")
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
