"""A feature pyramid: maps of several scales that all know what is in the picture.

Source: Lin et al., Feature Pyramid Networks (2017); P6 and P7 as in RetinaNet (2017).

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional


class FeaturePyramid(nn.Module):
    """Maps of one width, finest first: one for each given map, and coarser ones behind them."""

    def __init__(self, channels: Sequence[int], width: int = 256, extra: int = 2) -> None:
        """Build it.

        Args:
            channels: of the maps it gets, finest first, each of half the size of the one before.
            width: channels of the maps it returns.
            extra: maps that are made of the coarsest one by convolutions of stride 2.
        """
        super().__init__()
        self.width = width
        self.lateral = nn.ModuleList(nn.Conv2d(count, width, 1) for count in channels)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)
        self.coarser = nn.ModuleList(nn.Conv2d(width, width, 3, 2, 1) for _ in range(extra))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_uniform_(layer.weight, a=1)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the pyramid of maps, finest first."""
        above_BCHW = self.lateral[-1](maps[-1])
        found = [self.smooth[-1](above_BCHW)]
        for place in range(len(maps) - 2, -1, -1):
            own_BCHW = self.lateral[place](maps[place])
            above_BCHW = own_BCHW + functional.interpolate(above_BCHW, own_BCHW.shape[2:])
            found.insert(0, self.smooth[place](above_BCHW))
        for number, layer in enumerate(self.coarser):
            found.append(layer(found[-1].relu() if number else found[-1]))
        return found
