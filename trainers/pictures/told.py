"""Pictures with the sentences a network says about them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from trainers.pictures.sheet import RIGHT, WRONG, Heading, Row, Tile, draw_sheet

SIDE, LETTERS, PER_ROW = 190, 25, 6


@dataclass(frozen=True)
class Told:
    """A picture (H, W, 3), the words said about it, and the words of good sentences."""

    image: NDArray[Any]
    words: Sequence[str]
    references: Sequence[Sequence[str]]


def draw_told(title: str, detail: str, note: str, told: Sequence[Told]) -> Image.Image:
    """Draw pictures over what was said: in green where it is a reference, else in red with one."""
    right = sum(list(one.words) in [list(good) for good in one.references] for one in told)
    heading = Heading(
        title,
        "test pictures, pairs of shapes it never saw together",
        f"{right} of {len(told)}",
        note,
    )
    rows = [told[first : first + PER_ROW] for first in range(0, len(told), PER_ROW)]
    return draw_sheet(heading, [Row([_tile(one) for one in row]) for row in rows], SIDE)


def _tile(one: Told) -> Tile:
    lines = textwrap.wrap(" ".join(one.words), LETTERS)
    good = [" ".join(words) for words in one.references]
    if " ".join(one.words) in good:
        return Tile(one.image, lines, RIGHT)
    # The reference that begins alike is the one to compare with.
    like = max(good, key=lambda line: line.split()[:3] == list(one.words)[:3])
    return Tile(one.image, [*lines, *textwrap.wrap(f"is: {like}", LETTERS)], WRONG)
