"""What places of a pyramid should say, what it costs when they do not, and the boxes they mean.

Source: Tian et al., FCOS (2019), and its improvements: centre sampling, generalised IoU.

Shape legend: B batch, N places of all levels, n objects, K classes, D found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dlplatform.task import Mean
from kernels.vision import batched_nms
from trainers.blocks.boxes import areas, centres, clip, from_distances, giou, to_distances
from trainers.data.instances import Found, Instances
from trainers.nets.fcos import Dense

ALPHA, GAMMA = 0.25, 2.0
"""Of the focal loss (Lin et al., 2017)."""
RADIUS = 1.5
"""Places so many strides from an object's middle belong to it."""
NOTHING, IGNORED = -1, -2


@dataclass(frozen=True)
class Limits:
    """Which of a head's answers are kept."""

    least: float = 0.05
    """Lowest score, and lowest chance of a class."""
    before: int = 1000
    """Boxes of a level before suppression."""
    iou: float = 0.6
    """Overlap above which the worse of two boxes of a class goes."""
    most: int = 100
    """Boxes of a picture."""


class Places(NamedTuple):
    """Where the answers of all levels are in the picture."""

    points_N2: Tensor
    """x, y in pixels."""
    strides_N: Tensor
    reach_N2: Tensor
    """Objects whose furthest side is more than the first away, and up to the second."""


def places(sizes: Sequence[tuple[int, int]], strides: Sequence[int], reach: float = 8.0) -> Places:
    """Return the places of maps of (height, width), the finest first.

    Args:
        sizes: of the maps.
        strides: pixels of the picture between places of a map.
        reach: a level is for objects up to so many strides away from a place, the last for all.
    """
    points, steps, limits = [], [], []
    for number, ((height, width), stride) in enumerate(zip(sizes, strides, strict=True)):
        along = (torch.arange(length, dtype=torch.float32) for length in (height, width))
        y_HW, x_HW = torch.meshgrid(*along, indexing="ij")
        points.append(torch.stack([x_HW, y_HW], -1).flatten(0, 1) * stride + stride / 2)
        steps.append(torch.full((height * width,), float(stride)))
        low = reach * strides[number - 1] if number else 0.0
        high = reach * stride if number + 1 < len(strides) else float("inf")
        limits.append(torch.tensor([low, high]).expand(height * width, 2))
    return Places(torch.cat(points), torch.cat(steps), torch.cat(limits))


def assigned(where: Places, truth: Instances) -> Tensor:
    """Return which object each place belongs to, or NOTHING, or IGNORED in an ignored one.

    A place belongs to the smallest object whose box it is in, near its middle and at a level of
    its size.
    """
    ignored_n = truth.ignored_N
    if ignored_n is None:
        ignored_n = torch.zeros_like(truth.labels_N, dtype=torch.bool)
    owner_N = torch.full_like(where.strides_N, NOTHING, dtype=torch.int64)
    if not len(truth.boxes_N4):
        return owner_N
    sides_Nn4 = to_distances(where.points_N2[:, None], truth.boxes_N4[None])
    inside_Nn = sides_Nn4.amin(-1) > 0
    off_Nn = (where.points_N2[:, None] - centres(truth.boxes_N4)[None]).abs().amax(-1)
    far_Nn, limits_N12 = sides_Nn4.amax(-1), where.reach_N2[:, None]
    fits_Nn = (far_Nn > limits_N12[..., 0]) & (far_Nn <= limits_N12[..., 1])
    owned_Nn = inside_Nn & fits_Nn & (off_Nn < RADIUS * where.strides_N[:, None]) & ~ignored_n
    area_Nn = areas(truth.boxes_N4).expand_as(far_Nn).masked_fill(~owned_Nn, float("inf"))
    least_N, best_N = area_Nn.min(1)
    owner_N[(inside_Nn & ignored_n).any(1)] = IGNORED
    return torch.where(least_N.isfinite(), best_N, owner_N)


def centreness(distances_N4: Tensor) -> Tensor:
    """Return how much in the middle of its box each place is, from 0 to 1."""
    across_N2, down_N2 = distances_N4[:, 0::2], distances_N4[:, 1::2]
    share_N = across_N2.amin(1) / across_N2.amax(1) * (down_N2.amin(1) / down_N2.amax(1))
    return share_N.clamp(min=0).sqrt()


def focal(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Return the summed focal loss of every class at every place; other labels are no class.

    Source: Lin et al., Focal Loss (2017), equation 5.
    """
    classes = torch.arange(logits_NK.shape[1], device=logits_NK.device)
    truth_NK = (labels_N[:, None] == classes).to(logits_NK.dtype)
    entropy_NK = functional.binary_cross_entropy_with_logits(logits_NK, truth_NK, reduction="none")
    chance_NK = logits_NK.sigmoid()
    wrong_NK = truth_NK * (1 - chance_NK) + (1 - truth_NK) * chance_NK
    weight_NK = truth_NK * ALPHA + (1 - truth_NK) * (1 - ALPHA)
    return (weight_NK * wrong_NK**GAMMA * entropy_NK).sum()


def dense_loss(dense: Dense, where: Places, truths: Sequence[Instances]) -> dict[str, Mean]:
    """Return the losses of classes, boxes and centres over the positive places."""
    device = dense.logits_BNK.device
    where = Places(*(part.to(device) for part in where))
    owners = [assigned(where, truth) for truth in truths]
    logits, labels, rows = [], [], []
    for number, (owner_N, truth) in enumerate(zip(owners, truths, strict=True)):
        judged_N = owner_N != IGNORED
        padded = functional.pad(truth.labels_N, (0, 1), value=NOTHING)
        logits.append(dense.logits_BNK[number][judged_N])
        labels.append(padded[owner_N.clamp(min=NOTHING)][judged_N])
        rows.append(_positive(dense, where, truth, (number, owner_N)))
    giou_D, middle_D, entropy_D = (torch.cat(part) for part in zip(*rows, strict=True))
    return {
        "classes": Mean(focal(torch.cat(logits), torch.cat(labels)), float(len(middle_D))),
        "boxes": Mean(((1 - giou_D) * middle_D).sum(), float(middle_D.sum())),
        "centre": Mean(entropy_D.sum(), float(len(middle_D))),
    }


def _positive(
    dense: Dense, where: Places, truth: Instances, owned: tuple[int, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (GIoU, centreness, its cross-entropy) of positive places."""
    number, owner_N = owned
    place_D = (owner_N >= 0).nonzero()[:, 0]
    own = truth.take(owner_N[place_D])
    points_D2 = where.points_N2[place_D]
    said_D4 = from_distances(points_D2, dense.distances_BN4[number, place_D])
    middle_D = centreness(to_distances(points_D2, own.boxes_N4))
    entropy_D = functional.binary_cross_entropy_with_logits(
        dense.centre_BN[number, place_D], middle_D, reduction="none"
    )
    return giou(said_D4, own.boxes_N4), middle_D, entropy_D


@torch.no_grad()
def decoded(
    dense: Dense, where: Places, size: tuple[int, int], limits: Limits | None = None
) -> list[Found]:
    """Return what is found in pictures of (height, width), the surest first.

    The score is the root of the chance of the class times that of being in the middle.
    """
    limits = limits or Limits()
    where = Places(*(part.to(dense.logits_BNK.device) for part in where))
    chance_BNK = dense.logits_BNK.sigmoid()
    scores_BNK = (chance_BNK * dense.centre_BN.sigmoid()[..., None]).sqrt()
    scores_BNK = scores_BNK * (chance_BNK > limits.least)
    return [
        _picture(dense, where, size, limits, (number, scores_NK))
        for number, scores_NK in enumerate(scores_BNK)
    ]


def _picture(
    dense: Dense,
    where: Places,
    size: tuple[int, int],
    limits: Limits,
    scored: tuple[int, Tensor],
) -> Found:
    number, scores_NK = scored
    chosen = [
        _best(scores_NK, where.strides_N == stride, limits)
        for stride in dict.fromkeys(where.strides_N.tolist())
    ]
    place_D, label_D = torch.cat(chosen).unbind(1)
    scores_D, points_D2 = scores_NK[place_D, label_D], where.points_N2[place_D]
    boxes_D4 = clip(from_distances(points_D2, dense.distances_BN4[number, place_D]), *size)
    found = Found(boxes_D4, label_D, scores_D)
    kept = batched_nms(boxes_D4.float(), scores_D.float(), label_D, limits.iou)
    return found.take(kept[: limits.most])


def _best(scores_NK: Tensor, level_N: Tensor, limits: Limits) -> Tensor:
    """Return (place, class) of the best scores of a level."""
    pairs_D2 = ((scores_NK > limits.least) & level_N[:, None]).nonzero()
    scores_D = scores_NK[pairs_D2[:, 0], pairs_D2[:, 1]]
    return pairs_D2[scores_D.argsort(descending=True)[: limits.before]]
