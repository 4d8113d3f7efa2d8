"""A canvas of coded areas: one drawing gives soft-edged colours and who owns each pixel.

Every area has a code with a colour, an owner and a part; it is drawn some times larger and then
reduced, so that edges are soft while masks follow the same lines.

Shape legend: H height, W width, 3 RGB, N owners, P points, 2 x and y.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from trainers.data.scenes import Bytes

Colour = Sequence[float] | NDArray[Any]
Reals = NDArray[np.float64]
NOBODY = 255
"""The owner of what is only there to be in the way; at most 254 others."""


class Canvas:
    """A picture on which later areas hide earlier ones; places are in its own pixels."""

    def __init__(self, width: int, height: int, grain: int = 3) -> None:
        self.width, self.height, self.grain = width, height, grain
        self._codes = Image.new("I", (width * grain, height * grain))
        self._pen = ImageDraw.Draw(self._codes)
        self._colours, self._owners, self._parts = [(0, 0, 0)], [NOBODY], [0]

    def code(self, colour: Colour, owner: int = NOBODY, part: int = 0) -> int:
        """Return the code of a new kind of area."""
        red, green, blue = (int(min(max(value, 0), 255)) for value in colour)
        self._colours.append((red, green, blue))
        self._owners.append(owner)
        self._parts.append(part)
        return len(self._colours) - 1

    def polygon(self, points: Sequence[Sequence[float]] | NDArray[Any], code: int) -> None:
        """Fill a polygon."""
        self._pen.polygon([(x * self.grain, y * self.grain) for x, y in points], code)

    def line(
        self, points: Sequence[Sequence[float]] | NDArray[Any], width: float, code: int
    ) -> None:
        """Draw a line through points."""
        places = [(x * self.grain, y * self.grain) for x, y in points]
        self._pen.line(places, code, max(1, round(width * self.grain)), joint="curve")

    def ellipse(self, x: float, y: float, wide: float, high: float, code: int) -> None:
        """Fill an upright ellipse of these half-axes."""
        x, y, wide, high = (value * self.grain for value in (x, y, wide, high))
        self._pen.ellipse((x - wide, y - high, x + wide, y + high), code)

    def capsule(
        self, start: Sequence[float], end: Sequence[float], radii: tuple[float, float], code: int
    ) -> None:
        """Fill two discs and what lies between them."""
        (x0, y0), (x1, y1), (r0, r1) = start, end, radii
        self.ellipse(x0, y0, r0, r0, code)
        self.ellipse(x1, y1, r1, r1, code)
        length = float(np.hypot(x1 - x0, y1 - y0))
        if length > 1e-6:
            nx, ny = (y0 - y1) / length, (x1 - x0) / length
            self.polygon(
                [
                    *((x0 + nx * r0, y0 + ny * r0), (x1 + nx * r1, y1 + ny * r1)),
                    *((x1 - nx * r1, y1 - ny * r1), (x0 - nx * r0, y0 - ny * r0)),
                ],
                code,
            )

    def over(self, ground_HW3: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what is drawn, with soft edges, over a ground of the canvas's size."""
        table_C4 = np.array([(*colour, 255) for colour in self._colours], np.uint8)
        table_C4[0] = 0
        packed_HW = table_C4.view(np.uint32)[:, 0][np.asarray(self._codes)]
        coded_HW4 = packed_HW.view(np.uint8).reshape(*packed_HW.shape, 4)
        # as CMYK, since Pillow then averages the fourth band as it does the others
        drawn = Image.fromarray(coded_HW4, "CMYK").reduce(self.grain)
        layer_HW4 = np.asarray(drawn, np.float32)
        clear_HW1 = 1 - layer_HW4[..., 3:] / np.float32(255)
        shown_HW3: NDArray[np.float32] = layer_HW4[..., :3] + clear_HW1 * ground_HW3
        return shown_HW3

    def masks(self, owners: int) -> NDArray[np.bool_]:
        """Return the pixels of which at least half belong to each of the first owners."""
        owner_HW = np.array(self._owners, np.uint8)[np.asarray(self._codes)]
        masks_NHW = np.zeros((owners, self.height, self.width), bool)
        for number in range(owners):
            mine = Image.fromarray((owner_HW == number).view(np.uint8) * np.uint8(255))
            masks_NHW[number] = np.asarray(mine.reduce(self.grain)) > 127
        return masks_NHW

    def at(self, x: float, y: float) -> tuple[int, int]:
        """Return the owner and part that are seen at a place, (NOBODY, 0) outside."""
        column, row = int(np.floor(x * self.grain)), int(np.floor(y * self.grain))
        if not (0 <= column < self._codes.width and 0 <= row < self._codes.height):
            return NOBODY, 0
        code = int(self._codes.getpixel((column, row)))  # type: ignore[arg-type]
        return self._owners[code], self._parts[code]


def finished(image_HW3: NDArray[np.float32], random: Any, noise: float) -> Bytes:
    """Return a picture with even noise on every value, as bytes."""
    raw = np.frombuffer(random.bytes(image_HW3.size), np.uint8).reshape(image_HW3.shape)
    noisy_HW3 = image_HW3 + (raw.astype(np.float32) - 127.5) * np.float32(2 * noise)
    return np.clip(noisy_HW3, 0, 255).astype(np.uint8)
