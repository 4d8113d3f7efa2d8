"""Scenes of a few coloured shapes on a textured ground, with all that detectors and captions need.

A scene is a pure function of its seed. Shape legend: H height, W width, C colours (RGB), N shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Accept = Callable[[tuple["Thing", ...]], bool]

SHAPES = ("disc", "square", "triangle")
"""The classes, in the order of the labels."""
COLOURS = {
    "red": (215, 45, 40),
    "green": (40, 165, 70),
    "blue": (45, 85, 220),
    "yellow": (235, 205, 50),
    "white": (240, 240, 240),
    "purple": (150, 60, 180),
}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TRIES = 60


@dataclass(frozen=True)
class Look:
    """What scenes look like; lengths are shares of the picture's side."""

    side: int = 128
    """Pixels of the square picture."""
    least: int = 1
    """Fewest shapes."""
    most: int = 5
    """Most shapes, up to 9."""
    small: tuple[float, float] = (0.09, 0.2)
    """Smallest and largest width of what captions call small."""
    large: tuple[float, float] = (0.2, 0.47)
    """Smallest and largest width of the others."""
    overlap: float = 0.35
    """Largest part of a shape's box that another one's covers."""
    noise: float = 0.06
    """Half-width of the even noise of every pixel, of the full range."""


@dataclass(frozen=True)
class Thing:
    """One shape: what it is, and its box in pixels, edges included on the left and top only."""

    label: int
    colour: str
    small: bool
    x: float
    """Centre."""
    y: float
    size: float
    """Width and height."""

    @property
    def words(self) -> str:
        """Return it with its article, as in ``a small red disc``."""
        return f"a {'small ' if self.small else ''}{self.colour} {SHAPES[self.label]}"


@dataclass(frozen=True)
class Scene:
    """A picture and what is in it; later shapes lie over earlier ones."""

    image_HWC: NDArray[np.uint8]
    boxes_N4: Floats
    """x1, y1, x2, y2 in pixels around what is seen of each shape; x2 and y2 are not in it."""
    labels_N: NDArray[np.int64]
    """Index in ``SHAPES``."""
    masks_NHW: NDArray[np.bool_]
    """The pixels that are seen of each shape."""
    captions: tuple[str, ...]
    """One sentence, or two that say the same from either side."""
    things: tuple[Thing, ...] = field(repr=False)


def draw_scene(seed: int, look: Look | None = None, accept: Accept | None = None) -> Scene:
    """Return the scene of a seed; ``accept`` says which combinations of shapes may come."""
    look, random = look or Look(), np.random.RandomState(seed % 2**32)
    things = compose(random, look)
    while accept and not accept(things):
        things = compose(random, look)
    return render(things, look, random)


def compose(random: np.random.RandomState, look: Look) -> tuple[Thing, ...]:
    """Return shapes in places that leave a good part of each in sight."""
    while True:
        things: list[Thing] = []
        count = random.randint(look.least, look.most + 1)
        for _ in range(TRIES):
            if len(things) == count:
                break
            thing = _thing(random, look)
            if all(covered(thing, other) <= look.overlap for other in things):
                things.append(thing)
        if things and len(things) >= look.least and _clear(things, look.side):
            return tuple(things)


def render(things: tuple[Thing, ...], look: Look, random: np.random.RandomState) -> Scene:
    """Draw shapes on a ground of their own and say what is there."""
    side = look.side
    image_HWC = ground(side, random)
    owner_HW = np.full((side, side), -1)
    for number, thing in enumerate(things):
        where, inside = _pixels(thing, side)
        light = random.uniform(0.8, 1.1)
        image_HWC[where][inside] = np.array(COLOURS[thing.colour], np.float32) * light
        owner_HW[where][inside] = number
    raw = np.frombuffer(random.bytes(image_HWC.size), np.uint8).reshape(image_HWC.shape)
    image_HWC += (raw.astype(np.float32) - 127.5) * np.float32(2 * look.noise)
    masks_NHW = owner_HW == np.arange(len(things))[:, None, None]
    return Scene(
        np.clip(image_HWC, 0, 255).astype(np.uint8),
        np.array([_box(mask_HW) for mask_HW in masks_NHW], np.float32).reshape(-1, 4),
        np.array([thing.label for thing in things], np.int64),
        masks_NHW,
        captions(things),
        things,
    )


def captions(things: tuple[Thing, ...]) -> tuple[str, ...]:
    """Return sentences about the two largest shapes: from above or the left, and the other way."""
    if len(things) == 1:
        return (things[0].words,)
    first, second = sorted(things, key=lambda thing: -thing.size)[:2]
    upright = abs(first.y - second.y) > abs(first.x - second.x)
    if (second.y < first.y) if upright else (second.x < first.x):
        first, second = second, first
    there, back = ("above", "below") if upright else ("left of", "right of")
    rest = len(things) - 2
    more = f" and {NUMBERS[rest]} more {'shape' if rest == 1 else 'shapes'}" if rest else ""
    return (
        f"{first.words} {there} {second.words}{more}",
        f"{second.words} {back} {first.words}{more}",
    )


def _thing(random: np.random.RandomState, look: Look) -> Thing:
    small = bool(random.randint(2))
    size = random.uniform(*(look.small if small else look.large)) * look.side
    x, y = random.uniform(size / 2, look.side - size / 2, 2)
    colour = tuple(COLOURS)[random.randint(len(COLOURS))]
    return Thing(int(random.randint(len(SHAPES))), colour, small, float(x), float(y), float(size))


class Placed(Protocol):
    """What has a centre and a width, in pixels."""

    @property
    def x(self) -> float:
        """Return the centre's column."""

    @property
    def y(self) -> float:
        """Return the centre's row."""

    @property
    def size(self) -> float:
        """Return the width and height."""


def covered(one: Placed, other: Placed) -> float:
    """Return the part of the smaller box that lies in the other one."""
    reach = (one.size + other.size) / 2
    wide = min(reach - abs(one.x - other.x), one.size, other.size)
    high = min(reach - abs(one.y - other.y), one.size, other.size)
    return max(0.0, wide) * max(0.0, high) / min(one.size, other.size) ** 2


def _clear(things: list[Thing], side: int) -> bool:
    """Return whether it can be said how the two largest shapes lie to each other."""
    if len(things) == 1:
        return True
    first, second = sorted(things, key=lambda thing: -thing.size)[:2]
    return abs(abs(first.x - second.x) - abs(first.y - second.y)) > 0.08 * side


def _pixels(thing: Thing, side: int) -> tuple[tuple[slice, slice], NDArray[np.bool_]]:
    """Return the window of a shape in the picture and which of its pixels are inside."""
    half = thing.size / 2
    spans = [(int(at - half), min(side, int(at + half) + 1)) for at in (thing.y, thing.x)]
    y, x = (
        (np.arange(low, high) + 0.5 - at) / half
        for (low, high), at in zip(spans, (thing.y, thing.x), strict=True)
    )
    y, x = y[:, None], np.abs(x[None])
    if SHAPES[thing.label] == "disc":
        inside = x**2 + y**2 <= 1
    elif SHAPES[thing.label] == "square":
        inside = (x <= 0.9) & (np.abs(y) <= 0.9)
    else:
        inside = (x <= (y + 1) / 2) & (y <= 1)
    return (slice(*spans[0]), slice(*spans[1])), inside


def ground(side: int, random: np.random.RandomState) -> Floats:
    """Return two dim colours that run into each other in waves."""
    along = np.arange(side, dtype=np.float32) / side
    waves = np.zeros((side, side), np.float32)
    for _ in range(2):
        turn, lap = random.uniform(0, 2 * np.pi, 2)
        pace = random.uniform(4, 26)
        phase_H = (pace * np.sin(turn) * along + lap).astype(np.float32)
        waves += np.sin(phase_H[:, None] + (pace * np.cos(turn) * along).astype(np.float32))
    low, high = random.uniform(50, 110, (2, 3)).astype(np.float32)
    image_HWC: Floats = low + (high - low) * (waves[..., None] / 4 + 0.5)
    return image_HWC


def _box(mask_HW: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
