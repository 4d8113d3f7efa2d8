"""Draw recognised recordings: log-mel, the answer of every step, what was said and heard.

Shape legend: T frames or steps, F bands, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from trainers.pictures.sheet import CARD, FAINT, RIGHT, WRONG, Heading, Row, Tile, draw_sheet, write
from trainers.pictures.signals import COLOURS, heat, stacked
from trainers.synth.speech import Utterance

WIDE, MAP, PATH = 520, 110, 62
ROWS, COLUMNS = 3, 2


@dataclass(frozen=True)
class Heard:
    """A recording, its features, the answer (probabilities; class 0 is the blank), the digits."""

    one: Utterance
    x_TF: NDArray[np.floating]
    p_TK: NDArray[np.floating]
    digits: tuple[int, ...]

    @property
    def right(self) -> bool:
        """Tell whether every digit was heard."""
        return self.digits == self.one.digits


def draw_heard(rows: Sequence[Heard], words: float, strings: float) -> Image.Image:
    """Draw some long recordings that were heard right, then the mistakes."""
    wrong = [row for row in rows if not row.right]
    right = sorted((row for row in rows if row.right), key=lambda row: -len(row.digits))
    shown = wrong[: ROWS * COLUMNS // 3]
    good = right[: ROWS * COLUMNS - len(shown)]
    tiles = [_tile(row) for row in [*good, *shown]]
    heading = Heading(
        "Spoken digits",
        f"test voices it never heard: log-mel, and the probability of each digit over time "
        f"({len(good)} right, {len(shown)} of {len(wrong)} wrong)",
        f"{words:.1%} of words",
        f"{strings:.1%} of strings whole",
    )
    cut = [tiles[n : n + COLUMNS] for n in range(0, len(tiles), COLUMNS)]
    return draw_sheet(heading, [Row(tiles) for tiles in cut], MAP + PATH + 6, smooth=True)


def _tile(row: Heard) -> Tile:
    image = stacked([heat(row.x_TF, (WIDE, MAP)), _path(row.p_TK)])
    said, heard = (" ".join(map(str, digits)) for digits in (row.one.digits, row.digits))
    lines = (f"{row.one.speaker} said {said}", f"heard {heard or 'nothing'}")
    return Tile(image, lines, RIGHT if row.right else WRONG)


def _path(p_TK: NDArray[np.floating]) -> Image.Image:
    """Draw each digit's probability as a hill in its colour, the digit above; no hill: blank."""
    image = Image.new("RGB", (WIDE, PATH), CARD)
    draw = ImageDraw.Draw(image)
    step = WIDE / len(p_TK)
    floor, tall = PATH - 2, PATH - 20
    draw.line((0, floor, WIDE, floor), fill=FAINT)
    for k in range(1, p_TK.shape[1]):
        for t, p in enumerate(p_TK[:, k]):
            if p > 0.02:
                top = floor - float(p) * tall
                draw.rectangle((t * step, top, (t + 1) * step - 1, floor), fill=COLOURS[k - 1])
        before, after = np.pad(p_TK[:, k], 1)[:-2], np.pad(p_TK[:, k], 1)[2:]
        peaks = (p_TK[:, k] > 0.3) & (p_TK[:, k] > before) & (p_TK[:, k] >= after)
        for t in np.flatnonzero(peaks).tolist():
            at = (round((t + 0.5) * step), round(floor - float(p_TK[t, k]) * tall) - 9)
            write(image, at, str(k - 1), 15, COLOURS[k - 1], "mm")
    return image
