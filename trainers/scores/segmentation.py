"""Scores of class maps, from counts that are summed over pictures before anything is divided.

Shape legend: B batch, H height, W width, K classes, N pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = 255
"""The label of pixels that are neither trained on nor judged."""
TOLERANCE = 0.0075
"""How far off a boundary may be, as a share of the picture's diagonal."""


@dataclass(frozen=True)
class Tally:
    """What was counted on some pictures; tallies of shards are added."""

    confusion_KK: Tensor
    """Pixels by true class (rows) and answered class (columns)."""
    boundary_4K: Tensor
    """Boundary pixels by class: answered, of these near a true one, true, of these found."""

    def __add__(self, other: Tally) -> Tally:
        """Return the counts of both."""
        return Tally(self.confusion_KK + other.confusion_KK, self.boundary_4K + other.boundary_4K)

    def iou(self) -> Tensor:
        """Return the intersection over union of each class; NaN where it never occurs."""
        right_K = self.confusion_KK.diagonal().double()
        return right_K / (self.confusion_KK.sum(0) + self.confusion_KK.sum(1) - right_K)

    def boundary_f1(self) -> Tensor:
        """Return the F1 of each class's boundary; NaN where it has none."""
        answered_K, near_K, true_K, found_K = self.boundary_4K.double()
        precision_K = near_K / answered_K.clamp(min=1)
        recall_K = found_K / true_K.clamp(min=1)
        f1_K = 2 * precision_K * recall_K / (precision_K + recall_K).clamp(min=1e-12)
        return torch.where(answered_K + true_K > 0, f1_K, torch.nan)

    def scores(self) -> dict[str, float]:
        """Return mIoU, pixel and mean accuracy, frequency-weighted IoU and boundary F1.

        Means leave out classes that never occur. Source: Long et al. (2015), section 5; the
        boundaries: Csurka et al. (2013).
        """
        true_K, iou_K = self.confusion_KK.sum(1).double(), self.iou()
        right_K = self.confusion_KK.diagonal().double()
        return {
            "mIoU": _mean(iou_K),
            "accuracy": float(right_K.sum() / true_K.sum()),
            "mean_accuracy": _mean(right_K / true_K),
            "fwIoU": float((true_K * iou_K.nan_to_num()).sum() / true_K.sum()),
            "boundary_F1": _mean(self.boundary_f1()),
        }


def tally(answer_BHW: Tensor, truth_BHW: Tensor, classes: int) -> Tally:
    """Count a batch of class maps; the truth may hold ``IGNORED``."""
    return Tally(
        _confusion(answer_BHW.long(), truth_BHW.long(), classes),
        _boundaries(answer_BHW, truth_BHW, classes),
    )


def total(tallies: Iterable[Tally]) -> Tally:
    """Return the sum of at least one tally."""
    return reduce(add, tallies)


def _mean(values_K: Tensor) -> float:
    return float(values_K.nanmean())


def _confusion(answer_BHW: Tensor, truth_BHW: Tensor, classes: int) -> Tensor:
    judged = truth_BHW != IGNORED
    place_N = truth_BHW[judged] * classes + answer_BHW[judged]
    return place_N.bincount(minlength=classes**2).view(classes, classes).cpu()


def _boundaries(answer_BHW: Tensor, truth_BHW: Tensor, classes: int) -> Tensor:
    height, width = truth_BHW.shape[-2:]
    reach = max(1, round(TOLERANCE * (height**2 + width**2) ** 0.5))
    counts_4K = torch.zeros(4, classes, dtype=torch.long)
    void_BHW = truth_BHW == IGNORED
    for k in range(classes):
        said_BHW, true_BHW = (
            _edge((labels == k) & ~void_BHW, void_BHW) for labels in (answer_BHW, truth_BHW)
        )
        near_BHW, found_BHW = said_BHW & _wide(true_BHW, reach), true_BHW & _wide(said_BHW, reach)
        parts = (said_BHW, near_BHW, true_BHW, found_BHW)
        counts_4K[:, k] = torch.tensor([int(part.sum()) for part in parts])
    return counts_4K


def _edge(mask_BHW: Tensor, void_BHW: Tensor) -> Tensor:
    """Return the pixels of a mask beside another class; void and the frame are no class."""
    return mask_BHW & _wide(~(mask_BHW | void_BHW), 1)


def _wide(mask_BHW: Tensor, reach: int) -> Tensor:
    grown_BHW = mask_BHW.float()
    for size, padding in (((2 * reach + 1, 1), (reach, 0)), ((1, 2 * reach + 1), (0, reach))):
        grown_BHW = functional.max_pool2d(grown_BHW, size, stride=1, padding=padding)
    return grown_BHW > 0
