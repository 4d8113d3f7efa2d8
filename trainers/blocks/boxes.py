"""Boxes (x0, y0, x1, y1) in pixels: how large, how alike, and how networks spell them.

Shape legend: N and M boxes or places.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LARGEST = math.log(1000 / 16)
"""Of a change of size in a network's answer, as a logarithm: no box of a wild answer overflows."""
LEAST = 1e-7


def areas(boxes_N4: Tensor) -> Tensor:
    """Return the areas_N of boxes; of one that is turned inside out 0."""
    sides_N2 = (boxes_N4[..., 2:] - boxes_N4[..., :2]).clamp(min=0)
    return sides_N2[..., 0] * sides_N2[..., 1]


def centres(boxes_N4: Tensor) -> Tensor:
    """Return the middles_N2 (x, y) of boxes."""
    return (boxes_N4[..., :2] + boxes_N4[..., 2:]) / 2


def pair_iou(one_N4: Tensor, other_M4: Tensor) -> Tensor:
    """Return intersection over union_NM of every box with every other."""
    inner_NM = _inner(one_N4[:, None], other_M4[None])
    return inner_NM / (areas(one_N4)[:, None] + areas(other_M4)[None] - inner_NM).clamp(min=LEAST)


def covered(one_N4: Tensor, other_M4: Tensor) -> Tensor:
    """Return which share_NM of each box lies in every other: what crowds are matched by."""
    return _inner(one_N4[:, None], other_M4[None]) / areas(one_N4)[:, None].clamp(min=LEAST)


def iou(one_N4: Tensor, other_N4: Tensor) -> Tensor:
    """Return intersection over union_N of boxes two by two."""
    inner_N = _inner(one_N4, other_N4)
    return inner_N / (areas(one_N4) + areas(other_N4) - inner_N).clamp(min=LEAST)


def giou(one_N4: Tensor, other_N4: Tensor) -> Tensor:
    """Return generalised IoU_N of boxes two by two, from -1 to 1.

    The share of the smallest box around both that neither fills is taken off the IoU, so boxes
    apart are drawn together, too. Source: Rezatofighi et al. (2019), algorithm 1.
    """
    inner_N = _inner(one_N4, other_N4)
    union_N = areas(one_N4) + areas(other_N4) - inner_N
    low_N2 = torch.minimum(one_N4[..., :2], other_N4[..., :2])
    high_N2 = torch.maximum(one_N4[..., 2:], other_N4[..., 2:])
    around_N = areas(torch.cat([low_N2, high_N2], -1))
    empty_N = (around_N - union_N) / around_N.clamp(min=LEAST)
    return inner_N / union_N.clamp(min=LEAST) - empty_N


def clip(boxes_N4: Tensor, height: float, width: float) -> Tensor:
    """Return boxes cut to a picture."""
    most_4 = boxes_N4.new_tensor([width, height, width, height])
    return torch.minimum(boxes_N4.clamp(min=0), most_4)


def large_enough(boxes_N4: Tensor, least: float) -> Tensor:
    """Return which_N boxes have both sides of at least so many pixels."""
    return ((boxes_N4[..., 2:] - boxes_N4[..., :2]) >= least).all(-1)


def grown(boxes_N4: Tensor, factor: float) -> Tensor:
    """Return boxes about the same middles, their sides ``factor`` times as long."""
    middle_N2, half_N2 = centres(boxes_N4), (boxes_N4[..., 2:] - boxes_N4[..., :2]) / 2
    return torch.cat([middle_N2 - factor * half_N2, middle_N2 + factor * half_N2], -1)


def mirrored(boxes_N4: Tensor, width: float) -> Tensor:
    """Return the boxes of a picture whose left and right are exchanged."""
    x0_N, y0_N, x1_N, y1_N = boxes_N4.unbind(-1)
    return torch.stack([width - x1_N, y0_N, width - x0_N, y1_N], -1)


def to_distances(points_N2: Tensor, boxes_N4: Tensor) -> Tensor:
    """Return how far (left, top, right, bottom)_N4 the sides of boxes are from points (x, y).

    All are positive where the point is inside. Source: Tian et al., FCOS (2019), equation 1.
    """
    return torch.cat([points_N2 - boxes_N4[..., :2], boxes_N4[..., 2:] - points_N2], -1)


def from_distances(points_N2: Tensor, distances_N4: Tensor) -> Tensor:
    """Return the boxes_N4 whose sides are so far from points; undoes ``to_distances``."""
    return torch.cat([points_N2 - distances_N4[..., :2], points_N2 + distances_N4[..., 2:]], -1)


def to_deltas(
    from_N4: Tensor, to_N4: Tensor, weights: tuple[float, float, float, float] = (1, 1, 1, 1)
) -> Tensor:
    """Return what makes one box of another: (dx, dy, dw, dh)_N4.

    Shifts as shares of the first box's size, and logarithms of the ratios of the sizes; each
    multiplied by its weight. Source: Girshick et al., R-CNN (2014), appendix C.
    """
    first_N2, second_N2 = _sides(from_N4), _sides(to_N4)
    shift_N2 = (centres(to_N4) - centres(from_N4)) / first_N2
    deltas_N4 = torch.cat([shift_N2, (second_N2 / first_N2).log()], -1)
    return deltas_N4 * deltas_N4.new_tensor(weights)


def from_deltas(
    from_N4: Tensor, deltas_N4: Tensor, weights: tuple[float, float, float, float] = (1, 1, 1, 1)
) -> Tensor:
    """Return boxes_N4 changed by (dx, dy, dw, dh); undoes ``to_deltas``."""
    deltas_N4 = deltas_N4 / deltas_N4.new_tensor(weights)
    sides_N2 = _sides(from_N4)
    middle_N2 = centres(from_N4) + deltas_N4[..., :2] * sides_N2
    half_N2 = sides_N2 * deltas_N4[..., 2:].clamp(max=LARGEST).exp() / 2
    return torch.cat([middle_N2 - half_N2, middle_N2 + half_N2], -1)


def _sides(boxes_N4: Tensor) -> Tensor:
    return (boxes_N4[..., 2:] - boxes_N4[..., :2]).clamp(min=LEAST)


def _inner(one: Tensor, other: Tensor) -> Tensor:
    """Return the areas that boxes share; the leading dimensions broadcast."""
    low = torch.maximum(one[..., :2], other[..., :2])
    high = torch.minimum(one[..., 2:], other[..., 2:])
    sides = (high - low).clamp(min=0)
    return sides[..., 0] * sides[..., 1]
