"""People made of capsules: how they are built, how they hold themselves, where their joints are.

A pose is a set of angles in degrees. ``stand`` to ``lie`` draw one of each of the six states;
``mixed`` leads from one pose to another. Lengths are in metres, z is up; a body of heading 0
looks along y.

Shape legend: J joints of COCO with the neck as the last (18), P points, 3 x, y and z.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainers.data.skeletons import NECKED

Reals = NDArray[np.float64]
Random = np.random.RandomState
RGB = tuple[float, float, float]
Ends = dict[str, tuple[float, float]]
HEAD = 0.068
"""Radius of the head, as a share of the body's height."""
BENCH = 0.45
"""Height of a bench."""


class Build(NamedTuple):
    """A person: height in metres, how stout (1 is middling), and the colours of what is seen."""

    height: float
    girth: float
    skin: RGB
    hair: RGB
    shirt: RGB
    trousers: RGB
    shoes: RGB
    bare_arms: bool
    bare_legs: bool


class Pose(NamedTuple):
    """Angles of a body in degrees; pairs are (left, right)."""

    tilt: float = 0.0
    """Of the body from upright towards its heading; 90 lies flat."""
    spin: float = 0.0
    """About the body's own axis: with a tilt of 90, 0 lies on the belly, 180 on the back."""
    lean: float = 0.0
    """Of the torso forwards against the pelvis."""
    twist: float = 0.0
    """Of the shoulders against the pelvis."""
    nod: float = 0.0
    turn: float = 0.0
    """Of the head, forwards and to the left."""
    hips: tuple[float, float] = (0.0, 0.0)
    """Thighs forwards."""
    spread: tuple[float, float] = (2.0, 2.0)
    """Thighs outwards."""
    knees: tuple[float, float] = (0.0, 0.0)
    """Shins backwards."""
    arms: tuple[float, float] = (0.0, 0.0)
    """Upper arms forwards."""
    out: tuple[float, float] = (8.0, 8.0)
    """Upper arms outwards."""
    elbows: tuple[float, float] = (10.0, 10.0)
    """Forearms forwards."""
    floats: float = 0.0
    """Metres over the ground: of a runner in the air, or the height of what one lies on."""


class Body(NamedTuple):
    """Where a person's parts are, in metres."""

    joints_J3: Reals
    head_3: Reals
    """Centre of the head."""
    faces_3: Reals
    """Where the face looks to."""
    crown_3: Reals
    """Up for the head."""
    hands_23: Reals
    toes_23: Reals


def build(random: Random) -> Build:
    """Return a person at random."""
    pale = random.uniform(0, 1)
    skin = np.array([236, 190, 155]) * (1 - pale) + np.array([112, 72, 50]) * pale
    hair = random.uniform(15, 70) * np.array([1, 0.85, 0.7])
    shirt, trousers = _cloth(random), _cloth(random) * random.uniform(0.45, 0.9)
    return Build(
        height=random.uniform(1.5, 1.92),
        girth=random.uniform(0.88, 1.25),
        skin=_rgb(skin),
        hair=_rgb(hair),
        shirt=_rgb(shirt),
        trousers=_rgb(trousers),
        shoes=_rgb(np.full(3, random.choice((30, 60, 220)))),
        bare_arms=bool(random.rand() < 0.45),
        bare_legs=bool(random.rand() < 0.2),
    )


def stand(random: Random) -> Pose:
    """Return somebody upright with the legs together."""
    bend = random.uniform(0, 5, 2)
    ways = (
        ((0.0, 0.0), (8.0, 8.0), (8.0, 8.0)),  # arms hang
        ((0.0, 25.0), (8.0, 6.0), (8.0, 130.0)),  # one hand at the ear
        ((25.0, 25.0), (-8.0, -8.0), (95.0, 95.0)),  # both hands before the chest
        ((-15.0, 0.0), (30.0, 8.0), (80.0, 8.0)),  # a hand on the hip
    )
    arms, out, elbows = ways[random.choice(4, p=(0.55, 0.15, 0.15, 0.15))]
    return Pose(
        lean=random.uniform(-3, 4),
        nod=random.uniform(-5, 20),
        turn=random.uniform(-35, 35),
        hips=_two(bend / 2 + random.uniform(-2, 2, 2)),
        spread=_two(random.uniform(0.5, 4.5, 2)),
        knees=_two(bend),
        arms=_two(arms + random.uniform(-7, 7, 2)),
        out=_two(out + random.uniform(-3, 5, 2)),
        elbows=_two(elbows + random.uniform(-6, 10, 2)),
    )


def walk(random: Random, phase: float | None = None) -> Pose:
    """Return somebody walking at a moderate stride; without a phase (in turns), at a clear step."""
    clear = random.choice((0.25, 0.75)) + random.uniform(-0.09, 0.09)
    return gait(
        phase=clear if phase is None else phase,
        stride=random.uniform(24, 32),
        swing=random.uniform(18, 32),
        knee=random.uniform(32, 50),
        elbow=random.uniform(8, 25),
        lean=random.uniform(0, 7),
    )


def run(random: Random, phase: float | None = None) -> Pose:
    """Return somebody running: long strides, bent forwards and at the elbows."""
    clear = random.choice((0.25, 0.75)) + random.uniform(-0.12, 0.12)
    pose = gait(
        phase=clear if phase is None else phase,
        stride=random.uniform(42, 54),
        swing=random.uniform(38, 55),
        knee=random.uniform(85, 115),
        elbow=random.uniform(82, 108),
        lean=random.uniform(12, 22),
    )
    return pose._replace(floats=random.uniform(0.02, 0.1))


def gait(phase: float, stride: float, swing: float, knee: float, elbow: float, lean: float) -> Pose:
    """Return a step: at a phase of 0.25 the left leg is foremost, at 0.75 the right one."""
    swings = np.sin(2 * np.pi * (phase + np.array([0.0, 0.5])))
    rises = np.cos(2 * np.pi * (phase + np.array([0.0, 0.5])))  # of the leg that comes forwards
    knees = 4 + knee * np.clip(0.75 * rises - 0.25 * swings, 0, 1)
    knees += knee * 0.35 * np.clip(-swings, 0, 1)
    return Pose(
        lean=lean,
        nod=-lean / 2,
        twist=float(-swings[0] * swing / 5),
        hips=_two(swings * stride + lean / 4),
        spread=(2.0, 2.0),
        knees=_two(knees),
        arms=_two(-swings * swing),
        out=(8.0, 8.0),
        elbows=_two(elbow + np.clip(-swings, 0, 1) * 12),
    )


def sit(random: Random) -> Pose:
    """Return somebody whose hips and knees are bent by about a right angle."""
    hips = random.uniform(82, 96)
    lap = bool(random.rand() < 0.7)
    return Pose(
        lean=random.uniform(-12, 14),
        nod=random.uniform(-5, 25),
        turn=random.uniform(-35, 35),
        hips=_two(hips + random.uniform(-4, 4, 2)),
        spread=_two(random.uniform(2, 14, 2)),
        knees=_two(hips + random.uniform(-10, 8, 2)),
        arms=_two(random.uniform(15, 40, 2) if lap else random.uniform(-5, 12, 2)),
        out=_two(random.uniform(2, 16, 2)),
        elbows=_two(random.uniform(35, 65, 2) if lap else random.uniform(5, 25, 2)),
    )


def crouch(random: Random) -> Pose:
    """Return somebody squatting, or kneeling on one knee, bent forwards."""
    reaching = Pose(
        nod=random.uniform(-15, 20),
        turn=random.uniform(-25, 25),
        arms=_two(random.uniform(35, 75, 2)),
        out=_two(random.uniform(-4, 8, 2)),
        elbows=_two(random.uniform(10, 60, 2)),
    )
    if random.rand() < 0.65:
        return reaching._replace(
            tilt=random.uniform(0, 8),
            lean=random.uniform(28, 58),
            hips=_two(random.uniform(112, 132) + random.uniform(-6, 6, 2)),
            spread=_two(random.uniform(4, 20, 2)),
            knees=_two(random.uniform(142, 155, 2)),
        )
    fore, back = random.uniform(92, 108), random.uniform(-8, 22)
    hips_2, knees_2 = np.array([fore, back]), np.array([fore + 18, 108 + back])
    order = [0, 1] if random.rand() < 0.5 else [1, 0]
    return reaching._replace(
        lean=random.uniform(35, 68), hips=_two(hips_2[order]), knees=_two(knees_2[order])
    )


def lie(random: Random) -> Pose:
    """Return somebody on the ground: on the back, the belly or a side."""
    way = random.choice(("back", "belly", "side"))
    spin = {"back": 180.0, "belly": 0.0, "side": random.choice((-90.0, 90.0))}[way]
    flat: dict[str, Ends] = {  # on the belly, knees only bend upwards, and hips hardly
        "back": {"hips": (0, 30), "knees": (0, 40), "arms": (-6, 12), "out": (5, 150)},
        "belly": {"hips": (-6, 3), "knees": (0, 35), "arms": (-6, 12), "out": (5, 150)},
        "side": {"hips": (20, 75), "knees": (20, 85), "arms": (-20, 60), "out": (0, 20)},
    }
    limbs: dict[str, Any] = {
        name: _two(random.uniform(*ends, 2)) for name, ends in flat[way].items()
    }
    return Pose(
        tilt=random.uniform(82, 92) if way == "side" else random.uniform(80, 94),
        spin=spin + random.uniform(-18, 18),
        lean=random.uniform(0, 20) if way == "side" else random.uniform(-4, 6),
        nod=random.uniform(-10, 10),
        turn=random.uniform(-60, 60) if way == "belly" else random.uniform(-25, 25),
        spread=_two(random.uniform(2, 22, 2)),
        elbows=_two(random.uniform(0, 60, 2)),
        **limbs,
    )


POSES: dict[str, Callable[[Random], Pose]] = {
    "Lying": lie,
    "Crouch": crouch,
    "Sitting": sit,
    "Walking": walk,
    "Standing": stand,
    "Running": run,
}
"""One of each state."""


def mixed(one: Pose, other: Pose, share: float) -> Pose:
    """Return a pose on the way from one to another, 0 to 1."""
    return Pose(*map(_between(share), one, other))


def upright(pose: Pose) -> float:
    """Return the angle of the torso with the ground plane, in degrees."""
    along = _turned(pose) @ _forwards(pose.lean) @ np.array([0.0, 0.0, 1.0])
    return float(np.degrees(np.arcsin(np.clip(along[2], -1, 1))))


def body(person: Build, pose: Pose, heading: float, at: tuple[float, float] = (0.0, 0.0)) -> Body:
    """Place a person on the ground at (x, y), the heading in degrees against the clock."""
    height = person.height
    root_33 = _about_z(heading) @ _turned(pose)
    torso_33 = root_33 @ _forwards(pose.lean)
    chest_33 = torso_33 @ _about_z(pose.twist)
    head_33 = chest_33 @ _forwards(pose.nod) @ _about_z(pose.turn)
    points: dict[str, Reals] = {}
    neck = torso_33 @ np.array([0, 0, 0.288]) * height
    head = neck + chest_33 @ _forwards(pose.nod) @ np.array([0, 0.015, 0.118]) * height
    toes, hands = [], []
    for number, (name, side) in enumerate((("left", -1.0), ("right", 1.0))):
        hip = root_33 @ np.array([side * 0.052, 0, 0]) * height
        thigh, shin = pose.hips[number], pose.hips[number] - pose.knees[number]
        spread = pose.spread[number]
        knee = hip + root_33 @ _limb(thigh, side, spread) * 0.245 * height
        ankle = knee + root_33 @ _limb(shin, side, spread / 2) * 0.235 * height
        toes.append(ankle + root_33 @ _limb(shin + 78, side, spread + 6) * 0.1 * height)
        shoulder = neck + chest_33 @ np.array([side * 0.112, 0, -0.01]) * height
        arm, out = pose.arms[number], pose.out[number]
        elbow = shoulder + chest_33 @ _limb(arm, side, out) * 0.172 * height
        fore, aside = arm + pose.elbows[number], out * (1 - pose.elbows[number] / 140)
        wrist = elbow + chest_33 @ _limb(fore, side, aside) * 0.15 * height
        hands.append(wrist + chest_33 @ _limb(fore, side, aside) * 0.045 * height)
        eye = head + head_33 @ np.array([side * 0.4, 0.88, 0.22]) * HEAD * height
        ear = head + head_33 @ np.array([side * 0.98, 0, 0.05]) * HEAD * height
        ends = (hip, knee, ankle, shoulder, elbow, wrist, eye, ear)
        names = ("hip", "knee", "ankle", "shoulder", "elbow", "wrist", "eye", "ear")
        points |= {f"{name}_{end}": at for end, at in zip(names, ends, strict=True)}
    points["nose"] = head + head_33 @ np.array([0, 1.08, -0.12]) * HEAD * height
    points["neck"] = (points["left_shoulder"] + points["right_shoulder"]) / 2
    joints_J3 = np.array([points[name] for name in NECKED.names])
    lowest = min(
        *((joints_J3[5:17, 2] - 0.042 * height).tolist()),
        head[2] - HEAD * height,
        *(float(toe[2]) - 0.02 * height for toe in toes),
    )
    shift = np.array([*at, pose.floats - lowest])
    return Body(
        joints_J3 + shift,
        head + shift,
        head_33[:, 1],
        head_33[:, 2],
        np.array(hands) + shift,
        np.array(toes) + shift,
    )


def _cloth(random: Random) -> Reals:
    colour: Reals = random.uniform(40, 235, 3)
    if random.rand() < 0.35:
        colour = np.full(3, random.uniform(25, 235))  # black, grey and white are common
    return colour


def _rgb(colour_3: Reals) -> RGB:
    return float(colour_3[0]), float(colour_3[1]), float(colour_3[2])


def _two(values: Any) -> tuple[float, float]:
    return float(values[0]), float(values[1])


def _between(share: float) -> Callable[[Any, Any], Any]:
    def between(one: Any, other: Any) -> Any:
        way = np.asarray(one) * (1 - share) + np.asarray(other) * share
        return _two(way) if isinstance(one, tuple) else float(way)

    return between


def _turned(pose: Pose) -> Reals:
    turned_33: Reals = _forwards(pose.tilt) @ _about_z(pose.spin)
    return turned_33


def _forwards(degrees: float) -> Reals:
    """Return the rotation that tips z over towards y."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]])


def _about_z(degrees: float) -> Reals:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


def _limb(forwards: float, side: float, out: float) -> Reals:
    """Return the direction of a hanging limb that is swung forwards and outwards."""
    a, b = np.radians(forwards), np.radians(out)
    return np.array([side * np.sin(b), np.sin(a) * np.cos(b), -np.cos(a) * np.cos(b)])
