"""Objects drawn over pictures: boxes with words, masks, joints with their bones.

Shape legend: H height, W width, 3 RGB, N objects, J joints, 3 of joints: x, y, how sure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from trainers.data.instances import Found, Instances, Kinds, Skeleton
from trainers.data.scenes import Bytes, Colour
from trainers.pictures.sheet import Heading, Row, Tile, draw_sheet

COLOURS: tuple[Colour, ...] = (
    *((239, 71, 111), (17, 138, 178), (6, 180, 120), (255, 183, 3), (131, 56, 236)),
    *((251, 86, 7), (58, 134, 255), (173, 193, 20), (214, 40, 140), (0, 170, 170)),
)
LEFT, RIGHT, MIDDLE = (255, 140, 0), (0, 170, 255), (250, 250, 250)
"""Bones of a body's own left, of its right, and between them."""
SURE, JOINT_SURE = 0.3, 0.2
"""What is less sure is not drawn."""
GRAIN = 2
"""Smoothing of the lines: they are drawn so many times larger."""
SMALLEST_SIDE = 384
"""Shorter side in pixels to which small pictures are enlarged, so that words can be read."""


@dataclass(frozen=True)
class Compared:
    """A picture, what is in it, and what was found."""

    image: Bytes
    truth: Instances
    found: Found
    lines: Sequence[str] = ()
    """Words under the answer."""


def draw_objects(
    image_HW3: Bytes,
    objects: Instances | Found,
    kinds: Kinds,
    sure: float = SURE,
    side: int = SMALLEST_SIDE,
) -> Image.Image:
    """Draw true objects, or those that were found and are sure enough, over a picture.

    Small pictures come out larger: their shorter side has at least ``side`` pixels.
    """
    if isinstance(objects, Found):
        objects = objects.take(objects.scores_N >= sure)
    pen = _Pen(image_HW3, side)
    colours = [_colour(objects, number, kinds) for number in range(len(objects.boxes_N4))]
    if objects.masks_NHW is not None:
        for mask_HW, colour in zip(objects.masks_NHW, colours, strict=True):
            pen.mask(mask_HW.cpu(), colour)
    for box_4, colour in zip(objects.boxes_N4.tolist(), colours, strict=True):
        pen.box(box_4, colour)
    if objects.joints_NJ3 is not None and kinds.skeleton is not None:
        shown = 1 if isinstance(objects, Instances) else JOINT_SURE
        for joints_J3 in objects.joints_NJ3.cpu():
            pen.joints(joints_J3, kinds.skeleton, shown)
    pen.smooth()
    for number, (box_4, colour) in enumerate(zip(objects.boxes_N4.tolist(), colours, strict=True)):
        pen.words(box_4, describe(objects, number, kinds), colour)
    return pen.image


def draw_compared(
    heading: Heading,
    shown: Sequence[Compared],
    kinds: Kinds,
    sure: float = SURE,
    height: int = 256,
) -> Image.Image:
    """Draw a row of true objects over pictures and a row of those found."""
    truths = [Tile(draw_objects(one.image, one.truth, kinds, sure)) for one in shown]
    answers = [Tile(draw_objects(one.image, one.found, kinds, sure), one.lines) for one in shown]
    return draw_sheet(heading, [Row(truths, "truth"), Row(answers, "answer")], height, smooth=True)


def describe(objects: Instances | Found, number: int, kinds: Kinds) -> str:
    """Return the words of an object: its state or class, and how sure that is."""
    word = kinds.names[int(objects.labels_N[number])]
    if isinstance(objects, Instances):
        if objects.ignored_N is not None and objects.ignored_N[number]:
            return f"{word}, ignored"
        state = -1 if objects.states_N is None else int(objects.states_N[number])
        return kinds.states[state] if state >= 0 else word
    sure = float(objects.scores_N[number])
    if objects.states_NS is None:
        return f"{word} {sure:.2f}"
    return f"{kinds.states[int(objects.states_NS[number].argmax())]} {sure:.2f}"


def _colour(objects: Instances | Found, number: int, kinds: Kinds) -> Colour:
    """Return the colour of its state, else of its class where there are several, else its own."""
    if kinds.states:
        states = objects.states_N if isinstance(objects, Instances) else objects.states_NS
        if states is not None:
            state = int(states[number].argmax() if states.ndim == 2 else states[number])
            return COLOURS[state % len(COLOURS)] if state >= 0 else (150, 150, 150)
    if len(kinds.names) == 1:
        return COLOURS[number % len(COLOURS)]
    label = int(objects.labels_N[number])
    return kinds.colours[label] if kinds.colours else COLOURS[label % len(COLOURS)]


class _Pen:
    """Draws over an enlarged picture; places are those of the picture as it was."""

    def __init__(self, image_HW3: Bytes, side: int) -> None:
        height, width = image_HW3.shape[:2]
        scale = max(1, -(-side // min(height, width)))
        self.scale, self.size = scale * GRAIN, (width * scale, height * scale)
        shown = (width * self.scale, height * self.scale)
        # bytes that came from a network's input are often not writeable
        self.image = Image.fromarray(np.ascontiguousarray(image_HW3))
        self.image = self.image.convert("RGB").resize(shown, Image.Resampling.BICUBIC)
        self.draw = ImageDraw.Draw(self.image)
        self.thick = max(2, min(self.size) // 160) * GRAIN

    def mask(self, mask_HW: Tensor, colour: Colour) -> None:
        soft = Image.fromarray(mask_HW.to(torch.uint8).numpy() * np.uint8(110))
        soft = soft.resize(self.image.size, Image.Resampling.BILINEAR)
        self.image.paste(colour, mask=soft)
        self.draw = ImageDraw.Draw(self.image)

    def box(self, box_4: Sequence[float], colour: Colour) -> None:
        x0, y0, x1, y1 = (value * self.scale for value in box_4)
        corners = (x0, y0, max(x0, x1 - 1), max(y0, y1 - 1))
        self.draw.rectangle(corners, outline=colour, width=self.thick)

    def joints(self, joints_J3: Tensor, skeleton: Skeleton, shown: float) -> None:
        """Draw bones between joints and the joints, hollow where they are hidden."""
        places = [(x * self.scale, y * self.scale) for x, y in joints_J3[:, :2].tolist()]
        sure = joints_J3[:, 2].tolist()
        for one, other in skeleton.bones:
            if min(sure[one], sure[other]) >= shown:
                colour = _side(skeleton.names[one], skeleton.names[other])
                self.draw.line((places[one], places[other]), fill=colour, width=self.thick)
        reach = 0.9 * self.thick
        for name, (x, y), seen in zip(skeleton.names, places, sure, strict=True):
            if seen >= shown:
                corners = (x - reach, y - reach, x + reach, y + reach)
                filled = (30, 30, 30) if seen == 1 and shown == 1 else _side(name, name)
                self.draw.ellipse(corners, fill=filled, outline=(30, 30, 30), width=GRAIN)

    def smooth(self) -> None:
        """Bring the picture to its size; after this only words are written."""
        self.image = self.image.resize(self.size, Image.Resampling.BOX)
        self.scale, self.draw = self.scale // GRAIN, ImageDraw.Draw(self.image)

    def words(self, box_4: Sequence[float], text: str, colour: Colour) -> None:
        """Write on the upper edge of a box, inside where there is no room above."""
        font = ImageFont.load_default(size=max(13, min(self.size) // 24))
        left, top, right, bottom = self.draw.textbbox((0, 0), text, font=font)
        wide, high = int(right - left) + 6, int(bottom - top) + 6
        x = min(max(0, int(box_4[0] * self.scale)), max(0, self.size[0] - wide))
        y = int(box_4[1] * self.scale) - high
        y = y if y >= 0 else int(max(0, box_4[1]) * self.scale)
        self.draw.rectangle((x, y, x + wide, y + high), fill=colour)
        self.draw.text((x + 3 - left, y + 3 - top), text, fill=ink(colour), font=font)


def ink(colour: Colour) -> Colour:
    """Return black or white, whichever can be read on a colour: by its luma (ITU-R BT.601)."""
    red, green, blue = colour
    return (255, 255, 255) if 0.299 * red + 0.587 * green + 0.114 * blue < 140 else (20, 20, 20)


def _side(one: str, other: str) -> Colour:
    sides = {name.split("_")[0] for name in (one, other)}
    if sides == {"left"}:
        return LEFT
    return RIGHT if sides == {"right"} else MIDDLE
