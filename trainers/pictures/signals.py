"""Parts of a picture of signals: curves, maps of heat, strips of labels, tables of confusion.

Shape legend: T time, F bands, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from trainers.pictures.sheet import CARD, FAINT, INK, PAPER, RIGHT, TRACK, WRONG, write

Floats = NDArray[np.floating]
COLOURS = (
    *("#2463b4", "#d9822b", "#2f9e62", "#8a4fbf", "#c4314b"),
    *("#7a5a3c", "#d25fa8", "#5b6b7b", "#a3a12a", "#159bb3"),
)
"""Colours that are told apart side by side."""
_HEAT = np.array([[12, 15, 36], [55, 30, 110], [150, 40, 110], [235, 110, 60], [252, 235, 165]])


def curves(
    lines_KT: Floats, size: tuple[int, int], span: tuple[float, float] | None = None
) -> Image.Image:
    """Draw lines over a common time, each in its colour, from bottom to top of a span."""
    low, high = span or (float(np.nanmin(lines_KT)), float(np.nanmax(lines_KT)))
    # Drawn twice as large, then shrunk: smooth lines.
    width, height = 2 * size[0], 2 * size[1]
    image = Image.new("RGB", (width, height), CARD)
    draw = ImageDraw.Draw(image)
    x_T = (np.arange(lines_KT.shape[1]) + 0.5) * width / lines_KT.shape[1]
    for number, line_T in enumerate(lines_KT):
        y_T = height - 8 - (line_T - low) / max(high - low, 1e-9) * (height - 16)
        points = [(float(x), float(y)) for x, y in zip(x_T, y_T, strict=True)]
        draw.line(points, fill=COLOURS[number % len(COLOURS)], width=3)
    return image.resize(size, Image.Resampling.LANCZOS)


def heat(values_TF: Floats, size: tuple[int, int]) -> Image.Image:
    """Draw a map with time to the right and bands upwards: dark is little, bright is much."""
    low, high = np.percentile(values_TF, (2, 99))
    level = np.clip((values_TF - low) / max(float(high - low), 1e-9), 0, 1).T[::-1]
    at = np.linspace(0, 1, len(_HEAT))
    colours = np.stack([np.interp(level, at, _HEAT[:, c]) for c in range(3)], 2)
    return Image.fromarray(colours.astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)


def strip(labels: Sequence[int], names: Sequence[str], size: tuple[int, int]) -> Image.Image:
    """Draw a label for each stretch of time as a band of colour, named where there is room."""
    image = Image.new("RGB", size, TRACK)
    draw = ImageDraw.Draw(image)
    edges = [n for n in range(len(labels)) if n == 0 or labels[n] != labels[n - 1]]
    for first, last in zip(edges, [*edges[1:], len(labels)], strict=True):
        left, right = (round(n * size[0] / len(labels)) for n in (first, last))
        draw.rectangle((left, 0, right - 1, size[1]), fill=COLOURS[labels[first] % len(COLOURS)])
        if right - left > 9 * len(names[labels[first]]):
            middle = ((left + right) // 2, size[1] // 2)
            write(image, middle, names[labels[first]], 15, CARD, "mm")
    return image


def table(counts_KK: NDArray[np.integer], names: Sequence[str], side: int) -> Image.Image:
    """Draw a square table of confusion: truth in rows, answers in columns, shares in per cent."""
    left, top = 110, 84
    cell = (side - max(left, top)) // len(names)
    image = Image.new("RGB", (left + cell * len(names), side), CARD)
    draw = ImageDraw.Draw(image)
    write(image, (10, 16), "truth in rows, answer in columns, per cent", 14, FAINT)
    for row, counts_K in enumerate(counts_KK):
        y = top + row * cell
        write(image, (left - 8, y + cell // 2), names[row], 15, INK, "rm")
        # Names of neighbours are as wide as two columns: they stand on two lines in turn.
        above = (left + row * cell + cell // 2, top - 12 - 18 * (row % 2))
        write(image, above, names[row], 13, INK, "mm")
        for column, share in enumerate(counts_K / max(int(counts_K.sum()), 1)):
            x = left + column * cell
            ink = RIGHT if row == column else WRONG
            shade = Image.new("RGB", (1, 1), ink)
            mixed = Image.blend(Image.new("RGB", (1, 1), "#f6f8fa"), shade, float(share) ** 0.5)
            draw.rectangle((x + 1, y + 1, x + cell - 2, y + cell - 2), fill=mixed.getpixel((0, 0)))
            if share > 0:
                colour = CARD if share > 0.3 else INK
                text = f"{100 * share:.0f}" if share >= 0.005 else "<1"
                write(image, (x + cell // 2, y + cell // 2), text, 16, colour, "mm")
    return image


def stacked(parts: Sequence[Image.Image], gap: int = 6) -> Image.Image:
    """Put pictures of one width under each other."""
    height = sum(part.height + gap for part in parts) - gap
    whole, top = Image.new("RGB", (parts[0].width, height), PAPER), 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height + gap
    return whole
