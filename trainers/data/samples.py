"""Labelled pictures of one size, as every classifier here trains on them.

Shape legend: N samples, B batch, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class PictureSet(Protocol):
    """What a classifier asks of its pictures, in memory or in files."""

    @property
    def labels(self) -> Tensor:
        """Return the labels (int64)."""

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the classes."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return channels, height and width of a picture."""

    def __len__(self) -> int:
        """Return the number of pictures."""

    def take(self, index: Tensor | slice) -> PictureSet:
        """Return the pictures at some indices, in that order."""

    def pair(self) -> tuple[Tensor, Tensor]:
        """Return (x_BCHW in [0, 1], labels)."""


@dataclass(frozen=True)
class Samples:
    """Pictures (uint8, or floats in [0, 1]; grey or RGB), their labels (int64) and the names."""

    images_NCHW: Tensor
    labels: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return channels, height and width of a picture."""
        channels, height, width = self.images_NCHW.shape[1:]
        return channels, height, width

    def take(self, index: Tensor | slice) -> Samples:
        """Return the samples at some indices, in that order."""
        return Samples(self.images_NCHW[index], self.labels[index], self.names)

    def pair(self) -> tuple[Tensor, Tensor]:
        """Return (x_BCHW in [0, 1], labels)."""
        whole = self.images_NCHW.dtype == torch.uint8
        return self.images_NCHW / 255 if whole else self.images_NCHW, self.labels
