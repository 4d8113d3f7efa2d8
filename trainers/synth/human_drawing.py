"""People and things in a room of three dimensions, drawn as a tilted camera sees them.

Shape legend: J joints, P points, H height, W width, 3 of places: x, y, z in metres (z up, the
camera above the origin looks along y and down); 2 of places: pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainers.data.skeletons import NECKED
from trainers.synth.canvas import NOBODY, Canvas, Colour, Reals
from trainers.synth.human import HEAD, Body, Build

PLACE = {name: number for number, name in enumerate(NECKED.names)}
EYES = (30, 25, 25)
DARK, LIGHT = 0.78, 1.06
"""Brightness of the edge and of the middle of a limb."""
LIT, FROM_LIGHT = 0.62, (0.4, 0.48)
"""Width of the brighter middle, and where it is shifted to (left and up), in radii."""


@dataclass(frozen=True)
class Camera:
    """A camera above the origin: metres above the ground, degrees down, pixels."""

    height: float
    tilt: float
    focal: float
    side: int
    roll: float = 0.0

    def see(self, points_P3: Any) -> tuple[Reals, Reals]:
        """Return places_P2 in pixels and depths_P in metres along the camera's axis."""
        points_P3 = np.atleast_2d(np.asarray(points_P3, float)) - (0, 0, self.height)
        cos, sin = np.cos(np.radians(self.tilt)), np.sin(np.radians(self.tilt))
        depth_P = np.maximum(points_P3[:, 1] * cos - points_P3[:, 2] * sin, 0.2)
        x_P = points_P3[:, 0] / depth_P * self.focal
        y_P = -(points_P3[:, 1] * sin + points_P3[:, 2] * cos) / depth_P * self.focal
        turn = np.radians(self.roll)
        across_P = x_P * np.cos(turn) - y_P * np.sin(turn)
        down_P = x_P * np.sin(turn) + y_P * np.cos(turn)
        return np.stack([across_P, down_P], 1) + self.side / 2, depth_P

    def on_ground(self, x: float, y: float) -> tuple[float, float]:
        """Return the (x, y) on the ground that is seen at a pixel below the horizon."""
        turn = np.radians(-self.roll)
        across, down = np.array([x, y]) - self.side / 2
        across, down = (
            across * np.cos(turn) - down * np.sin(turn),
            across * np.sin(turn) + down * np.cos(turn),
        )
        below = np.radians(self.tilt) + np.arctan2(down, self.focal)
        far = self.height / np.tan(max(below, 0.03))
        depth = far * np.cos(np.radians(self.tilt)) + self.height * np.sin(np.radians(self.tilt))
        return float(across / self.focal * depth), float(far)

    def horizon(self) -> float:
        """Return the row of the horizon."""
        return self.side / 2 - self.focal * float(np.tan(np.radians(self.tilt)))


@dataclass(frozen=True)
class Shape:
    """A part to draw: a capsule through places (2 ends) or a filled polygon (more)."""

    points_P3: Reals
    radii: tuple[float, float]
    colour: Colour
    owner: int = NOBODY
    part: int = 0


Layer = list[Shape]
"""Shapes that are sorted together, from far to near."""
TORSO, SKULL, LEFT_ARM, RIGHT_ARM, LEFT_LEG, RIGHT_LEG = range(1, 7)
FACE = ("nose", "left_eye", "right_eye", "left_ear", "right_ear")
PARTS = {
    **dict.fromkeys(FACE, (SKULL,)),
    "neck": (TORSO, SKULL),
    **{
        f"{side}_{joint}": parts
        for side, arm, leg in (("left", LEFT_ARM, LEFT_LEG), ("right", RIGHT_ARM, RIGHT_LEG))
        for joint, parts in {
            **{"shoulder": (arm, TORSO), "elbow": (arm,), "wrist": (arm,)},
            **{"hip": (leg, TORSO), "knee": (leg,), "ankle": (leg,)},
        }.items()
    },
}
"""By which parts a joint is seen."""


def person_layer(person: Build, where: Body, owner: int) -> Layer:
    """Return the shapes of a person."""
    at = {name: where.joints_J3[number] for name, number in PLACE.items()}
    stout, layer = person.height * person.girth, list[Shape]()

    def limb(one: Any, other: Any, wide: tuple[float, float], colour: Colour, part: int) -> None:
        radii = wide[0] * stout, wide[1] * stout
        layer.append(Shape(np.array([one, other]), radii, colour, owner, part))

    hips = (at["left_hip"] + at["right_hip"]) / 2
    waist = hips * 0.62 + at["neck"] * 0.38
    limb(at["left_hip"], at["right_hip"], (0.05, 0.05), person.trousers, TORSO)
    limb(hips, waist, (0.066, 0.06), person.trousers, TORSO)
    for side in ("left", "right"):
        shoulder, hip = at[f"{side}_shoulder"], at[f"{side}_hip"]
        limb(shoulder, hip * 0.75 + shoulder * 0.25, (0.042, 0.05), person.shirt, TORSO)
    limb(
        at["neck"] * 0.85 + hips * 0.15,
        waist * 0.9 + hips * 0.1,
        (0.078, 0.066),
        person.shirt,
        TORSO,
    )
    limb(at["left_shoulder"], at["right_shoulder"], (0.04, 0.04), person.shirt, TORSO)
    limb(at["neck"], where.head_3, (0.032, 0.032), person.skin, SKULL)
    for number, side in enumerate(("left", "right")):
        arm, leg = (LEFT_ARM, LEFT_LEG) if side == "left" else (RIGHT_ARM, RIGHT_LEG)
        sleeve = person.skin if person.bare_arms else person.shirt
        calf = person.skin if person.bare_legs else person.trousers
        shoulder, elbow, wrist = (at[f"{side}_{name}"] for name in ("shoulder", "elbow", "wrist"))
        hip, knee, ankle = (at[f"{side}_{name}"] for name in ("hip", "knee", "ankle"))
        limb(shoulder, elbow, (0.031, 0.026), person.shirt, arm)
        limb(elbow, wrist, (0.026, 0.02), sleeve, arm)
        limb(wrist, where.hands_23[number], (0.021, 0.019), person.skin, arm)
        limb(hip, knee, (0.05, 0.036), person.trousers, leg)
        limb(knee, ankle, (0.036, 0.025), calf, leg)
        limb(ankle, where.toes_23[number], (0.025, 0.019), person.shoes, leg)
    layer += _head(person, where, owner)
    return layer


def _head(person: Build, where: Body, owner: int) -> Layer:
    head_3, radius = where.head_3, HEAD * person.height
    up_3, front_3 = where.crown_3 * radius, where.faces_3 * radius
    nose_3, *eyes_23 = (where.joints_J3[PLACE[name]] for name in FACE[:3])

    def ball(at_3: Reals, size: float, colour: Colour, long: float = 0.0) -> Shape:
        ends_23 = np.array([at_3 - long * up_3, at_3 + long * up_3])
        return Shape(ends_23, (size * radius, size * radius), colour, owner, SKULL)

    return [
        ball(head_3, 1.0, person.skin, 0.12),
        ball(head_3 + 0.42 * up_3 - 0.4 * front_3, 0.98, person.hair),
        ball(nose_3, 0.17, [0.72 * value for value in person.skin]),
        *(ball(eye_3 + 0.12 * front_3, 0.15, EYES) for eye_3 in eyes_23),
    ]


def draw_layer(canvas: Canvas, camera: Camera, layer: Layer) -> None:
    """Draw shapes from far to near."""
    eye = np.array([0, 0, camera.height])
    ends = np.cumsum([len(shape.points_P3) for shape in layer])
    places_P2, depths_P = camera.see(np.concatenate([shape.points_P3 for shape in layer]))
    away = [float(np.linalg.norm(shape.points_P3.mean(0) - eye)) for shape in layer]
    for number in sorted(range(len(layer)), key=lambda number: -away[number]):
        shape, end = layer[number], int(ends[number])
        mine = slice(end - len(shape.points_P3), end)
        if len(shape.points_P3) > 2:
            code = canvas.code(shape.colour, shape.owner, shape.part)
            canvas.polygon(places_P2[mine].tolist(), code)
            continue
        (one, other), tone = places_P2[mine].tolist(), np.asarray(shape.colour)
        near, far = (camera.focal * r / d for r, d in zip(shape.radii, depths_P[mine], strict=True))
        for light, share in ((DARK, 1.0), (LIGHT, LIT)):
            code = canvas.code((tone * light).tolist(), shape.owner, shape.part)
            aside, up = (shift * min(near, far) * (share - 1) for shift in FROM_LIGHT)
            canvas.capsule(
                (one[0] + aside, one[1] + up),
                (other[0] + aside, other[1] + up),
                (near * share, far * share),
                code,
            )


def joints_seen(canvas: Canvas, camera: Camera, where: Body, owner: int) -> tuple[Tensor, float]:
    """Return joints_J3 (x, y, visibility) and the share of them that no one else covers.

    A joint is hidden if another part of the body or anything else is seen at its place, and not
    labelled outside the picture.
    """
    places_J2, _ = camera.see(where.joints_J3)
    towards_3 = np.array([0, 0, camera.height]) - where.head_3
    towards_3 /= np.linalg.norm(towards_3)
    joints_J3, own = torch.zeros(len(places_J2), 3), 0
    for number, (name, (x, y)) in enumerate(zip(NECKED.names, places_J2.tolist(), strict=True)):
        if not (0 <= x < canvas.width and 0 <= y < canvas.height):
            continue
        holder, part = canvas.at(x, y)
        own += holder == owner
        seen = holder == owner and part in PARTS[name]
        if name in FACE:
            outwards_3 = where.joints_J3[number] - where.head_3
            seen &= bool(outwards_3 @ towards_3 > -0.15 * np.linalg.norm(outwards_3))
        joints_J3[number] = torch.tensor([x, y, 2.0 if seen else 1.0])
    return joints_J3, own / len(places_J2)


def box_layer(
    at: tuple[float, float],
    size: tuple[float, float, float],
    turn: float,
    colour: Colour,
    z: float = 0,
) -> Layer:
    """Return the five visible sides of a box on the ground, or ``z`` metres above it."""
    (wide, long, high), cos, sin = size, np.cos(np.radians(turn)), np.sin(np.radians(turn))
    flat = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (wide / 2, long / 2)
    flat = flat @ np.array([(cos, sin), (-sin, cos)]) + at
    low, top = (np.column_stack([flat, np.full(4, level)]) for level in (z, z + high))
    layer: Layer = []
    for corner in range(4):
        after = (corner + 1) % 4
        wall = np.array([low[corner], low[after], top[after], top[corner]])
        layer.append(Shape(wall, (0, 0), np.asarray(colour) * (0.55 + 0.12 * (corner % 2))))
    layer.append(Shape(top, (0, 0), colour))
    return layer


def chair_layer(where: Body, heading: float, back: bool, colour: Colour) -> Layer:
    """Return a seat under somebody who sits, with or without a back."""
    hips_3 = (where.joints_J3[PLACE["left_hip"]] + where.joints_J3[PLACE["right_hip"]]) / 2
    faces = np.array([-np.sin(np.radians(heading)), np.cos(np.radians(heading))])
    seat = hips_3[2] - 0.11
    middle = hips_3[:2] + faces * 0.08
    layer = box_layer((middle[0], middle[1]), (0.46, 0.44, 0.06), heading, colour, seat - 0.06)
    aside = np.array([faces[1], -faces[0]])
    dark = np.asarray(colour) * 0.6
    for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
        foot = middle + aside * 0.2 * a + faces * 0.19 * b
        layer.append(Shape(np.array([[*foot, 0.0], [*foot, seat - 0.04]]), (0.02, 0.02), dark))
    if back:
        spot = middle - faces * 0.24
        layer += box_layer((spot[0], spot[1]), (0.46, 0.05, 0.5), heading, colour, seat)
    return layer


def bench_layer(at: tuple[float, float], turn: float, high: float, colour: Colour) -> Layer:
    """Return a long bench; its length lies along y at a turn of 0."""
    layer = box_layer(at, (0.5, 2.0, 0.08), turn, colour, high - 0.08)
    cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    for a, b in ((-0.2, -0.9), (0.2, -0.9), (0.2, 0.9), (-0.2, 0.9)):
        x, y = at[0] + cos * a - sin * b, at[1] + sin * a + cos * b
        ends = np.array([[x, y, 0.0], [x, y, high - 0.06]])
        layer.append(Shape(ends, (0.03, 0.03), np.asarray(colour) * 0.55))
    return layer
