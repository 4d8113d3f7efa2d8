"""Plain convolutional classifiers in the manner of VGG: 3x3 filters, ReLU, pooling, He init.

Shape legend: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

CHANNELS = (16, 32, 64)
M = TypeVar("M", bound=nn.Module)


class DeepDigitCNN(nn.Module):
    """Classify 28x28 grey images with up to three blocks of two convolutions and a pooling.

    Takes x_B1HW in [0, 1] and returns logits_BK. With three blocks it has 123,552 parameters.
    Source: Saitoh, Deep Learning from Scratch (2016), chapter 8, after Simonyan and Zisserman.
    """

    def __init__(
        self,
        blocks: int = 3,
        dropout: float = 0.5,
        logit_dropout: float = 0.0,
        classes: int = 10,
    ) -> None:
        """Build the layers; ``blocks`` is 1 to 3, the dropouts are shares left out."""
        super().__init__()
        self.features = nn.Sequential(*(_block(stage) for stage in range(blocks)))
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(_flat_size(blocks), 50),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(50, classes),
            nn.Dropout(logit_dropout),
        )
        he_init(self)

    def units(self) -> list[nn.Module]:
        """Return the parts that follow one another: each block, and the head."""
        return [*self.features, self.head]

    def forward(self, x_B1HW: Tensor) -> Tensor:
        """Return logits_BK."""
        logits: Tensor = self.head(self.features(x_B1HW))
        return logits


class MaxPool2d(nn.MaxPool2d):
    """As ``torch.nn.MaxPool2d``, equal to the bit, in a fraction of its time on a processor.

    There torch compares the channels of a place all at once where they lie beside each other, and
    one value after the other where they do not, which takes longer than bringing them together.
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the greatest value of every window."""
        if x_BCHW.device.type != "cpu" or not x_BCHW.is_contiguous():
            found: Tensor = super().forward(x_BCHW)
            return found
        found = super().forward(x_BCHW.contiguous(memory_format=torch.channels_last))
        return found.contiguous()


def channels_last(net: M) -> M:
    """Keep the values of a place beside each other in memory, and return the network.

    Its convolutions take up to a quarter less time on a processor so, and in bf16 they are
    what the tensor cores of a GPU want; the flat vector of a group keeps the layout.
    """
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net


def he_init(net: nn.Module) -> None:
    """Draw every weight from N(0, 2 / fan_in) and set every bias to zero (He et al., 2015)."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def parameter_count(net: nn.Module) -> int:
    """Return the number of trainable values of a network."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def stack_parameters(filters: Sequence[int], channels: int) -> int:
    """Return the weights of stacked square filters that keep ``channels`` channels.

    Shows the idea of VGG: ``[3, 3]`` sees as much as ``[5]`` and ``[3, 3, 3]`` as much as
    ``[7]`` (see ``receptive_field``), with fewer weights and more ReLUs.
    """
    return sum(size * size * channels * channels for size in filters)


def receptive_field(filters: Sequence[int]) -> int:
    """Return the width in pixels that stacked filters of stride 1 see."""
    return 1 + sum(size - 1 for size in filters)


def small_cnn(size: int, width: int, classes: int) -> nn.Sequential:
    """Return a quick classifier of ``size`` x ``size`` grey images: two strided convolutions."""
    flat = 2 * width * (size // 4) ** 2
    net = nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(flat, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )
    he_init(net)
    return net


def _block(stage: int) -> nn.Sequential:
    before = CHANNELS[stage - 1] if stage else 1
    # The book pads its fourth convolution by 2, so that 14 pixels become 16, 8 and then 4.
    second_padding = 2 if stage == 1 else 1
    return nn.Sequential(
        nn.Conv2d(before, CHANNELS[stage], 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(CHANNELS[stage], CHANNELS[stage], 3, padding=second_padding),
        nn.ReLU(inplace=True),
        MaxPool2d(2),
    )


def _flat_size(blocks: int) -> int:
    side = (14, 8, 4)[blocks - 1]
    return CHANNELS[blocks - 1] * side * side
