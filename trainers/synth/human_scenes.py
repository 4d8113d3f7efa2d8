"""Pictures of people as a camera on a pole sees them, with boxes, masks, joints and states.

Up to a few people stand, walk, run, sit, crouch or lie on a textured ground among poles, boxes,
bags and chairs, of which some hide parts of them. A picture is a pure function of its seed.

Shape legend: N people, J joints, H height, W width, 3 RGB, or x, y, visibility of joints.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from dlplatform.seeds import derive
from trainers.data.instances import Instances, InstanceSet, Kinds, boxes_around
from trainers.data.scenes import Bytes
from trainers.data.skeletons import NECKED, PEOPLE, STATES
from trainers.synth.canvas import Canvas, finished
from trainers.synth.human import BENCH, POSES, Body, Build, Random, body, build
from trainers.synth.human_drawing import (
    Camera,
    Layer,
    Shape,
    bench_layer,
    box_layer,
    chair_layer,
    draw_layer,
    joints_seen,
    person_layer,
)

Ground = NDArray[np.float32]
Box = tuple[float, float, float, float]
TRIES = 40
SMALLEST, HARDLY = 0.002, 0.4
"""Share of the picture, and of the joints that are not covered, below which one is ignored."""


@dataclass(frozen=True)
class Look:
    """What the pictures look like; lengths are shares of the picture's side."""

    side: int = 128
    """Pixels of the square picture."""
    least: int = 1
    most: int = 3
    """Fewest and most people."""
    sizes: tuple[float, float] = (0.34, 0.72)
    """How tall people are, or would be if they stood."""
    overlap: float = 0.35
    """Largest part of somebody's box that another one's covers."""
    tilts: tuple[float, float] = (10.0, 38.0)
    """How far down the camera looks, in degrees."""
    things: int = 3
    """Most poles, boxes and bags."""
    hidden: float = 0.2
    """How often something stands before somebody."""
    noise: float = 0.035
    """Half-width of the even noise of every pixel, of the full range."""
    states: tuple[str, ...] = STATES
    """What people may be doing; each is as likely as the others."""


@dataclass(frozen=True)
class Actor:
    """Somebody in a scene."""

    person: Build
    state: str
    where: Body
    things: Layer = field(default_factory=list)
    """What they sit or lie on."""


@dataclass(frozen=True)
class Stage:
    """A camera before a ground, and the things that stand there: (metres away, shapes)."""

    camera: Camera
    ground_HW3: Ground
    things: tuple[tuple[float, Layer], ...] = ()


@lru_cache(maxsize=16)
def people(
    seed: int, count: int, side: int = 128, look: Look | None = None, neck: bool = False
) -> InstanceSet:
    """Return pictures of people, each drawn when it is first asked for and then kept.

    They have 17 joints, or 18 with the neck.
    """
    look = replace(look or Look(), side=side)

    @cache
    def read(index: int) -> tuple[Bytes, Instances]:
        return draw_people(derive(seed, "people", index), look, neck)

    return InstanceSet(kinds(neck), count, read)


def kinds(neck: bool = False) -> Kinds:
    """Return what is known of people."""
    return Kinds(("person",), ((58, 134, 255),), NECKED if neck else PEOPLE, STATES)


def draw_people(seed: int, look: Look, neck: bool = False) -> tuple[Bytes, Instances]:
    """Return one picture and who is in it: a pure function of its arguments."""
    # RandomState, not default_rng: numpy promises that its stream never changes.
    random = Random(seed % 2**32)
    stage = make_stage(random, look)
    actors = _cast(random, look, stage.camera)
    stage = replace(stage, things=_things(random, look, stage.camera, actors))
    return show(stage, actors, random, look.noise, neck)


def make_stage(random: Random, look: Look) -> Stage:
    """Return an empty place seen from above."""
    side = look.side
    tilt, focal = random.uniform(*look.tilts), side * random.uniform(1.0, 1.45)
    tall = np.mean(look.sizes) * side * random.uniform(0.9, 1.15)
    below = np.radians(tilt) + np.arctan2(0.24 * side, focal)
    depth = 1.7 * focal * np.cos(np.radians(tilt)) / tall
    height = depth / np.cos(below - np.radians(tilt)) * np.sin(below)
    camera = Camera(float(height), float(tilt), float(focal), side, random.uniform(-3, 3))
    return Stage(camera, _ground(random, camera))


def show(
    stage: Stage, actors: list[Actor], random: Random, noise: float, neck: bool = False
) -> tuple[Bytes, Instances]:
    """Draw a scene and say who is where; one who is hardly seen is ignored."""
    camera = stage.camera
    canvas = Canvas(camera.side, camera.side)
    layers = [
        (_away(actor.where), person_layer(actor.person, actor.where, number) + actor.things)
        for number, actor in enumerate(actors)
    ]
    for _, layer in sorted([*layers, *stage.things], key=lambda pair: -pair[0]):
        draw_layer(canvas, camera, layer)
    shade_HW = _shade(camera, [actor.where for actor in actors])
    image_HW3 = finished(canvas.over(stage.ground_HW3 * shade_HW[..., None]), random, noise)
    if not actors:
        return image_HW3, Instances.none()
    masks_NHW = canvas.masks(len(actors))
    joints, own = zip(
        *(joints_seen(canvas, camera, actor.where, n) for n, actor in enumerate(actors)),
        strict=True,
    )
    joints_NJ3 = torch.stack(joints)
    pixels_N = torch.from_numpy(masks_NHW).flatten(1).sum(1)
    return image_HW3, Instances(
        boxes_around(masks_NHW),
        torch.zeros(len(actors), dtype=torch.int64),
        torch.from_numpy(masks_NHW),
        joints_NJ3 if neck else joints_NJ3[:, : len(PEOPLE.names)],
        torch.tensor([STATES.index(actor.state) for actor in actors]),
        (pixels_N < SMALLEST * camera.side**2) | (torch.tensor(own) < HARDLY),
    )


def _cast(random: Random, look: Look, camera: Camera) -> list[Actor]:
    actors: list[Actor] = []
    boxes: list[Box] = []
    count = random.randint(look.least, look.most + 1)
    for _ in range(TRIES * count):
        if len(actors) == count:
            break
        actor = _actor(random, look, camera)
        if actor is None:
            continue
        box = outline(camera, actor.person, actor.where)
        if inside(box, look.side) and all(cover(box, other) <= look.overlap for other in boxes):
            actors.append(actor)
            boxes.append(box)
    return actors


def _actor(random: Random, look: Look, camera: Camera) -> Actor | None:
    state = look.states[random.randint(len(look.states))]
    person = build(random)
    x, y = random.uniform(0.08, 0.92), random.uniform(0.3, 1.0)
    if y * look.side < camera.horizon() + 0.08 * look.side:
        return None
    at = camera.on_ground(x * look.side, y * look.side)
    ends_22, _ = camera.see([(*at, person.height), (*at, 0.0)])
    if not look.sizes[0] <= (ends_22[1, 1] - ends_22[0, 1]) / look.side <= look.sizes[1]:
        return None
    return pose_actor(random, person, state, at)


def pose_actor(random: Random, person: Build, state: str, at: tuple[float, float]) -> Actor:
    """Return somebody in a state, with a chair or a bench now and then."""
    pose, heading = POSES[state](random), random.uniform(0, 360)
    things: Layer = []
    colour = random.uniform(50, 200, 3)
    away = float(np.degrees(np.arctan2(-at[0], at[1])))  # along the line from the camera
    if state == "Lying":
        if random.rand() < 0.6:  # foreshortened, the head or the feet nearest
            heading = away + random.choice((0, 180)) + random.uniform(-22, 22)
        if random.rand() < 0.2:
            pose = pose._replace(floats=BENCH)
    if state in ("Walking", "Running") and random.rand() < 0.6:  # a stride shows from the side
        heading = away + random.choice((90, 270)) + random.uniform(-50, 50)
    where = body(person, pose, heading, at)
    if state == "Sitting" and random.rand() < 0.6:
        things = chair_layer(where, heading + pose.spin, bool(random.rand() < 0.6), colour)
    if pose.floats == BENCH:
        middle = where.joints_J3[:, :2].mean(0)
        things = bench_layer((float(middle[0]), float(middle[1])), heading, BENCH, colour)
    return Actor(person, state, where, things)


def outline(camera: Camera, person: Build, where: Body) -> Box:
    """Return about where somebody is in the picture, things in front left aside."""
    points_P3 = np.concatenate([where.joints_J3, where.toes_23, where.hands_23])
    places_P2, depths_P = camera.see(points_P3)
    reach = 0.05 * person.height * camera.focal / float(depths_P.mean())
    (x0, y0), (x1, y1) = places_P2.min(0) - reach, places_P2.max(0) + reach
    return float(x0), float(y0), float(x1), float(y1)


def inside(box: Box, side: int) -> bool:
    """Return whether most of a box lies in the picture."""
    x0, y0, x1, y1 = box
    wide, high = min(x1, side) - max(x0, 0), min(y1, side) - max(y0, 0)
    return wide > 0 and high > 0 and wide * high > 0.88 * (x1 - x0) * (y1 - y0)


def cover(one: Box, other: Box) -> float:
    """Return the part of the smaller box that lies in the other one."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    least = min((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other))
    return max(0.0, wide) * max(0.0, high) / least


def _away(where: Body) -> float:
    return float(where.joints_J3[:, 1].mean())


def _things(
    random: Random, look: Look, camera: Camera, actors: list[Actor]
) -> tuple[tuple[float, Layer], ...]:
    """Return poles, boxes and bags; some stand between the camera and somebody."""
    side, found = look.side, []
    for _ in range(random.randint(look.things + 1)):
        x, y = (
            random.uniform(0, side),
            random.uniform(max(0.25 * side, camera.horizon() + 0.1 * side), side),
        )
        found.append(camera.on_ground(x, y))
    for actor in actors:
        if random.rand() < look.hidden:
            middle = actor.where.joints_J3[:, :2].mean(0)
            x, y = middle + random.uniform(-0.35, 0.35, 2) - (0, 0.7)
            found.append((float(x), float(y)))
    return tuple((at[1], _thing(random, at)) for at in found)


def _thing(random: Random, at: tuple[float, float]) -> Layer:
    kind, colour = random.randint(4), random.uniform(40, 220, 3)
    if kind == 0:
        high = random.uniform(1.2, 3.2)
        ends = np.array([[*at, 0.0], [*at, high]])
        return [Shape(ends, (0.05, 0.045), colour)]
    if kind == 1:
        size = tuple(random.uniform(0.3, 0.75, 3))
        return box_layer(at, size, random.uniform(0, 90), colour)
    if kind == 2:
        spread, high = random.uniform(0.12, 0.25), random.uniform(0.12, 0.3)
        ends = np.array(
            [[at[0] - spread / 2, at[1], high], [at[0] + spread / 2, at[1], high * 0.9]]
        )
        return [Shape(ends, (high, high), colour)]
    high = random.uniform(0.5, 0.9)
    bin_ends = np.array([[*at, 0.18], [*at, high]])
    return [Shape(bin_ends, (0.18, 0.22), colour)]


def _ground(random: Random, camera: Camera) -> Ground:
    """Return a place without anybody: paving with joints, stains, and a wall where it ends."""
    side, unit = camera.side, camera.side / 128
    base_3 = random.uniform(70, 170) + random.uniform(-18, 18, 3)
    canvas = Image.new("RGB", (side, side), _tint(base_3))
    pen = ImageDraw.Draw(canvas)
    if random.rand() < 0.75:
        _paving(random, camera, pen, _tint(base_3 * random.choice((0.82, 0.9, 1.12))))
    for _ in range(random.randint(6)):
        x, y, wide = *random.uniform(0, side, 2), random.uniform(3, 22) * unit
        tint = _tint(base_3 * random.uniform(0.75, 1.2) + random.uniform(-12, 12, 3))
        pen.ellipse((x - wide, y - wide / 3, x + wide, y + wide / 3), tint)
    row = camera.horizon() + random.uniform(2, 20) * unit
    if row > 0:
        wall_3 = random.uniform(60, 210) + random.uniform(-20, 20, 3)
        pen.rectangle((0, 0, side, row), _tint(wall_3))
        for _ in range(random.randint(2, 7)):
            x, wide, high = random.uniform(0, side), *random.uniform(4, 22, 2) * unit
            low = row if random.rand() < 0.5 else random.uniform(0, row)
            tint = _tint(wall_3 * random.uniform(0.5, 1.2))
            pen.rectangle((x, low - high, x + wide, low), tint)
    coarse = Image.fromarray(random.uniform(-9, 9, (9, 9)).astype(np.float32))
    cloud_HW = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))
    ground_HW3: Ground = np.asarray(canvas, np.float32) + cloud_HW[..., None]
    return ground_HW3


def _paving(
    random: Random, camera: Camera, pen: ImageDraw.ImageDraw, tint: tuple[int, int, int]
) -> None:
    step, turn = random.uniform(0.8, 2.2), np.radians(random.uniform(0, 180))
    ways = np.array([(np.cos(turn), np.sin(turn)), (-np.sin(turn), np.cos(turn))])
    offsets, along = np.arange(-12, 13) * step, np.linspace(-12, 12, 9) * step
    for way_2 in ways[: random.randint(1, 3)]:
        across_2 = np.array([-way_2[1], way_2[0]])
        flat = offsets[:, None, None] * way_2 + along[None, :, None] * across_2 + (0, 12)
        points = np.concatenate([flat, np.zeros_like(flat[..., :1])], -1)
        places = camera.see(points.reshape(-1, 3))[0].reshape(*flat.shape)
        for line, before in zip(places, flat[..., 1] > 0.3, strict=True):
            if before.sum() > 1:
                pen.line(line[before].ravel().tolist(), tint, max(1, camera.side // 128))


def _tint(colour_3: NDArray[np.float64]) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in colour_3.clip(0, 255))
    return red, green, blue


def _shade(camera: Camera, bodies: list[Body]) -> NDArray[np.float32]:
    """Return how bright the ground is under people, with soft edges."""
    canvas = Image.new("L", (camera.side, camera.side), 255)
    pen = ImageDraw.Draw(canvas)
    pairs = ((17, 11), (17, 12), (11, 13), (12, 14), (13, 15), (14, 16), (17, 0))
    for where in bodies:
        places_J2, depths_J = camera.see(where.joints_J3 * (1, 1, 0))
        wide = max(1, round(0.3 * camera.focal / float(depths_J.mean())))
        places = places_J2.tolist()
        for one, other in pairs:
            pen.line((*places[one], *places[other]), 160, wide)
    soft = canvas.filter(ImageFilter.BoxBlur(camera.side / 64))
    shade_HW: NDArray[np.float32] = np.asarray(soft, np.float32) / np.float32(255)
    return shade_HW
