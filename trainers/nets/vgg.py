"""VGG: two to four 3x3 convolutions and a pooling, again and again, then fully connected layers.

Source: Simonyan and Zisserman, Very Deep Convolutional Networks (ICLR 2015), table 1.

Shape legend: B batch, C channels, H height, W width, K classes; h, w of a window, N windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from torch import Tensor, nn

from trainers.nets.backbone import Backbone, named, scaled
from trainers.nets.convnet import MaxPool2d, he_init

CONVOLUTIONS = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""Convolutions of each of the five blocks, by the depth of the net."""
CHANNELS = (64, 128, 256, 512, 512)


@dataclass(frozen=True)
class Head:
    """The fully connected layers of a VGG."""

    classes: int = 1000
    hidden: int = 4096
    """Units of both hidden layers."""
    side: int = 224
    """Height and width of the pictures; every pooling halves it, rounded down."""
    dropout: float = 0.5


class VGG(Backbone):
    """Classify pictures; layers are named conv1_1, relu1_1, ..., pool1, conv2_1, ..., pool5.

    Takes x_BCHW of ``head.side`` pixels for logits; ``features`` takes any size. VGG-16 with 1,000
    classes has 138,357,544 parameters, 123,642,856 of them in the three linear layers.
    """

    def __init__(
        self,
        depth: int = 16,
        width: float = 1.0,
        norm: bool = False,
        head: Head | None = None,
        inputs: int = 3,
    ) -> None:
        """Build the layers; ``width`` scales the channels, ``norm`` adds BatchNorm.

        Raises KeyError for a depth other than 11, 13, 16 and 19.
        """
        super().__init__()
        head = head or Head()
        channels = list(scaled(CHANNELS, width))
        blocks = [
            list(_block(number, count, (before, after), norm))
            for number, count, before, after in zip(
                range(1, 6), CONVOLUTIONS[depth], [inputs, *channels], channels, strict=False
            )
        ]
        self.layers = named(layer for block in blocks for layer in block)
        self.ends = [len(block) for block in blocks]
        self.channels, self.strides = {}, {}
        for number, block in enumerate(blocks):
            for name, layer in block:
                self.channels[name] = channels[number]
                self.strides[name] = 2 ** (number + isinstance(layer, nn.MaxPool2d))
        self.grid = head.side // 32
        self.head = nn.Sequential(
            nn.Flatten(),
            *_hidden(channels[-1] * self.grid**2, head),
            *_hidden(head.hidden, head),
            nn.Linear(head.hidden, head.classes),
        )
        he_init(self)

    def parts(self) -> list[nn.Module]:
        """Return the blocks, each with its pooling."""
        layers = iter(self.layers)
        return [nn.Sequential(*islice(layers, count)) for count in self.ends]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return logits_BK: of larger pictures the mean over all places of the head.

        Source: section 3.2 of the paper, which tests with the linear layers as convolutions.
        """
        x_BCHW = self.layers(self.inputs(x_BCHW))
        windows_BCHWhw = x_BCHW.unfold(2, self.grid, 1).unfold(3, self.grid, 1)
        places = windows_BCHWhw.shape[2] * windows_BCHWhw.shape[3]
        at_NChw = windows_BCHWhw.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        logits_NK: Tensor = self.head(at_NChw)
        return logits_NK.reshape(-1, places, logits_NK.shape[1]).mean(1)


def _block(
    number: int, count: int, channels: tuple[int, int], norm: bool
) -> Iterator[tuple[str, nn.Module]]:
    before, after = channels
    for place in range(1, count + 1):
        yield f"conv{number}_{place}", nn.Conv2d(before, after, 3, padding=1)
        if norm:
            yield f"norm{number}_{place}", nn.BatchNorm2d(after)
        # Not in place: whoever asks for the map of the convolution gets that map.
        yield f"relu{number}_{place}", nn.ReLU()
        before = after
    yield f"pool{number}", MaxPool2d(2)


def _hidden(before: int, head: Head) -> tuple[nn.Module, ...]:
    return nn.Linear(before, head.hidden), nn.ReLU(), nn.Dropout(head.dropout)
