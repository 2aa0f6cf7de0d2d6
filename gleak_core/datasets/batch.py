"""`Batch`: the client's secret, images with their labels."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

__all__ = ["Batch"]


@dataclass(frozen=True, eq=False, repr=False)
class Batch:
    """Images in [0, 1] with their labels; an inconsistent one cannot be made.

    Label k means `classes[k]`; `indices` are the places of the images in the data set `name`.
    """

    images: Tensor  # (B, C, H, W), float in [0, 1]
    labels: Tensor  # (B,), int64
    classes: tuple[str, ...]
    name: str
    indices: Tensor  # (B,), int64

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or 0 in self.images.shape:
            raise ValueError(
                f"images of shape {tuple(self.images.shape)} are no batch: "
                "give (B, C, H, W) with at least one image"
            )
        if not self.images.is_floating_point():
            raise ValueError(
                f"images are {self.images.dtype}: divide by 255 into float32 values in [0, 1]"
            )
        if not bool(self.images.isfinite().all()):
            raise ValueError("images hold NaN or infinite pixels: mend or drop them first")
        low, high = self.images.min().item(), self.images.max().item()
        if low < 0 or high > 1:
            raise ValueError(
                f"pixels run from {low:.3g} to {high:.3g}: scale or clamp them to [0, 1]"
            )
        size = len(self.images)
        for what, values in (("labels", self.labels), ("indices", self.indices)):
            if values.dtype != torch.int64:
                raise ValueError(f"{what} are {values.dtype}: convert them with .long()")
            if values.shape != (size,):
                raise ValueError(
                    f"batch of {size} needs {size} {what} in one row, "
                    f"got shape {tuple(values.shape)}: give one per image"
                )
        if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            raise ValueError(
                f"labels run from {int(self.labels.min())} to {int(self.labels.max())} but there "
                f"are {len(self.classes)} classes: name every class in classes="
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int | slice | list[int] | Tensor | np.ndarray) -> Self:
        """Return the sub-batch of one position, a slice, or a list of positions or booleans."""
        key = torch.as_tensor(key) if isinstance(key, list | np.ndarray) else key
        try:
            chosen = torch.arange(len(self), device=self.images.device)[key].reshape(-1)
        except IndexError as error:
            raise IndexError(
                f"position {key} is not in this batch of {len(self)}: use 0 to {len(self) - 1}"
            ) from error
        return replace(
            self,
            images=self.images[chosen],
            labels=self.labels[chosen],
            indices=self.indices[chosen],
        )

    def __repr__(self) -> str:
        channels, height, width = self.images.shape[1:]
        kind = str(self.images.dtype).removeprefix("torch.")
        shown = self.labels[:6].tolist()
        more = " …" if len(self) > 6 else ""
        return (
            f"Batch({self.name}: {len(self)} × {channels}×{height}×{width} {kind} in [0, 1]; "
            f"labels {' '.join(map(str, shown))}{more}: "
            f"{', '.join(self.classes[k] for k in shown)}{more})"
        )

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """Return the batch on another device, its images in another floating type."""
        return replace(
            self,
            images=self.images.to(device=device, dtype=dtype),
            labels=self.labels.to(device),
            indices=self.indices.to(device),
        )
