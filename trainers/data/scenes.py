"""Pictures with a class for every pixel, in memory or read as they are asked for.

Shape legend: H height, W width, 3 RGB.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainers.data.readers import read_all

Bytes = NDArray[np.uint8]
Scene = tuple[Bytes, Bytes]
"""(image_HW3, labels_HW); the label 255 is ignored."""
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Kinds:
    """The classes of a set: names, colours, and which of them cars ask for."""

    names: tuple[str, ...]
    colours: tuple[Colour, ...]
    lane: tuple[int, ...] = ()
    """Classes of lane markings (none where a set does not tell them from the road)."""
    free: tuple[int, ...] = ()
    """Classes of the space that one may drive on."""

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self.names)

    def paint(self, labels_HW: Bytes) -> Bytes:
        """Return the colours of a class map as (H, W, 3); ignored pixels are black."""
        table = np.zeros((256, 3), np.uint8)
        table[: len(self.colours)] = self.colours
        return table[labels_HW]


@dataclass(frozen=True)
class Scenes:
    """Some pictures of a set by index."""

    kinds: Kinds
    count: int
    read: Callable[[int], Scene]

    def __len__(self) -> int:
        """Return the number of pictures."""
        return self.count

    def __getitem__(self, index: int) -> Scene:
        """Return one picture with its labels."""
        return self.read(index)


def some(scenes: Scenes, most: int) -> list[Scene]:
    """Return at most so many pictures, spread evenly over all."""
    count = min(most, len(scenes))
    return read_all(scenes.read, [n * len(scenes) // count for n in range(count)])
