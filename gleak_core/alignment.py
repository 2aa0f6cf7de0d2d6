"""Which recovered image is which: similarities of images, and the best matching under one of them.

Matching gradients loses the order of a batch (Geng et al. 2021, §3.6), so nothing may be scored
before it is aligned. Everything is computed in float64.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from gleak_core.errors import choose

__all__ = ["SIMILARITIES", "align", "comparable", "mse", "psnr", "reorder", "ssim"]

# Beyond 100 dB two matchings are equally good; a finite number keeps the assignment solvable.
_LEAST_MSE = 1e-10


def mse(found: Tensor, true: Tensor) -> Tensor:
    """Return the mean squared error of each image, (…, C, H, W) → (…) (Geng et al. 2021, §2.5)."""
    found, true = comparable(found, true)
    return (found - true).square().mean((-3, -2, -1))


def psnr(found: Tensor, true: Tensor, data_range: float = 1.0) -> Tensor:
    """Return the peak signal-to-noise ratio of each image in dB; exact recovery is `inf`."""
    return 10 * torch.log10(data_range**2 / mse(found, true))


def ssim(found: Tensor, true: Tensor, *, data_range: float = 1.0, window: int = 7) -> Tensor:
    """Return the structural similarity of each image, (…, C, H, W) → (…) (Wang et al. 2004).

    Uniform windows, sample covariances, the mean over all windows inside the image and over
    channels: what scikit-image computes by default.
    """
    found, true = torch.broadcast_tensors(*comparable(found, true))
    if window % 2 == 0 or not 3 <= window <= min(found.shape[-2:]):
        raise ValueError(
            f"SSIM cannot use a window of {window} on images of "
            f"{found.shape[-2]}×{found.shape[-1]} pixels: pass an odd window= from 3 to their side"
        )
    whole, lead = found.shape[-3:], found.shape[:-3]
    pairs = zip(
        found.reshape(-1, *whole).split(_chunk(whole)),
        true.reshape(-1, *whole).split(_chunk(whole)),
        strict=True,
    )
    return torch.cat([_ssim(x, y, data_range, window) for x, y in pairs]).view(lead)


def _chunk(shape: torch.Size) -> int:
    """Return how many images to treat at once: the windowed moments take ten times their memory."""
    return max(1, 2**23 // max(1, shape.numel()))


def _ssim(x: Tensor, y: Tensor, data_range: float, window: int) -> Tensor:
    def mean(z: Tensor) -> Tensor:  # a square window is a column of rows: 2w sums, not w²
        return F.avg_pool2d(F.avg_pool2d(z, (window, 1), stride=1), (1, window), stride=1)

    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    unbiased = window**2 / (window**2 - 1)
    mx, my = mean(x), mean(y)
    vx, vy = unbiased * (mean(x * x) - mx * mx), unbiased * (mean(y * y) - my * my)
    cov = unbiased * (mean(x * y) - mx * my)
    likeness = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return likeness.mean((-3, -2, -1))


# --- matching --------------------------------------------------------------------------------


def align(
    found: Tensor,
    true: Tensor,
    found_labels: Tensor | None = None,
    true_labels: Tensor | None = None,
    similarity: str = "psnr",
) -> Tensor:
    """Return, for each true image, the index of the found image that is matched to it: (…, B).

    The sum of similarities is maximal (Geng et al. 2021, Eq. 25). If both label tensors are given,
    a label that occurs once on both sides pins its pair beforehand; all others are optimised
    freely (§3.6). A found image with a non-finite pixel is worth the same everywhere: it takes a
    place that the others leave. `reorder(found, order)` then lies in line with `true`.
    """
    choose("similarity", similarity, SIMILARITIES)
    if min(found.ndim, true.ndim) < 4 or found.shape[-4] != true.shape[-4]:
        raise ValueError(
            "alignment needs equally many found and true images (…, B, C, H, W), "
            f"got {tuple(found.shape)} and {tuple(true.shape)}"
        )
    found, true = torch.broadcast_tensors(*comparable(found, true))
    shape = found.shape[:-3]
    if not torch.isfinite(true).all():
        raise ValueError("the true images hold non-finite pixels: nothing can be aligned to them")
    alike = SIMILARITIES[similarity](found, true)  # (…, found, true)
    alike = torch.where(torch.isfinite(alike).all(-1, keepdim=True), alike, 0.0)
    pinned = torch.zeros_like(alike, dtype=torch.bool)
    if found_labels is not None and true_labels is not None:
        a, b = _labels(found_labels, shape, "found"), _labels(true_labels, shape, "true")
        same = a.to(b.device)[..., :, None] == b[..., None, :]
        pinned = same & (same.sum(-1, keepdim=True) == 1) & (same.sum(-2, keepdim=True) == 1)
    each, fixed = (x.cpu().numpy().reshape(-1, *x.shape[-2:]) for x in (alike, pinned))
    orders = np.array([_assign(a, p) for a, p in zip(each, fixed, strict=True)], dtype=np.int64)
    return torch.from_numpy(orders).view(shape).to(found.device)


def reorder(values: Tensor, order: Tensor) -> Tensor:
    """Return images or labels (…, B, …) in the order that `align` has found, (…, B)."""
    index = order.view(*order.shape, *[1] * (values.ndim - order.ndim)).to(values.device)
    return values.take_along_dim(index, order.ndim - 1)


def _assign(alike: NDArray[np.float64], pinned: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Solve one assignment: rows are found images, columns true ones, as are both of `pinned`."""
    order = np.empty(len(alike), dtype=np.int64)
    rows, columns = np.nonzero(pinned)
    order[columns] = rows
    rows, columns = np.flatnonzero(~pinned.any(1)), np.flatnonzero(~pinned.any(0))
    if len(rows):
        free = alike[np.ix_(rows, columns)]
        # The order of the found images means nothing, so it must not decide between equal sums.
        rank = np.lexsort(free.T[::-1])
        first, second = linear_sum_assignment(free[rank], maximize=True)
        order[columns[second]] = rows[rank[first]]
    return order


def _mse_matrix(found: Tensor, true: Tensor) -> Tensor:
    # Differences, not |a|² - 2ab + |b|²: exact recovery must come out as exactly 0.
    distance = torch.cdist(
        found.flatten(-3), true.flatten(-3), compute_mode="donot_use_mm_for_euclid_dist"
    )
    return distance.square() / found.shape[-3:].numel()


def _psnr_matrix(found: Tensor, true: Tensor) -> Tensor:
    return -10 * torch.log10(_mse_matrix(found, true).clamp(min=_LEAST_MSE))


def _ssim_matrix(found: Tensor, true: Tensor) -> Tensor:
    columns = [ssim(found, image.unsqueeze(-4)) for image in true.unbind(-4)]
    return torch.stack(columns, -1)


SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "psnr": _psnr_matrix,
    "mse": lambda found, true: -_mse_matrix(found, true),
    "ssim": _ssim_matrix,
}


def comparable(found: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in float64 on one device, or say why they cannot be compared."""
    try:
        if min(found.ndim, true.ndim) < 3 or found.shape[-3:] != true.shape[-3:]:
            raise ValueError
        np.broadcast_shapes(found.shape, true.shape)  # torch's own imports sympy, four seconds
    except ValueError:
        raise ValueError(
            "images to compare must agree in their last dimensions (…, C, H, W), "
            f"got {tuple(found.shape)} and {tuple(true.shape)}"
        ) from None
    return found.detach().double(), true.detach().to(found.device).double()


def _labels(labels: Tensor, shape: torch.Size, side: str) -> Tensor:
    if labels.ndim == 0 or labels.shape[-1] != shape[-1] or labels.ndim > len(shape):
        raise ValueError(
            f"{shape[-1]} {side} images need {shape[-1]} labels, got {tuple(labels.shape)}"
        )
    return labels.expand(shape)
