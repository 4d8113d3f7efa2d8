"""Road scenes in perspective, drawn with a class for every pixel.

A road runs to a vanishing point; vehicles, poles and trees grow from there to the bottom. In the
lane ahead one sees the rear of a vehicle, in the lanes beside it also its side.

Shape legend: H height, W width, 3 RGB.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from trainers.data.scenes import Bytes, Colour, Kinds, Scene, Scenes

KINDS = Kinds(
    ("sky", "ground", "road", "lane marking", "vehicle", "pole or tree"),
    ((70, 130, 180), (152, 251, 152), (128, 64, 128), (250, 220, 60), (20, 30, 190), (34, 110, 40)),
    lane=(3,),
    free=(2, 3),
)
SKY, GROUND, ROAD, LANE, VEHICLE, POLE = range(6)
HEIGHT, WIDTH = 64, 128
COUNTS = {"train": 400, "val": 80, "test": 80}
COLOUR_JITTER, NOISE = 0.07, 0.08
"""Standard deviations of the colour of each object and of every pixel, of values in [0, 1]."""
Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@lru_cache(maxsize=8)
def road_scenes(seed: int, count: int, height: int = HEIGHT, width: int = WIDTH) -> Scenes:
    """Return road scenes, drawn once."""
    scenes = [road_scene((seed + number) % 2**32, height, width) for number in range(count)]
    return Scenes(KINDS, count, scenes.__getitem__)


def road_scene(seed: int, height: int = HEIGHT, width: int = WIDTH) -> Scene:
    """Return (image_HW3, labels_HW) of one scene: a pure function of its arguments."""
    # RandomState, not default_rng: numpy promises that its stream never changes.
    random = np.random.RandomState(seed)
    canvas = Canvas(random, height, width)
    canvas.backdrop()
    canvas.lanes()
    depths = np.sort(random.uniform(0, 1, random.randint(4, 10)))
    for depth in depths:  # from far to near: what is near hides what is far
        if random.rand() < 0.45:
            canvas.vehicle(depth, lane=random.randint(-1, 2))
        else:
            canvas.roadside(depth, side=random.choice((-1, 1)))
    return canvas.scene()


class Canvas:
    """A picture and its labels, drawn alike; lengths are in pixels of a 64 pixels high one."""

    def __init__(self, random: np.random.RandomState, height: int, width: int) -> None:
        self.random, self.unit = random, height / HEIGHT
        self.image, self.labels = Image.new("RGB", (width, height)), Image.new("L", (width, height))
        self.pens = ImageDraw.Draw(self.image), ImageDraw.Draw(self.labels)
        self.horizon = height * random.uniform(0.28, 0.45)
        self.vanish = width * random.uniform(0.3, 0.7)
        self.middle = width * random.uniform(0.4, 0.6)
        self.half = width * random.uniform(0.4, 0.6)

    def backdrop(self) -> None:
        """Draw sky, ground and road."""
        width, height = self.image.size
        self.polygon(SKY, box(0, 0, width, height), self.colour((150, 180, 215), (90, 95, 110)))
        ground = self.colour((95, 125, 60), (150, 130, 95))
        self.polygon(GROUND, box(0, self.horizon, width, height), ground)
        corners = [self.on_road(depth, side) for depth, side in ((0, -1), (0, 1), (1, 1), (1, -1))]
        self.polygon(ROAD, corners, self.colour((90, 90, 95), (125, 122, 118)))

    def lanes(self) -> None:
        """Draw two dashed lines between three lanes, and the lines at the edges."""
        paint = self.colour((225, 225, 215), (225, 190, 80))
        for place in (-0.92, -0.33, 0.33, 0.92):
            dashes = 1 if abs(place) > 0.5 else self.random.randint(3, 6)
            ends = np.linspace(0.05, 1, 2 * dashes) if dashes > 1 else np.array([0.02, 1.0])
            for far, near in zip(ends[::2] ** 1.7, ends[1::2] ** 1.7, strict=True):
                spread = 0.028
                corners = [
                    *(self.on_road(far, place - spread), self.on_road(far, place + spread)),
                    *(self.on_road(near, place + spread), self.on_road(near, place - spread)),
                ]
                self.polygon(LANE, corners, paint)

    def vehicle(self, depth: float, lane: int) -> Box:
        """Draw the rear of a vehicle in one of three lanes, and its side if it is not ahead.

        Returns the box of the rear.
        """
        x, y = self.on_road(0.08 + 0.85 * depth, lane * 0.62)
        size = (6 + 26 * depth) * self.unit
        wide, high = size, size * self.random.uniform(0.6, 0.95)
        body = self.colour(*self.random.randint(30, 240, (2, 3)).tolist())
        if lane:  # the side that looks to the middle of the road runs back to the vanishing point
            near, shift = x - lane * wide / 2, 0.45 * size * lane
            back = (near - shift, y - 0.25 * high), (near - shift, y - 0.9 * high)
            self.polygon(VEHICLE, [(near, y), *back, (near, y - high)], dark(body, 0.75))
        left, right = x - wide / 2, x + wide / 2
        self.polygon(VEHICLE, box(left, y - high, right, y), body)
        window = box(left + 0.15 * wide, y - 0.9 * high, right - 0.15 * wide, y - 0.55 * high)
        self.polygon(VEHICLE, window, (45, 55, 70))
        for edge in (left, right - 0.2 * wide):
            lamp = box(edge, y - 0.45 * high, edge + 0.2 * wide, y - 0.3 * high)
            self.polygon(VEHICLE, lamp, (200, 40, 35))
            wheel = box(edge, y - 0.15 * high, edge + 0.2 * wide, y)
            self.polygon(VEHICLE, wheel, (25, 25, 28))
        return left, y - high, right, y

    def roadside(self, depth: float, side: int) -> None:
        """Draw a pole or a tree beside the road."""
        x, y = self.on_road(0.05 + 0.8 * depth, side * self.random.uniform(1.1, 1.6))
        high, thick = (8 + 30 * depth) * self.unit, max(0.6, 1.3 * depth) * self.unit
        if self.random.rand() < 0.5:
            grey = self.colour((120, 120, 120), (170, 165, 160))
            self.polygon(POLE, box(x - thick, y - high, x + thick, y), grey)
            arm = box(x - side * 0.2 * high - thick, y - high, x + thick, y - high + 1.5 * thick)
            self.polygon(POLE, arm, grey)
            return
        self.polygon(POLE, box(x - thick, y - high, x + thick, y), self.colour((95, 65, 40)))
        crown, broad = self.colour((45, 95, 40), (80, 120, 50)), high * 0.3
        self.ellipse(POLE, (x - broad, y - high, x + broad, y - 0.35 * high), crown)

    def scene(self) -> Scene:
        """Return the picture under uneven light and noise, and the labels."""
        height, width = self.labels.size[::-1]
        light = self.random.uniform(0.75, 1.2, 2)
        light_HW1 = np.linspace(light[0], light[1], width)[None, :, None]
        clean_HW3 = np.asarray(self.image) / 255 * light_HW1
        noisy_HW3 = clean_HW3 + NOISE * self.random.randn(height, width, 3)
        image_HW3: Bytes = (noisy_HW3.clip(0, 1) * 255).astype(np.uint8)
        return image_HW3, np.array(self.labels)

    def on_road(self, depth: float, side: float) -> Point:
        """Return the place at a depth (0 far, 1 near) and a side (-1 and 1 are the edges)."""
        height = self.image.height
        half = 0.01 * self.image.width + self.half * depth
        x = self.vanish + (self.middle - self.vanish) * depth + side * half
        return x, self.horizon + (height - self.horizon) * depth

    def colour(self, one: Sequence[int], other: Sequence[int] | None = None) -> Colour:
        """Return a jittered colour between two."""
        share = self.random.rand()
        mixed = np.array(one) * (1 - share) + np.array(other or one) * share
        jittered = mixed + 255 * COLOUR_JITTER * self.random.randn(3)
        red, green, blue = (int(value) for value in jittered.clip(0, 255))
        return red, green, blue

    def polygon(self, kind: int, corners: Sequence[Point], colour: Colour) -> None:
        """Draw a polygon of a kind."""
        self.pens[0].polygon(corners, fill=colour)
        self.pens[1].polygon(corners, fill=kind)

    def ellipse(self, kind: int, edges: Box, colour: Colour) -> None:
        """Draw an ellipse of a kind into a box."""
        self.pens[0].ellipse(edges, fill=colour)
        self.pens[1].ellipse(edges, fill=kind)


def box(left: float, top: float, right: float, bottom: float) -> list[Point]:
    """Return the corners of a box."""
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def dark(colour: Colour, share: float) -> Colour:
    """Return a colour with a share of its light."""
    red, green, blue = (int(value * share) for value in colour)
    return red, green, blue
