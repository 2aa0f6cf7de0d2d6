"""The judge: how close a reconstruction came to the private batch, once it is aligned.

Everything is per image, on images clipped to [0, 1], in float64. Two things never hide in an
average: an image with a non-finite pixel is `failed` and counted, and exact recovery, whose PSNR
is infinite, enters summaries as `PSNR_CAP`.
"""

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from gleak_core.alignment import align, comparable, mse, psnr, reorder, ssim
from gleak_core.data import Batch
from gleak_core.errors import choose
from gleak_core.observation import Reconstruction

__all__ = [
    "PSNR_CAP",
    "THRESHOLD",
    "NotAvailable",
    "Score",
    "asr",
    "label_accuracy",
    "lpips",
    "mse",
    "psnr",
    "psnr_cafe",
    "score",
    "ssim",
]

PSNR_CAP = 100.0  # dB; float32 images that agree to the last digit lie beyond 130 dB
THRESHOLD = 1e-3  # the MSE below which an image counts as leaked: 30 dB
# The worst value of each measure: what a failed image counts as in a median.
_WORST = {
    "mse": float("inf"),
    "psnr": -float("inf"),
    "ssim": -float("inf"),
    "lpips": float("inf"),
}


@dataclass(frozen=True)
class NotAvailable:
    """A measure that could not be taken, and why; it prints as such wherever a number would."""

    reason: str

    def __str__(self) -> str:
        return f"not available ({self.reason})"

    def __format__(self, spec: str) -> str:
        return str(self)

    def __bool__(self) -> bool:
        return False


# --- measures of single images and labels ----------------------------------------------------


def psnr_cafe(found: Tensor, true: Tensor) -> Tensor:
    """Return the PSNR of each image as CAFE defines it (Eq. 12): per channel, then averaged.

    The peak is the largest value of the private channel; NaN if a private channel is black.
    """
    found, true = comparable(found, true)
    peak = true.amax((-2, -1))  # (…, C)
    error = mse(found.unsqueeze(-3), true.unsqueeze(-3))  # each channel as an image: (…, C)
    decibel = 20 * torch.log10(peak) - 10 * torch.log10(error)
    return torch.where(peak > 0, decibel, torch.nan).mean(-1)


def asr(errors: Tensor, threshold: float = THRESHOLD) -> float:
    """Return the attack success rate: the share of images with an MSE below the threshold.

    The sources name the measure without a threshold; ours is 1e-3. NaN counts as not leaked.
    """
    if errors.numel() == 0:
        raise ValueError("there is no success rate of no images: pass at least one MSE")
    return (errors < threshold).double().mean().item()


def label_accuracy(found: Tensor, true: Tensor) -> Tensor:
    """Return the share of labels recovered, as the overlap of two multisets, (…, B) → (…).

    The order of a batch is lost in its gradient, so it cannot count.
    """
    if found.ndim == 0 or true.ndim == 0 or found.shape[-1] != true.shape[-1]:
        raise ValueError(
            f"{tuple(found.shape)} labels cannot be held against {tuple(true.shape)}: "
            "give as many found ones as true ones, (…, B)"
        )
    found, true = torch.broadcast_tensors(found.to(true.device), true)
    kinds = torch.unique(torch.stack([found, true]))  # (K,)
    counts = [(labels[..., None] == kinds).sum(-2) for labels in (found, true)]  # (…, K)
    return torch.minimum(*counts).sum(-1).double() / true.shape[-1]


def lpips(found: Tensor, true: Tensor) -> Tensor | NotAvailable:
    """Return the learned perceptual distance of each image (Zhang et al. 2018), AlexNet features.

    It needs the package `lpips` and torchvision's AlexNet weights on disk; nothing is downloaded.
    """
    if importlib.util.find_spec("lpips") is None:
        return NotAvailable("LPIPS needs the package lpips: pip install lpips")
    weights = Path(torch.hub.get_dir()) / "checkpoints" / "alexnet-owt-7be5be79.pth"
    if not weights.is_file():
        return NotAvailable(f"LPIPS needs AlexNet's weights: put {weights.name} into torch's hub")
    found, true = torch.broadcast_tensors(*comparable(found, true))
    channels, height, width = found.shape[-3:]
    if channels not in (1, 3) or min(height, width) < 32:
        return NotAvailable("LPIPS needs 1 or 3 channels and at least 32×32 pixels")
    pairs = [  # grey images as RGB
        x.float().reshape(-1, channels, height, width).expand(-1, 3, -1, -1).cpu()
        for x in (found, true)
    ]
    with torch.no_grad():
        distance = _perceptual()(*pairs, normalize=True)
    return distance.double().view(found.shape[:-3])


@functools.cache
def _perceptual() -> torch.nn.Module:
    import lpips as package  # pyright: ignore[reportMissingImports]

    return package.LPIPS(net="alex", verbose=False).eval()


# --- the score of a reconstruction -----------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Score:
    """The measures of every trial and image; entry (t, j) is about private image `image[t, j]`.

    Where `failed`, the found image holds a non-finite pixel and its measures are NaN.
    """

    mse: Tensor  # (T, B)
    psnr: Tensor  # (T, B); inf for exact recovery
    ssim: Tensor | NotAvailable  # (T, B)
    lpips: Tensor | NotAvailable  # (T, B)
    label_accuracy: Tensor | NotAvailable  # (T,)
    image: Tensor  # (T, B), which image of the private batch
    order: Tensor  # (T, B), which found image was matched to it
    failed: Tensor  # (T, B), bool
    threshold: float
    status: tuple[str, ...] | None  # the attacker's own word on each trial

    @property
    def asr(self) -> float:
        """The share of all images, failed ones included, whose MSE is below the threshold."""
        return asr(self.mse, self.threshold)

    def median(self, measure: str) -> float | NotAvailable:
        """Return the median over all images: a failed one ranks last, PSNR is capped.

        NaN if the middle itself has failed.
        """
        values = self._values(measure)
        if isinstance(values, NotAvailable):
            return values
        ranked = torch.where(self.failed, _WORST[measure], values)
        middle = ranked.flatten().quantile(0.5).item()
        return middle if abs(middle) < float("inf") else float("nan")

    def mean(self, measure: str) -> float | NotAvailable:
        """Return the mean over the images that have not failed, PSNR capped; NaN if all have.

        Papers report means; quote `failed` beside it.
        """
        values = self._values(measure)
        return values if isinstance(values, NotAvailable) else values[~self.failed].mean().item()

    def _values(self, measure: str) -> Tensor | NotAvailable:
        values: Tensor | NotAvailable = getattr(self, choose("measure", measure, _WORST))
        if measure == "psnr":
            assert isinstance(values, Tensor)
            return values.clamp(max=PSNR_CAP)
        return values

    def table(self) -> pd.DataFrame:
        """Return one row per trial and image, PSNR capped, without measures that were not taken."""
        trials, size = self.mse.shape
        columns: dict[str, Tensor] = {
            "trial": torch.arange(trials)[:, None].expand(trials, size),
            "image": self.image,
            "found": self.order,
        }
        for measure in _WORST:
            if isinstance(values := self._values(measure), Tensor):
                columns[measure] = values
        columns |= {"leaked": self.mse < self.threshold, "failed": self.failed}
        if isinstance(self.label_accuracy, Tensor):
            columns["label_accuracy"] = self.label_accuracy[:, None].expand(trials, size)
        table = pd.DataFrame({name: values.flatten().numpy() for name, values in columns.items()})
        if self.status is not None:
            table["status"] = [s for s in self.status for _ in range(size)]
        return table

    def __str__(self) -> str:
        trials, size = self.mse.shape
        leaked = int((self.mse < self.threshold).sum())
        labels = self.label_accuracy
        return "\n".join(
            [
                f"{leaked} of {_count(self.mse.numel(), 'image')} leaked "
                f"(MSE < {self.threshold:g}; {_count(trials, 'trial')} of "
                f"{_count(size, 'image')}, aligned)",
                f"  median MSE {self.median('mse'):.2g}, PSNR {self.median('psnr'):.1f} dB, "
                f"SSIM {self.median('ssim'):.3f}",
                f"  LPIPS  {self.median('lpips'):.3f}",
                "  labels "
                + (
                    f"{100 * labels.mean().item():.4g} % right"
                    if isinstance(labels, Tensor)
                    else str(labels)
                ),
                f"  failed {_count(int(self.failed.sum()), 'image')} with non-finite pixels",
            ]
        )

    __repr__ = __str__


def score(
    found: Reconstruction | Tensor,
    batch: Batch,
    *,
    labels: Tensor | None = None,
    threshold: float = THRESHOLD,
) -> Score:
    """Align a reconstruction with the private batch and measure every image.

    Accepts a `Reconstruction`, or images (T, B, C, H, W) or (B, C, H, W), with `labels` (T, B) if
    there are any. Every trial is held against the whole batch; or, where trials hold one image
    each and the batch has several (`each=True`), trial t against image t, restarts side by side.
    """
    status = None
    if isinstance(found, Reconstruction):
        found, labels, status = found.images, found.labels, found.status
    images = found.detach().cpu()
    images = images[None] if images.ndim == 4 else images
    image = _private(images, len(batch))
    true = batch.images.detach().cpu()[image]  # (T, B, C, H, W)
    truth = batch.labels.cpu()[image]  # (T, B)
    guess = None
    if labels is not None:
        if labels.numel() != image.numel():
            raise ValueError(
                f"{image.numel()} found images need as many labels, got {tuple(labels.shape)}: "
                f"pass labels= of shape {tuple(image.shape)}"
            )
        guess = labels.detach().cpu().view(image.shape)

    failed = ~torch.isfinite(images).flatten(2).all(2)
    # NaN keeps a failed image from being matched, or scored, by the pixels it still has.
    images = torch.where(failed[..., None, None, None], torch.nan, images.clamp(0, 1))
    order = align(images, true, guess, truth)
    images, failed = reorder(images, order), reorder(failed, order)

    windowed, perceptual, recovered = (
        NotAvailable("SSIM needs images of 7×7 pixels"),
        lpips(images.nan_to_num(), true),
        NotAvailable("no labels were recovered"),
    )
    if min(true.shape[-2:]) >= 7:
        windowed = ssim(images, true)
    if isinstance(perceptual, Tensor):
        perceptual = perceptual.masked_fill(failed, torch.nan)
    if guess is not None:
        recovered = label_accuracy(guess, truth)
    return Score(
        mse=mse(images, true),
        psnr=psnr(images, true),
        ssim=windowed,
        lpips=perceptual,
        label_accuracy=recovered,
        image=image,
        order=order,
        failed=failed,
        threshold=threshold,
        status=status,
    )


def _private(images: Tensor, size: int) -> Tensor:
    """Return which private images each trial is held against, (T, B)."""
    trials, found = images.shape[:2] if images.ndim == 5 else (0, 0)
    if trials and found == size:
        return torch.arange(size).expand(trials, size)
    if trials and found == 1 and trials % size == 0:
        return torch.arange(size).repeat_interleave(trials // size)[:, None]
    raise ValueError(
        f"found images of shape {tuple(images.shape)} cannot be held against a batch of {size}: "
        f"pass (T, {size}, C, H, W), or (T, 1, C, H, W) with T a multiple of {size}"
    )


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
