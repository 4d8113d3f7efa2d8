"""Pictures too large to be looked at as a whole: cut into tiles that overlap, answers put together.

Shape legend: H height, W width, 3 RGB, N objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image

from dlplatform.seeds import derive
from kernels.vision import batched_nms
from trainers.blocks.boxes import clip, covered
from trainers.data.instances import Found, Instances, InstanceSet
from trainers.data.scenes import Bytes
from trainers.synth.instance_views import View, Window, seen

BORDER = 2.0
"""Pixels from a cut within which a box is taken for a part of an object."""
INSIDE = 0.6
"""Share of such a box in another one from which it is a part of that object."""


def corners(length: int, side: int, overlap: int) -> list[int]:
    """Return where tiles begin along an axis, so that neighbours share ``overlap`` pixels or more.

    The last one ends with the picture; one that is shorter than a tile has a single tile.
    """
    if length <= side:
        return [0]
    count = -(-(length - overlap) // (side - overlap))
    return [round(place) for place in np.linspace(0, length - side, count)]


@dataclass(frozen=True)
class Tiles:
    """How a large picture is cut."""

    side: int
    """Pixels of a tile."""
    shared: int
    """Pixels that neighbours share."""
    halvings: int = 0
    """How often the picture is halved and looked at again, for objects larger than a tile's."""


def found_in_tiles(
    image_HW3: Bytes, look: Callable[[Bytes], Found], tiles: Tiles, iou: float
) -> Found:
    """Return what is found in a picture of any size by looking at each of its tiles.

    What a tile cuts off is left to one that has all of it: a neighbour, or, if the object is
    larger than what neighbours share, a tile of the halved picture. Of what several found the
    surest stays. ``look`` gets pictures of at most side x side pixels.
    """
    picture, (height, width) = Image.fromarray(image_HW3), image_HW3.shape[:2]
    parts, whole = list[Found](), list[torch.Tensor]()
    for halving in range(1 + tiles.halvings):
        for found, whole_N in _looks(np.asarray(picture.reduce(2**halving)), look, tiles):
            parts.append(found._replace(boxes_N4=found.boxes_N4 * 2**halving))
            whole.append(whole_N)
    boxes_N4 = clip(torch.cat([part.boxes_N4 for part in parts]), height, width)
    labels_N = torch.cat([part.labels_N for part in parts])
    scores_N, whole_N = torch.cat([part.scores_N for part in parts]), torch.cat(whole)
    # A part of what another tile has all of is no object of its own.
    inside_NN = covered(boxes_N4, boxes_N4) >= INSIDE
    same_NN = labels_N[:, None] == labels_N
    part_N = ~whole_N & (inside_NN & same_NN & whole_N).any(1)
    alone = (~part_N).nonzero()[:, 0]
    kept = alone[batched_nms(boxes_N4[alone], scores_N[alone], labels_N[alone], iou)]
    return Found(boxes_N4[kept], labels_N[kept], scores_N[kept])


def _looks(
    image_HW3: Bytes, look: Callable[[Bytes], Found], tiles: Tiles
) -> Iterator[tuple[Found, torch.Tensor]]:
    """Give what is found in each tile, in pixels of the picture, and which_N of it is not cut."""
    height, width = image_HW3.shape[:2]
    for top in corners(height, tiles.side, tiles.shared):
        for left in corners(width, tiles.side, tiles.shared):
            found = look(image_HW3[top : top + tiles.side, left : left + tiles.side])
            shift = found.boxes_N4.new_tensor([left, top, left, top])
            found = found._replace(boxes_N4=found.boxes_N4 + shift)
            edges = (left, top, min(left + tiles.side, width), min(top + tiles.side, height))
            yield found, _whole(found.boxes_N4, edges, (height, width))


def _whole(
    boxes_N4: torch.Tensor, edges: tuple[int, int, int, int], size: tuple[int, int]
) -> torch.Tensor:
    """Return which_N boxes do not touch an edge of a tile that is a cut through the picture."""
    near_N4 = (boxes_N4 - boxes_N4.new_tensor(edges)).abs() <= BORDER
    cut_4 = torch.tensor([edges[0] > 0, edges[1] > 0, edges[2] < size[1], edges[3] < size[0]])
    return ~(near_N4 & cut_4).any(1)


def crops(examples: InstanceSet, side: int, each: int, seed: int) -> InstanceSet:
    """Return squares cut out of pictures, ``each`` of every one, at places that a seed says.

    All but the first of a picture hold one of its objects, if it has any.
    """

    @lru_cache(maxsize=8)
    def whole(index: int) -> tuple[Bytes, Instances]:
        return examples[index]

    def read(number: int) -> tuple[Bytes, Instances]:
        image_HW3, truth = whole(number // each)
        # RandomState, not default_rng: numpy promises that its stream never changes.
        random = np.random.RandomState(derive(seed, "crop", number) % 2**32)
        room = [max(0, length - side) for length in image_HW3.shape[1::-1]]
        at = random.uniform(0, 1, 2) * room
        if number % each and len(truth.boxes_N4):
            box_4 = truth.boxes_N4[random.randint(len(truth.boxes_N4))].numpy()
            at = (box_4[:2] + box_4[2:]) / 2 - random.uniform(0.2, 0.8, 2) * side
        left, top = (int(min(max(place, 0), most)) for place, most in zip(at, room, strict=True))
        return seen(image_HW3, truth, View(side, 1.0, left, top), Window(side))

    return InstanceSet(examples.kinds, each * examples.count, read)
