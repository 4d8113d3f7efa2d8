"""Moving pictures with the truth of every frame: who is where, and what happens.

Shape legend: N objects of a frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from trainers.data.instances import Instances, Kinds
from trainers.data.scenes import Bytes


class Event(NamedTuple):
    """Something that happens to somebody, from a first to a last frame."""

    what: str
    who: int
    first: int
    last: int


@dataclass(frozen=True)
class Film:
    """Frames at an even rate (a second), with their objects and who these are."""

    kinds: Kinds
    rate: float
    frames: tuple[Bytes, ...]
    truths: tuple[Instances, ...]
    who: tuple[Tensor, ...]
    """For each frame the numbers of its objects (N), the same through the film."""
    events: tuple[Event, ...]

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.frames)
