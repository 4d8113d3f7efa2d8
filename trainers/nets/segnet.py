"""SegNet: an encoder that remembers where its maxima were, and a decoder that puts them there.

Source: Badrinarayanan, Kendall and Cipolla, SegNet (PAMI 2017).

Shape legend: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from trainers.nets.convnet import he_init
from trainers.nets.vgg import CHANNELS, CONVOLUTIONS

Stages = Sequence[tuple[int, int]]
"""Convolutions and channels of each stage; a pooling follows every one."""
VGG16: Stages = tuple(zip(CONVOLUTIONS[16], CHANNELS, strict=True))


def basic(width: int = 64) -> Stages:
    """Return the stages of SegNet-Basic: four of one convolution."""
    return ((1, width),) * 4


class SegNet(nn.Module):
    """Convolutions, BatchNorm and ReLU down four or five poolings and up again, nothing linear.

    Takes x_BCHW of any size from 32 on and returns logits_BKHW. With the stages of ``VGG16`` it
    has the 13 convolutions of its encoder twice.
    """

    def __init__(
        self,
        classes: int,
        stages: Stages = VGG16,
        kernel: int = 3,
        upsample: str = "index",
        contrast: int = 0,
    ) -> None:
        """Build the layers.

        ``upsample`` is ``index`` (maxima go back to where they were) or ``bilinear``;
        ``contrast`` is the side of the window of local contrast normalisation, 0 for none.
        """
        super().__init__()
        self.upsample, self.contrast = upsample, contrast
        widths = [3, *(channels for _, channels in stages)]
        counts = [count for count, _ in stages]
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        for count, (before, after) in zip(counts, itertools.pairwise(widths), strict=True):
            self.encoder.append(_row([before] + [after] * count, kernel))
            self.decoder.insert(0, _row([after] * count + [before], kernel))
        # The last convolution of the last stage gives the classes; it has to have one before it.
        first = widths[1]
        self.decoder[-1] = _row([first] * max(counts[0], 2), kernel)
        he_init(self)
        self.score = nn.Conv2d(first, classes, kernel, padding=kernel // 2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return logits_BKHW."""
        if self.contrast:
            x_BCHW = local_contrast(x_BCHW, self.contrast)
        kept = []
        for encoder in self.encoder:
            x_BCHW = encoder(x_BCHW)
            size = x_BCHW.shape[2:]
            x_BCHW, places_BCHW = functional.max_pool2d(x_BCHW, 2, return_indices=True)
            kept.append((size, places_BCHW))
        for decoder in self.decoder:
            size, places_BCHW = kept.pop()
            if self.upsample == "index":
                x_BCHW = functional.max_unpool2d(x_BCHW, places_BCHW, [2, 2], output_size=size)
            else:
                x_BCHW = functional.interpolate(x_BCHW, size, mode="bilinear")
            x_BCHW = decoder(x_BCHW)
        logits_BKHW: Tensor = self.score(x_BCHW)
        return logits_BKHW


def local_contrast(x_BCHW: Tensor, side: int) -> Tensor:
    """Return each value less its neighbourhood's mean, over its standard deviation.

    ``side`` is odd: the height and width in pixels of the neighbourhood, cut off at the frame.
    """
    away_BCHW = x_BCHW - _around(x_BCHW, side)
    return away_BCHW / (_around(away_BCHW.square(), side) + 1e-2).sqrt()


def _around(x_BCHW: Tensor, side: int) -> Tensor:
    return functional.avg_pool2d(x_BCHW, side, 1, side // 2, count_include_pad=False)


def _row(widths: Sequence[int], kernel: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers.append(nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False))
        layers += [nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)
