"""Regions of a pyramid: each is read from the map of its size.

Shape legend: B batch, C channels, H height, W width, R regions of all pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.vision import roi_align
from trainers.blocks.boxes import areas


def level_of(boxes_R4: Tensor, area: float, levels: int, largest: int | None = None) -> Tensor:
    """Return which map each region is read from, 0 for the finest.

    The coarsest is for what fills half of the picture or more, each finer one for half of that
    area. Source: CenterMask (2020), equation 1, with P3 as map 0.

    Args:
        boxes_R4: the regions.
        area: of the picture.
        levels: maps that there are.
        largest: the map of a region of the whole picture (default: the coarsest).
    """
    largest = levels - 1 if largest is None else largest
    share_R = area / areas(boxes_R4).clamp(min=1e-6)
    return (largest - share_R.log2()).ceil().long().clamp(0, levels - 1)


def pooled(
    maps: Sequence[Tensor],
    strides: Sequence[int],
    rois: Sequence[Tensor],
    bins: int,
    largest: int | None = None,
) -> Tensor:
    """Return regions_RCHW of bins x bins, those of the first picture first.

    Args:
        maps: of the pyramid, the finest first.
        strides: pixels of the picture for one of each map.
        rois: boxes_r4 of each picture, in its pixels.
        bins: height and width of a region.
        largest: see ``level_of``.
    """
    boxes_R4 = torch.cat(list(rois))
    picture_R1 = torch.cat([torch.full_like(one[:, :1], n) for n, one in enumerate(rois)])
    rois_R5 = torch.cat([picture_R1, boxes_R4], 1)
    area = math.prod(maps[0].shape[2:]) * strides[0] ** 2
    level_R = level_of(boxes_R4, area, len(maps), largest)
    owners, read = [], []
    for level, (x_BCHW, stride) in enumerate(zip(maps, strides, strict=True)):
        owners.append((level_R == level).nonzero()[:, 0])
        read.append(roi_align(x_BCHW, rois_R5[owners[-1]], bins, 1 / stride, 2))
    return torch.cat(read)[torch.cat(owners).argsort()]
