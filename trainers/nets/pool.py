"""Max pooling that is quick on processors.

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
