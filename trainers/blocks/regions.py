"""What heads of regions learn from, and what their answers mean in the picture.

Sources: Mask R-CNN (2017), sections 3 and 5; CenterMask (2020), section 3.2.

Shape legend: R regions of all pictures, n objects, D found, K classes, J joints, S states,
H height, W width, M bins of a heatmap, A along a side and N of all places
around a joint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dlplatform.task import Mean
from kernels.vision import roi_align
from trainers.blocks.boxes import pair_iou
from trainers.blocks.rows import pieces
from trainers.data.instances import HIDDEN, Found, Instances

LEAST = 0.5
"""Overlap with its object that a region has to learn from."""
CHUNK = 16
"""Masks that are pasted at once."""
AROUND = 2
"""Bins about the highest one of a heatmap whose chances are a joint's confidence."""


class Regions(NamedTuple):
    """Regions to learn from: boxes of each picture, and the number of the object of each box."""

    boxes: list[Tensor]
    owners: list[Tensor]


def regions_of(found: Sequence[Found], truths: Sequence[Instances], most: int) -> Regions:
    """Return the boxes of objects and what was found of them, up to ``most`` in a picture.

    Objects come first, then the surest answers; ignored objects are left out.
    """
    boxes, owners = [], []
    for answer, truth in zip(found, truths, strict=True):
        own = torch.arange(len(truth.labels_N), device=truth.labels_N.device)
        if truth.ignored_N is not None:
            own = own[~truth.ignored_N]
        boxes_D4, row_D, whose_D = answer.boxes_N4.detach(), own[:0], own[:0]
        overlap_DR = pair_iou(boxes_D4, truth.boxes_N4[own])
        if overlap_DR.numel():
            best_D, place_D = overlap_DR.max(1)
            row_D = (best_D >= LEAST).nonzero()[:, 0]
            whose_D = own[place_D[row_D]]
        boxes.append(torch.cat([truth.boxes_N4[own], boxes_D4[row_D]])[:most])
        owners.append(torch.cat([own, whose_D])[:most])
    return Regions(boxes, owners)


def mask_loss(logits_RKHW: Tensor, regions: Regions, truths: Sequence[Instances]) -> Mean:
    """Return the cross-entropy of the pixels of the mask of each region's class.

    Regions of objects without a mask are left out, as of those without joints or a state below.
    """
    wanted, labels, known = [], [], []
    for boxes_r4, owner_r, truth in zip(*regions, truths, strict=True):
        masks_NHW = truth.masks_NHW
        if masks_NHW is None or not len(owner_r):
            known.append(torch.zeros_like(owner_r, dtype=torch.bool))
            continue
        known.append(masks_NHW.flatten(1).any(1)[owner_r])
        rois_r5 = torch.cat([owner_r[:, None].to(boxes_r4), boxes_r4], 1)[known[-1]]
        masks_N1HW = masks_NHW[:, None].to(boxes_r4)
        wanted.append(roi_align(masks_N1HW, rois_r5, logits_RKHW.shape[-1], 1.0, 2)[:, 0])
        labels.append(truth.labels_N[owner_r[known[-1]]])
    row_R = torch.cat(known).nonzero()[:, 0]
    if not len(row_R):
        return Mean(logits_RKHW.sum() * 0, 0.0)
    said_RHW = logits_RKHW[row_R, torch.cat(labels)]
    target_RHW = (torch.cat(wanted) >= 0.5).to(said_RHW)
    entropy_RHW = functional.binary_cross_entropy_with_logits(
        said_RHW, target_RHW, reduction="none"
    )
    return Mean(entropy_RHW.mean((1, 2)).sum(), float(len(row_R)))


def joint_loss(logits_RJHW: Tensor, regions: Regions, truths: Sequence[Instances]) -> Mean:
    """Return the cross-entropy over the places of a heatmap, of every labelled joint inside."""
    joints, bins = logits_RJHW.shape[1], logits_RJHW.shape[-1]
    target_RJ = torch.cat(
        [
            owner_r.new_full((len(owner_r), joints), -1)
            if truth.joints_NJ3 is None
            else _bins(truth.joints_NJ3[owner_r], boxes_r4, bins)
            for boxes_r4, owner_r, truth in zip(*regions, truths, strict=True)
        ]
    )
    total = functional.cross_entropy(
        logits_RJHW.flatten(2).flatten(0, 1), target_RJ.flatten(), ignore_index=-1, reduction="sum"
    )
    return Mean(total, float((target_RJ >= 0).sum()))


def state_loss(
    logits_RS: Tensor,
    regions: Regions,
    truths: Sequence[Instances],
    weight_S: Tensor | None = None,
    smoothing: float = 0.05,
) -> Mean:
    """Return the cross-entropy of the states, by the weights of the classes."""
    state_R = torch.cat(
        [
            torch.full_like(owner_r, -1) if truth.states_N is None else truth.states_N[owner_r]
            for owner_r, truth in zip(regions.owners, truths, strict=True)
        ]
    )
    weight_S = torch.ones_like(logits_RS[0]) if weight_S is None else weight_S.to(logits_RS)
    known_R = state_R >= 0
    total = functional.cross_entropy(
        logits_RS[known_R],
        state_R[known_R],
        weight_S,
        reduction="sum",
        label_smoothing=smoothing,
    )
    return Mean(total, float(weight_S[state_R[known_R]].sum()))


def pasted(masks_DHW: Tensor, boxes_D4: Tensor, size: tuple[int, int]) -> Tensor:
    """Return bool masks of a picture of (height, width), of the chances of pixels of boxes."""
    made = [boxes_D4.new_zeros(0, *size, dtype=torch.bool)]
    for some_DHW, some_D4 in zip(pieces(masks_DHW, CHUNK), pieces(boxes_D4, CHUNK), strict=True):
        across_DW = _along(size[1], some_D4[:, 0], some_D4[:, 2])
        down_DH = _along(size[0], some_D4[:, 1], some_D4[:, 3])
        shape = (-1, size[0], size[1])
        both = across_DW[:, None].expand(shape), down_DH[:, :, None].expand(shape)
        chances_D1HW = functional.grid_sample(
            some_DHW[:, None], torch.stack(both, -1), align_corners=False
        )
        made.append(chances_D1HW[:, 0] >= 0.5)
    return torch.cat(made)


def located(logits_DJHW: Tensor, boxes_D4: Tensor, temperature: float = 1.0) -> Tensor:
    """Return joints_DJ3 (x, y, confidence) of heatmaps of boxes.

    A joint is at the highest place, and within the heatmap a quarter of one towards the higher
    neighbour; its confidence is the chance of being there or up to ``AROUND`` places away.
    """
    high, wide = logits_DJHW.shape[2:]
    chance_DJM = (logits_DJHW / temperature).flatten(2).softmax(-1)
    best_DJ = chance_DJM.argmax(-1)
    x_DJ, y_DJ = best_DJ % wide, best_DJ // wide
    reach = torch.arange(-AROUND, AROUND + 1, device=best_DJ.device)
    rows_DJA, columns_DJA = y_DJ[..., None] + reach, x_DJ[..., None] + reach
    in_rows = (rows_DJA >= 0) & (rows_DJA < high)
    in_columns = (columns_DJA >= 0) & (columns_DJA < wide)
    rows_DJA, columns_DJA = rows_DJA.clamp(0, high - 1), columns_DJA.clamp(0, wide - 1)
    around_DJN = (rows_DJA[..., :, None] * wide + columns_DJA[..., None, :]).flatten(2)
    inside_DJN = (in_rows[..., :, None] & in_columns[..., None, :]).flatten(2)
    sure_DJ = (chance_DJM.gather(-1, around_DJN) * inside_DJN).sum(-1).clamp(max=1)

    def lean(at_DJ: Tensor, last: int, step: int) -> Tensor:
        near = [(best_DJ + s).clamp(0, high * wide - 1)[..., None] for s in (step, -step)]
        above_DJ1, below_DJ1 = (chance_DJM.gather(-1, one) for one in near)
        inner_DJ = (at_DJ > 0) & (at_DJ < last)
        return (above_DJ1 - below_DJ1).sign()[..., 0] / 4 * inner_DJ

    x0_D1, y0_D1, x1_D1, y1_D1 = boxes_D4[:, None].unbind(-1)
    at_x_DJ = x0_D1 + (x_DJ + 0.5 + lean(x_DJ, wide - 1, 1)) / wide * (x1_D1 - x0_D1)
    at_y_DJ = y0_D1 + (y_DJ + 0.5 + lean(y_DJ, high - 1, wide)) / high * (y1_D1 - y0_D1)
    return torch.stack([at_x_DJ, at_y_DJ, sure_DJ], -1)


def _bins(joints_RJ3: Tensor, boxes_R4: Tensor, bins: int) -> Tensor:
    """Return the place of each joint in the heatmap of its region, -1 where it has none."""
    sides_R12 = (boxes_R4[:, 2:] - boxes_R4[:, :2]).clamp(min=1e-3)[:, None]
    at_RJ2 = ((joints_RJ3[..., :2] - boxes_R4[:, None, :2]) / sides_R12 * bins).floor().long()
    # A joint on the right or lower side of its box is in the last place.
    at_RJ2 = torch.where(at_RJ2 == bins, bins - 1, at_RJ2)
    inside_RJ = ((at_RJ2 >= 0) & (at_RJ2 < bins)).all(-1) & (joints_RJ3[..., 2] >= HIDDEN)
    return torch.where(inside_RJ, at_RJ2[..., 1] * bins + at_RJ2[..., 0], -1)


def _along(count: int, low_D: Tensor, high_D: Tensor) -> Tensor:
    """Return where pixel centres lie in boxes along an axis: -1 to 1 within."""
    pixel_N = torch.arange(count, dtype=low_D.dtype, device=low_D.device) + 0.5
    return (pixel_N - low_D[:, None]) / (high_D - low_D)[:, None].clamp(min=1e-3) * 2 - 1
