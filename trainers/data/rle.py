"""Masks as COCO writes them: run lengths, their text, and polygons.

Runs go down the columns and begin with what is outside. A polygon takes the pixels whose middle
lies in it; its corners are in pixels, a pixel's left upper corner has its whole coordinates.
Format: https://cocodataset.org/#format-data; text as in pycocotools' ``rleToString``.

Shape legend: H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Polygon = list[float]
"""x and y of the corners in turn, as x0, y0, x1, y1 ..."""
Edge = tuple[tuple[int, int], tuple[int, int]]
"""Where the side of a pixel begins and which way it goes, as x and y."""
SIDES = {(0, -1): (0, 0), (1, 0): (1, 0), (0, 1): (1, 1), (-1, 0): (0, 1)}
"""For each neighbour of a pixel, as x and y, the corner where the side to it begins."""
BASE = 48
"""Code of the first letter of the text."""


def encode(mask_HW: Mask) -> list[int]:
    """Return the lengths of the runs outside and inside in turn."""
    flat = np.concatenate(([False], mask_HW.ravel(order="F")))
    turns = np.flatnonzero(flat[1:] != flat[:-1])
    lengths: list[int] = np.diff(turns, prepend=0, append=mask_HW.size).tolist()
    return lengths if mask_HW.size else [0]


def decode(counts: Sequence[int], height: int, width: int) -> Mask:
    """Return the mask of run lengths; raises ValueError if they do not fill the picture."""
    if sum(counts) != height * width or min(counts, default=0) < 0:
        raise ValueError(f"runs of {sum(counts)} pixels, where {height} x {width} are needed")
    inside = np.arange(len(counts)) % 2 == 1
    flat: Mask = np.repeat(inside, np.asarray(counts, np.int64))
    return flat.reshape(width, height).T


def to_text(counts: Sequence[int]) -> str:
    """Return run lengths as text: each after the third is less the one two before it."""
    letters = []
    for place, count in enumerate(counts):
        rest = count - (counts[place - 2] if place > 2 else 0)
        more = True
        while more:
            bits, rest = rest & 31, rest >> 5
            more = rest != (-1 if bits & 16 else 0)
            letters.append(chr(BASE + bits + 32 * more))
    return "".join(letters)


def from_text(text: str) -> list[int]:
    """Return the run lengths of a text; raises ValueError for one that breaks off."""
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - BASE
        if not 0 <= bits < 64:
            raise ValueError(f"letter {letter!r}, which run lengths do not have")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("run lengths that break off")
    return counts


def fill(polygons: Sequence[Sequence[float]], height: int, width: int) -> Mask:
    """Return the pixels of an object that is made of polygons; they may leave the picture."""
    mask_HW = np.zeros((height, width), np.bool_)
    for polygon in polygons:
        mask_HW |= _filled(np.asarray(polygon, np.float64).reshape(-1, 2), height, width)
    return mask_HW


def _filled(corners_N2: NDArray[np.float64], height: int, width: int) -> Mask:
    """Return which pixels have an odd number of edges on their left, in their row."""
    (x0, y0), (x1, y1) = corners_N2.T, np.roll(corners_N2, -1, 0).T
    # A row is crossed where its middle is between the ends, the upper one included.
    first = np.ceil(np.minimum(y0, y1) - 0.5).clip(0, height).astype(np.int64)
    last = np.ceil(np.maximum(y0, y1) - 0.5).clip(0, height).astype(np.int64)
    edge = np.repeat(np.arange(len(x0)), last - first)
    start = np.repeat(np.cumsum(last - first) - (last - first), last - first)
    row = np.arange(len(edge)) - start + first[edge]
    share = (row + 0.5 - y0[edge]) / (y1 - y0)[edge]
    x = x0[edge] + share * (x1 - x0)[edge]
    column = np.ceil(x - 0.5).clip(0, width).astype(np.int64)
    crossings = np.bincount(row * (width + 1) + column, minlength=height * (width + 1))
    odd: Mask = crossings.reshape(height, width + 1).cumsum(1)[:, :-1] % 2 == 1
    return odd


def outline(mask_HW: Mask) -> list[Polygon] | None:
    """Return polygons that ``fill`` to exactly this mask; None for one with holes, or empty."""
    edges = _edges(mask_HW)
    left, polygons = dict.fromkeys(sorted(edges)), []
    while left:
        edge, loop = next(iter(left)), []
        while edge in left:
            del left[edge]
            loop.append(edge)
            edge = _after(edge, edges)
        turns = pairwise([loop[-1], *loop])
        corners = [after[0] for before, after in turns if before[1] != after[1]]
        circle = pairwise([corners[-1], *corners])
        if sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in circle) < 0:
            return None  # a hole, which runs the other way round
        polygons.append([float(value) for corner in corners for value in corner])
    return polygons or None


def _edges(mask_HW: Mask) -> set[Edge]:
    """Return the sides of pixels between inside and outside; what is inside lies on the right."""
    inside_HW = np.pad(mask_HW, 1)
    edges: set[Edge] = set()
    for (right, down), (x, y) in SIDES.items():
        outside_HW = np.roll(inside_HW, (-down, -right), (0, 1))
        rows, columns = np.nonzero(inside_HW & ~outside_HW)
        starts = zip((columns - 1 + x).tolist(), (rows - 1 + y).tolist(), strict=True)
        # A pixel's side runs clockwise: the upper one to the right, the right one down.
        edges |= {(start, (-down, right)) for start in starts}
    return edges


def _after(edge: Edge, edges: set[Edge]) -> Edge:
    (x, y), (right, down) = edge
    end = x + right, y + down
    # Where two pixels touch at a corner only, one turns right and stays at the same pixel.
    ways = (-down, right), (right, down), (down, -right)
    return next((end, way) for way in ways if (end, way) in edges)
