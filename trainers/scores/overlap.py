"""How much answers and true objects cover each other, and which answer gets which object.

Shape legend: D answers, G true objects, N objects, T overlaps that are asked for, R ranges of
sizes, H height, W width.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainers.data.instances import Found, Instances, Skeleton
from trainers.scores.joints import likeness

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Whole = NDArray[np.int64]
What = Literal["box", "mask", "joint"]
Record = TypeVar("Record", Found, Instances)


def match(overlap_DG: Floats, beyond_RG: Bools, crowd_G: Bools, asked_T: Floats) -> Whole:
    """Return which true object each answer gets (-1: none), the answers from the surest on.

    Each takes the free object of the largest overlap, and of those that count before others;
    a crowd is never taken up.
    """
    (count, total), asked_T1 = overlap_DG.shape, np.minimum(asked_T, 1 - 1e-10)[:, None]
    whose_RTD = np.full((len(beyond_RG), len(asked_T), count), -1)
    if not count or not total:
        return whose_RTD
    flipped_DG, crowd_G = overlap_DG[:, ::-1], crowd_G[::-1]  # of equal ones COCO takes the last
    bonus_RG = 2.0 * ~beyond_RG[:, ::-1]
    free_RTG = np.ones((*whose_RTD.shape[:2], total), bool)
    sizes, asked = np.ogrid[: len(beyond_RG), : len(asked_T)]
    for answer in np.flatnonzero(overlap_DG.max(1) >= asked_T1.min()):
        overlap_G = flipped_DG[answer]
        open_RTG = (free_RTG | crowd_G) & (overlap_G >= asked_T1)
        rank_RTG = np.where(open_RTG, (overlap_G + bonus_RG)[:, None], -1.0)
        best_RT = rank_RTG.argmax(2)
        some_RT = open_RTG.any(2)
        whose_RTD[..., answer] = np.where(some_RT, total - 1 - best_RT, -1)
        free_RTG[sizes, asked, best_RT] &= ~some_RT
    return whose_RTD


def overlaps(
    kind: What, found: Found, truth: Instances, area_G: Floats, skeleton: Skeleton | None
) -> tuple[Floats, Floats, Bools]:
    """Return the overlap, the part of the answer in the object, and where these can be judged."""
    plain_DG, crowded_DG = box_overlaps(found.boxes_N4, truth.boxes_N4)
    if kind == "box":
        return plain_DG, crowded_DG, np.ones(len(area_G), bool)
    answered, true = (
        (found.masks_NHW, truth.masks_NHW)
        if kind == "mask"
        else (found.joints_NJ3, truth.joints_NJ3)
    )
    if answered is None and len(found.scores_N):
        raise ValueError(f"answers without a {kind} cannot be scored by it")
    if answered is None or true is None:
        return plain_DG, crowded_DG, np.full(len(area_G), true is not None)
    if kind == "mask":
        known_G: Bools = (true.flatten(1).amax(1) > 0).numpy()
        masked = mask_overlaps(answered, true)
        plain_DG, crowded_DG = (
            np.where(known_G, mask_DG, box_DG)
            for mask_DG, box_DG in zip(masked, (plain_DG, crowded_DG), strict=True)
        )
        return plain_DG, crowded_DG, known_G
    if skeleton is None:
        raise ValueError("joints are scored by a skeleton, and these kinds have none")
    alike_DG: Floats = likeness(
        answered, true, torch.from_numpy(area_G), truth.boxes_N4, skeleton
    ).numpy()
    return alike_DG, alike_DG, (true[..., 2] > 0).any(1).numpy()


def box_overlaps(boxes_D4: Tensor, boxes_G4: Tensor) -> tuple[Floats, Floats]:
    """Return intersection over union of all pairs, and the part of the answer in the object."""
    one_D14, other_G4 = boxes_D4.double().numpy()[:, None], boxes_G4.double().numpy()
    sides_DG2 = np.minimum(one_D14[..., 2:], other_G4[:, 2:])
    sides_DG2 -= np.maximum(one_D14[..., :2], other_G4[:, :2])
    both_DG = np.prod(sides_DG2.clip(0), -1)
    area_D1, area_G = (np.prod(b[..., 2:] - b[..., :2], -1) for b in (one_D14, other_G4))
    return _shares(both_DG, area_D1, area_G)


def mask_overlaps(masks_DHW: Tensor, masks_GHW: Tensor) -> tuple[Floats, Floats]:
    """Return the same of masks."""
    one_DN, other_GN = masks_DHW.flatten(1).float(), masks_GHW.flatten(1).float()
    both_DG = (one_DN @ other_GN.T).double().numpy()
    return _shares(
        both_DG, one_DN.sum(1)[:, None].double().numpy(), other_GN.sum(1).double().numpy()
    )


def _shares(both_DG: Floats, area_D1: Any, area_G: Any) -> tuple[Floats, Floats]:
    union_DG = np.maximum(area_D1 + area_G - both_DG, 1e-12)
    return both_DG / union_DG, both_DG / np.maximum(area_D1, 1e-12)


def areas(truth: Instances) -> Floats:
    """Return the pixels of each object's mask; where it has none, the area of its box."""
    area_G: Floats = np.prod((truth.boxes_N4[:, 2:] - truth.boxes_N4[:, :2]).double().numpy(), 1)
    if truth.masks_NHW is None:
        return area_G
    covered_G = _pixels(truth.masks_NHW)
    return np.where(covered_G > 0, covered_G, area_G)


def _pixels(masks_NHW: Tensor) -> Floats:
    # in fp32 it is ten times faster than a sum of bools, and exact up to 16 million
    covered_N: Floats = masks_NHW.flatten(1).float().sum(1).double().numpy()
    return covered_N


def covered(kind: What, found: Found) -> Floats:
    """Return the area of each answer, as COCO takes it of its kind."""
    spans_D2 = found.boxes_N4[:, 2:] - found.boxes_N4[:, :2]
    if kind == "mask" and found.masks_NHW is not None:
        return _pixels(found.masks_NHW)
    if kind == "joint" and found.joints_NJ3 is not None and len(found.joints_NJ3):
        spans_D2 = found.joints_NJ3[..., :2].amax(1) - found.joints_NJ3[..., :2].amin(1)
    area_D: Floats = spans_D2.double().prod(1).numpy()
    return area_D


def plain(record: Record) -> Record:
    """Return a record on the host and without gradients."""
    return type(record)(*map(_bare, record))


def ignored(truth: Instances) -> Bools:
    """Return which objects are neither right nor wrong to find."""
    if truth.ignored_N is None:
        return np.zeros(len(truth.boxes_N4), bool)
    ignored_G: Bools = truth.ignored_N.numpy()
    return ignored_G


def _bare(value: Any) -> Any:
    return None if value is None else value.detach().cpu()
