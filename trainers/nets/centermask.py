"""CenterMask: an anchor-free detector with heads for masks, joints and states of what it found.

Source: Lee and Park, CenterMask (2020), arXiv:1911.06667.

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from trainers.nets.fcos import Dense, FCOSHead, HeadShape
from trainers.nets.fpn import FeaturePyramid
from trainers.nets.roi_heads import JointHead, MaskHead, StateHead
from trainers.nets.vovnet import VoVNet

MAPS = ("stage2", "stage3", "stage4", "stage5")


@dataclass(frozen=True)
class Body:
    """What a detector sees with."""

    backbone: str = "39"
    """A size of VoVNet."""
    norm: str = "batch"
    width: int = 256
    """Channels of the pyramid."""
    levels: int = 5
    """Maps of the pyramid that boxes are found on, from stride 8 on: 3 to 5."""
    fine: bool = False
    """Another map of stride 4, which regions alone are read from."""

    @property
    def strides(self) -> tuple[int, ...]:
        """Return the strides of the maps."""
        return tuple(8 * 2**level for level in range(self.levels))

    @property
    def stages(self) -> tuple[str, ...]:
        """Return the layers of the backbone that the pyramid is made of."""
        return MAPS if self.fine else MAPS[1:]


@dataclass(frozen=True)
class Regions:
    """Which heads look at regions, and how large they are."""

    masks: bool = False
    joints: int = 0
    attention: bool = True
    """Weigh the places of what masks are made of."""
    width: int = 256
    convs: int = 4
    """Convolutions of the mask head; the joints' has twice as many."""
    largest: int | None = None
    """Map that a region of the whole picture is read from, 0 for the finest (default: the last);
    each finer one is for half of the area."""
    states: int = 0
    inputs: tuple[str, ...] = ("box", "mask", "joints")
    """What states are told from."""


class CenterMask(nn.Module):
    """Backbone, pyramid and head of the boxes; ``masks`` and ``joints`` are heads of regions."""

    def __init__(self, body: Body, head: HeadShape, regions: Regions | None = None) -> None:
        """Build it; the head takes its width and number of levels from the body."""
        super().__init__()
        regions = regions or Regions()
        self.largest = regions.largest
        self.levels, self.stages = body.levels, body.stages
        self.strides = (4, *body.strides) if body.fine else body.strides
        """Of the maps that regions are read from."""
        self.backbone = VoVNet(body.backbone, body.norm)
        channels = [self.backbone.channels[name] for name in body.stages]
        self.pyramid = FeaturePyramid(channels, body.width, len(self.strides) - len(channels))
        self.head = FCOSHead(head, body.strides)
        wide, convs = regions.width, regions.convs
        self.masks = None
        if regions.masks:
            self.masks = MaskHead(body.width, head.classes, wide, convs, regions.attention)
        self.joints = None
        if regions.joints:
            self.joints = JointHead(body.width, regions.joints, wide, 2 * convs)
        self.states = None
        if regions.states:
            self.states = StateHead(body.width, regions.joints, regions.states, regions.inputs)

    @property
    def looks(self) -> bool:
        """Tell whether any head looks at regions."""
        return self.masks is not None or self.joints is not None

    def maps(self, x_BCHW: Tensor) -> list[Tensor]:
        """Return the pyramid of pictures, finest first."""
        found = self.backbone.features(x_BCHW, *self.stages)
        maps: list[Tensor] = self.pyramid([found[name] for name in self.stages])
        return maps

    def dense(self, maps: Sequence[Tensor]) -> Dense:
        """Return what every place of a pyramid says."""
        answer: Dense = self.head(maps[-self.levels :])
        return answer

    def forward(self, x_BCHW: Tensor) -> Dense:
        """Return what every place says of pictures."""
        return self.dense(self.maps(x_BCHW))
