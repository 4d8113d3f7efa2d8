"""Faces before clutter, some partly hidden, among things that are like faces and are none.

Boxes go from hairline to chin whether hidden or not, as in WIDER FACE; masks are what is seen.
Heads from behind, ovals of skin and hands are there to be told from faces. A picture is a pure
function of its seed; films add faces that come through a gate.

Shape legend: N faces, J landmarks (5), H height, W width, 3 RGB.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dlplatform.seeds import derive
from trainers.data.instances import Instances, InstanceSet, Kinds
from trainers.data.scenes import Bytes
from trainers.data.skeletons import FACES
from trainers.synth.canvas import NOBODY, Canvas, finished
from trainers.synth.faces import (
    Identity,
    Random,
    Sight,
    draw_face,
    face_box,
    identity,
    landmarks,
    sight,
)
from trainers.synth.films import Event, Film
from trainers.synth.scenes import Floats, ground

KINDS = Kinds(("face",), ((58, 134, 255),), FACES)
TRIES = 40
LEAST_SEEN, LEAST_PIXELS = 0.35, 8
"""Share of a face that must be seen, and its height in pixels, not to be ignored."""
GATE = 0.5
"""Where the gate is that faces in a film come through, as a share of the width."""


@dataclass(frozen=True)
class Look:
    """What the pictures look like; lengths are shares of the picture's side."""

    side: int = 128
    """Pixels of the square picture."""
    least: int = 0
    most: int = 6
    """Fewest and most faces."""
    sizes: tuple[float, float] = (0.12, 0.46)
    """Smallest and largest height of a face."""
    overlap: float = 0.1
    """Largest part of a face's box that another one's covers."""
    decoys: int = 4
    """Most things that are like faces."""
    hidden: float = 0.25
    """How often something is before a face."""
    clutter: int = 14
    """Most shapes on the ground."""
    noise: float = 0.035
    """Half-width of the even noise of every pixel, of the full range."""
    people: int = 200
    """Number of identities the faces come from."""


class FaceScene(NamedTuple):
    """A picture of faces and whose they are."""

    image_HW3: Bytes
    faces: Instances
    who_N: Tensor


class Shown(NamedTuple):
    """Somebody in a picture."""

    who: int
    person: Identity
    seen: Sight
    body: bool
    hidden: int
    """Seed of what is before the face; 0 for nothing."""


@lru_cache(maxsize=16)
def face_scenes(seed: int, count: int, side: int = 128, look: Look | None = None) -> InstanceSet:
    """Return pictures of faces, each drawn when it is first asked for and then kept."""
    look = replace(look or Look(), side=side)

    @cache
    def read(index: int) -> tuple[Bytes, Instances]:
        scene = draw_faces(derive(seed, "faces", index), look)
        return scene.image_HW3, scene.faces

    return InstanceSet(KINDS, count, read)


def draw_faces(seed: int, look: Look, pool: str = "scene") -> FaceScene:
    """Return one picture: a pure function of its arguments.

    People are numbered from 0 to ``look.people``; ``pool`` is where they are from.
    """
    # RandomState, not default_rng: numpy promises that its stream never changes.
    random = Random(seed % 2**32)
    canvas, behind_HW3 = backdrop(random, look)
    shown = _cast(random, look, pool)
    return show(canvas, behind_HW3, shown, random, look.noise)


def backdrop(random: Random, look: Look) -> tuple[Canvas, Floats]:
    """Return a canvas with clutter and things like faces, and the ground behind it."""
    side, canvas = look.side, Canvas(look.side, look.side)
    behind_HW3 = ground(side, random) * np.float32(random.uniform(0.7, 1.9))
    for _ in range(random.randint(look.clutter // 2, look.clutter + 1)):
        code = canvas.code(random.uniform(20, 235, 3))
        x, y = random.uniform(0, side, 2)
        if random.rand() < 0.5:
            canvas.polygon(
                (x, y) + random.uniform(-0.2, 0.2, (random.randint(3, 6), 2)) * side, code
            )
        elif random.rand() < 0.5:
            wide, high = random.uniform(0.03, 0.15, 2) * side
            canvas.ellipse(x, y, wide, high, code)
        else:
            far = (x, y) + random.uniform(-0.4, 0.4, 2) * side
            canvas.line([(x, y), far], random.uniform(0.01, 0.05) * side, code)
    for _ in range(random.randint(look.decoys + 1)):
        _decoy(canvas, random, look)
    return canvas, behind_HW3


def show(
    canvas: Canvas, behind_HW3: Floats, shown: list[Shown], random: Random, noise: float
) -> FaceScene:
    """Draw people over a backdrop, the largest last, and say where the faces are."""
    order = sorted(range(len(shown)), key=lambda number: shown[number].seen.half)
    for owner in order:
        one = shown[owner]
        draw_face(canvas, one.person, one.seen, owner, one.body)
        if one.hidden:
            _hide(canvas, one.seen, Random(one.hidden))
    image_HW3 = finished(canvas.over(behind_HW3), random, noise)
    who_N = torch.tensor([one.who for one in shown], dtype=torch.int64)
    if not shown:
        return FaceScene(image_HW3, Instances.none(), who_N)
    masks_NHW = torch.from_numpy(canvas.masks(len(shown)))
    boxes_N4 = torch.stack(
        [face_box(one.person, one.seen, canvas.width, canvas.height) for one in shown]
    )
    whole_N = torch.tensor([3.0 * one.person.wide * one.seen.half**2 for one in shown])
    faces = Instances(
        boxes_N4,
        torch.zeros(len(shown), dtype=torch.int64),
        masks_NHW,
        torch.stack([landmarks(canvas, one.person, one.seen, n) for n, one in enumerate(shown)]),
        ignored_N=(masks_NHW.flatten(1).sum(1) < LEAST_SEEN * whole_N)
        | (boxes_N4[:, 3] - boxes_N4[:, 1] < LEAST_PIXELS),
    )
    return FaceScene(image_HW3, faces, who_N)


def face_film(
    seed: int,
    people: int = 3,
    seconds: float = 6.0,
    rate: float = 10.0,
    look: Look | None = None,
    pool: str = "",
) -> Film:
    """Return a film of people of whom some come in through a gate, from left to right.

    The others go out, or pass without coming to the gate. An event "entry" lasts one frame: the
    first in which the middle of a face is right of the gate. With a ``pool`` they are people of
    those of ``draw_faces`` and of portraits with the seed 0, by the same numbers.
    """
    look, random = look or Look(), Random(seed % 2**32)
    frames = int(seconds * rate)
    look = replace(look, hidden=0.0)
    paths = [_path(random, look, number, people, frames) for number in range(people)]
    whose = random.choice(look.people, people, replace=False)
    of = (0, "identity", pool) if pool else (seed, "film")
    cast = [identity(derive(*of, int(who))) for who in whose]
    backdrop_seed, scenes = random.randint(2**31), []
    for frame in range(frames):
        # the same backdrop is drawn again, since people are drawn over it
        canvas, behind_HW3 = backdrop(Random(backdrop_seed), look)
        gate = canvas.code((250, 210, 40))
        canvas.line([(GATE * look.side, 0), (GATE * look.side, look.side)], 0.01 * look.side, gate)
        shown = [
            Shown(int(who), person, path[frame], True, 0)
            for who, person, path in zip(whose, cast, paths, strict=True)
        ]
        shown = [one for one in shown if _visible(one, look.side)]
        scenes.append(show(canvas, behind_HW3, shown, random, look.noise))
    events = []
    for who, path in zip(whose, paths, strict=True):
        right = np.array([place.x >= GATE * look.side for place in path])
        for first in (np.flatnonzero(right[1:] & ~right[:-1]) + 1).tolist():
            events.append(Event("entry", int(who), first, first))
    return Film(
        KINDS,
        rate,
        tuple(scene.image_HW3 for scene in scenes),
        tuple(scene.faces for scene in scenes),
        tuple(scene.who_N for scene in scenes),
        tuple(sorted(events, key=lambda event: event.first)),
    )


def _path(random: Random, look: Look, number: int, people: int, frames: int) -> list[Sight]:
    """Return where somebody is in each frame; everybody keeps to a lane of their own."""
    side, lane = look.side, (number + 0.5) / people
    half = random.uniform(0.09, min(0.2, 0.42 / people)) * side
    y = (0.14 + 0.72 * lane) * side + random.uniform(-0.03, 0.03) * side
    way = random.choice(("in", "out", "by"), p=(0.55, 0.25, 0.2))
    ends = {"in": (-0.25, 1.25), "out": (1.25, -0.25), "by": (-0.25, 0.36)}[way]
    start, stop = sorted(random.uniform(0, 1, 2) * (0.35, 0.35) + (0, 0.6))
    along = np.clip((np.arange(frames) / max(frames - 1, 1) - start) / (stop - start), 0, 1)
    if way == "by":
        along = 1 - np.abs(2 * along - 1)
    x = (ends[0] + along * (ends[1] - ends[0])) * side
    first = sight(random, 0.0, 0.0, half)
    bob, looks = random.uniform(0, 6.28, 2)
    steps = np.arange(frames)
    y = y + 0.012 * side * np.sin(steps * 0.9 + bob)
    yaw = first.yaw + 14 * np.sin(steps * 0.12 + looks)
    return [
        first._replace(x=float(x[n]), y=float(y[n]), yaw=float(yaw[n]), roll=first.roll / 2)
        for n in steps
    ]


def _visible(one: Shown, side: int) -> bool:
    """Return whether some of a face is in the picture."""
    return -0.6 * one.seen.half < one.seen.x < side + 0.6 * one.seen.half


def _cast(random: Random, look: Look, pool: str) -> list[Shown]:
    shown: list[Shown] = []
    boxes: list[Tensor] = []
    count = random.randint(look.least, look.most + 1)
    for _ in range(TRIES * count):
        if len(shown) == count:
            break
        low, high = np.log(look.sizes)
        half = float(np.exp(random.uniform(low, high))) * look.side / 2
        x, y = random.uniform(0.6 * half, look.side - 0.6 * half, 2)
        who = random.randint(look.people)
        person = identity(derive(0, "identity", pool, int(who)))
        seen = sight(random, float(x), float(y), half)
        box_4 = face_box(person, seen, look.side, look.side)
        if all(_cover(box_4, other) <= look.overlap for other in boxes):
            hidden = random.randint(1, 2**31) if random.rand() < look.hidden else 0
            shown.append(Shown(int(who), person, seen, bool(random.rand() < 0.6), hidden))
            boxes.append(box_4)
    return shown


def _cover(one_4: Tensor, other_4: Tensor) -> float:
    sides = (torch.minimum(one_4, other_4)[2:] - torch.maximum(one_4, other_4)[:2]).clamp(min=0)
    least = min(float((box[2:] - box[:2]).prod()) for box in (one_4, other_4))
    return float(sides.prod()) / max(least, 1e-6)


def _decoy(canvas: Canvas, random: Random, look: Look) -> None:
    """Draw an oval of skin, a head from behind, a head without features, or a hand."""
    person, side = identity(random.randint(2**31)), look.side
    half = random.uniform(*look.sizes) * side / 2
    x, y = random.uniform(0, side, 2)
    kind = random.randint(4)
    if kind == 0:
        canvas.ellipse(x, y, half * random.uniform(0.6, 1.1), half, canvas.code(person.skin))
    elif kind == 1:
        seen = sight(random, x, y, half)
        draw_face(canvas, person, seen, NOBODY, body=bool(random.rand() < 0.6), features=False)
    elif kind == 2:
        canvas.ellipse(x, y, 0.75 * half, half, canvas.code(person.skin))
        canvas.ellipse(x, y - 0.5 * half, 0.8 * half, 0.6 * half, canvas.code(person.hair))
    else:
        _hand(canvas, (x, y), 0.7 * half, random.uniform(0, 6.28), person.skin)


def _hand(
    canvas: Canvas, at: tuple[float, float], size: float, turn: float, skin: tuple[float, ...]
) -> None:
    code, (x, y) = canvas.code(skin), at
    shade = canvas.code([0.8 * value for value in skin])
    for number, spread in enumerate((-0.75, -0.25, 0.05, 0.35, 0.65)):
        long = 0.9 if number == 0 else 1.35
        tip = x + long * size * np.cos(turn + spread), y + long * size * np.sin(turn + spread)
        canvas.capsule(at, tip, (0.2 * size, 0.15 * size), code if number % 2 else shade)
    canvas.ellipse(x, y, 0.55 * size, 0.55 * size, code)


def _hide(canvas: Canvas, seen: Sight, random: Random) -> None:
    """Draw something over a part of a face."""
    half, turn = seen.half, random.uniform(0, 6.28)
    x, y = seen.x + 0.75 * half * np.cos(turn), seen.y + 0.75 * half * np.sin(turn)
    colour = random.uniform(20, 235, 3)
    kind = random.randint(3)
    if kind == 0:
        _hand(canvas, (x, y), 0.5 * half, turn + np.pi, tuple(colour))
    elif kind == 1:
        across = np.array([-np.sin(turn), np.cos(turn)]) * 1.6 * half
        ends = [(x - across[0], y - across[1]), (x + across[0], y + across[1])]
        canvas.line(ends, 0.45 * half, canvas.code(colour))
    else:
        corners = (x, y) + random.uniform(-0.7, 0.7, (5, 2)) * half
        canvas.polygon(corners, canvas.code(colour))
