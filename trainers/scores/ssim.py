"""Structural similarity of pictures.

Shape legend: B batch, C channels, H height, W width.
Source: Wang et al., Image quality assessment: from error visibility to structural similarity
(2004), with its window: a Gaussian of 11 pixels and deviation 1.5.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

WINDOW, DEVIATION = 11, 1.5
C1, C2 = 0.01**2, 0.03**2


def luma(x_BCHW: Tensor) -> Tensor:
    """Return the brightness (B, 1, H, W) of RGB pictures by ITU-R BT.601."""
    share_C = torch.tensor([0.299, 0.587, 0.114], device=x_BCHW.device)
    return (x_BCHW * share_C[:, None, None]).sum(1, keepdim=True)


def ssim(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """Return the mean structural similarity (B,) of pictures in [0, 1]; 1 for equal ones.

    Raises:
        ValueError: for shapes that differ, or pictures smaller than the window.
    """
    if x_BCHW.shape != y_BCHW.shape or min(x_BCHW.shape[2:]) < WINDOW:
        raise ValueError(
            f"pictures of {tuple(x_BCHW.shape)} and {tuple(y_BCHW.shape)} - allowed: equal shapes "
            f"of {WINDOW} pixels or more"
        )
    mean_x, mean_y = _blurred(x_BCHW), _blurred(y_BCHW)
    var_x = _blurred(x_BCHW**2) - mean_x**2
    var_y = _blurred(y_BCHW**2) - mean_y**2
    both = _blurred(x_BCHW * y_BCHW) - mean_x * mean_y
    light = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    structure = (2 * both + C2) / (var_x + var_y + C2)
    return (light * structure).mean((1, 2, 3))


def _blurred(x_BCHW: Tensor) -> Tensor:
    along = torch.arange(WINDOW, device=x_BCHW.device) - WINDOW // 2
    bell = torch.exp(-(along**2) / (2 * DEVIATION**2))
    bell = (bell / bell.sum()).to(x_BCHW.dtype)
    channels = x_BCHW.shape[1]
    rows = functional.conv2d(
        x_BCHW, bell.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels
    )
    return functional.conv2d(
        rows, bell.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels
    )
