"""Read what is written in a user's image: ink on any even background, as values in [0, 1].

Shape legend: H height, W width.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from dlplatform.errors import UsageError
from trainers.pictures.files import open_picture

Ink = NDArray[np.float32]
CUT = 0.3
"""Share of the darkest ink from which a pixel counts as written."""
MIN_CONTRAST = 12.0
"""Grey levels of 255 by which ink must differ from the background at least."""
WORKING_SIDE = 96
MIN_COVERAGE = 0.25
"""Share of the cropped image that a normal pen covers at least."""


def read_ink(path: Path) -> Ink:
    """Return the ink in an image file (1 is full ink), cropped to what is written.

    Dark on light and light on dark give the same. Raises UsageError for a file that is no
    image or is blank.
    """
    grey = _grey(open_picture(path))
    ink = _against_background(grey)
    written = ink > CUT
    if not written.any():
        raise UsageError(f"{path} is blank - allowed: an image with something written in it")
    rows, columns = np.flatnonzero(written.any(1)), np.flatnonzero(written.any(0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def fit(ink: Ink, side: int, box: int) -> Ink:
    """Scale ink to a box of a square image, its shape kept, centred, strokes not too thin."""
    scale = box / max(ink.shape)
    height, width = (max(1, round(length * scale)) for length in ink.shape)
    image = Image.fromarray((ink * 255).astype(np.uint8))
    small = _thicken(image).resize((width, height), Image.Resampling.BOX)
    canvas = np.zeros((side, side), np.float32)
    top, left = (side - height) // 2, (side - width) // 2
    canvas[top : top + height, left : left + width] = np.asarray(small, np.float32)
    filled: Ink = canvas / canvas.max()
    return filled


def _grey(image: Image.Image) -> Ink:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        deep = np.nan_to_num(np.asarray(image, np.float32))
        scaled: Ink = (deep - deep.min()) * np.float32(255 / max(float(np.ptp(deep)), 1e-6))
        return scaled
    if not image.has_transparency_data:
        return np.asarray(image.convert("L"), np.float32)
    grey, opacity = (np.asarray(band, np.float32) for band in image.convert("LA").split())
    # What shows through is unknown: take the paper that the opaque part stands out from.
    paper = 255.0 if np.average(grey, weights=opacity + 1e-6) < 128 else 0.0
    shown: Ink = (paper + (grey - paper) * opacity / 255).astype(np.float32)
    return shown


def _against_background(grey: Ink) -> Ink:
    frame = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    difference = grey - np.median(frame)
    brighter, darker = difference.clip(min=0), (-difference).clip(min=0)
    # Squared, since ink stands out by far while shadows and noise cover more of the sheet.
    ink = brighter if np.square(brighter).sum() > np.square(darker).sum() else darker
    relative: Ink = (ink / max(float(ink.max()), MIN_CONTRAST / CUT)).astype(np.float32)
    return relative


def _thicken(image: Image.Image) -> Image.Image:
    # A thin pen on a big sheet would fade to grey when it is scaled down.
    scale = WORKING_SIDE / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BOX)
    for _ in range(WORKING_SIDE // 12):
        if np.asarray(image).mean() / 255 >= MIN_COVERAGE:
            break
        image = image.filter(ImageFilter.MaxFilter(3))
    return image
