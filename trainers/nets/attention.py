"""Spatial attention: where in a map to look, from the mean and the largest of its channels.

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SpatialAttention(nn.Module):
    """Weigh every place of a map by 0 to 1.

    Source: Woo et al., CBAM (2018), equation 3, with the 3x3 kernel of CenterMask (2020).
    """

    def __init__(self, side: int = 3) -> None:
        """Build its one convolution of two channels to one, without a bias."""
        super().__init__()
        self.conv = nn.Conv2d(2, 1, side, padding=side // 2, bias=False)

    def weights(self, x_BCHW: Tensor) -> Tensor:
        """Return the weights_B1HW of the places."""
        seen_B2HW = torch.cat([x_BCHW.mean(1, keepdim=True), x_BCHW.amax(1, keepdim=True)], 1)
        weights_B1HW: Tensor = self.conv(seen_B2HW).sigmoid()
        return weights_B1HW

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the map with its places weighed."""
        return x_BCHW * self.weights(x_BCHW)
