"""Segment: one contiguous piece of one box's RAM; a shared buffer is a row of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from dlplatform.errors import UsageError
from kernels.cpu import PAGE

FLOATS_PER_PAGE = PAGE // 4


@dataclass(frozen=True)
class Segment:
    """A piece of a shared buffer: which box, which buffer (key), where in it, how long.

    ``offset`` and ``length`` count fp32 elements of the whole buffer.
    """

    box: int
    key: str
    offset: int
    length: int


def split(length: int, weights: list[float]) -> list[tuple[int, int]]:
    """Cut a buffer of ``length`` elements into one (offset, length) per box.

    Shares follow the weights (all equal by default: 5 GB over 5 boxes is 5 x 1 GB, P-RDMA 69)
    and end on page borders, so that the pieces can be mapped side by side; the last box with a
    weight takes the remainder. A share may be empty when the buffer is smaller than a page per box.
    """
    if length < 1 or not weights or min(weights) < 0 or sum(weights) <= 0:
        raise UsageError(
            f"a buffer of {length} elements over weights {weights} cannot be cut - allowed: "
            "length >= 1, weights >= 0 and not all 0 - do: check both"
        )
    borders, reached = [0], 0.0
    last = max(box for box, weight in enumerate(weights) if weight > 0)
    for box, weight in enumerate(weights[:-1]):
        reached += weight / sum(weights)
        border = round(length * reached / FLOATS_PER_PAGE) * FLOATS_PER_PAGE
        borders.append(length if box >= last else min(max(border, borders[-1]), length))
    borders.append(length)
    return [(a, b - a) for a, b in pairwise(borders)]
