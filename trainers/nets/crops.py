"""What R-CNN sees: regions cut out of the picture and warped to one size, one run for each.

Source: Girshick, Donahue, Darrell and Malik, R-CNN (2014), section 2 and appendices A to C.

Shape legend: B batch, C channels, H height, W width, R regions, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.vision import roi_align
from trainers.blocks.rows import pieces
from trainers.nets.vgg import VGG, Head
from trainers.nets.vovnet import norm_of

CHUNK = 256
"""Regions that the net sees at once where no gradient is asked for."""
LARGE = 64
"""Pixels of a region from which there is more than one place behind the last pooling."""
LENGTH = 4.0
"""Of features that support vector machines and regressors learn from."""


def warped(x_BCHW: Tensor, boxes: Sequence[Tensor], side: int, context: float) -> Tensor:
    """Return regions as [R, C, side, side], whatever shape they have.

    Args:
        x_BCHW: normalised pictures; what lies beyond them is their mean colour.
        boxes: [r, 4] of each picture.
        side: height and width.
        context: pixels, of the warped region, that are shown around each box.
    """
    share = side / (side - 2 * context)
    around = []
    for boxes_r4 in boxes:
        middle_r2 = (boxes_r4[:, :2] + boxes_r4[:, 2:]) / 2
        half_r2 = (boxes_r4[:, 2:] - boxes_r4[:, :2]) / 2 * share
        around.append(torch.cat([middle_r2 - half_r2, middle_r2 + half_r2], 1))
    # A border of the mean colour: the reading repeats a picture's last pixels.
    most = 1 + int(max(x_BCHW.shape[2:]) * (share - 1) / 2)
    padded_BCHW = functional.pad(x_BCHW, (most, most, most, most))
    return roi_align(padded_BCHW, [one + most for one in around], side, 1.0, sampling_ratio=2)


class CropNet(nn.Module):
    """A VGG that names a warped region: one of the classes, or nothing."""

    def __init__(self, classes: int, side: int, width: float, hidden: int) -> None:
        """Build it for regions of ``side`` pixels."""
        super().__init__()
        self.classes, self.side = classes, side
        self.vgg = VGG(11, width, True, Head(classes + 1, hidden, side, 0.0))
        # What learns from its features must find the same ones on every worker, so there are no
        # running means of each one's own minibatches.
        for name, layer in list(self.vgg.layers.named_children()):
            if isinstance(layer, nn.BatchNorm2d):
                setattr(self.vgg.layers, name, norm_of(layer.num_features, "group"))

    def forward(self, crops_RCHW: Tensor) -> Tensor:
        """Return logits_RK of the classes and of nothing."""
        logits_RK: Tensor = self.vgg(crops_RCHW)
        return logits_RK

    @property
    def _head(self) -> nn.Sequential:
        return cast("nn.Sequential", self.vgg.head)

    @torch.no_grad()
    def seen(self, crops_RCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last hidden layer, and the map of a pooling, as features_RF each.

        Of small regions it is the last pooling but one: it knows what lies where. Of regions of 64
        pixels and more it is the last one, as in the paper.
        """
        ahead = self.vgg.ends[-1] if self.side < LARGE else 0
        layers = list(self.vgg.layers)
        first, rest = layers[: len(layers) - ahead], layers[len(layers) - ahead :]
        hidden, places = [], []
        for part in pieces(crops_RCHW, CHUNK):
            for layer in first:
                part = layer(part)
            places.append(part.flatten(1))
            for layer in rest:
                part = layer(part)
            hidden.append(self._head[:-1](part))
        return torch.cat(hidden), torch.cat(places)

    @property
    def place_features(self) -> int:
        """Return how many features the map of the pooling has."""
        name, strides = ("pool4", 16) if self.side < LARGE else ("pool5", 32)
        return self.vgg.channels[name] * (self.side // strides) ** 2

    def named(self, features_RF: Tensor) -> Tensor:
        """Return logits_RK of features."""
        logits_RK: Tensor = self._head[-1](features_RF)
        return logits_RK


def even(features_RF: Tensor) -> Tensor:
    """Return features of one length, as what is linear in them wants them."""
    return LENGTH * functional.normalize(features_RF, dim=1)


class BoxRegressor(nn.Module):
    """For each class how a box should move, linear in the features of its region."""

    def __init__(self, features: int, classes: int) -> None:
        """Start with boxes that stay."""
        super().__init__()
        self.linear = nn.Linear(features, 4 * classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features_RF: Tensor) -> Tensor:
        """Return deltas_RK4."""
        deltas_RK4: Tensor = self.linear(features_RF).unflatten(1, (-1, 4))
        return deltas_RK4

    def penalty(self) -> Tensor:
        """Return the squared length of the weights."""
        return self.linear.weight.square().sum()
