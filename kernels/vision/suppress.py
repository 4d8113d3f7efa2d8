"""Suppression of overlapping boxes as torch operators; without derivatives, as everywhere.

Boxes of a GPU come to the host: how many stay has to be known there anyway.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.vision import native, reference
from kernels.vision.operators import register, require


def nms(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """Return the indices of boxes that no better one covers, best first.

    Args:
        boxes: [N, 4], (x0, y0, x1, y1).
        scores: [N]; of equal scores the first box is the better one.
        iou: intersection over union above which the worse of two goes, 0 to 1.

    Raises:
        ValueError: shapes or the limit do not fit, in one line.
    """
    _check(boxes, scores, iou)
    return _NMS(boxes, scores, iou)  # type: ignore[no-any-return]


def batched_nms(boxes: Tensor, scores: Tensor, classes: Tensor, iou: float) -> Tensor:
    """Return what ``nms`` does within each class, best first over all classes.

    Args:
        boxes: [N, 4], (x0, y0, x1, y1).
        scores: [N].
        classes: [N] integers: only boxes of one class suppress each other.
        iou: as in ``nms``.

    Raises:
        ValueError: shapes or the limit do not fit, in one line.
    """
    _check(boxes, scores, iou)
    require(
        classes.shape == scores.shape and not classes.is_floating_point(),
        f"classes {list(classes.shape)} of {classes.dtype} - allowed: {list(scores.shape)} "
        "integers, one for each box - do: change the classes",
    )
    return _BATCHED(boxes, scores, classes, iou)  # type: ignore[no-any-return]


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    iou: float = 0.3,
    sigma: float = 0.5,
    kind: str = "gaussian",
    least: float = 0.001,
) -> tuple[Tensor, Tensor]:
    """Lower the scores of covered boxes instead of dropping them (arXiv:1704.04503).

    Args:
        boxes: [N, 4], (x0, y0, x1, y1).
        scores: [N], from 0 on; boxes with a negative score or none are left out.
        iou: the linear kind multiplies scores by 1 - overlap where that is above this.
        sigma: the gaussian kind multiplies scores by exp(-overlap^2 / sigma).
        kind: ``gaussian`` or ``linear``.
        least: boxes whose lowered score is below are left out.

    Returns:
        Indices of the boxes in the order in which they were taken, and their new scores.

    Raises:
        ValueError: shapes or values do not fit, in one line.
    """
    _check(boxes, scores, iou)
    require(
        kind in ("gaussian", "linear"),
        f"kind {kind} - allowed: gaussian, linear - do: choose one",
    )
    require(
        sigma > 0 and least >= 0,
        f"sigma {sigma}, least {least} - allowed: sigma above 0, least from 0 on - do: change them",
    )
    found = _SOFT(boxes, scores, iou, sigma if kind == "gaussian" else 0.0, least)
    return found  # type: ignore[no-any-return]


def _check(boxes: Tensor, scores: Tensor, iou: float) -> None:
    require(
        boxes.dim() == 2 and boxes.shape[1] == 4 and boxes.is_floating_point(),
        f"boxes {list(boxes.shape)} of {boxes.dtype} - allowed: [N, 4] floating point, (x0, y0, "
        "x1, y1) - do: reshape or convert",
    )
    require(
        scores.shape == boxes.shape[:1] and scores.is_floating_point(),
        f"scores {list(scores.shape)} of {scores.dtype} - allowed: [{boxes.shape[0]}] floating "
        "point, one for each box - do: change the scores",
    )
    require(0 <= iou <= 1, f"iou {iou} - allowed: 0 to 1 - do: change iou")


def _place(*tensors: Tensor) -> tuple[Any, list[Tensor]]:
    """Return who works on the tensors, and them on the host; half precision becomes single."""
    double = any(one.dtype == torch.float64 for one in tensors)
    dtype = torch.float64 if double else torch.float32
    return reference if double else native, [one.detach().cpu().to(dtype) for one in tensors]


def _nms(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    place, (by, worth) = _place(boxes, scores)
    return place.batched_nms(by, worth, None, iou).to(boxes.device)  # type: ignore[no-any-return]


def _batched(boxes: Tensor, scores: Tensor, classes: Tensor, iou: float) -> Tensor:
    place, (by, worth) = _place(boxes, scores)
    kept = place.batched_nms(by, worth, classes.cpu(), iou)
    return kept.to(boxes.device)  # type: ignore[no-any-return]


def _soft(
    boxes: Tensor, scores: Tensor, iou: float, sigma: float, least: float
) -> tuple[Tensor, Tensor]:
    place, (by, worth) = _place(boxes, scores)
    kept, new = place.soft_nms(by, worth.nan_to_num(-1.0), iou, sigma, least)
    return kept.to(boxes.device), new.to(scores)


def _some(boxes: Tensor, *rest: Any) -> Tensor:
    """Return indices without data, of a number that only the data know."""
    count = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(count, dtype=torch.int64)


def _some_scored(boxes: Tensor, scores: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    kept = _some(boxes)
    return kept, scores.new_empty(kept.shape)


_NMS = register("nms(Tensor boxes, Tensor scores, float iou) -> Tensor", _nms, _some)
_BATCHED = register(
    "batched_nms(Tensor boxes, Tensor scores, Tensor classes, float iou) -> Tensor",
    _batched, _some,
)  # fmt: skip
_SOFT = register(
    "soft_nms(Tensor boxes, Tensor scores, float iou, float sigma, float least) -> "
    "(Tensor, Tensor)",
    _soft, _some_scored,
)  # fmt: skip
