"""The one place that knows what differs between a CPU and a GPU."""

import platform
from dataclasses import dataclass

import torch

from gleak_core.errors import GleakError, choose

__all__ = ["Tolerance", "describe", "pick", "tolerance"]


@dataclass(frozen=True)
class Tolerance:
    """How far two computations of the same quantity may lie apart."""

    rtol: float
    atol: float


def pick(name: str = "auto") -> torch.device:
    """Turn `auto`, `cpu` or `cuda` into a device that exists here.

    TF32 goes off with it: a gradient of ten bits leaks another picture than the one shared.
    """
    choose("device", name, ("auto", "cpu", "cuda"))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise GleakError(
            "device 'cuda' was asked for but PyTorch sees no GPU here: "
            "use --device cpu (or auto), or check the driver with nvidia-smi"
        )
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device(name)


def describe(device: torch.device | str = "cpu") -> str:
    """Name the hardware behind a device, for the run ledger."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def tolerance(dtype: torch.dtype, device: torch.device | str = "cpu") -> Tolerance:
    """Return the agreement to expect of sums taken in another order on this device."""
    slack = 1 if torch.device(device).type == "cpu" else 10
    eps = torch.finfo(dtype).eps
    return Tolerance(rtol=slack * 1e4 * eps, atol=slack * 1e3 * eps)
