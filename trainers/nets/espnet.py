"""ESPNetV2: stages of depthwise dilated convolutions whose results are added in a hierarchy.

Source: Mehta et al., ESPNetv2 (CVPR 2019), and the authors' code.

Shape legend: B batch, C channels, O output channels, H height, W width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

PATHS = 4
"""Parallel dilated convolutions of a unit, and groups of its 1x1 convolutions."""
LIMITS = (13, 11, 9, 7)
"""Largest effective kernel at each level."""
REPEATS = (0, 3, 7)
"""Units behind the downsampling of levels 2, 3 and 4."""


def widths(scale: float) -> tuple[int, int, int, int]:
    """Return the channels of the levels at strides 2, 4, 8 and 16: 32, 96, 192, 384 for 1.5."""
    base = math.ceil(32 * scale / 4) * 4
    return min(base, 32), 2 * base, 4 * base, 8 * base


def conv(channels: int, out: int, side: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return a convolution with a normalisation behind it."""
    layer = nn.Conv2d(channels, out, side, stride, side // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(out))


def active(channels: int, out: int, side: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return a convolution with a normalisation and a PReLU behind it."""
    return nn.Sequential(*conv(channels, out, side, stride, groups), nn.PReLU(out))


class EESP(nn.Module):
    """Reduce, convolve at several dilations, add each to the next, join and expand.

    Args:
        channels: of the input.
        out: channels of the output; at stride 1 and of equal number the input is added.
        limit: largest effective kernel; wider ones fall back to 3.
        stride: 2 halves the map, and leaves the activation to the one who joins it.
    """

    def __init__(self, channels: int, out: int, limit: int, stride: int = 1) -> None:
        super().__init__()
        inner = out // PATHS
        sides = [3 + 2 * path for path in range(PATHS)]
        dilations = sorted(side // 2 if side <= limit else 1 for side in sides)
        self.reduce = active(channels, inner, 1, groups=PATHS)
        self.dilated = nn.ModuleList(
            nn.Conv2d(inner, inner, 3, stride, d, d, inner, bias=False) for d in dilations
        )
        self.joined = nn.Sequential(nn.BatchNorm2d(out), nn.PReLU(out))
        self.expand = conv(out, out, 1, groups=PATHS)
        self.adds = stride == 1 and channels == out
        self.activation = nn.PReLU(out) if stride == 1 else nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return y_BOHW."""
        reduced_BCHW = self.reduce(x_BCHW)
        found: list[Tensor] = []
        for layer in self.dilated:
            y_BCHW = layer(reduced_BCHW)
            found.append(y_BCHW + found[-1] if found else y_BCHW)
        y_BOHW = self.expand(self.joined(torch.cat(found, 1)))
        result: Tensor = self.activation(y_BOHW + x_BCHW if self.adds else y_BOHW)
        return result


class Downsample(nn.Module):
    """Halve a map: its average beside an EESP of stride 2, and the picture added once more."""

    def __init__(self, channels: int, out: int, limit: int) -> None:
        super().__init__()
        self.unit = EESP(channels, out - channels, limit, stride=2)
        self.reinforce = nn.Sequential(*active(3, 3, 3), *conv(3, out, 1))
        self.activation = nn.PReLU(out)

    def forward(self, x_BCHW: Tensor, picture_B3HW: Tensor) -> Tensor:
        """Return y_BOHW of half the height and width."""
        y_BOHW = torch.cat([halved(x_BCHW), self.unit(x_BCHW)], 1)
        while picture_B3HW.shape[2:] != y_BOHW.shape[2:]:
            picture_B3HW = halved(picture_B3HW)
        result: Tensor = self.activation(y_BOHW + self.reinforce(picture_B3HW))
        return result


def halved(x_BCHW: Tensor) -> Tensor:
    """Return the average of 3x3 pixels at every second one."""
    return functional.avg_pool2d(x_BCHW, 3, 2, 1)


class ESPNetV2(nn.Module):
    """The encoder: maps of strides 2, 4, 8 and 16 with ``channels`` values a pixel."""

    def __init__(self, scale: float = 1.5) -> None:
        super().__init__()
        self.channels = widths(scale)
        first, *_ = self.channels
        self.start = active(3, first, 3, 2)
        pairs = zip(self.channels, self.channels[1:], strict=False)
        self.downs = nn.ModuleList(
            Downsample(before, after, limit)
            for (before, after), limit in zip(pairs, LIMITS, strict=False)
        )
        self.units = nn.ModuleList(
            nn.Sequential(*(EESP(width, width, limit) for _ in range(count)))
            for width, limit, count in zip(self.channels[1:], LIMITS[1:], REPEATS, strict=True)
        )

    def forward(self, x_B3HW: Tensor) -> list[Tensor]:
        """Return the maps from the finest to the coarsest."""
        found: list[Tensor] = [self.start(x_B3HW)]
        for down, units in zip(self.downs, self.units, strict=True):
            found.append(units(down(found[-1], x_B3HW)))
        return found
