"""Labelled pictures of one size, as every classifier here trains on them.

Shape legend: N samples, B batch, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Samples:
    """Pictures (uint8, or floats in [0, 1]; grey or RGB), their labels (int64) and the names."""

    images_NCHW: Tensor
    labels: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.labels)

    def take(self, index: Tensor | slice) -> Samples:
        """Return the samples at some indices, in that order."""
        return Samples(self.images_NCHW[index], self.labels[index], self.names)

    def pair(self) -> tuple[Tensor, Tensor]:
        """Return (x_BCHW in [0, 1], labels)."""
        whole = self.images_NCHW.dtype == torch.uint8
        return self.images_NCHW / 255 if whole else self.images_NCHW, self.labels
