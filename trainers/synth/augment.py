"""Seeded distortion of images: rotation, shift, scale and brightness; mirrors, shifts and tints.

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Distortion:
    """The largest distortion of an image; each one is drawn evenly up to it."""

    degrees: float = 15.0
    """Rotation to either side."""
    pixels: float = 2.0
    """Shift along each axis."""
    scale: float = 0.1
    """Enlargement or reduction, as a share of the size."""
    brightness: float = 0.2
    """Change of all values, as a share of them."""


def distort(x_BCHW: Tensor, seed: int, most: Distortion | None = None) -> Tensor:
    """Return distorted images in [0, 1]: a pure function of the images and the seed."""
    most = most or Distortion()
    # Drawn on the CPU, so that every device sees the same distortion.
    draws = torch.rand(len(x_BCHW), 5, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    turn, right, down, scale, light = draws.to(x_BCHW.device).unbind(1)
    height, width = x_BCHW.shape[-2:]
    theta_B23 = _affine(
        turn * math.radians(most.degrees),
        1 + scale * most.scale,
        right * most.pixels * 2 / width,
        down * most.pixels * 2 / height,
    )
    grid_BHW2 = functional.affine_grid(theta_B23, list(x_BCHW.shape), align_corners=False)
    moved_BCHW = functional.grid_sample(x_BCHW, grid_BHW2, align_corners=False)
    light_B111 = (1 + light * most.brightness)[:, None, None, None]
    return (moved_BCHW * light_B111).clamp(0, 1)


def mirror_shift_tint(x_BCHW: Tensor, seed: int, pixels: int, tint: float = 0.1) -> Tensor:
    """Return pictures mirrored (half of them), shifted by whole pixels and tinted, in [0, 1].

    What comes in at the borders is the picture's edge. ``tint`` is the largest change of a
    channel's values, as a share of them.
    """
    random = torch.Generator().manual_seed(seed)
    count, channels, height, width = x_BCHW.shape
    mirrored = torch.rand(count, generator=random) < 0.5
    right, down = torch.randint(-pixels, pixels + 1, (2, count, 1), generator=random)
    tints = 1 + tint * (2 * torch.rand(count, channels, 1, 1, generator=random) - 1)
    columns = (torch.arange(width) - right).clamp(0, width - 1)
    columns[mirrored] = width - 1 - columns[mirrored]
    rows = (torch.arange(height) - down).clamp(0, height - 1)
    # All on the device of the pictures; drawn on the CPU, so that every device sees the same.
    image, rows, columns, tints = (
        part.to(x_BCHW.device)
        for part in (torch.arange(count)[:, None, None], rows, columns, tints)
    )
    moved_BHWC = x_BCHW.movedim(1, -1)[image, rows[:, :, None], columns[:, None, :]]
    return (moved_BHWC.movedim(-1, 1) * tints).clamp(0, 1)


def _affine(turn: Tensor, scale: Tensor, right: Tensor, down: Tensor) -> Tensor:
    # grid_sample asks where each output pixel comes from, hence the inverse of the distortion.
    cos, sin = turn.cos() / scale, turn.sin() / scale
    rows = [
        torch.stack([cos, sin, -(cos * right + sin * down)], 1),
        torch.stack([-sin, cos, sin * right - cos * down], 1),
    ]
    return torch.stack(rows, 1)
