"""Detectors of two stages: a net sees the whole picture once, heads look at regions of its map.

Sources: Girshick, Fast R-CNN (2015); Ren, He, Girshick and Sun, Faster R-CNN (2015); He et al.,
Mask R-CNN (2017); Cai and Vasconcelos, Cascade R-CNN (2018), for heads that follow each other.

Shape legend: B batch, C channels, H height, W width of a map, R regions of all pictures, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.blocks.rows import parted
from trainers.nets.backbone import Backbone, named
from trainers.nets.rcnn import BoxHead, best_moved, read_regions
from trainers.nets.roi_heads import MaskHead
from trainers.nets.rpn import ProposalNet

MASK_BINS = 14
"""Height and width of what a mask head gets of a region."""


class Trunk(nn.Module):
    """The first layers of a net for pictures: the map of one, or of several joined."""

    def __init__(self, backbone: Backbone, names: Sequence[str], joined: int = 0) -> None:
        """Take the layers up to the last of some names; what is behind them is left out.

        Several maps are ``joined`` to one of so many channels.
        """
        super().__init__()
        self.names = tuple(names)
        last = self.names[-1]
        rows = list(backbone.layers.named_children())
        before = list(takewhile(lambda row: row[0] != last, rows))
        self.layers = named([*before, rows[len(before)]])
        self.channels = sum(backbone.channels[name] for name in names)
        self.join: nn.Module = nn.Identity()
        if joined:
            self.join = nn.Sequential(nn.Conv2d(self.channels, joined, 1), nn.ReLU())
            self.channels = joined
        self.stride = backbone.strides[self.names[0]]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return map_BCHW."""
        found: list[Tensor] = []
        for name, layer in self.layers.named_children():
            x_BCHW = layer(x_BCHW)
            if name in self.names:
                found.append(x_BCHW)
        size = found[0].shape[2:]
        same = [functional.interpolate(one, size, mode="nearest") for one in found[1:]]
        map_BCHW: Tensor = self.join(torch.cat([found[0], *same], 1))
        return map_BCHW


@dataclass(frozen=True)
class Heads:
    """What looks at regions, and how."""

    classes: int
    pooling: str = "align"
    """align reads between pixels, pool takes the largest of whole ones."""
    bins: int = 7
    hidden: int = 128
    """Units of both hidden layers of the boxes' head."""
    passes: int = 1
    """How often regions are looked at, each time where the box was moved to."""
    shared: bool = True
    """All passes have one head; else one each."""
    masks: int = 0
    """Channels of the mask head; 0: none."""
    convs: int = 4
    """Convolutions of the mask head."""


class Pass(NamedTuple):
    """One look at regions."""

    boxes: list[Tensor]
    """[r, 4] of each picture."""
    logits_RK: Tensor
    """Of the classes, and of nothing."""
    deltas_RK4: Tensor

    @property
    def answer(self) -> tuple[Tensor, Tensor]:
        """Return logits and deltas."""
        return self.logits_RK, self.deltas_RK4


class TwoStageNet(nn.Module):
    """A trunk, a proposal network if there is one, and heads."""

    def __init__(self, trunk: Trunk, rpn: ProposalNet | None, heads: Heads) -> None:
        """Build the heads for the trunk's map."""
        super().__init__()
        self.trunk, self.rpn, self.shape = trunk, rpn, heads
        self.boxes = nn.ModuleList(
            BoxHead(trunk.channels, heads.classes, heads.bins, heads.hidden)
            for _ in range(1 if heads.shared else heads.passes)
        )
        self.masks: MaskHead | None = None
        if heads.masks:
            shape = (trunk.channels, heads.classes, heads.masks, heads.convs)
            self.masks = MaskHead(*shape, attention=False)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Return the map of pictures, and what the proposal network says of it."""
        map_BCHW: Tensor = self.trunk(x_BCHW)
        return (map_BCHW, *(self.rpn(map_BCHW) if self.rpn is not None else ()))

    def read(self, map_BCHW: Tensor, boxes: Sequence[Tensor], bins: int) -> Tensor:
        """Return what the map shows of regions."""
        return read_regions(map_BCHW, boxes, bins, self.trunk.stride, self.shape.pooling)

    def look(self, map_BCHW: Tensor, boxes: Sequence[Tensor], number: int = 0) -> Pass:
        """Look at regions for the first time, or for another."""
        head = self.boxes[number % len(self.boxes)]
        return Pass(list(boxes), *head(self.read(map_BCHW, boxes, self.shape.bins)))

    def passes(
        self, map_BCHW: Tensor, boxes: Sequence[Tensor], size: tuple[int, int], most: int = 0
    ) -> list[Pass]:
        """Look at regions again and again, where they were moved to; up to ``most`` times."""
        seen: list[Pass] = []
        for number in range(most or self.shape.passes):
            seen.append(self.look(map_BCHW, boxes, number))
            boxes = self.moved(seen[-1], size)
        return seen

    def moved(self, look: Pass, size: tuple[int, int]) -> list[Tensor]:
        """Return where a look moves its regions, in pictures of (height, width)."""
        boxes_R4 = best_moved(torch.cat(look.boxes), look.answer, size).detach()
        return list(parted(boxes_R4, look.boxes))
