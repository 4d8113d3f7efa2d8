"""Large street pictures with the number plates of vehicles and the faces of people.

Plates bear four real handwritten digits (those that digit classifiers are tested on); some people
look away, and signs, windows and balls look a little like plates and faces. Drawn on the roads of
``trainers/synth/road.py``; a picture is a pure function of its seed.

Shape legend: N objects, H height, W width, D digits of a plate, 3 RGB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dlplatform.seeds import derive
from trainers.data.digits import load_digits
from trainers.data.instances import Instances, InstanceSet, Kinds
from trainers.data.scenes import Bytes, Colour
from trainers.synth.road import Box, Canvas, Point, box, dark

KINDS = Kinds(("plate", "face"), ((255, 190, 40), (60, 220, 255)))
PLATE, FACE = range(2)
DIGITS = 4
DRAWN = 384
"""Height in pixels at which pictures that are less high are drawn, and then made smaller."""
HELD = 400_000_000
"""Bytes of pictures that a set keeps."""
SKIN = ((255, 219, 190), (115, 75, 55))
TURN = 4.0
"""Largest turn of a plate, in degrees."""
PIXELS = 36
"""Height of a plate before it is put into the picture."""


@dataclass(frozen=True)
class Look:
    """What the pictures look like."""

    height: int = 512
    width: int = 1024
    grow: float = 1.0
    """How much larger vehicles and people are than the height has it."""
    things: tuple[int, int] = (7, 14)
    """Fewest and most vehicles, people, trees and signs in twice as much width as height."""
    least: float = 4.0
    """Pixels of the shorter side from which an object is not ignored."""
    seen: float = 0.35
    """Share of an object in sight from which it is not ignored."""
    noise: float = 0.05
    """Half-width of the even noise of every pixel, of the full range."""


SMALL = Look(128, 256, 1.35, (5, 9))
"""For tests and quick training: plates and faces of 5 to 35 pixels."""


@dataclass(frozen=True)
class Plate:
    """What is on a plate."""

    index: int
    """Which of the objects it is."""
    number: tuple[int, ...]
    boxes_D4: NDArray[np.float32]
    """Where the digits are, in pixels; they may be hidden."""


@dataclass(frozen=True)
class Panorama:
    """A picture, its plates and faces (by ``KINDS``), and the numbers on the plates."""

    image_HW3: Bytes
    true: Instances
    plates: tuple[Plate, ...]


def panoramas(seed: int, count: int, look: Look | None = None) -> InstanceSet:
    """Return street pictures, each drawn when it is first asked for and then kept."""
    return _panoramas(seed, count, look or Look())


@lru_cache(maxsize=8)
def _panoramas(seed: int, count: int, look: Look) -> InstanceSet:
    @lru_cache(maxsize=max(1, HELD // (3 * look.height * look.width)))
    def read(index: int) -> tuple[Bytes, Instances]:
        drawn = draw_panorama(derive(seed, "panorama", index), look)
        return drawn.image_HW3, drawn.true

    return InstanceSet(KINDS, count, read)


def draw_panorama(seed: int, look: Look | None = None) -> Panorama:
    """Return the street picture of a seed."""
    look = look or Look()
    # RandomState, not default_rng: numpy promises that its stream never changes.
    street = _Street(np.random.RandomState(seed % 2**32), look)
    street.backdrop()
    street.houses()
    street.lanes()
    few, many = (round(count * look.width / look.height / 2) for count in look.things)
    count = street.random.randint(few, many + 1)
    for depth in np.sort(street.random.uniform(0.1, 1, count)):  # what is near hides what is far
        street.thing(depth)
    return street.panorama(look)


@dataclass(frozen=True)
class _Mark:
    """A plate or a face as it was drawn; its number in the map of owners is its place + 1."""

    label: int
    around: Box
    area: float
    number: tuple[int, ...] = ()
    boxes_D4: NDArray[np.float32] | None = None


class _Street(Canvas):
    """A street; the second picture has, for each pixel, whose it is: 0 nobody's."""

    def __init__(self, random: np.random.RandomState, look: Look) -> None:
        self.zoom = max(1, DRAWN // look.height)
        super().__init__(random, look.height * self.zoom, look.width * self.zoom)
        self.unit *= look.grow
        self.owner = 0
        self.marks: list[_Mark] = []

    def polygon(self, kind: int, corners: Sequence[Point], colour: Colour) -> None:
        """Draw a polygon of whoever is being drawn."""
        super().polygon(self.owner, corners, colour)

    def ellipse(self, kind: int, edges: Box, colour: Colour) -> None:
        """Draw an ellipse of whoever is being drawn."""
        super().ellipse(self.owner, edges, colour)

    def rectangle(self, edges: Box, colour: Colour) -> None:
        """Draw a filled box."""
        self.polygon(0, box(*edges), colour)

    def houses(self) -> None:
        """Draw houses with windows along the horizon, which ends behind the road."""
        x, (width, height) = 0.0, self.image.size
        while x < width:
            wide, high = width * self.random.uniform(0.05, 0.16), height * self.random.rand() * 0.3
            if self.random.rand() < 0.7 and high > 0.06 * height:
                wall = self.colour((190, 170, 150), (110, 105, 115))
                self.rectangle((x, self.horizon - high, x + wide, self.horizon), wall)
                pane = self.colour((70, 85, 105), (215, 205, 160))
                step = height * 0.045
                for down in np.arange(self.horizon - high + 0.3 * step, self.horizon - step, step):
                    for right in np.arange(x + 0.3 * step, x + wide - step, 1.3 * step):
                        self.rectangle((right, down, right + 0.7 * step, down + 0.55 * step), pane)
            x += wide

    def thing(self, depth: float) -> None:
        """Draw a vehicle, a person, or something else at a depth (0 far, 1 near)."""
        kind = self.random.rand()
        if kind < 0.42:
            self.plate(self.vehicle(depth, lane=self.random.randint(-1, 2)))
        elif kind < 0.8:
            self.person(depth)
        elif kind < 0.9:
            self.roadside(depth, side=self.random.choice((-1, 1)))
        else:
            self.sign(depth)

    def plate(self, rear: Box) -> None:
        """Put a plate on a vehicle, and remember it."""
        left, top, right, bottom = rear
        wide = (right - left) * self.random.uniform(0.44, 0.54)
        high = wide / self.random.uniform(2.3, 2.9)
        x = (left + right) / 2 + self.random.uniform(-0.03, 0.03) * (right - left)
        y = bottom - 0.24 * (bottom - top)
        number, face = self._plate_face(wide / high)
        turn = self.random.uniform(-TURN, TURN)
        size = max(2, round(wide)), max(2, round(high))
        tile = face.resize(size, Image.Resampling.BOX if face.width > size[0] else 2)
        shown = tile.convert("RGBA").rotate(turn, Image.Resampling.BILINEAR, expand=True)
        at = round(x - shown.width / 2), round(y - shown.height / 2)
        self.image.paste(shown, at, shown)
        inside = shown.getchannel("A").point(lambda value: 255 * (value > 127))
        self.labels.paste(len(self.marks) + 1, at, inside)
        cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
        away_D = (np.arange(DIGITS) - (DIGITS - 1) / 2) * 0.22 * wide
        middles = np.stack([x + cos * away_D, y - sin * away_D], 1)
        half = np.array([0.11 * wide, 0.42 * high])
        self.marks.append(
            _Mark(
                PLATE,
                (at[0], at[1], at[0] + shown.width, at[1] + shown.height),
                wide * high,
                number,
                np.concatenate([middles - half, middles + half], 1).astype(np.float32),
            )
        )

    def _plate_face(self, ratio: float) -> tuple[tuple[int, ...], Image.Image]:
        """Return four digits and a white or green plate with them."""
        digits, labels = _digits()
        picked = self.random.randint(0, len(labels), DIGITS)
        high, wide = PIXELS, round(PIXELS * ratio)
        ink_HW = np.zeros((high, wide), np.float32)
        step, tall = 0.22 * wide, round(0.84 * high)
        for place, index in enumerate(picked.tolist()):
            left = round(0.06 * wide + place * step)
            slot = Image.fromarray(digits[index]).resize((round(step), tall), 2)
            ink_HW[2 : 2 + tall, left : left + slot.width] = np.asarray(slot)[:, : wide - left]
        pale, deep = self.colour((242, 242, 238)), self.colour((25, 28, 35), (20, 60, 40))
        if self.random.rand() < 0.3:
            pale, deep = self.colour((30, 115, 70)), self.colour((240, 240, 235))
        share_HW1 = ink_HW[..., None] / 255
        face_HW3 = np.array(pale) * (1 - share_HW1) + np.array(deep) * share_HW1
        face_HW3[[0, -1]] = face_HW3[:, [0, -1]] = deep
        return tuple(labels[picked].tolist()), Image.fromarray(face_HW3.astype(np.uint8))

    def person(self, depth: float) -> None:
        """Draw somebody who stands or walks, seen from the front or from behind."""
        foot = self.horizon + (self.image.height - self.horizon) * (0.05 + 0.85 * depth)
        tall = (8 + 30 * depth) * self.unit * self.random.uniform(0.85, 1.1)
        x = self.random.uniform(0.02, 0.98) * self.image.width
        top, wide = foot - tall, 0.13 * tall
        skin = self.colour(*SKIN)
        shirt, trousers = (
            self.colour(*self.random.randint(25, 235, (2, 3)).tolist()) for _ in "ab"
        )
        stride = self.random.uniform(0.3, 1.3) * wide
        hip, shoulder = top + 0.52 * tall, top + 0.2 * tall
        for side in (-1, 1):
            leg = x + side * 0.45 * wide, x + side * stride
            self._limb((leg[0], hip), (leg[1], foot), 0.42 * wide, trousers)
            hand = x + side * self.random.uniform(1.1, 1.7) * wide, top + 0.5 * tall
            self._limb((x + side * wide, shoulder + 0.03 * tall), hand, 0.26 * wide, shirt)
            self._ball(hand[0], hand[1], 0.2 * wide, skin)
        body = [(x - wide, shoulder), (x + wide, shoulder)]
        self.polygon(0, [*body, (x + 0.85 * wide, hip), (x - 0.85 * wide, hip)], shirt)
        self._limb((x, top + 0.12 * tall), (x, shoulder), 0.35 * wide, dark(skin, 0.85))
        self.head(x, top + 0.085 * tall, 0.085 * tall, skin)

    def head(self, x: float, y: float, half: float, skin: Colour) -> None:
        """Draw a head, ``2 half`` high; one that is seen from behind is all hair."""
        hair = self.colour((25, 20, 20), (150, 110, 65))
        wide = half * self.random.uniform(0.72, 0.84)
        self.ellipse(0, (x - 1.12 * wide, y - 1.1 * half, x + 1.12 * wide, y + 0.75 * half), hair)
        if self.random.rand() < 0.25:
            return
        self.marks.append(
            _Mark(FACE, (x - wide, y - half, x + wide, y + half), np.pi * wide * half)
        )
        self.owner = len(self.marks)
        self.ellipse(0, self.marks[-1].around, skin)
        look = self.random.uniform(-0.16, 0.16) * wide
        eye, brow = self.colour((30, 25, 30), (70, 90, 110)), dark(hair, 0.8)
        for side in (-1, 1):
            at = x + look + side * 0.42 * wide
            self._oval(at, y - 0.08 * half, 0.2 * wide, 0.1 * half, (245, 245, 245))
            self._oval(at, y - 0.08 * half, 0.1 * wide, 0.1 * half, eye)
            self._oval(at, y - 0.27 * half, 0.22 * wide, 0.045 * half, brow)
        nose = [(x + look, y), (x + look + 0.13 * wide, y + 0.3 * half)]
        self.polygon(0, [*nose, (x + look - 0.13 * wide, y + 0.3 * half)], dark(skin, 0.8))
        lips = self.random.uniform(0.03, 0.11) * half
        mouth = self.colour((150, 60, 60), (195, 90, 90))
        self._oval(x + look, y + 0.55 * half, 0.32 * wide, lips, mouth)
        fringe = y - self.random.uniform(0.5, 0.7) * half
        edge = wide * np.sqrt(1 - ((fringe - y) / half) ** 2)
        across = np.linspace(-1, 1, 17)
        cap = [
            (x + edge * a, y - 1.03 * half * np.sqrt(1 - (edge / wide * a) ** 2)) for a in across
        ]
        self.polygon(0, [*cap, (x + edge, fringe), (x - edge, fringe)], hair)
        self.owner = 0

    def sign(self, depth: float) -> None:
        """Draw a sign on a pole, or a ball: no plate and no face."""
        x = self.random.uniform(0.02, 0.98) * self.image.width
        foot = self.horizon + (self.image.height - self.horizon) * (0.05 + 0.85 * depth)
        size = (1 + 5 * depth) * self.unit
        if self.random.rand() < 0.4:
            self._ball(x, foot - size, size * 0.7, self.colour(*SKIN))
            return
        high = size * self.random.uniform(3, 5)
        self._limb((x, foot), (x, foot - high), 0.12 * size, self.colour((120, 120, 125)))
        board = [(240, 240, 235), (30, 115, 70), (40, 80, 180)][self.random.randint(3)]
        middle, tall = foot - high, 0.4 * size
        self.rectangle((x - size, middle - tall, x + size, middle + tall), self.colour(board))
        ink = self.colour((30, 30, 35) if board[0] > 200 else (240, 240, 235))
        for line in range(self.random.randint(1, 4)):
            y, end = middle - 0.6 * tall + line * 0.55 * tall, self.random.uniform(-0.2, 0.8) * size
            self.rectangle((x - 0.8 * size, y, x + end, y + 0.2 * tall), ink)

    def panorama(self, look: Look) -> Panorama:
        """Return the picture in its size under uneven light and noise, and what is in sight."""
        left, right = self.random.uniform(0.75, 1.15, 2)
        small = self.image.reduce(self.zoom) if self.zoom > 1 else self.image
        light_W1 = np.linspace(left, right, look.width, dtype=np.float32)[:, None]
        image_HW3 = np.asarray(small) * light_W1
        raw = np.frombuffer(self.random.bytes(image_HW3.size), np.uint8).reshape(image_HW3.shape)
        image_HW3 += (raw.astype(np.float32) - 127.5) * np.float32(2 * look.noise)
        true, plates = self._truth(look)
        return Panorama(image_HW3.clip(0, 255).astype(np.uint8), true, plates)

    def _truth(self, look: Look) -> tuple[Instances, tuple[Plate, ...]]:
        owners_HW = np.asarray(self.labels)
        boxes: list[NDArray[np.float64]] = []
        labels, ignored = [], []
        plates: list[Plate] = []
        for number, mark in enumerate(self.marks, 1):
            left, top, right, bottom = (max(0, round(edge)) for edge in mark.around)
            corner = max(0, left - 1), max(0, top - 1)
            mine_HW = owners_HW[corner[1] : bottom + 2, corner[0] : right + 2] == number
            rows, columns = np.flatnonzero(mine_HW.any(1)), np.flatnonzero(mine_HW.any(0))
            if not len(rows):
                continue
            edges = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
            around = (np.array(edges) + np.array(corner * 2)) / self.zoom
            tiny = min(around[2] - around[0], around[3] - around[1]) < look.least
            if mark.boxes_D4 is not None:
                plates.append(Plate(len(boxes), mark.number, mark.boxes_D4 / np.float32(self.zoom)))
            boxes.append(around)
            labels.append(mark.label)
            ignored.append(bool(tiny or mine_HW.sum() < look.seen * mark.area))
        return Instances(
            torch.from_numpy(np.array(boxes, np.float32).reshape(-1, 4)),
            torch.tensor(labels, dtype=torch.int64),
            ignored_N=torch.tensor(ignored) if any(ignored) else None,
        ), tuple(plates)

    def _limb(self, start: Point, end: Point, half: float, colour: Colour) -> None:
        away = np.array([start[1] - end[1], end[0] - start[0]])
        aside = away / max(1e-6, float(np.hypot(*away))) * half
        corners = [start + aside, end + aside, end - aside, start - aside]
        self.polygon(0, [(float(x), float(y)) for x, y in corners], colour)

    def _oval(self, x: float, y: float, wide: float, high: float, colour: Colour) -> None:
        self.ellipse(0, (x - wide, y - high, x + wide, y + high), colour)

    def _ball(self, x: float, y: float, half: float, colour: Colour) -> None:
        self._oval(x, y, half, half, colour)


@lru_cache(maxsize=1)
def _digits() -> tuple[Bytes, NDArray[np.int64]]:
    test = load_digits()["test"]
    return test.images_NCHW[:, 0].numpy(), test.labels.numpy()
