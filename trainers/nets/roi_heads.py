"""Heads that look at regions of a pyramid: masks, joints and states.

Sources: CenterMask (2020), section 3.2, for masks; Mask R-CNN (2017), section 5, for joints.

Shape legend: R regions, C channels, H height, W width, K classes, J joints, S states, G numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.nets.attention import SpatialAttention
from trainers.nets.vovnet import norm_of

BINS = 14
"""Height and width of what heads get of a region."""
FINE = 2 * BINS
"""Of a mask."""
HEAT = 4 * BINS
"""Of a heatmap of a joint."""


MEASURES = 3
"""Numbers of a box: its shape, its size, and how low it is in the picture."""


class MaskHead(nn.Module):
    """Convolutions, spatial attention and a mask of every class: logits_RKHW of 28 x 28."""

    def __init__(
        self, inputs: int, classes: int, width: int = 256, convs: int = 4, attention: bool = True
    ) -> None:
        """Build it for maps of so many channels; without attention all places count alike."""
        super().__init__()
        self.convs = _convs(inputs, width, convs)
        self.attention = SpatialAttention() if attention else nn.Identity()
        self.enlarge = nn.ConvTranspose2d(width, width, 2, 2)
        self.masks = nn.Conv2d(width, classes, 1)
        _init(self)

    def forward(self, regions_RCHW: Tensor) -> Tensor:
        """Return logits_RKHW."""
        seen_RCHW = self.attention(self.convs(regions_RCHW))
        logits_RKHW: Tensor = self.masks(self.enlarge(seen_RCHW).relu())
        return logits_RKHW


class JointHead(nn.Module):
    """Convolutions and a heatmap of every joint: logits_RJHW of 56 x 56, over its places.

    Two channels tell the convolutions where in the region they are (Liu et al., CoordConv, 2018):
    without them it takes many times the minibatches to learn that heads are above feet.
    """

    def __init__(self, inputs: int, joints: int, width: int = 512, convs: int = 8) -> None:
        """Build it for maps of so many channels."""
        super().__init__()
        self.convs = _convs(inputs + 2, width, convs)
        self.enlarge = nn.ConvTranspose2d(width, joints, 4, 2, 1)
        _init(self)

    def forward(self, regions_RCHW: Tensor) -> Tensor:
        """Return logits_RJHW."""
        along_W = torch.linspace(-1, 1, regions_RCHW.shape[-1], device=regions_RCHW.device)
        grid = torch.meshgrid(along_W, along_W, indexing="ij")
        # A length would be a constant of a trace.
        place_R2HW = torch.stack(grid).expand(regions_RCHW.shape[0], -1, -1, -1)
        half_RJHW = self.enlarge(self.convs(torch.cat([regions_RCHW, place_R2HW], 1)))
        return functional.interpolate(
            half_RJHW, scale_factor=2.0, mode="bilinear", align_corners=False
        )


class StateHead(nn.Module):
    """The state of a person, from its region, mask and joints together: logits_RS.

    What is seen of the region, the mask and the heatmaps are joined as channels of 14 x 14; the
    measures of the box and of the joints come, as numbers, behind the convolutions.
    """

    def __init__(
        self, channels: int, joints: int, states: int, inputs: Sequence[str], width: int = 64
    ) -> None:
        """Build it.

        Args:
            channels: of the regions.
            joints: heatmaps of a region.
            states: to tell apart.
            inputs: what it looks at, of box, mask and joints.
            width: channels of its layers.
        """
        super().__init__()
        self.inputs = tuple(inputs)
        self.own = _convs(channels, width, 2) if "box" in inputs else None
        joined = width * ("box" in inputs) + ("mask" in inputs) + joints * ("joints" in inputs)
        self.convs = _convs(joined, width, 3, halved=True)
        numbers = MEASURES + 3 * joints * ("joints" in inputs)
        self.first = nn.Linear(width + numbers, width)
        self.last = nn.Linear(width, states)
        _init(self)

    def forward(
        self, regions_RCHW: Tensor, masks_R1HW: Tensor, heat_RJHW: Tensor, measures_RG: Tensor
    ) -> Tensor:
        """Return logits_RS, of the chances of the pixels and of the places of joints."""
        seen = [self.own(regions_RCHW)] if self.own is not None else []
        if "mask" in self.inputs:
            seen.append(functional.adaptive_avg_pool2d(masks_R1HW, BINS))
        if "joints" in self.inputs:
            seen.append(functional.adaptive_max_pool2d(heat_RJHW, BINS))
        else:
            measures_RG = measures_RG[:, :MEASURES]
        pooled_RC = self.convs(torch.cat(seen, 1)).mean((2, 3))
        logits_RS: Tensor = self.last(self.first(torch.cat([pooled_RC, measures_RG], 1)).relu())
        return logits_RS


def _convs(before: int, width: int, count: int, halved: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for place in range(count):
        conv = nn.Conv2d(before, width, 3, 2 if halved and place else 1, 1, bias=False)
        layers += [conv, norm_of(width, "group"), nn.ReLU(inplace=True)]
        before = width
    return nn.Sequential(*layers)


def _init(net: nn.Module) -> None:
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
