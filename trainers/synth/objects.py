"""Pictures of objects with their boxes, classes and masks: ten shapes in eight textures, and G2.

Of these, ``SUBJECTS`` are pictures about something, and ``object_film`` is a camera that passes.

Textures lie in the picture's frame while shapes are turned, so that stripes keep their name; a
mirrored picture still shows the same classes. A picture is a pure function of its seed.

Shape legend: N objects, H height, W width, 3 RGB.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dlplatform.errors import UsageError
from dlplatform.seeds import derive
from trainers.data.instances import Instances, InstanceSet, Kinds, boxes_around, palette
from trainers.data.scenes import Bytes
from trainers.synth.films import Film
from trainers.synth.scenes import SHAPES as THREE
from trainers.synth.scenes import Floats, covered, draw_scene, ground
from trainers.synth.scenes import Look as SceneLook

Random = np.random.RandomState
Reals = NDArray[np.floating[Any]]
Distance = Callable[[Floats, Floats], Reals]
"""How far outside a shape of radius 1 a point is (negative inside)."""
TRIES = 60
WIDER = 3
"""Sides of a camera's picture in that of what it passes over."""
STEP = 11
"""Has no divisor in common with 80: so many classes apart, shapes and textures are well mixed."""


def _box(x: Floats, y: Floats, wide: float, high: float) -> Reals:
    distance: Reals = np.maximum(np.abs(x) - wide, np.abs(y) - high)
    return distance


def _regular(x: Floats, y: Floats, corners: int, inner: float) -> Reals:
    """Return the distance from a star whose notches are ``inner`` from its middle."""
    half = np.pi / corners
    angle = np.abs((np.arctan2(x, -y) + half) % (2 * half) - half)
    along, aside = np.hypot(x, y) * (np.cos(angle), np.sin(angle))
    dx, dy = inner * np.cos(half) - 1, inner * np.sin(half)
    distance: Reals = ((along - 1) * dy - aside * dx) / np.hypot(dx, dy)
    return distance


def _crescent(x: Floats, y: Floats) -> Reals:
    outer, bite = np.hypot(x, y) - 0.95, np.hypot(x - 0.45, y) - 0.75
    distance: Reals = np.maximum(outer, -bite)
    return distance


def _arrow(x: Floats, y: Floats) -> Reals:
    head = np.maximum((np.abs(x) - 0.62 * (y + 0.97)) * 0.85, y + 0.02)
    distance: Reals = np.minimum(head, _box(x, y - 0.4, 0.22, 0.52))
    return distance


OUTLINES: dict[str, Distance] = {
    "disc": lambda x, y: np.hypot(x, y) - 0.9,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.7) - 0.24,
    "square": lambda x, y: _box(x, y, 0.68, 0.68),
    "triangle": lambda x, y: _regular(x, y, 3, 0.5),
    "star": lambda x, y: _regular(x, y, 5, 0.45),
    "cross": lambda x, y: np.minimum(_box(x, y, 0.92, 0.3), _box(x, y, 0.3, 0.92)),
    "L": lambda x, y: np.minimum(_box(x + 0.37, y, 0.27, 0.75), _box(x, y - 0.48, 0.64, 0.27)),
    "hexagon": lambda x, y: _regular(x, y, 6, np.sqrt(0.75)) + 0.03,
    "crescent": _crescent,
    "arrow": _arrow,
}
TEXTURES = (
    *("solid", "horizontal stripe", "vertical stripe", "diagonal stripe"),
    *("dot", "checker", "gradient", "noise"),
)
SHAPES = tuple(OUTLINES)
NAMES = tuple(f"{texture} {shape}" for shape in SHAPES for texture in TEXTURES)
"""All 80 classes; those of one shape follow each other."""


@dataclass(frozen=True)
class Look:
    """What the pictures look like; lengths are shares of the picture's side."""

    side: int = 128
    """Pixels of the square picture."""
    least: int = 1
    most: int = 4
    """Fewest and most objects, distractors included."""
    sizes: tuple[float, float] = (0.2, 0.48)
    """Smallest and largest diameter."""
    overlap: float = 0.25
    """Largest part of an object's box that another one's covers."""
    clutter: int = 8
    """Thin lines and small spots on the ground."""
    noise: float = 0.05
    """Half-width of the even noise of every pixel, of the full range."""
    distractors: float = 0.0
    """Share of objects of the classes that are not asked for: they are drawn and not told."""


@dataclass(frozen=True)
class _Thing:
    kind: int
    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Subject:
    """Pictures about something: its classes by name, and what the pictures look like."""

    classes: tuple[str, ...]
    look: Look = field(default_factory=Look)


SUBJECTS = {
    "fish": Subject(tuple(f"{texture} crescent" for texture in TEXTURES)),
    "weapons": Subject(
        ("solid L", "horizontal stripe arrow", "checker cross"),
        Look(least=2, most=6, sizes=(0.16, 0.34), distractors=0.85),
    ),
}
"""Fish are of one shape and told apart by texture alone; weapons are small, rare, among others."""


def chosen(classes: int | tuple[str, ...]) -> tuple[int, ...]:
    """Return which of ``NAMES`` are asked for: by name, or so many with mixed looks.

    Raises:
        UsageError: for a number or a name that is not among the 80.
    """
    if isinstance(classes, tuple):
        if strange := [name for name in classes if name not in NAMES]:
            raise UsageError(
                f"class {strange[0]!r} is not known - allowed: a texture of {', '.join(TEXTURES)} "
                f"and a shape of {', '.join(SHAPES)} - do: name it so, as in {NAMES[1]!r}"
            )
        return tuple(map(NAMES.index, classes))
    if not 1 <= classes <= len(NAMES):
        raise UsageError(
            f"classes={classes} cannot be drawn - allowed: 1 to {len(NAMES)} - do: take fewer"
        )
    return tuple(sorted(number * STEP % len(NAMES) for number in range(classes)))


@lru_cache(maxsize=16)
def objects(
    seed: int,
    count: int,
    classes: int | tuple[str, ...] = 80,
    side: int = 128,
    look: Look | None = None,
) -> InstanceSet:
    """Return pictures of objects, each drawn when it is first asked for and then kept.

    ``classes`` is a number (8 is a small set) or some of ``NAMES``; labels count these from 0.
    """
    look, kinds = replace(look or Look(), side=side), chosen(classes)

    @cache
    def read(index: int) -> tuple[Bytes, Instances]:
        return draw_objects(derive(seed, "objects", index), kinds, look)

    return InstanceSet(_kinds(kinds), count, read)


def object_film(
    seed: int,
    classes: int | tuple[str, ...] = 8,
    about: tuple[str, ...] = (),
    look: Look | None = None,
    seconds: float = 6.0,
    rate: float = 5.0,
) -> Film:
    """Return a film of a camera that passes over a large picture of objects, from left to right.

    ``classes`` are what labels count, as of ``objects``; if given, only those that it is ``about``
    are drawn. Of an object at least a half is in sight, or it is left out of the truth.
    """
    look, kinds, frames, truths, whose = look or Look(), chosen(classes), [], [], []
    drawn = chosen(about) if about else kinds
    small, large = (size / WIDER for size in look.sizes)
    count, side = 4 * look.most, look.side
    wide = replace(
        look, side=WIDER * side, least=count, most=count, sizes=(small, large), clutter=24
    )
    image_HW3, every = draw_objects(derive(seed, "film"), drawn, wide)
    assert every.masks_NHW is not None
    labels_N = torch.tensor([kinds.index(kind) for kind in drawn])[every.labels_N]
    whole_N, top = every.masks_NHW.flatten(1).sum(1), seed % ((WIDER - 1) * side)
    for left in np.linspace(0, (WIDER - 1) * side, round(seconds * rate)).astype(int).tolist():
        rows, columns = slice(top, top + side), slice(left, left + side)
        masks_NHW = every.masks_NHW[:, rows, columns]
        seen_N = 2 * masks_NHW.flatten(1).sum(1) >= whole_N
        boxes_N4 = boxes_around(masks_NHW[seen_N].numpy())
        frames.append(np.ascontiguousarray(image_HW3[rows, columns]))
        truths.append(Instances(boxes_N4, labels_N[seen_N], masks_NHW[seen_N]))
        whose.append(seen_N.nonzero()[:, 0])
    return Film(_kinds(kinds), rate, tuple(frames), tuple(truths), tuple(whose), ())


def _kinds(chosen: tuple[int, ...]) -> Kinds:
    return Kinds(tuple(NAMES[kind] for kind in chosen), palette(len(chosen)))


@lru_cache(maxsize=16)
def scene_boxes(seed: int, count: int, side: int = 128) -> InstanceSet:
    """Return scenes of one to five discs, squares and triangles, drawn when first asked for.

    A shape is 9 to 47 hundredths of the side wide (12 to 60 of 128 pixels).
    """

    @cache
    def read(index: int) -> tuple[Bytes, Instances]:
        scene = draw_scene(derive(seed, "scene boxes", index), SceneLook(side))
        boxes_N4, labels_N = torch.from_numpy(scene.boxes_N4), torch.from_numpy(scene.labels_N)
        return scene.image_HWC, Instances(boxes_N4, labels_N, torch.from_numpy(scene.masks_NHW))

    return InstanceSet(Kinds(THREE, palette(len(THREE))), count, read)


def draw_objects(seed: int, kinds: tuple[int, ...], look: Look) -> tuple[Bytes, Instances]:
    """Return one picture with objects of some classes of ``NAMES``: a pure function of these."""
    # RandomState, not default_rng: numpy promises that its stream never changes.
    random = Random(seed % 2**32)
    image_HW3 = _ground(random, look)
    owner_HW = np.full((look.side, look.side), -1, np.int16)
    things = _things(random, kinds, look)
    for number, thing in enumerate(things):
        _paint(image_HW3, owner_HW, number, thing, random)
    raw = np.frombuffer(random.bytes(image_HW3.size), np.uint8).reshape(image_HW3.shape)
    image_HW3 += (raw.astype(np.float32) - 127.5) * np.float32(2 * look.noise)
    labels = {kind: label for label, kind in enumerate(kinds)}
    told = [number for number, thing in enumerate(things) if thing.kind in labels]
    masks_NHW = owner_HW == np.array(told, np.int16)[:, None, None]
    return np.clip(image_HW3, 0, 255).astype(np.uint8), Instances(
        boxes_around(masks_NHW),
        torch.tensor([labels[things[number].kind] for number in told], dtype=torch.int64),
        torch.from_numpy(masks_NHW),
    )


def _things(random: Random, kinds: tuple[int, ...], look: Look) -> list[_Thing]:
    others = [kind for kind in range(len(NAMES)) if kind not in kinds] if look.distractors else []
    things: list[_Thing] = []
    count = random.randint(look.least, look.most + 1)
    for _ in range(TRIES):
        if len(things) == count:
            break
        pool = others if others and random.rand() < look.distractors else kinds
        size = random.uniform(*look.sizes) * look.side
        x, y = random.uniform(size / 2, look.side - size / 2, 2)
        thing = _Thing(pool[random.randint(len(pool))], float(x), float(y), size)
        if all(covered(thing, other) <= look.overlap for other in things):
            things.append(thing)
    return things


def _ground(random: Random, look: Look) -> Floats:
    """Return waves of two dim colours with thin lines and small spots of others on them."""
    canvas = Image.fromarray(ground(look.side, random).astype(np.uint8))
    pen, unit = ImageDraw.Draw(canvas), look.side / 128
    for _ in range(random.randint(look.clutter + 1)):
        colour = tuple(random.randint(30, 170, 3).tolist())
        x, y = random.uniform(0, look.side, 2)
        reach_2 = random.uniform(-30, 30, 2) * unit
        if random.rand() < 0.5:
            pen.line((x, y, x + reach_2[0], y + reach_2[1]), colour, max(1, round(1.5 * unit)))
        else:
            corners_52 = (x, y) + random.uniform(-5, 5, (5, 2)) * unit
            pen.polygon([(float(a), float(b)) for a, b in corners_52], colour)
    return np.asarray(canvas).astype(np.float32)


def _paint(
    image_HW3: Floats, owner_HW: NDArray[np.int16], number: int, thing: _Thing, random: Random
) -> None:
    """Draw an object over what is there, its edge smooth."""
    half, side = thing.size / 2, len(owner_HW)
    low, high = (
        [max(0, int(at - half)) for at in (thing.y, thing.x)],
        [min(side, int(at + half) + 2) for at in (thing.y, thing.x)],
    )
    where = slice(low[0], high[0]), slice(low[1], high[1])
    rows_H1 = (np.arange(low[0], high[0], dtype=np.float32) + 0.5)[:, None]
    columns_1W = np.arange(low[1], high[1], dtype=np.float32) + 0.5
    turn, mirror = random.uniform(0, 2 * np.pi), random.choice((-1, 1))
    cos, sin = np.float32(np.cos(turn) / half), np.float32(np.sin(turn) / half)
    y_HW, x_HW = rows_H1 - np.float32(thing.y), columns_1W - np.float32(thing.x)
    u_HW, v_HW = (cos * x_HW + sin * y_HW) * mirror, cos * y_HW - sin * x_HW
    shape, texture = divmod(thing.kind, len(TEXTURES))
    distance_HW = OUTLINES[SHAPES[shape]](u_HW, v_HW) * half
    paint, other = _pair(random)
    share_HW = _texture(TEXTURES[texture], y_HW, x_HW, thing.size, random)
    colour_HW3 = paint + share_HW[..., None] * (other - paint)
    cover_HW1 = (0.5 - distance_HW).clip(0, 1)[..., None]
    image_HW3[where] += cover_HW1 * (colour_HW3 - image_HW3[where])
    owner_HW[where][distance_HW < 0] = number


def _pair(random: Random) -> tuple[Floats, Floats]:
    """Return a bright colour, and a dark or pale one that is far from it."""
    bright = random.uniform(60, 150, 3)
    bright[random.randint(3)] = random.uniform(215, 255)
    other = random.uniform(0, 45, 3) if random.rand() < 0.5 else random.uniform(225, 255, 3)
    if np.abs(bright - other).sum() < 250:
        other = 255 - other
    return bright.astype(np.float32), other.astype(np.float32)


def _texture(name: str, y_HW: Floats, x_HW: Floats, size: float, random: Random) -> Floats:
    """Return the share of the second colour, 0 to 1, at rows (H, 1) and columns (W)."""
    period, lap = max(4.5, size / random.uniform(3.5, 5)), random.uniform(0, 6.283, 2)
    pace = np.float32(6.283 / period)
    down_H1, right_1W = y_HW * pace + np.float32(lap[0]), x_HW[None] * pace + np.float32(lap[1])
    zeros_HW = np.zeros((len(y_HW), x_HW.size), np.float32)
    if name == "solid":
        return zeros_HW
    if name == "gradient":
        cos, sin = np.cos(lap[0]), np.sin(lap[0])
        faded_HW: Floats = ((cos * x_HW + sin * y_HW) / size + 0.5).clip(0, 1).astype(np.float32)
        return faded_HW
    if name == "noise":
        grain = max(2, round(size / 14))
        grains_HW = random.rand(len(y_HW) // grain + 1, x_HW.size // grain + 1).astype(np.float32)
        fine_HW: Floats = grains_HW.repeat(grain, 0).repeat(grain, 1)
        return fine_HW[: len(y_HW), : x_HW.size]
    way = np.float32(random.choice((-0.72, 0.72)))
    waves: dict[str, Callable[[], Floats]] = {
        "horizontal stripe": lambda: np.sin(down_H1) + zeros_HW,
        "vertical stripe": lambda: np.sin(right_1W) + zeros_HW,
        "diagonal stripe": lambda: np.sin(0.72 * down_H1 + way * right_1W),
        "dot": lambda: np.sin(down_H1) + np.sin(right_1W) - 0.7,
        "checker": lambda: np.sin(0.8 * down_H1) * np.sin(0.8 * right_1W) * 2,
    }
    share_HW: Floats = (0.5 + 2 * waves[name]()).clip(0, 1)
    return share_HW
