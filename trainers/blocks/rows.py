"""Rows of tensors, one a region, written so that a trace of one picture holds for any number.

Shape legend: R regions, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def of_class(values_RK: Tensor, label_R: Tensor) -> Tensor:
    """Return of each region what is said for its class; the values may have more dimensions."""
    # A length would be a constant of the trace, a shape is not.
    return values_RK[torch.arange(label_R.shape[0], device=label_R.device), label_R]


def parted(values_R: Tensor, pictures: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return rows picture by picture: each has as many as there are in its tensor."""
    if len(pictures) == 1:
        return [values_R]
    return torch.split(values_R, [len(rows) for rows in pictures])


def pieces(values_R: Tensor, most: int) -> Sequence[Tensor]:
    """Return rows in pieces of up to ``most``; to a trace, which has to know how many, all."""
    return [values_R] if torch.onnx.is_in_onnx_export() else torch.split(values_R, most)
