"""What the heads of regions learn and answer, behind a detector that finds the regions.

Shape legend: B batch, C channels, H height, W width, R regions of all pictures, K classes,
J joints, S states, G numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dlplatform.task import Mean
from trainers.blocks.boxes import centres
from trainers.blocks.levels import pooled
from trainers.blocks.regions import (
    joint_loss,
    located,
    mask_loss,
    pasted,
    regions_of,
    state_loss,
)
from trainers.blocks.rows import of_class, parted
from trainers.data.instances import Found, Instances
from trainers.nets.centermask import CenterMask
from trainers.nets.roi_heads import BINS


class Said(NamedTuple):
    """What the heads say of regions; None of a kind that there is no head for."""

    masks_RKHW: Tensor | None
    joints_RJHW: Tensor | None
    states_RS: Tensor | None


def region_losses(
    net: CenterMask,
    maps: Sequence[Tensor],
    answers: tuple[Sequence[Found], Sequence[Instances]],
    most: int,
    weight_S: Tensor | None = None,
) -> dict[str, Mean]:
    """Return the losses of the heads that there are.

    Args:
        net: with its heads.
        maps: its pyramid of the pictures.
        answers: what was found, and the objects.
        most: regions of a picture to learn from.
        weight_S: of the states.
    """
    truths = answers[1]
    regions = regions_of(*answers, most)
    labels_R = torch.cat(
        [truth.labels_N[own] for truth, own in zip(truths, regions.owners, strict=True)]
    )
    said = heads(net, maps, regions.boxes, labels_R)
    terms = {}
    if said.masks_RKHW is not None:
        terms["masks"] = mask_loss(said.masks_RKHW, regions, truths)
    if said.joints_RJHW is not None:
        terms["joints"] = joint_loss(said.joints_RJHW, regions, truths)
    if said.states_RS is not None:
        terms["states"] = state_loss(said.states_RS, regions, truths, weight_S)
    return terms


def completed(
    net: CenterMask, maps: Sequence[Tensor], found: Sequence[Found], size: tuple[int, int]
) -> list[Found]:
    """Return what was found in pictures of (height, width) with its masks, joints and states."""
    boxes, label_R = [one.boxes_N4 for one in found], torch.cat([one.labels_N for one in found])
    said = heads(net, maps, boxes, label_R)
    made = list(found)
    if said.masks_RKHW is not None:
        chances = parted(of_class(said.masks_RKHW, label_R).sigmoid(), boxes)
        made = [
            one._replace(masks_NHW=pasted(chance_DHW, one.boxes_N4, size))
            for one, chance_DHW in zip(made, chances, strict=True)
        ]
    if said.joints_RJHW is not None:
        made = [
            one._replace(joints_NJ3=located(heat_DJHW, one.boxes_N4))
            for one, heat_DJHW in zip(made, parted(said.joints_RJHW, boxes), strict=True)
        ]
    if said.states_RS is not None:
        states = parted(said.states_RS.softmax(1), boxes)
        made = [
            one._replace(states_NS=state_DS) for one, state_DS in zip(made, states, strict=True)
        ]
    return made


def heads(
    net: CenterMask, maps: Sequence[Tensor], boxes: Sequence[Tensor], label_R: Tensor
) -> Said:
    """Return what the heads say of boxes of each picture, of certain classes."""
    regions_RCHW = pooled(maps, net.strides, boxes, BINS, net.largest)
    masks_RKHW = None if net.masks is None else net.masks(regions_RCHW)
    joints_RJHW = None if net.joints is None else net.joints(regions_RCHW)
    states_RS = None
    if net.states is not None:
        assert masks_RKHW is not None and joints_RJHW is not None, "states need both heads"
        boxes_R4 = torch.cat(list(boxes))
        mask_R1HW = of_class(masks_RKHW, label_R).sigmoid()[:, None]
        # What is told from them is no reason to change masks and joints.
        heat_RJHW = joints_RJHW.flatten(2).softmax(-1).view_as(joints_RJHW).detach()
        measures_RG = measured(boxes_R4, joints_RJHW.detach(), _size(maps, net.strides))
        states_RS = net.states(regions_RCHW, mask_R1HW.detach(), heat_RJHW, measures_RG)
    return Said(masks_RKHW, joints_RJHW, states_RS)


def measured(boxes_R4: Tensor, joints_RJHW: Tensor, size: tuple[float, float]) -> Tensor:
    """Return numbers of boxes: shape, size and height in the picture; of joints: place, how sure.

    Joints are placed within their box, from -1 to 1.
    """
    sides_R2 = (boxes_R4[:, 2:] - boxes_R4[:, :2]).clamp(min=1e-3)
    shape_R, area_R = (sides_R2[:, 0] / sides_R2[:, 1]).log(), sides_R2.prod(1) / size[0] / size[1]
    own_R3 = torch.stack([shape_R, area_R.log() / 4, centres(boxes_R4)[:, 1] / size[0]], 1)
    joints_RJ3 = located(joints_RJHW, boxes_R4)
    within_RJ2 = (joints_RJ3[..., :2] - centres(boxes_R4)[:, None]) / sides_R2[:, None] * 2
    joints_RJ3 = torch.cat([within_RJ2, joints_RJ3[..., 2:]], -1)
    return torch.cat([own_R3, joints_RJ3.flatten(1)], 1)


def _size(maps: Sequence[Tensor], strides: Sequence[int]) -> tuple[float, float]:
    height, width = maps[0].shape[2:]
    return float(height * strides[0]), float(width * strides[0])
