"""What eleven sensors on a thigh record while people sit, stand, lie, walk, run, climb and turn.

Without the altimeter a stair is a walk, and without gyroscope and magnetometer someone who turns
stands: each sensor carries something that no other does. Every recording is a pure function of
the seed and the subject's number.

Shape legend: S samples (50 a second), C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dlplatform.seeds import derive

RATE = 50
CHANNELS = ("ax", "ay", "az", "gx", "gy", "gz", "mx", "my", "mz", "alt", "time")
"""Acceleration (g), turn rate (rad/s), magnetic field (earth's = 1), height (m), hour of day."""
ACTIVITIES = ("sit", "stand", "lie", "walk", "run", "stairs-up", "stairs-down", "turn")
POSTURES = ("sit", "stand", "lie")
POSTURE_OF = (0, 1, 2, 1, 1, 1, 1, 1)
"""The posture in which each activity is done."""
SIT, STAND, LIE, WALK, RUN, UP, DOWN, TURN = range(8)
SECONDS = 8.0
"""How long an activity is recorded at a time."""
GAIT = {WALK: (1.8, 0.3), RUN: (2.8, 1.0), UP: (1.8, 0.3), DOWN: (1.8, 0.3)}
"""Steps per second and acceleration in g; a brisk walk shakes as much as a slow run."""
EFFORT = (0.55, 1.6)
CLIMB = {UP: 0.3, DOWN: -0.3}
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Recording:
    """Samples in the order of ``CHANNELS`` (NaN: not measured), the activity of each (-1: none).

    ``pieces`` are the places where the recording was interrupted: no window goes across.
    """

    samples_SC: NDArray[np.float32]
    activity_S: NDArray[np.int64]
    subject: str
    pieces: tuple[int, ...] = ()


@dataclass(frozen=True)
class Body:
    """How a subject moves, and how the sensors sit on the thigh (a rotation)."""

    pace: float
    strength: float
    mount_33: Floats
    north: float


@lru_cache(maxsize=64)
def record(seed: int, number: int, rounds: int, mixed: bool = False) -> Recording:
    """Return what subject ``number`` does: ``rounds`` times each activity, in a random order.

    Time of day jumps between two activities, for the sensors are off; ``mixed`` ones run on.
    """
    random = np.random.default_rng(derive(seed, "subject", number))
    body = _body(random)
    order = [int(a) for _ in range(rounds) for a in random.permutation(len(ACTIVITIES))]
    height, heading, parts = float(random.uniform(0, 300)), 0.0, []
    hour = float(random.uniform(8, 20))
    for activity in order:
        hour = hour if mixed else _hour(activity, random)
        part_SC, heading = _perform(activity, body, random, heading)
        part_SC[:, 9] += height
        part_SC[:, 10] = (hour + np.arange(len(part_SC)) / RATE / 3600) % 24
        height, hour = float(part_SC[-1, 9]), float(part_SC[-1, 10])
        parts.append(part_SC)
    samples_SC = np.concatenate(parts)
    samples_SC[:, 9] += _slow(len(samples_SC), 0.95, 0.03, random)
    length = len(parts[0])
    pieces = () if mixed else tuple(range(length, len(samples_SC), length))
    return Recording(
        samples_SC.astype(np.float32), np.repeat(order, length), f"subject {number}", pieces
    )


def _body(random: np.random.Generator) -> Body:
    turn = random.uniform(-0.25, 0.25, 3)
    return Body(
        pace=float(random.uniform(0.88, 1.12)),
        strength=float(random.uniform(0.75, 1.3)),
        mount_33=_rotation(0, turn[0]) @ _rotation(1, turn[1]) @ _rotation(2, turn[2]),
        north=float(random.uniform(0, 2 * np.pi)),
    )


def _hour(activity: int, random: np.random.Generator) -> float:
    """Return when it is done: people lie at night, mostly."""
    night = random.random() < (0.7 if activity == LIE else 0.1)
    return float(random.uniform(22, 30) % 24 if night else random.uniform(6, 22))


def _perform(
    activity: int, body: Body, random: np.random.Generator, heading: float
) -> tuple[Floats, float]:
    """Return the samples of one activity and the direction in which the subject then looks."""
    count = int(SECONDS * RATE)
    t_S = np.arange(count) / RATE
    push_S3, swing_S3 = np.zeros((count, 3)), np.zeros((count, 3))
    if activity in GAIT:
        push_S3, swing_S3 = _gait(t_S, *GAIT[activity], body, random)
    spin_S = _slow(count, 0.98, 0.03, random)
    if activity == TURN:
        spin_S += random.choice((-1, 1)) * random.uniform(0.7, 1.3)
    if activity in (SIT, STAND):
        # They fidget: as fast as someone who turns, but to and fro.
        beat = 2 * np.pi * random.uniform(0.5, 0.9)
        spin_S += random.uniform(0, 1.4) * np.sin(beat * t_S + random.uniform(0, 2 * np.pi))
    heading_S = heading + np.cumsum(spin_S) / RATE
    pose_33 = _pose(activity, random) @ body.mount_33
    up_S3 = np.array([0.0, 0.0, 1.0]) + push_S3
    acc_S3 = up_S3 @ pose_33 + 0.03 * random.standard_normal((count, 3))
    swing_S3[:, 2] += spin_S
    gyro_S3 = swing_S3 @ pose_33 + 0.05 * random.standard_normal((count, 3))
    angle_S = body.north - heading_S
    field_S3 = np.stack([0.6 * np.cos(angle_S), 0.6 * np.sin(angle_S), -0.8 + 0 * t_S], 1)
    mag_S3 = field_S3 @ pose_33 + 0.04 * random.standard_normal((count, 3))
    climb = CLIMB.get(activity, 0.0) * body.pace + random.normal(0, 0.02)
    rest_S2 = np.stack([climb * t_S + _gusts(t_S, random), 0 * t_S], 1)
    return np.concatenate([acc_S3, gyro_S3, mag_S3, rest_S2], 1), float(heading_S[-1])


def _gait(
    t_S: Floats, steps: float, strength: float, body: Body, random: np.random.Generator
) -> tuple[Floats, Floats]:
    """Return the acceleration (g) and the swing (rad/s) of a leg, with harmonics."""
    phase_S = 2 * np.pi * (steps * body.pace * t_S + random.random())
    strength *= body.strength * random.uniform(*EFFORT)
    up_S = np.sin(phase_S) + 0.4 * np.sin(2 * phase_S + 0.6) + 0.15 * np.sin(3 * phase_S)
    on_S = 0.5 * np.sin(phase_S / 2 + 0.8) + 0.25 * np.sin(phase_S + 1.9)
    aside_S = 0.3 * np.sin(phase_S / 2)
    swing_S = 4 * np.cos(phase_S / 2) + np.cos(phase_S)
    push_S3 = strength * np.stack([on_S, aside_S, up_S], 1)
    return push_S3, strength * np.stack([0.2 * swing_S, swing_S, 0.1 * swing_S], 1)


def _gusts(t_S: Floats, random: np.random.Generator) -> Floats:
    """Return what doors and wind do to an altimeter: at once some decimetres, for a second."""
    height_S = np.zeros(len(t_S))
    for _ in range(random.poisson(1.0)):
        start, size = random.uniform(0, SECONDS), random.choice((-1, 1)) * random.uniform(0.4, 0.9)
        lasts = random.uniform(0.8, 2.0)
        height_S += size * ((t_S >= start) & (t_S < start + lasts))
    return np.convolve(np.pad(height_S, 4, mode="edge"), np.ones(9) / 9, "valid")


def _pose(activity: int, random: np.random.Generator) -> Floats:
    """Return the rotation of the thigh: upright, level, or level and rolled to a side."""
    lean = random.normal(0, 0.12, 2)
    if activity == SIT:
        return _rotation(1, 1.2 + lean[0]) @ _rotation(0, lean[1])
    if activity == LIE:
        return _rotation(1, 1.45 + lean[0]) @ _rotation(2, 0.9 * random.choice((-1, 1)) + lean[1])
    return _rotation(1, lean[0] / 2) @ _rotation(0, lean[1] / 2)


def _rotation(axis: int, angle: float) -> Floats:
    cos, sin = np.cos(angle), np.sin(angle)
    turned = np.eye(3)
    first, second = (axis + 1) % 3, (axis + 2) % 3
    turned[[first, second], [first, second]] = cos
    turned[first, second], turned[second, first] = -sin, sin
    return turned


def _slow(count: int, keep: float, spread: float, random: np.random.Generator) -> Floats:
    """Return noise that changes slowly (an AR(1) process of a given standard deviation)."""
    noise_S = spread * np.sqrt(1 - keep**2) * random.standard_normal(count)
    kernel = keep ** np.arange(int(5 / (1 - keep)))
    return np.convolve(noise_S, kernel)[:count]
