"""Class maps in colours: beside the truth on a sheet, and over a user's picture in files.

Shape legend: H height, W width, 3 RGB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from trainers.data.scenes import Bytes, Kinds
from trainers.pictures.files import writing
from trainers.pictures.sheet import INK, PAPER, Heading, Row, Tile, draw_sheet, overlay, write
from trainers.scores.segmentation import IGNORED

HEIGHT, LINES = 128, 4
"""Of a picture on the sheet, and rows of the legend."""
FOLDER = "segmented"


@dataclass(frozen=True)
class Example:
    """A picture, its true class map and the answer (HW3, HW, HW)."""

    image: Bytes
    truth: Bytes
    answer: Bytes

    def accuracy(self) -> float:
        """Return the share of judged pixels that are right."""
        judged = self.truth != IGNORED
        return float((self.answer == self.truth)[judged].mean()) if judged.any() else 0.0


def draw_maps(
    heading: Heading, examples: Sequence[Example], kinds: Kinds, iou: Sequence[float]
) -> Image.Image:
    """Draw a row of pictures, of true and of answered maps, and the colours with their IoU."""
    answers = [
        Tile(kinds.paint(one.answer), [f"{one.accuracy():.1%} of pixels right"]) for one in examples
    ]
    rows = [
        Row([Tile(one.image) for one in examples], "picture"),
        Row([Tile(kinds.paint(one.truth)) for one in examples], "truth"),
        Row(answers, "prediction"),
        Row([Tile(_legend(kinds, iou))], "IoU of class"),
    ]
    return draw_sheet(heading, rows, HEIGHT)


def write_maps(raw: Path, image_HW3: Bytes, labels_HW: Bytes, kinds: Kinds) -> dict[str, str]:
    """Write the class map, an overlay, and masks of lanes and free space; return the paths.

    They go to the folder ``segmented`` beside the picture. The map holds class numbers; masks
    are white where it is so.
    """
    shown = overlay(image_HW3, kinds.paint(labels_HW), 0.5)
    files = {"classes": labels_HW, "overlay": shown}
    for name, classes in (("lane", kinds.lane), ("free", kinds.free)):
        if classes:
            files[name] = np.isin(labels_HW, classes).astype(np.uint8) * np.uint8(255)
    paths = {name: raw.parent / FOLDER / f"{raw.stem}_{name}.png" for name in files}
    with writing(raw.parent / FOLDER):
        for name, path in paths.items():
            Image.fromarray(files[name]).save(path)
    return {name: str(path) for name, path in paths.items()}


def _legend(kinds: Kinds, iou: Sequence[float]) -> Image.Image:
    step, box = HEIGHT // LINES, 22
    columns = -(-len(kinds) // LINES)
    legend = Image.new("RGB", (columns * 280, HEIGHT), PAPER)
    for number, (name, colour) in enumerate(zip(kinds.names, kinds.colours, strict=True)):
        left, top = number // LINES * 280, number % LINES * step
        legend.paste(colour, (left, top + 5, left + 36, top + 5 + box))
        share = "none here" if np.isnan(iou[number]) else f"{iou[number]:.2f}"
        write(legend, (left + 48, top + step // 2), f"{name}  {share}", 18, INK)
    return legend
