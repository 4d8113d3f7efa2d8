"""Anchors: boxes of a few sizes and ratios at every place of a map, and what they should say.

The same words judge proposals: which are an object, which are not, and which of both to learn
from. Random choices come from torch's global generator, which the trainer seeds for each
minibatch.

Source: Ren, He, Girshick and Sun, Faster R-CNN (2015), sections 3.1.1 and 3.1.2.

Shape legend: A anchors or proposals, N objects, H and W places of a map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from trainers.blocks.boxes import covered, pair_iou
from trainers.data.instances import Instances

OBJECT, NOTHING, LEFT_OUT = 1, 0, -1
"""What an anchor is: of an object, of none, or neither is asked of it."""
HIDDEN = 0.5
"""Share of an anchor in an ignored object from which nothing is asked of it."""


@dataclass(frozen=True)
class Anchors:
    """Boxes at every place of a map: each size in each ratio."""

    sizes: tuple[float, ...] = (16.0, 32.0, 64.0)
    """Square roots of the areas, in pixels."""
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Heights by widths: 2:1, 1:1 and 1:2."""
    stride: int = 8
    """Pixels from one place of the map to the next."""

    def __len__(self) -> int:
        """Return how many there are at one place."""
        return len(self.sizes) * len(self.ratios)

    def boxes(self, height: int, width: int, like: Tensor) -> Tensor:
        """Return the boxes of a map of height x width places, place by place, row by row."""
        size_A = torch.tensor(self.sizes).repeat_interleave(len(self.ratios))
        ratio_A = torch.tensor(self.ratios).repeat(len(self.sizes)).sqrt()
        half_A2 = torch.stack([size_A / ratio_A, size_A * ratio_A], 1).to(like.device) / 2
        y_H = (torch.arange(height, dtype=torch.float32, device=like.device) + 0.5) * self.stride
        x_W = (torch.arange(width, dtype=torch.float32, device=like.device) + 0.5) * self.stride
        middle_HW2 = torch.stack(torch.meshgrid(x_W, y_H, indexing="xy"), -1)
        middle_A2 = middle_HW2.reshape(-1, 1, 2)
        return torch.cat([middle_A2 - half_A2, middle_A2 + half_A2], -1).reshape(-1, 4)


@dataclass(frozen=True)
class Overlap:
    """From which intersection over union on a box is an object, or is none."""

    high: float = 0.7
    """An object from here on."""
    low: float = 0.3
    """None below; between both nothing is asked."""
    floor: float = 0.0
    """Nothing is asked below this either: boxes far from everything teach little."""
    best: bool = True
    """The best boxes of every object are objects however little they overlap."""


ANCHOR, REGION = Overlap(), Overlap(high=0.5, low=0.5, best=False)
"""What is asked of the anchors of a proposal network, and of the regions of a head."""


class Judged(NamedTuple):
    """What each box is, and of which object."""

    kind_A: Tensor
    """OBJECT, NOTHING or LEFT_OUT."""
    object_A: Tensor
    """The number of the object that it overlaps most; 0 where there is none."""


def judge(boxes_A4: Tensor, truth: Instances, overlap: Overlap) -> Judged:
    """Say what boxes are, by how much of the objects of a picture they overlap."""
    kind_A = torch.full((len(boxes_A4),), LEFT_OUT, device=boxes_A4.device)
    object_A = torch.zeros_like(kind_A)
    ignored_N = truth.ignored_N
    real_N = torch.arange(len(truth.boxes_N4), device=boxes_A4.device)
    if ignored_N is not None:
        real_N = real_N[~ignored_N]
    iou_A = boxes_A4.new_zeros(len(boxes_A4))
    if len(real_N):
        iou_AN = pair_iou(boxes_A4, truth.boxes_N4[real_N])
        iou_A, object_A = iou_AN.max(1)
    kind_A[(iou_A < overlap.low) & (iou_A >= overlap.floor)] = NOTHING
    if ignored_N is not None and bool(ignored_N.any()):
        hidden_A = covered(boxes_A4, truth.boxes_N4[ignored_N]).amax(1) >= HIDDEN
        kind_A[hidden_A] = LEFT_OUT
    kind_A[iou_A >= overlap.high] = OBJECT
    if overlap.best and len(real_N) and len(boxes_A4):
        most_N = iou_AN.amax(0)
        best_AN = (iou_AN == most_N) & (most_N > 0)
        kind_A[best_AN.any(1)] = OBJECT
        # A box that is the best of an object is of that one, whatever else it overlaps more.
        object_A = torch.where(best_AN.any(1), best_AN.int().argmax(1), object_A)
    return Judged(kind_A, real_N[object_A] if len(real_N) else object_A)


def within(boxes_A4: Tensor, height: float, width: float) -> Tensor:
    """Return which_A boxes do not cross the border of a picture."""
    most_4 = boxes_A4.new_tensor([width, height, width, height])
    return ((boxes_A4 >= 0) & (boxes_A4 <= most_4)).all(1)


def choose(kind_A: Tensor, count: int, share: float) -> Tensor:
    """Return the numbers of up to ``count`` boxes, at most a ``share`` of them objects.

    Objects come first; where there are too few of one kind, the other fills up.
    """
    objects = _some(kind_A == OBJECT, int(count * share))
    nothing = _some(kind_A == NOTHING, count - len(objects))
    return torch.cat([objects, nothing])


def _some(which_A: Tensor, most: int) -> Tensor:
    found = which_A.nonzero().flatten()
    # Always one number for each box: what is drawn later does not depend on what is chosen.
    order = torch.rand(len(which_A)).to(which_A.device)[found].argsort()
    return found[order[:most]]
