"""Segmentation networks that have room for a context module: tiny, ESPNetV2 and DeepLabv3+.

Each takes x_B3HW of any size and returns logits_BKHW of that size; ESPNetV2 has auxiliary logits
while it trains.

Sources: KR 10-2023-0017679, paragraphs 184 to 200; Mehta et al., ESPNetv2 (CVPR 2019); Chen et
al., DeepLabv3+ (ECCV 2018).

Shape legend: B batch, C channels, K classes, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.nets.espnet import EESP, ESPNetV2, active
from trainers.nets.pyramids import unit
from trainers.nets.resnet import ResNet, Shape
from trainers.road.contexts import Context, Wiring

TINY = (16, 32, 64, 72)
DROPOUT = 0.2


def sized(x_BCHW: Tensor, like: Tensor) -> Tensor:
    """Return a map at the height and width of another, bilinearly."""
    if x_BCHW.shape[2:] == like.shape[2:]:
        return x_BCHW
    return functional.interpolate(x_BCHW, like.shape[2:], mode="bilinear")


def joined(x_BCHW: Tensor, skip_BCHW: Tensor) -> Tensor:
    """Return a map, enlarged to a finer one, with the channels of that one."""
    return torch.cat([sized(x_BCHW, skip_BCHW), skip_BCHW], 1)


def plain(channels: int, out: int, side: int = 3, stride: int = 1) -> nn.Sequential:
    """Return a convolution with a normalisation and a ReLU."""
    return unit(nn.Conv2d(channels, out, side, stride, side // 2, bias=False), out)


class Tiny(nn.Module):
    """Two 3x3 convolutions a stage, 16 to 72 channels at strides 2 to 16; for a CPU."""

    def __init__(self, context: str, classes: int, wiring: Wiring) -> None:
        super().__init__()
        before = (3, *TINY)
        self.encoder = nn.ModuleList(
            nn.Sequential(plain(a, b, stride=2), plain(b, b))
            for a, b in zip(before, TINY, strict=False)
        )
        first, middle, fine, coarse = TINY
        self.context = Context(context, coarse, fine, wiring)
        self.lower = plain(coarse + fine, fine, 1)
        self.middle = plain(fine + middle, middle)
        self.upper = plain(middle + first, first)
        self.classify = nn.Conv2d(first, classes, 1)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """Return logits_BKHW."""
        maps = [x_B3HW]
        for stage in self.encoder:
            maps.append(stage(maps[-1]))
        _, first_BCHW, middle_BCHW, fine_BCHW, coarse_BCHW = maps
        y_BCHW = self.context(coarse_BCHW, fine_BCHW)
        y_BCHW = self.lower(joined(y_BCHW, fine_BCHW))
        y_BCHW = self.upper(joined(self.middle(joined(y_BCHW, middle_BCHW)), first_BCHW))
        return sized(self.classify(y_BCHW), x_B3HW)


class ESPNet(nn.Module):
    """ESPNetV2 for segmentation; at scale 1.5 the context module has 384 channels."""

    def __init__(self, context: str, classes: int, wiring: Wiring, scale: float = 1.5) -> None:
        super().__init__()
        self.encoder = ESPNetV2(scale)
        first, second, third, fourth = self.encoder.channels
        self.context = Context(context, fourth, third, replace(wiring, activation=nn.PReLU))
        self.project = active(fourth, third, 1)
        self.merge = EESP(2 * third, third, limit=7)
        self.auxiliary = nn.Sequential(nn.Dropout2d(DROPOUT), nn.Conv2d(third, classes, 1))
        self.again = nn.Sequential(nn.BatchNorm2d(classes), nn.PReLU(classes))
        self.second = active(classes + second, classes, 1)
        self.classify = nn.Sequential(nn.Dropout2d(DROPOUT), nn.Conv2d(classes + first, classes, 1))

    def forward(self, x_B3HW: Tensor) -> Tensor | dict[str, Tensor]:
        """Return logits_BKHW; while it trains as "out", beside those of the auxiliary head."""
        first_BCHW, second_BCHW, third_BCHW, fourth_BCHW = self.encoder(x_B3HW)
        y_BCHW = self.project(self.context(fourth_BCHW, third_BCHW))
        aux_BKHW = self.auxiliary(self.merge(joined(y_BCHW, third_BCHW)))
        y_BKHW = self.second(joined(self.again(aux_BKHW), second_BCHW))
        y_BKHW = sized(self.classify(joined(y_BKHW, first_BCHW)), x_B3HW)
        return {"out": y_BKHW, "aux": sized(aux_BKHW, x_B3HW)} if self.training else y_BKHW


class DeepLab(nn.Module):
    """DeepLabv3+ on ResNet-50 at stride 16; a 1x1 convolution brings 2048 channels to 256 first."""

    WIDTH, LOW = 256, 48

    def __init__(self, context: str, classes: int, wiring: Wiring) -> None:
        super().__init__()
        self.encoder = ResNet(Shape(50, output_stride=16))
        self.encoder.head = nn.Identity()
        channels, width = self.encoder.channels, self.WIDTH
        self.reduce = plain(channels["layer4"], width, 1)
        self.context = Context(context, width, channels["layer2"], wiring)
        self.low = plain(channels["layer1"], self.LOW, 1)
        self.decode = nn.Sequential(plain(width + self.LOW, width), plain(width, width))
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """Return logits_BKHW."""
        maps = self.encoder.features(x_B3HW, "layer1", "layer2", "layer4")
        y_BCHW = self.context(self.reduce(maps["layer4"]), maps["layer2"])
        y_BCHW = self.decode(joined(y_BCHW, self.low(maps["layer1"])))
        return sized(self.classify(y_BCHW), x_B3HW)


NETWORKS: dict[str, Callable[[str, int, Wiring], nn.Module]] = {
    "tiny": Tiny,
    "espnet": ESPNet,
    "deeplab": DeepLab,
}


def host(name: str, context: str, classes: int, wiring: Wiring) -> nn.Module:
    """Return a segmentation network by the names of host and context module."""
    return NETWORKS[name](context, classes, wiring)
