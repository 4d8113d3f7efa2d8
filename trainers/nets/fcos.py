"""FCOS: every place of a pyramid says what object it is in, and how far that one's sides are.

Source: Tian et al., FCOS (2019), section 3 (arXiv:1904.01355).

Shape legend: B batch, C channels, H height, W width, N places of all levels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainers.nets.attention import SpatialAttention
from trainers.nets.vovnet import unit

PRIOR = 0.01
"""Share of the places at which a class is thought to be before any training."""
MOST = 6.0
"""Of the logarithm of a distance in strides."""


@dataclass(frozen=True)
class HeadShape:
    """How large a head is."""

    classes: int = 80
    width: int = 256
    levels: int = 5
    towers: int = 4
    """Convolutions of the tower of the classes, and of that of the boxes."""
    attention: bool = False
    """Weigh the places of every map before the towers."""


class Dense(NamedTuple):
    """What a head says of every place of every level, the finest level first."""

    logits_BNK: Tensor
    """Of the classes."""
    distances_BN4: Tensor
    """From the place to the left, top, right and bottom of its box, in pixels."""
    centre_BN: Tensor
    """Logit of being in the middle of the box."""


class FCOSHead(nn.Module):
    """Two towers that all levels share, and a scale of the distances for each level."""

    def __init__(self, shape: HeadShape, strides: Sequence[int]) -> None:
        """Build the towers for maps of so many pixels between places."""
        super().__init__()
        self.shape, self.strides = shape, tuple(strides)
        width = shape.width
        self.attention = SpatialAttention() if shape.attention else nn.Identity()
        self.naming = _tower(width, shape.towers)
        self.boxing = _tower(width, shape.towers)
        self.logits = nn.Conv2d(width, shape.classes, 3, padding=1)
        self.distances = nn.Conv2d(width, 4, 3, padding=1)
        self.centre = nn.Conv2d(width, 1, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(len(self.strides)))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)
        nn.init.constant_(self.logits.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> Dense:
        """Return what all places of a pyramid say."""
        logits, distances, centres = [], [], []
        for number, (x_BCHW, stride) in enumerate(zip(maps, self.strides, strict=True)):
            x_BCHW = self.attention(x_BCHW)
            boxing_BCHW = self.boxing(x_BCHW)
            logits.append(_rows(self.logits(self.naming(x_BCHW))))
            log_BM4 = _rows(self.distances(boxing_BCHW)) * self.scales[number]
            distances.append(log_BM4.clamp(max=MOST).exp() * stride)
            centres.append(_rows(self.centre(boxing_BCHW))[..., 0])
        return Dense(torch.cat(logits, 1), torch.cat(distances, 1), torch.cat(centres, 1))


def _tower(width: int, count: int) -> nn.Sequential:
    layers = [unit(width, width, "group") for _ in range(count)]
    return nn.Sequential(*layers)


def _rows(x_BCHW: Tensor) -> Tensor:
    """Return maps as (B, H * W, C)."""
    return x_BCHW.flatten(2).transpose(1, 2)
