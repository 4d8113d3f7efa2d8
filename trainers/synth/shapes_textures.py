"""RGB pictures of five shapes, solid or striped: ten classes that need shape and texture.

Every picture is a pure function of the seed. Shapes are the signed distances of
``trainers/synth/shapes.py``: negative inside, positive outside.

Shape legend: N pictures, C channels, H height, W width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from trainers.data.samples import Samples
from trainers.synth.shapes import SHAPES

SHAPE_NAMES = ("disc", "square", "triangle", "ring", "cross")
NAMES = tuple(f"{texture} {shape}" for shape in SHAPE_NAMES for texture in ("solid", "striped"))
"""Names of the classes in the order of the labels."""
DISTANCES = tuple(SHAPES["plus" if name == "cross" else name] for name in SHAPE_NAMES)
LEAST, MOST = 0.3, 0.9
"""Size of a shape as a share of the picture's side."""
CONTRAST = 0.5
"""Least difference between shape and ground in the channel that differs most."""

PALE = 0.3
"""Share of the paint in the pale stripes: the outline stays visible."""


@dataclass(frozen=True)
class Look:
    """How the pictures are made."""

    side: int = 32
    noise: float = 0.1
    """Standard deviation of the noise of every value."""


def draw_shapes_textures(seed: int, count: int, look: Look | None = None) -> tuple[Tensor, Tensor]:
    """Return (x_NCHW in [0, 1], labels_N): shapes anywhere, turned and coloured at random.

    All classes are alike often.
    """
    look, random = look or Look(), torch.Generator().manual_seed(seed)
    labels_N = torch.randperm(count, generator=random) % len(NAMES)
    size, right, down, turn, phase = torch.rand(5, count, 1, 1, generator=random)
    size = LEAST + (MOST - LEAST) * size
    # The shapes reach 0.9 of their frame: their middle stays where they fit into the picture.
    room, angle = 1 - size, turn * 2 * math.pi
    along = (torch.arange(look.side) + 0.5) * 2 / look.side - 1
    x_NHW, y_NHW = along - room * (2 * right - 1), along[:, None] - room * (2 * down - 1)
    cos, sin = angle.cos() / size, angle.sin() / size
    u_NHW, v_NHW = cos * x_NHW + sin * y_NHW, cos * y_NHW - sin * x_NHW
    distance_NHW = torch.empty(count, look.side, look.side)
    for number, distance in enumerate(DISTANCES):
        of = labels_N // 2 == number
        distance_NHW[of] = distance(u_NHW[of], v_NHW[of])
    # Softer edges for small shapes, so that each is about a pixel wide.
    ink_NHW = torch.sigmoid(-distance_NHW * size * look.side * 1.5)
    stripes_NHW = _stripes(u_NHW * size * look.side / 2, phase)
    texture_NHW = torch.where((labels_N % 2 == 1)[:, None, None], stripes_NHW, 1.0)
    ground_NC11, paint_NC11 = _colours(count, random)
    share_NCHW = (ink_NHW * texture_NHW)[:, None]
    x_NCHW = ground_NC11 + (paint_NC11 - ground_NC11) * share_NCHW
    x_NCHW += look.noise * torch.randn(x_NCHW.shape, generator=random)
    return x_NCHW.clamp_(0, 1), labels_N


@lru_cache(maxsize=8)
def shapes_textures(seed: int, count: int, side: int = 32) -> Samples:
    """Return pictures with their labels, drawn once."""
    x_NCHW, labels = draw_shapes_textures(seed, count, Look(side))
    return Samples((x_NCHW * 255).round().to(torch.uint8), labels, NAMES)


def _stripes(pixels_NHW: Tensor, phase: Tensor) -> Tensor:
    """Return stripes of two pixels and paler ones of two, whatever the size of the shape."""
    wave_NHW = torch.sin((pixels_NHW / 4 + phase) * 2 * math.pi)
    return PALE + (1 - PALE) * torch.sigmoid(6 * wave_NHW)


def _colours(count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return colours of ground and shape that differ by CONTRAST or more in some channel."""
    ground_NC, paint_NC = torch.rand(2, count, 3, generator=random)
    channel = torch.randint(3, (count,), generator=random)
    rows = torch.arange(count)
    ground = ground_NC[rows, channel]
    # Towards the farther end of [0, 1], by CONTRAST or more.
    way = torch.where(ground < 0.5, 1.0, -1.0)
    room = torch.where(ground < 0.5, 1 - ground, ground)
    step = CONTRAST + (room - CONTRAST) * torch.rand(count, generator=random)
    paint_NC[rows, channel] = ground + way * step
    return ground_NC[:, :, None, None], paint_NC[:, :, None, None]
