"""Pictures with the objects that are in them: where each is, what it is, and more where known.

Shape legend: N objects, J joints, H height, W width, 3 RGB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlplatform.errors import UsageError
from trainers.data.scenes import Bytes, Colour

HIDDEN, SEEN = 1, 2
"""Visibility of a joint that is labelled; 0 is for one that is not."""


def _at(index_N: Tensor) -> Callable[[Any], Any]:
    return lambda values: None if values is None else values[index_N]


class Instances(NamedTuple):
    """The objects of one picture; a kind of label that none of them has is None.

    An object without a mask has an empty one, without joints only joints of visibility 0, and
    without a state -1: their losses leave it out.
    """

    boxes_N4: Tensor
    """x0, y0, x1, y1 in pixels, fp32; a pixel's left upper corner has its whole coordinates."""
    labels_N: Tensor
    """Classes from 0, int64."""
    masks_NHW: Tensor | None = None
    """bool, of the whole picture."""
    joints_NJ3: Tensor | None = None
    """x, y, visibility: 0 not labelled, 1 hidden, 2 seen; fp32."""
    states_N: Tensor | None = None
    """States from 0; int64."""
    ignored_N: Tensor | None = None
    """bool: crowds and what is hard to see; to find them is neither right nor wrong."""

    @staticmethod
    def none() -> Instances:
        """Return the objects of an empty picture."""
        return Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))

    def take(self, index_N: Tensor) -> Instances:
        """Return some of the objects, by their numbers or by a bool for each."""
        return Instances(*map(_at(index_N), self))


class Found(NamedTuple):
    """What a detector says of one picture, the surest first."""

    boxes_N4: Tensor
    labels_N: Tensor
    scores_N: Tensor
    masks_NHW: Tensor | None = None
    """bool, of the whole picture."""
    joints_NJ3: Tensor | None = None
    """x, y, confidence from 0 to 1."""
    states_NS: Tensor | None = None
    """Probabilities of the states."""

    def take(self, index_N: Tensor) -> Found:
        """Return some of the objects, by their numbers or by a bool for each."""
        return Found(*map(_at(index_N), self))


@dataclass(frozen=True)
class Skeleton:
    """Joints by name, how they hang together, and what a mirror does to them."""

    names: tuple[str, ...]
    bones: tuple[tuple[int, int], ...]
    mirrored: tuple[int, ...]
    """For each joint which one it is in a mirrored picture."""
    sigmas: tuple[float, ...]
    """How far people who label them are apart, as a share of the object's size (COCO's OKS)."""


@dataclass(frozen=True)
class Kinds:
    """What the objects of a set may be."""

    names: tuple[str, ...]
    colours: tuple[Colour, ...] = ()
    skeleton: Skeleton | None = None
    states: tuple[str, ...] = ()


@dataclass(frozen=True)
class InstanceSet:
    """Some pictures of a set by index: (image_HW3 of uint8, its objects)."""

    kinds: Kinds
    count: int
    read: Callable[[int], tuple[Bytes, Instances]]

    def __len__(self) -> int:
        """Return the number of pictures."""
        return self.count

    def __getitem__(self, index: int) -> tuple[Bytes, Instances]:
        """Return one picture with its objects."""
        return self.read(index)


def palette(count: int) -> tuple[Colour, ...]:
    """Return colours to draw classes with: bright, and far apart for neighbours."""
    found = []
    for number in range(count):
        wheel = np.abs((number * 0.618034 * 6 + np.array([0, 4, 2])) % 6 - 3) - 1
        red, green, blue = (int(value) for value in 55 + 200 * wheel.clip(0, 1))
        found.append((red, green, blue))
    return tuple(found)


def boxes_around(masks_NHW: NDArray[np.bool_]) -> Tensor:
    """Return the tight boxes_N4 of masks; one of zeros for an empty mask."""
    boxes_N4 = torch.zeros(len(masks_NHW), 4)
    for number, mask_HW in enumerate(masks_NHW):
        rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
        if len(rows):
            edges = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
            boxes_N4[number] = torch.tensor([float(edge) for edge in edges])
    return boxes_N4


def clipped(boxes: Sequence[Sequence[float]], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the boxes_N4 that have a part in a picture of (height, width), and which do: bool."""
    boxes_N4 = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    boxes_N4 = boxes_N4.clamp(torch.zeros(4), torch.tensor([size[1], size[0]] * 2))
    there_N = (boxes_N4[:, 2:] > boxes_N4[:, :2]).all(1)
    return boxes_N4[there_N], there_N


def refused(where: Path | str, what: str, allowed: str, remedy: str) -> UsageError:
    """Return the error of a file or a folder that cannot be read as its layout has it."""
    return UsageError(f"{where} {what} - allowed: {allowed} - do: {remedy}")
