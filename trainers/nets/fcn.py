"""Naming every pixel in one pass: FCN on a VGG, and the patch-wise classifier it replaces.

Shape legend: B batch, C channels, H height, W width, K classes, R side of a window.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.nets.convnet import MaxPool2d, he_init
from trainers.nets.vgg import VGG

POOLS = ("pool4", "pool3")
"""Where finer scores come from, after those of pool5."""


class FCN(nn.Module):
    """A VGG whose linear layers became convolutions, with scores of finer layers added.

    Takes x_BCHW of any size and returns logits_BKHW. ``skips`` is 0 for FCN-32s, 1 for FCN-16s
    and 2 for FCN-8s. Source: Long, Shelhamer and Darrell (CVPR 2015); instead of the
    paper's 100 pixels around, pictures are padded to whole strides, and answers cut.
    """

    def __init__(self, vgg: VGG, classes: int, skips: int = 2, fine: bool = False) -> None:
        """Take over the layers of a VGG; ``fine`` leaves out its first pooling.

        Strides are then half as long, for pictures that are smaller than a photograph.
        """
        super().__init__()
        self.head = convolutional(vgg)
        self.vgg, vgg.head = vgg, nn.Identity()
        if fine:
            vgg.layers.pool1 = nn.Identity()
        self.stride = 16 if fine else 32
        hidden = [layer.out_channels for layer in self.head if isinstance(layer, nn.Conv2d)][-1]
        self.score = nn.Conv2d(hidden, classes, 1)
        self.sides = nn.ModuleDict(
            {name: nn.Conv2d(vgg.channels[name], classes, 1) for name in POOLS[:skips]}
        )
        for side in self.sides.values():  # finer scores start at zero, as in the paper
            for parameter in side.parameters():
                nn.init.zeros_(parameter)
        self.twice = nn.ModuleDict({name: bilinear_up(classes, 2) for name in self.sides})
        self.last = bilinear_up(classes, self.stride // 2**skips)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return logits_BKHW."""
        height, width = x_BCHW.shape[2:]
        whole_BCHW = functional.pad(x_BCHW, (0, -width % self.stride, 0, -height % self.stride))
        maps = self.vgg.features(whole_BCHW, *self.sides, "pool5")
        score_BKHW = self.score(self.head(maps["pool5"]))
        for name, side in self.sides.items():
            score_BKHW = self.twice[name](score_BKHW) + side(maps[name])
        logits_BKHW: Tensor = self.last(score_BKHW)[..., :height, :width]
        return logits_BKHW


def convolutional(vgg: VGG) -> nn.Sequential:
    """Return the hidden layers of a VGG's head as convolutions with the same weights.

    Where the whole window lies in the map they answer what the linear layers would.
    """
    layers: list[nn.Module] = []
    channels = vgg.channels["pool5"]
    for layer in list(vgg.head.children())[1:-1]:  # between flattening and the names of classes
        if isinstance(layer, nn.Linear):
            side = round((layer.in_features // channels) ** 0.5)
            convolution = nn.Conv2d(channels, layer.out_features, side, padding=side // 2)
            shape = convolution.weight.shape
            convolution.weight = nn.Parameter(layer.weight.detach().view(shape).clone())
            convolution.bias = nn.Parameter(layer.bias.detach().clone())
            channels = layer.out_features
            layers.append(convolution)
        else:
            layers.append(layer)
    return nn.Sequential(*layers)


def bilinear_up(channels: int, factor: int) -> nn.ConvTranspose2d:
    """Return a transposed convolution of each channel that begins as bilinear interpolation.

    ``factor`` is even; maps grow by it along each side.
    """
    layer = nn.ConvTranspose2d(
        channels, channels, 2 * factor, factor, factor // 2, groups=channels, bias=False
    )
    away = (torch.arange(2 * factor) - factor + 0.5).abs() / factor
    with torch.no_grad():
        layer.weight.copy_(((1 - away)[:, None] * (1 - away)).expand_as(layer.weight))
    return layer


class PatchNet(nn.Module):
    """Name a pixel from the window around it: a CNN that ends in linear layers.

    ``window`` classifies windows; ``patchwise`` does so for every pixel, one forward each, as one
    did before FCN; ``forward`` gives the same logits in one pass, in which nothing is computed
    twice: strides of poolings become dilations of what follows. ``forwards`` counts the passes.
    """

    side = 22
    """Height and width of a window: two convolutions and two poolings leave 4 x 4."""

    def __init__(self, classes: int, width: int = 16, hidden: int = 64) -> None:
        """Build the layers; ``width`` is the first convolution's, the second's is twice that."""
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3), nn.ReLU(), MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3), nn.ReLU(), MaxPool2d(2),
        )  # fmt: skip
        self.hidden, self.score = nn.Linear(2 * width * 16, hidden), nn.Linear(hidden, classes)
        self.forwards = 0
        he_init(self)

    def window(self, x_BCRR: Tensor) -> Tensor:
        """Return logits_BK of windows."""
        self.forwards += 1
        flat_BC = self.features(x_BCRR).flatten(1)
        logits_BK: Tensor = self.score(self.hidden(flat_BC).relu())
        return logits_BK

    def patchwise(self, x_BCHW: Tensor) -> Tensor:
        """Return logits_BKHW from as many forwards as a picture has pixels."""
        height, width = x_BCHW.shape[2:]
        padded_BCHW = self._padded(x_BCHW)
        rows = [
            torch.stack(
                [
                    self.window(padded_BCHW[..., y : y + self.side, x : x + self.side])
                    for x in range(width)
                ],
                2,
            )
            for y in range(height)
        ]
        return torch.stack(rows, 2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return logits_BKHW from one forward."""
        self.forwards += 1
        step, x_BCHW = 1, self._padded(x_BCHW)
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                x_BCHW = functional.conv2d(x_BCHW, layer.weight, layer.bias, dilation=step)
            elif isinstance(layer, nn.MaxPool2d):
                x_BCHW = functional.max_pool2d(x_BCHW, 2, stride=1, dilation=step)
                step *= 2
            else:
                x_BCHW = layer(x_BCHW)
        filters = self.hidden.weight.view(len(self.hidden.weight), -1, 4, 4)
        x_BCHW = functional.conv2d(x_BCHW, filters, self.hidden.bias, dilation=step).relu()
        return functional.conv2d(x_BCHW, self.score.weight[..., None, None], self.score.bias)

    def _padded(self, x_BCHW: Tensor) -> Tensor:
        before, after = self.side // 2, self.side - self.side // 2 - 1
        return functional.pad(x_BCHW, (before, after, before, after), mode="reflect")
