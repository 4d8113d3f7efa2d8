"""Faces of people who do not exist: an identity is drawn again and again in other sights.

An identity has some twenty traits that stay; a sight is what changes from picture to picture:
pose, size, smile. Two domains follow from face recognition: in a gallery people look straight
into the camera in good light, a probe is dim, small, turned and noisy. Everything is a pure
function of seeds.

Lengths of a face are in halves of its height, from the hairline down to the chin.

Shape legend: P points, J landmarks (5), H height, W width, 3 RGB or x, y and visibility.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from dlplatform.seeds import derive
from trainers.data.scenes import Bytes
from trainers.synth.canvas import Canvas, finished
from trainers.synth.scenes import ground

Random = np.random.RandomState
Domain = Literal["gallery", "probe"]
POOLS = ("large", "external", "gallery")
"""Nobody of one pool is in another."""
Pair = tuple[float, float]


class Identity(NamedTuple):
    """The traits of a person's face."""

    skin: tuple[float, ...]
    hair: tuple[float, ...]
    lips: tuple[float, ...]
    iris: tuple[float, ...]
    wide: float
    """Half-width of the face."""
    jaw: float
    """How much narrower the chin is, 0 to 1."""
    hairline: float
    long_hair: bool
    eye_gap: float
    """From the middle to an eye."""
    eye_height: float
    eye_size: float
    eye_aspect: float
    brow_thick: float
    brow_height: float
    brow_slope: float
    nose_length: float
    nose_width: float
    mouth_height: float
    mouth_width: float
    lip_thick: float
    mouth_curve: float
    glasses: bool
    beard: bool
    mole: Pair | None


class Sight(NamedTuple):
    """How a face is seen; angles in degrees."""

    x: float
    y: float
    half: float
    """Half of its height in pixels."""
    roll: float = 0.0
    yaw: float = 0.0
    """To the right of the picture."""
    nod: float = 0.0
    smile: float = 0.0
    """Added to the curve of the mouth."""


class Portrait(NamedTuple):
    """A picture of one face."""

    image_HW3: Bytes
    box_4: Tensor
    marks_J3: Tensor


def identity(seed: int) -> Identity:
    """Return the person of a seed."""
    random = Random(seed % 2**32)
    pale = random.uniform(0, 1)
    skin = np.array([242, 200, 170]) * (1 - pale) + np.array([120, 78, 55]) * pale
    hairs = ((28, 22, 20), (70, 45, 28), (150, 105, 55), (205, 175, 110), (150, 60, 35), (140,) * 3)
    irises = ((50, 32, 22), (85, 60, 35), (60, 105, 70), (60, 100, 160), (90, 100, 110))
    lips = skin * (0.78, 0.55, 0.55) + (25, 5, 8)
    return Identity(
        skin=tuple(skin + random.uniform(-6, 6, 3)),
        hair=tuple(np.array(hairs[random.choice(6, p=(0.32, 0.25, 0.15, 0.1, 0.1, 0.08))])),
        lips=tuple(lips + random.uniform(-15, 25) * np.array([1, 0.2, 0.3])),
        iris=irises[random.randint(len(irises))],
        wide=random.uniform(0.66, 0.86),
        jaw=random.uniform(0.1, 0.9),
        hairline=random.uniform(-0.78, -0.5),
        long_hair=bool(random.rand() < 0.4),
        eye_gap=random.uniform(0.27, 0.38),
        eye_height=random.uniform(-0.2, -0.05),
        eye_size=random.uniform(0.12, 0.18),
        eye_aspect=random.uniform(0.42, 0.72),
        brow_thick=random.uniform(0.025, 0.065),
        brow_height=random.uniform(0.16, 0.26),
        brow_slope=random.uniform(-0.25, 0.25),
        nose_length=random.uniform(0.36, 0.52),
        nose_width=random.uniform(0.09, 0.18),
        mouth_height=random.uniform(0.52, 0.64),
        mouth_width=random.uniform(0.22, 0.36),
        lip_thick=random.uniform(0.05, 0.11),
        mouth_curve=random.uniform(-0.05, 0.09),
        glasses=bool(random.rand() < 0.25),
        beard=bool(random.rand() < 0.22),
        mole=tuple(random.uniform((-0.45, 0.15), (0.45, 0.4))) if random.rand() < 0.3 else None,
    )


def sight(random: Random, x: float, y: float, half: float, turned: float = 1.0) -> Sight:
    """Return a face's sight at a place; ``turned`` scales how far it may look away."""
    return Sight(
        x,
        y,
        half,
        roll=float(np.clip(random.normal(0, 9), -28, 28)) * turned,
        yaw=float(np.clip(random.normal(0, 18), -45, 45)) * turned,
        nod=float(np.clip(random.normal(0, 7), -16, 16)) * turned,
        smile=random.uniform(-0.05, 0.14),
    )


def portrait(
    seed: int, pool: str, number: int, shot: int, domain: Domain = "gallery", side: int = 64
) -> Portrait:
    """Return one of the pictures of a pool's person ``number``, of one of the two domains."""
    person = identity(derive(seed, "identity", pool, number))
    random = Random(derive(seed, pool, number, domain, shot) % 2**32)
    probe = domain == "probe"
    half = side * (random.uniform(0.27, 0.36) if probe else random.uniform(0.33, 0.36))
    shift = side * (0.06 if probe else 0.02)
    x, y = side / 2 + random.uniform(-shift, shift, 2)
    seen = sight(random, x, y + 0.03 * side, half, 1.0 if probe else 0.2)
    canvas = Canvas(side, side)
    draw_face(canvas, person, seen, 0, body=True)
    plain_3 = random.uniform(120, 220) + random.uniform(-15, 15, 3)
    behind_HW3 = ground(side, random) if probe else np.tile(plain_3, (side, side, 1))
    image_HW3 = canvas.over(behind_HW3.astype(np.float32))
    drawn_HW3 = finished(image_HW3, random, 0.015)
    if probe:
        drawn_HW3 = degraded(drawn_HW3, random)
    return Portrait(
        drawn_HW3, face_box(person, seen, side, side), landmarks(canvas, person, seen, 0)
    )


def degraded(image_HW3: Bytes, random: Random) -> Bytes:
    """Return a picture as a poor camera sees it: dim on one side, tinted, small, blurred, noisy."""
    side = len(image_HW3)
    turn, along = random.uniform(0, 2 * np.pi), np.linspace(-1, 1, side, dtype=np.float32)
    light_HW = 1 + random.uniform(0.1, 0.45) * (
        np.cos(turn) * along[:, None] + np.sin(turn) * along[None]
    )
    cast_3 = random.uniform(0.86, 1.06, 3)
    lit_HW3 = (image_HW3 / 255 * light_HW[..., None] * cast_3).clip(0, 1)
    lit_HW3 = lit_HW3 ** random.uniform(0.75, 1.6)
    picture = Image.fromarray((lit_HW3 * 255).astype(np.uint8))
    small = max(8, round(side / random.uniform(2, 4)))
    picture = picture.resize((small, small), Image.Resampling.BOX)
    picture = picture.resize((side, side), Image.Resampling.BICUBIC)
    picture = picture.filter(ImageFilter.GaussianBlur(random.uniform(0, 0.012) * side))
    return finished(np.asarray(picture, np.float32), random, random.uniform(0.01, 0.05))


def draw_face(
    canvas: Canvas,
    person: Identity,
    seen: Sight,
    owner: int,
    body: bool = False,
    features: bool = True,
) -> None:
    """Draw a head; without features it is one from behind, which is no face (owner NOBODY).

    With a body, neck and shoulders are drawn below it.
    """
    at = _Face(person, seen)
    hair = canvas.code(person.hair)
    if body:
        traits = (person.eye_gap, person.nose_length, person.wide)  # clothes of one's own, too
        cloth = canvas.code([30 + 1e4 * value % 200 for value in traits])
        canvas.capsule(at(-0.8, 1.95), at(0.8, 1.95), (0.62 * seen.half,) * 2, cloth)
        neck = canvas.code([0.85 * value for value in person.skin])
        canvas.capsule(at(0, 0.8), at(0, 1.35), (0.34 * seen.half,) * 2, neck)
    if person.long_hair:
        canvas.polygon(at.round(0, 0.1, 1.16 * person.wide, 1.22), hair)
    for side in (-1.0, 1.0):
        if side * seen.yaw < 22:  # the ear on the far side is hidden
            ear = canvas.code([0.9 * value for value in person.skin])
            canvas.polygon(at.round(side * person.wide, 0.02, 0.1, 0.2), ear)
    canvas.polygon(at.outline(), canvas.code(person.skin, owner))
    if not features:
        canvas.polygon(at.round(0, -0.12, 1.03 * person.wide, 1.0), hair)
        return
    _shadow(canvas, at, owner)
    if person.beard:
        tone = [0.4 * s + 0.6 * h for s, h in zip(person.skin, person.hair, strict=True)]
        canvas.polygon(at.beard(), canvas.code(tone, owner))
    for side in (-1.0, 1.0):
        _eye(canvas, at, side, owner)
    _nose_and_mouth(canvas, at, owner)
    canvas.polygon(at.cap(), hair)
    if person.glasses:
        _glasses(canvas, at, owner)


def landmarks(canvas: Canvas, person: Identity, seen: Sight, owner: int) -> Tensor:
    """Return marks_J3 of a face: x, y and 2 seen, 1 hidden by something, 0 outside the picture."""
    at = _Face(person, seen)
    places = [at.on(x, y) for x, y in at.marks()[:2]] + [at.nose_tip()]
    places += [at.on(x, y) for x, y in at.marks()[2:]]
    marks_J3 = torch.zeros(len(places), 3)
    for number, (x, y) in enumerate(places):
        if 0 <= x < canvas.width and 0 <= y < canvas.height:
            marks_J3[number] = torch.tensor([x, y, 2.0 if canvas.at(x, y)[0] == owner else 1.0])
    return marks_J3


def face_box(person: Identity, seen: Sight, width: int, height: int) -> Tensor:
    """Return box_4 around a face from hairline to chin, hidden or not, cut at the frame."""
    points_P2 = np.array(_Face(person, seen).outline())
    (x0, y0), (x1, y1) = points_P2.min(0), points_P2.max(0)
    return torch.tensor([max(0.0, x0), max(0.0, y0), min(float(width), x1), min(float(height), y1)])


class _Face:
    """Places on a face in pixels: flat ones by calling it, those on its rounded front by ``on``."""

    def __init__(self, person: Identity, seen: Sight) -> None:
        self.person, self.seen = person, seen
        roll = np.radians(seen.roll)
        self._cos, self._sin = float(np.cos(roll)), float(np.sin(roll))
        yaw, nod = np.radians(seen.yaw), np.radians(seen.nod)
        self._yaw = float(np.cos(yaw)), float(np.sin(yaw))
        self._nod = float(np.cos(nod)), float(np.sin(nod))

    def __call__(self, x: float, y: float) -> Pair:
        """Return where a point of the head's outline lies."""
        return (
            self.seen.x + self.seen.half * (x * self._cos - y * self._sin),
            self.seen.y + self.seen.half * (x * self._sin + y * self._cos),
        )

    def on(self, x: float, y: float, out: float = 0.0) -> Pair:
        """Return where a point on the face lies, ``out`` of its surface."""
        round_ = 1 - (x / self.person.wide) ** 2 - (0.85 * y) ** 2
        z = 0.72 * max(round_, 0.0) ** 0.5 + out
        across = x * self._yaw[0] + z * self._yaw[1]
        return self(across, y * self._nod[0] + 0.6 * z * self._nod[1])

    def round(self, x: float, y: float, wide: float, high: float) -> list[Pair]:
        """Return a flat ellipse."""
        return [self(x + wide * cos, y + high * sin) for cos, sin in CIRCLE]

    def outline(self) -> list[Pair]:
        """Return the edge of the face: narrower at the chin."""
        wide, jaw = self.person.wide, self.person.jaw
        return [self(wide * c * (1 - 0.32 * jaw * max(0.0, s) ** 2), s) for c, s in CIRCLE]

    def marks(self) -> list[Pair]:
        """Return where on the face eyes and mouth corners are."""
        p = self.person
        corner = p.mouth_height - self.seen.smile - p.mouth_curve
        eyes = [(side * p.eye_gap, p.eye_height) for side in (-1.0, 1.0)]
        return [*eyes, *((side * p.mouth_width, corner) for side in (-1.0, 1.0))]

    def nose_tip(self) -> Pair:
        """Return where the tip of the nose is."""
        return self.on(0, self.person.eye_height + self.person.nose_length, 0.16)

    def cap(self) -> list[Pair]:
        """Return the hair over the forehead."""
        p = self.person
        outer = [self(1.07 * p.wide * c, 0.02 + 1.13 * s) for c, s in UPPER]
        line = np.linspace(0.96, -0.96, 9) * p.wide
        return outer + [self.on(x, p.hairline + 0.45 * (x / p.wide) ** 4) for x in line]

    def beard(self) -> list[Pair]:
        """Return the part of the face below cheeks and nose."""
        wide, jaw, high = self.person.wide, self.person.jaw, self.person.mouth_height
        low = [(c, s) for c, s in CIRCLE if s >= 0.15]
        edge = [self(wide * c * (1 - 0.32 * jaw * s**2), s) for c, s in low]
        return edge + [self.on(x * wide, high - 0.14) for x in (-0.55, -0.25, 0.0, 0.25, 0.55)]


CIRCLE = [(float(np.cos(t)), float(np.sin(t))) for t in np.linspace(0, 2 * np.pi, 25)[:-1]]
"""Points of a circle from the right, by the bottom."""
UPPER = [(float(np.cos(t)), float(np.sin(t))) for t in np.linspace(np.pi, 2 * np.pi, 13)]
"""Points of its upper half from the left."""
ARC = np.linspace(-1.3, 1.3, 9)
"""Angles on one side of it, in radians."""


def _shadow(canvas: Canvas, at: _Face, owner: int) -> None:
    """Draw the side that looks away a little darker."""
    side = -1.0 if at.seen.yaw > 0 else 1.0
    tone = canvas.code([0.86 * value for value in at.person.skin], owner)
    across, down = np.cos(ARC) * side * at.person.wide, np.sin(ARC)
    narrow = 1 - 0.32 * at.person.jaw * down.clip(0) ** 2
    outer = [at(x, y) for x, y in zip(across * narrow, down, strict=True)]
    inner = [at(0.66 * x, 0.9 * y) for x, y in zip(across * narrow, down, strict=True)]
    canvas.polygon(outer + inner[::-1], tone)


def _eye(canvas: Canvas, at: _Face, side: float, owner: int) -> None:
    p, x, y = at.person, side * at.person.eye_gap, at.person.eye_height
    wide, high = p.eye_size, p.eye_size * p.eye_aspect
    ball = min(1.1 * high, 0.75 * wide)
    for across, down, tone in (
        (wide, high, (238, 236, 232)),
        (ball, ball, p.iris),
        (0.5 * ball, 0.5 * ball, (12, 10, 10)),
    ):
        ring = [at.on(x + across * c, y + down * s) for c, s in CIRCLE[::2]]
        canvas.polygon(ring, canvas.code(tone, owner))
    lid = [at.on(x + wide * c, y + high * s) for c, s in UPPER]
    canvas.line(lid, 0.035 * at.seen.half, canvas.code((40, 28, 25), owner))
    reach, lift, rise = 1.35 * wide, y - p.brow_height, side * p.brow_slope * wide
    ends = at.on(x - reach, lift - rise), at.on(x + reach, lift + rise)
    thick = p.brow_thick * at.seen.half
    canvas.capsule(*ends, (thick, thick), canvas.code([0.8 * v for v in p.hair], owner))


def _nose_and_mouth(canvas: Canvas, at: _Face, owner: int) -> None:
    p, half = at.person, at.seen.half
    tip, root = p.eye_height + p.nose_length, p.eye_height + 0.05
    shade = canvas.code([0.76 * value for value in p.skin], owner)
    side = -1.0 if at.seen.yaw > 0 else 1.0
    wing = at.on(side * p.nose_width, tip + 0.02, 0.04)
    canvas.polygon([at.on(0.02 * side, root, 0.05), at.nose_tip(), wing], shade)
    ends = [at.on(s * 0.7 * p.nose_width, tip + 0.03, 0.06) for s in (-1.0, 1.0)]
    canvas.capsule(ends[0], ends[1], (0.035 * half, 0.035 * half), shade)
    xs = np.linspace(-1, 1, 7)
    bow = (p.mouth_curve + at.seen.smile) * (1 - xs**2)
    middle = p.mouth_height - p.mouth_curve - at.seen.smile + bow
    lip = p.lip_thick * (1 - xs**2) + 0.012
    upper = [at.on(x * p.mouth_width, y - t) for x, y, t in zip(xs, middle, lip, strict=True)]
    lower = [at.on(x * p.mouth_width, y + 1.2 * t) for x, y, t in zip(xs, middle, lip, strict=True)]
    canvas.polygon(upper + lower[::-1], canvas.code(p.lips, owner))
    seam = [at.on(x * p.mouth_width, y) for x, y in zip(xs, middle, strict=True)]
    canvas.line(seam, 0.03 * half, canvas.code([0.5 * value for value in p.lips], owner))
    if p.mole:
        x, y = at.on(*p.mole)
        canvas.ellipse(x, y, 0.035 * half, 0.035 * half, canvas.code((55, 32, 25), owner))


def _glasses(canvas: Canvas, at: _Face, owner: int) -> None:
    p = at.person
    frame, thick = canvas.code((25, 25, 28), owner), 0.04 * at.seen.half
    reach = min(p.eye_gap * 0.88, 1.5 * p.eye_size)
    for side in (-1.0, 1.0):
        x, y = side * p.eye_gap, p.eye_height
        ring = [at.on(x + reach * c, y + 0.8 * reach * s, 0.04) for c, s in CIRCLE]
        canvas.line([*ring, ring[0]], thick, frame)
        canvas.line([at.on(x + side * reach, y, 0.04), at(side * p.wide, y)], thick, frame)
    bridge = [at.on(side * (p.eye_gap - reach), p.eye_height, 0.06) for side in (-1.0, 1.0)]
    canvas.line(bridge, thick, frame)
