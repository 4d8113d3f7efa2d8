"""A sheet of labelled pictures in rows, with a heading: how results are shown here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

PAPER, CARD, INK, FAINT, TRACK = "#eef1f5", "#ffffff", "#16202c", "#66727f", "#e3e7ec"
RIGHT, WRONG = "#178a4a", "#cf2e2a"
MARGIN, GAP, HEADER, LABEL = 40, 14, 118, 160
LINE = 20
"""Height of a line of small text."""
SMALLEST = 11
"""Size of letters that can still be read."""


@dataclass(frozen=True)
class Heading:
    """What a sheet is about: its title and a line below, the score and a line below."""

    title: str
    detail: str = ""
    score: str = ""
    note: str = ""


@dataclass(frozen=True)
class Tile:
    """One picture (uint8: HW, HW1 or HW3 in RGB) with lines of text under it."""

    image: NDArray[Any] | Image.Image
    lines: Sequence[str] = ()
    colour: str = INK
    """Of the text: RIGHT, WRONG, INK or FAINT."""


@dataclass(frozen=True)
class Row:
    """Tiles side by side, with a label on the left (none where no row has one)."""

    tiles: Sequence[Tile]
    label: str = ""


def draw_sheet(
    heading: Heading, rows: Sequence[Row], height: int = 128, smooth: bool = False
) -> Image.Image:
    """Draw rows of pictures, each ``height`` pixels high; small ones stay crisp unless smooth."""
    left = MARGIN + (LABEL if any(row.label for row in rows) else 0)
    shown = [[_scaled(tile.image, height, smooth) for tile in row.tiles] for row in rows]
    lines = [max((len(tile.lines) for tile in row.tiles), default=0) for row in rows]
    widths = [sum(image.width + GAP for image in images) - GAP for images in shown]
    width = max(left + max(widths, default=0) + MARGIN, _needed(heading))
    tall = sum(height + count * LINE + GAP + 6 for count in lines)
    sheet = Image.new("RGB", (width, HEADER + tall + MARGIN - GAP), PAPER)
    draw_heading(sheet, heading)
    top = HEADER
    for row, images, count in zip(rows, shown, lines, strict=True):
        write(sheet, (MARGIN, top + height // 2), row.label, 18, INK)
        x = left
        for tile, image in zip(row.tiles, images, strict=True):
            sheet.paste(image, (x, top))
            for number, text in enumerate(tile.lines):
                at = (x + image.width // 2, top + height + 14 + number * LINE)
                write(sheet, at, _cut(text, image.width + GAP, 15), 15, tile.colour, "mm")
            x += image.width + GAP
        top += height + count * LINE + GAP + 6
    return sheet


def draw_heading(sheet: Image.Image, heading: Heading) -> None:
    """Write the heading on top of a sheet."""
    write(sheet, (MARGIN, 46), heading.title, 38, INK)
    write(sheet, (sheet.width - MARGIN, 46), heading.score, 46, RIGHT, anchor="rm")
    write(sheet, (MARGIN, 86), heading.detail, 20, FAINT)
    write(sheet, (sheet.width - MARGIN, 86), heading.note, 20, FAINT, anchor="rm")


def write(
    sheet: Image.Image,
    at: tuple[int, int],
    text: str,
    size: int,
    colour: str,
    anchor: str = "lm",
    room: int = 0,
) -> None:
    """Write a line of text, its left end ("lm"), right end ("rm") or middle ("mm") at a point.

    With ``room``, text that is longer than so many pixels is written smaller, and cut if need be.
    """
    while room and size > SMALLEST and _length(text, size) > room:
        size -= 1
    if room:
        text = _cut(text, room, size)
    if text:
        font = ImageFont.load_default(size=size)
        ImageDraw.Draw(sheet).text(at, text, fill=colour, font=font, anchor=anchor)


def overlay(image: NDArray[Any], colours: NDArray[Any], share: float = 0.6) -> NDArray[np.uint8]:
    """Return an RGB picture (H, W, 3) with colours of the same shape laid over it."""
    return (image * (1 - share) + colours * share).astype(np.uint8)


def _needed(heading: Heading) -> int:
    title, score = _length(heading.title, 38), _length(heading.score, 46)
    return 2 * MARGIN + 40 + max(title + score, _length(heading.detail + heading.note, 20))


def _length(text: str, size: int) -> int:
    return int(ImageFont.load_default(size=size).getlength(text))


def _cut(text: str, width: int, size: int) -> str:
    while len(text) > 1 and _length(text, size) > width:
        text = text[:-2].rstrip("…") + "…"
    return text


def _scaled(image: NDArray[Any] | Image.Image, height: int, smooth: bool) -> Image.Image:
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    way = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return image.convert("RGB").resize((round(image.width * height / image.height), height), way)
