"""Grey pictures of ten simple shapes, turned, shifted and scaled, in clutter and noise.

Every picture is a pure function of the seed. A shape is a signed distance in its own coordinates:
negative inside, positive outside.

Shape legend: N pictures, H height, W width, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SIZE = 20
Distance = Callable[[Tensor, Tensor], Tensor]


def _disc(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 0.8


def _box(x: Tensor, y: Tensor, wide: float, high: float) -> Tensor:
    return torch.maximum(x.abs() - wide, y.abs() - high)


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(0.87 * x.abs() + 0.5 * y, -y) - 0.45


def _plus(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(_box(x, y, 0.9, 0.25), _box(x, y, 0.25, 0.9))


def _tee(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(_box(x, y + 0.6, 0.8, 0.22), _box(x, y - 0.2, 0.22, 0.8))


def _ell(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(_box(x - 0.1, y - 0.65, 0.7, 0.22), _box(x + 0.55, y, 0.22, 0.85))


def _bars(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(_box(x, y - 0.5, 0.85, 0.2), _box(x, y + 0.5, 0.85, 0.2))


SHAPES: dict[str, Distance] = {
    "disc": _disc,
    "ring": lambda x, y: (_disc(x, y) + 0.2).abs() - 0.2,
    "square": lambda x, y: _box(x, y, 0.7, 0.7),
    "frame": lambda x, y: (_box(x, y, 0.6, 0.6)).abs() - 0.18,
    "triangle": _triangle,
    "bar": lambda x, y: _box(x, y, 0.95, 0.28),
    "plus": _plus,
    "T": _tee,
    "L": _ell,
    "bars": _bars,
}
"""Name and distance of each class, in the order of the labels; all fit into [-1, 1] squared."""


@dataclass(frozen=True)
class Difficulty:
    """How hard the pictures are to read."""

    degrees: float = 30.0
    """Largest turn to either side."""
    noise: float = 0.15
    """Standard deviation of the noise of every pixel."""
    clutter: int = 2
    """Lines drawn over every picture."""


def draw_shapes(seed: int, count: int, how: Difficulty | None = None) -> tuple[Tensor, Tensor]:
    """Return (x_NHW in [0, 1], labels_N): pictures of 20 x 20, all classes alike often."""
    how, random = how or Difficulty(), torch.Generator().manual_seed(seed)
    labels_N = torch.randperm(count, generator=random) % len(SHAPES)
    draws_N6 = torch.rand(count, 6, generator=random) * 2 - 1
    turn, right, down, scale, light, ground = draws_N6.unbind(1)
    x_NHW, y_NHW = _turned(turn * math.radians(how.degrees), 0.25 * right, 0.25 * down, scale)
    distance_NHW = torch.empty(count, SIZE, SIZE)
    for label, distance in enumerate(SHAPES.values()):
        of = labels_N == label
        distance_NHW[of] = distance(x_NHW[of], y_NHW[of])
    ink_NHW = torch.sigmoid(-distance_NHW * 12)
    for _ in range(how.clutter):
        ink_NHW = torch.maximum(ink_NHW, 0.7 * _line(count, random))
    low, high = 0.15 + 0.1 * ground[:, None, None], 0.8 + 0.15 * light[:, None, None]
    noise_NHW = how.noise * torch.randn(count, SIZE, SIZE, generator=random)
    return (low + (high - low) * ink_NHW + noise_NHW).clamp(0, 1), labels_N


def _grid() -> tuple[Tensor, Tensor]:
    along = (torch.arange(SIZE) + 0.5) * 2 / SIZE - 1
    return along.expand(SIZE, SIZE), along[:, None].expand(SIZE, SIZE)


def _turned(angle: Tensor, right: Tensor, down: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return the coordinates of all pixels in each shape's own frame."""
    x_HW, y_HW = _grid()
    x_NHW, y_NHW = x_HW - right[:, None, None], y_HW - down[:, None, None]
    size = (0.6 + 0.12 * scale)[:, None, None]
    cos, sin = angle.cos()[:, None, None] / size, angle.sin()[:, None, None] / size
    return cos * x_NHW + sin * y_NHW, cos * y_NHW - sin * x_NHW


def _line(count: int, random: torch.Generator) -> Tensor:
    """Return one thin line somewhere in each picture."""
    x_HW, y_HW = _grid()
    angle, offset = torch.rand(count, 2, generator=random).unbind(1)
    angle, offset = angle[:, None, None] * math.pi, offset[:, None, None] * 1.6 - 0.8
    return torch.sigmoid(-((angle.cos() * x_HW + angle.sin() * y_HW - offset).abs() - 0.05) * 30)
