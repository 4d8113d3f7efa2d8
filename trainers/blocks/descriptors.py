"""Descriptors of pictures made by hand: HOG and dense SIFT, as retrieval had them before nets.

Shape legend: N pictures, C channels, H height, W width (pixels or cells), K orientations.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

TINY = 1e-6
CLIP = 0.2
"""Largest value of a normalised histogram, so that no single edge rules."""


def hog(x_NCHW: Tensor, cell: int = 4, block: int = 2, bins: int = 9) -> Tensor:
    """Return histograms of oriented gradients (N, size): L2-Hys over overlapping blocks.

    Orientations have no sign. Source: Dalal and Triggs (2005), with 4-pixel cells for small
    pictures; 8 is theirs.
    """
    cells_NKHW = _histograms(x_NCHW, bins, math.pi, cell, cell)
    blocks_NFB = functional.unfold(cells_NKHW, block)
    return _hys(blocks_NFB, dim=1).flatten(1)


def dense_sift(x_NCHW: Tensor, patch: int = 8, step: int = 4, bins: int = 8) -> Tensor:
    """Return the mean of the SIFT descriptors (N, 128) of patches on a dense grid.

    A descriptor is 4 x 4 cells of signed orientations. Source: Lowe (2004), without key points.
    """
    cell = patch // 4
    cells_NKHW = _histograms(x_NCHW, bins, 2 * math.pi, cell, 1)
    dilated_NFB = functional.unfold(cells_NKHW, 4, dilation=cell, stride=step)
    return functional.normalize(_hys(dilated_NFB, dim=1).mean(2), dim=1)


def _histograms(x_NCHW: Tensor, bins: int, turn: float, cell: int, step: int) -> Tensor:
    """Return the mean gradient of each orientation in every cell, one every ``step`` pixels."""
    grey_N1HW = functional.pad(x_NCHW.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    right_N1HW = (grey_N1HW[..., 1:-1, 2:] - grey_N1HW[..., 1:-1, :-2]) / 2
    down_N1HW = (grey_N1HW[..., 2:, 1:-1] - grey_N1HW[..., :-2, 1:-1]) / 2
    strength_N1HW = torch.hypot(right_N1HW, down_N1HW)
    place_N1HW = torch.atan2(down_N1HW, right_N1HW).remainder(turn) / turn * bins - 0.5
    low_N1HW = place_N1HW.floor()
    part_N1HW = place_N1HW - low_N1HW
    of_N1HW = low_N1HW.long().remainder(bins)
    votes_NKHW = strength_N1HW.new_zeros(len(x_NCHW), bins, *strength_N1HW.shape[2:])
    votes_NKHW.scatter_add_(1, of_N1HW, strength_N1HW * (1 - part_N1HW))
    votes_NKHW.scatter_add_(1, (of_N1HW + 1) % bins, strength_N1HW * part_N1HW)
    return functional.avg_pool2d(votes_NKHW, cell, step)


def _hys(values: Tensor, dim: int) -> Tensor:
    clipped = (values / (values.norm(dim=dim, keepdim=True) + TINY)).clamp(max=CLIP)
    normal: Tensor = clipped / (clipped.norm(dim=dim, keepdim=True) + TINY)
    return normal
