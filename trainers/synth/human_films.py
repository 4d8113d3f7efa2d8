"""Films of people before a camera that stands still: they walk, fall and lie, sit down, crouch.

Somebody plays one script, as steps one after the other; the truth of every frame is known, and
when somebody has fallen. A film is a pure function of its seed.

Shape legend: N people in a frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from trainers.synth.canvas import Colour
from trainers.synth.films import Event, Film
from trainers.synth.human import (
    BENCH,
    Build,
    Pose,
    Random,
    body,
    build,
    crouch,
    gait,
    lie,
    mixed,
    sit,
    stand,
    upright,
)
from trainers.synth.human_drawing import Layer, bench_layer, chair_layer
from trainers.synth.human_scenes import (
    Actor,
    Box,
    Look,
    Stage,
    cover,
    inside,
    kinds,
    make_stage,
    outline,
    show,
)

FALLEN = "fallen"
"""The event: somebody lies on the ground, not on a bench."""
LOOK = Look(sizes=(0.3, 0.5), overlap=0.3, tilts=(16.0, 36.0), things=0, hidden=0.0)
"""Of films: people are small enough to have room to walk."""
LOW = 30.0
"""Angle of the torso with the ground below which one who falls lies, in degrees."""
TRIES = 80


class Still(NamedTuple):
    """Somebody at a moment, seen from where the script began."""

    pose: Pose
    state: str
    heading: float
    """Degrees, added to where the body looked to at first."""
    ahead: float
    aside: float
    """Metres from the start, forwards and to the left of where the body looked to at first."""


@dataclass
class _Take:
    """What somebody has done so far, step by step."""

    random: Random
    rate: float
    height: float
    now: Still
    stills: list[Still]
    phase: float = 0.0

    def hold(self, seconds: float) -> None:
        """Stay as one is."""
        self.stills += [self.now] * round(seconds * self.rate)

    def go(self, seconds: float, running: bool = False) -> None:
        """Walk or run straight on."""
        random = self.random
        if running:
            state, speed, pace = "Running", random.uniform(2.4, 3.2), random.uniform(1.35, 1.5)
            ways = (random.uniform(42, 52), random.uniform(40, 52), 100.0, 95.0, 16.0)
        else:
            state, speed, pace = "Walking", random.uniform(0.9, 1.35), random.uniform(0.85, 1.0)
            ways = (random.uniform(24, 31), random.uniform(20, 30), 42.0, 15.0, 4.0)
        spin, now = self.now.pose.spin, self.now
        for _ in range(round(seconds * self.rate)):
            self.phase += pace / self.rate
            pose = gait(self.phase, *ways)._replace(spin=spin, floats=0.03 * running)
            now = now._replace(pose=pose, state=state, ahead=now.ahead + speed / self.rate)
            self.stills.append(now)
        self.now = now

    def change(
        self,
        seconds: float,
        pose: Pose,
        state: str,
        moved: tuple[float, float, float] = (0.0, 0.0, 0.0),
        falls: bool = False,
    ) -> None:
        """Come to another pose, moved by (degrees, metres ahead, metres aside)."""
        before, count = self.now, max(1, round(seconds * self.rate))
        turned, ahead, aside = moved
        for number in range(1, count + 1):
            share = number / count
            # one who falls is ever faster, others start and stop gently
            eased = share**2 if falls else share * share * (3 - 2 * share)
            between = mixed(before.pose, pose, eased)
            there = abs(upright(between)) < LOW if falls else share > 0.5
            self.now = Still(
                between,
                state if there else before.state,
                before.heading + eased * turned,
                before.ahead + eased * ahead,
                before.aside + eased * aside,
            )
            self.stills.append(self.now)


def _fall(take: _Take) -> None:
    lying = lie(take.random)
    take.now = take.now._replace(pose=take.now.pose._replace(spin=lying.spin), heading=-lying.spin)
    take.go(take.random.uniform(1.2, 2.0))
    # the body turns over its feet, towards where its head will lie
    heading, reach = np.radians(-lying.spin), 0.45 * take.height
    moved = (0.0, reach * float(np.cos(heading)), reach * float(np.sin(heading)))
    take.change(take.random.uniform(0.5, 0.8), lying, "Lying", moved, falls=True)
    take.hold(take.random.uniform(2.5, 3.5))


def _lies(take: _Take) -> None:
    take.now = take.now._replace(pose=lie(take.random), state="Lying")
    take.hold(4.0)


def _sits(take: _Take) -> None:
    standing, back = take.now, 0.22 * take.height
    take.hold(take.random.uniform(0.8, 1.4))
    take.change(0.9, sit(take.random), "Sitting", (0.0, -back, 0.0))
    take.hold(take.random.uniform(1.5, 2.2))
    take.change(0.8, standing.pose, "Standing", (0.0, back, 0.0))
    take.go(take.random.uniform(0.8, 1.2))


def _crouches(take: _Take) -> None:
    take.go(take.random.uniform(1.0, 1.5))
    standing = stand(take.random)
    take.change(0.3, standing, "Standing")
    take.change(0.7, crouch(take.random), "Crouch")
    take.hold(take.random.uniform(1.5, 2.2))
    take.change(0.7, standing, "Standing")
    take.go(take.random.uniform(0.8, 1.2))


def _bench(take: _Take) -> None:
    """Sit down on a bench and lie down on it, on the back."""
    back, seat = 0.22 * take.height, sit(take.random)._replace(spin=180.0)
    take.now = take.now._replace(pose=take.now.pose._replace(spin=180.0), heading=-180.0)
    take.hold(0.8)
    take.change(0.9, seat, "Sitting", (0.0, -back, 0.0))
    take.hold(0.8)
    # the head comes to lie along the bench, which is across where the body looked to
    flat = Pose(tilt=87.0, spin=180.0, hips=(4, 12), knees=(4, 22), out=(14, 12), floats=BENCH)
    take.change(1.4, flat, "Lying", (90.0, -0.1, 0.1))
    take.hold(2.2)


SCRIPTS: dict[str, Callable[[_Take], None]] = {
    "fall": _fall,
    "lie": _lies,
    "sit": _sits,
    "crouch": _crouches,
    "bench": _bench,
    "walk": lambda take: take.go(4.0),
    "run": lambda take: take.go(2.2, running=True),
    "stand": lambda take: take.hold(4.0),
}
"""What somebody may do; "lie" is somebody who has fallen before the film begins."""


def human_film(
    seed: int,
    scripts: tuple[str, ...] = ("fall",),
    rate: float = 10.0,
    look: Look = LOOK,
    neck: bool = False,
) -> Film:
    """Return a film in which somebody plays each script, as long as the longest one.

    Who is done stays as they are. An event ``FALLEN`` goes from the first frame in which somebody
    lies on the ground to the last.
    """
    random = Random(seed % 2**32)
    stage = make_stage(random, look)
    parts: list[_Part] = []
    for script in scripts:
        parts.append(_place(random, stage, look, script, rate, parts))
    frames, truths, who = [], [], []
    for number in range(max(len(part.stills) for part in parts)):
        light = 1 + 0.03 * float(np.sin(number / rate * 1.3))
        lit = replace(stage, ground_HW3=stage.ground_HW3 * np.float32(light))
        image_HW3, truth = show(
            lit, [part.actor(number) for part in parts], random, look.noise, neck
        )
        assert truth.masks_NHW is not None
        seen_N = truth.masks_NHW.flatten(1).any(1)
        frames.append(image_HW3)
        truths.append(truth.take(seen_N))
        who.append(torch.arange(len(parts))[seen_N])
    events = [
        Event(FALLEN, number, part.states.index("Lying"), len(frames) - 1)
        for number, part in enumerate(parts)
        if part.script in ("fall", "lie")
    ]
    return Film(kinds(neck), rate, tuple(frames), tuple(truths), tuple(who), tuple(events))


@dataclass(frozen=True)
class _Part:
    """Somebody's script, played at a place."""

    script: str
    person: Build
    stills: list[Still]
    heading: float
    at: tuple[float, float]
    things: Layer

    @property
    def states(self) -> list[str]:
        return [still.state for still in self.stills]

    def actor(self, number: int) -> Actor:
        """Return how the person is in a frame."""
        still = self.stills[min(number, len(self.stills) - 1)]
        turn = np.radians(self.heading)
        ahead, aside = (
            np.array([-np.sin(turn), np.cos(turn)]),
            np.array([-np.cos(turn), -np.sin(turn)]),
        )
        x, y = np.array(self.at) + still.ahead * ahead + still.aside * aside
        where = body(self.person, still.pose, self.heading + still.heading, (float(x), float(y)))
        return Actor(self.person, still.state, where, self.things)


def _place(
    random: Random, stage: Stage, look: Look, script: str, rate: float, others: list[_Part]
) -> _Part:
    """Return a part that stays in the picture and clear of the others, or the best of some."""
    best, least = None, np.inf
    person = build(random)
    take = _Take(random, rate, person.height, Still(stand(random), "Standing", 0.0, 0.0, 0.0), [])
    SCRIPTS[script](take)
    taken = [[_box(stage, part.actor(n)) for n in range(0, 80, 10)] for part in others]
    colour = random.uniform(50, 200, 3)
    for _ in range(TRIES):
        x, y = random.uniform(0.05, 0.95), random.uniform(0.3, 0.97)
        if y * look.side < stage.camera.horizon() + 0.12 * look.side:
            continue
        at = stage.camera.on_ground(x * look.side, y * look.side)
        away = float(np.degrees(np.arctan2(-at[0], at[1])))
        heading = away + random.choice((90, 270)) + random.uniform(-50, 50)
        part = _Part(script, person, take.stills, heading, at, [])
        boxes = [_box(stage, part.actor(number)) for number in range(0, 80, 10)]
        wrong = sum(not inside(box, look.side) for box in boxes) + sum(
            2 * (cover(box, other) > look.overlap)
            for path in taken
            for box, other in zip(boxes, path, strict=True)
        )
        high = (boxes[0][3] - boxes[0][1]) / look.side
        wrong += 4 * (script != "lie" and not look.sizes[0] <= high <= 1.2 * look.sizes[1])
        if wrong < least:
            best, least = part, wrong
        if not wrong:
            break
    assert best is not None
    return replace(best, things=_furniture(best, colour))


def _furniture(part: _Part, colour: Colour) -> Layer:
    """Return the chair or the bench of a script."""
    if part.script == "sit":
        number = part.states.index("Sitting")
        while part.states[number + 1 : number + 2] == ["Sitting"] and (
            part.stills[number].pose != part.stills[number + 1].pose
        ):
            number += 1
        return chair_layer(part.actor(number).where, part.heading, True, colour)
    if part.script == "bench":
        where = part.actor(len(part.stills) - 1).where
        middle = where.joints_J3[:, :2].mean(0)
        turn = part.heading + part.stills[-1].heading
        return bench_layer((float(middle[0]), float(middle[1])), turn, BENCH, colour)
    return []


def _box(stage: Stage, actor: Actor) -> Box:
    return outline(stage.camera, actor.person, actor.where)
