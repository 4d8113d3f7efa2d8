"""Procedural written characters: each class is a few curved strokes, each sample a new hand.

Shape legend: K classes, N pictures, S strokes, P points of a stroke, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlplatform.seeds import derive

STROKES, POINTS = 4, 12
LEAST = 2
"""Strokes of the simplest character."""
CHUNK = 256
"""Pictures drawn at a time, which bounds the memory."""


@dataclass(frozen=True)
class Hand:
    """How much two samples of one character differ; lengths are in pixels."""

    jitter: float = 0.5
    """Standard deviation of every control point."""
    affine: float = 0.12
    """Largest turn (in radians), shear and change of size."""
    shift: float = 0.8
    noise: float = 0.05
    """Standard deviation of every pixel."""
    pen: float = 0.65
    """Half the width of a stroke."""


def draw_glyphs(
    seed: int, classes: int, each: int, side: int = 16, hand: Hand | None = None
) -> tuple[Tensor, Tensor]:
    """Return (x_NHW in [0, 1], ink bright; labels_N): ``each`` pictures of every class in turn.

    Class k is the same character for any number of classes.
    """
    hand = hand or Hand()
    characters_KS32 = torch.stack([_character(derive(seed, "glyph", k)) for k in range(classes)])
    labels_N = torch.arange(classes).repeat_interleave(each)
    random = torch.Generator().manual_seed(derive(seed, "hands"))
    parts = [
        _written(characters_KS32[part] * side, side, hand, random)
        for part in torch.split(labels_N, CHUNK)
    ]
    return torch.cat(parts), labels_N


def _character(seed: int) -> Tensor:
    """Return the control points of each stroke, within [-1/2, 1/2]; unused strokes are nan."""
    random = torch.Generator().manual_seed(seed)
    points_S32 = (torch.rand(STROKES, 3, 2, generator=random) - 0.5) * 0.75
    used = int(torch.randint(LEAST, STROKES + 1, (1,), generator=random))
    # A stroke often begins where the last one ended, as pens do.
    for stroke in range(1, used):
        if torch.rand(1, generator=random) < 0.5:
            points_S32[stroke, 0] = points_S32[stroke - 1, 2]
    points_S32[used:] = torch.nan
    return points_S32


def _written(control_NS32: Tensor, side: int, hand: Hand, random: torch.Generator) -> Tensor:
    count = len(control_NS32)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    control_NS32 = control_NS32 + hand.jitter * normal(*control_NS32.shape)
    turn_N22 = torch.eye(2) + hand.affine * (torch.rand(count, 2, 2, generator=random) * 2 - 1)
    shift_N2 = hand.shift * (torch.rand(count, 2, generator=random) * 2 - 1)
    t_P = torch.linspace(0, 1, POINTS)
    weights_P3 = torch.stack([(1 - t_P) ** 2, 2 * t_P * (1 - t_P), t_P**2], 1)
    path_NSP2 = weights_P3 @ (control_NS32 @ turn_N22[:, None])
    dots_NQ2 = path_NSP2.flatten(1, 2) + shift_N2[:, None] + (side - 1) / 2
    along = torch.arange(side)
    down_NQH, right_NQW = dots_NQ2[..., :1] - along, dots_NQ2[..., 1:] - along
    square_NQHW = down_NQH.square()[..., None] + right_NQW.square()[:, :, None]
    distance_NHW = square_NQHW.nan_to_num(nan=torch.inf).amin(1).sqrt()
    ink_NHW = torch.sigmoid((hand.pen - distance_NHW) * 4)
    return (ink_NHW + hand.noise * normal(count, side, side)).clamp(0, 1)
