"""Views of a picture with its objects: fitted into a square, or at random for training.

Shape legend: H height, W width, 3 RGB, N objects, J joints.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainers.blocks.boxes import areas, clip, large_enough, mirrored
from trainers.data.instances import Found, Instances
from trainers.data.scenes import Bytes
from trainers.synth.views import GREY

TRIES = 8
"""Views that are drawn until one keeps an object."""


@dataclass(frozen=True)
class View:
    """Where a square lies in a picture: pixel x of the picture is at scale * x - left."""

    side: int
    scale: float
    left: int = 0
    top: int = 0
    flip: bool = False

    def points(self, x_N2: Tensor) -> Tensor:
        """Return where points (x, y) of the picture are in the view."""
        moved_N2 = x_N2 * self.scale - x_N2.new_tensor([self.left, self.top])
        if self.flip:
            moved_N2 = moved_N2 * moved_N2.new_tensor([-1, 1]) + moved_N2.new_tensor([self.side, 0])
        return moved_N2

    def boxes(self, boxes_N4: Tensor) -> Tensor:
        """Return where boxes of the picture are in the view, also beyond it."""
        moved_N4 = boxes_N4 * self.scale - boxes_N4.new_tensor([self.left, self.top] * 2)
        return mirrored(moved_N4, self.side) if self.flip else moved_N4

    def image(self, image_HW3: Bytes) -> Bytes:
        """Return the view; what lies beyond the picture is grey."""
        height, width = (max(1, round(n * self.scale)) for n in image_HW3.shape[:2])
        picture = Image.fromarray(image_HW3)
        if (width, height) != picture.size:
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        square = Image.new("RGB", (self.side, self.side), GREY)
        square.paste(picture, (-self.left, -self.top))
        view_HW3 = np.array(square)
        return np.ascontiguousarray(view_HW3[:, ::-1]) if self.flip else view_HW3

    def masks(self, masks_NHW: Tensor) -> Tensor:
        """Return masks of the picture in the view."""
        place = torch.arange(self.side)
        across = place.flip(0) if self.flip else place
        rows = ((place + self.top + 0.5) / self.scale).floor().long()
        columns = ((across + self.left + 0.5) / self.scale).floor().long()
        height, width = masks_NHW.shape[1:]
        inside_HW = (rows >= 0)[:, None] & (rows < height)[:, None]
        inside_HW = inside_HW & (columns >= 0) & (columns < width)
        taken_NHW = masks_NHW[:, rows.clamp(0, height - 1)][:, :, columns.clamp(0, width - 1)]
        return taken_NHW & inside_HW


@dataclass(frozen=True)
class Window:
    """How views for training are drawn."""

    side: int
    scale: float = 1.25
    """Views are enlarged by 1 / scale to scale, evenly on a logarithmic axis."""
    flip: bool = True
    """Mirror half of the views."""
    colour: float = 0.2
    """Largest change of the strength of each colour, and of the contrast."""
    joints: tuple[int, ...] = ()
    """For each joint which one it is in a mirrored picture."""
    least: float = 4.0
    """Objects of which less can be seen along a side, in pixels, are ignored."""
    share: float = 0.3
    """Objects of which a smaller share can be seen are ignored."""


def fitted(image_HW3: Bytes, side: int) -> View:
    """Return the view that shows all of a picture in a square of so many pixels."""
    return View(side, side / max(image_HW3.shape[:2]))


def seen(image_HW3: Bytes, truth: Instances, view: View, window: Window) -> tuple[Bytes, Instances]:
    """Return a view of a picture with what can be seen of its objects.

    Those out of sight are gone; those of which too little can be seen are ignored.
    """
    boxes_N4 = view.boxes(truth.boxes_N4)
    clipped_N4 = clip(boxes_N4, view.side, view.side)
    there_N = large_enough(clipped_N4, 1.0)
    shown_N = areas(clipped_N4) >= window.share * areas(boxes_N4)
    little_N = ~(shown_N & large_enough(clipped_N4, window.least))
    ignored_N = little_N if truth.ignored_N is None else truth.ignored_N | little_N
    masks_NHW, joints_NJ3 = truth.masks_NHW, truth.joints_NJ3
    moved = truth._replace(
        boxes_N4=clipped_N4,
        masks_NHW=None if masks_NHW is None else view.masks(masks_NHW),
        joints_NJ3=None if joints_NJ3 is None else _joints(joints_NJ3, view, window.joints),
        ignored_N=ignored_N,
    )
    return view.image(image_HW3), moved.take(there_N)


def random_view(
    image_HW3: Bytes, truth: Instances, window: Window, seed: int
) -> tuple[Bytes, Instances]:
    """Return a view for training: scaled, shifted, mirrored, in other colours.

    It keeps an object of the picture where chance allows it.
    """
    # RandomState, not default_rng: numpy promises that its stream never changes.
    random = np.random.RandomState(seed % 2**32)
    for _ in range(TRIES):
        view = _drawn(image_HW3, window, random)
        view_HW3, objects = seen(image_HW3, truth, view, window)
        assert objects.ignored_N is not None
        if not len(truth.boxes_N4) or not bool(objects.ignored_N.all()):
            break
    gains_3 = 1 + window.colour * random.uniform(-1, 1, 3)
    contrast = 1 + window.colour * random.uniform(-1, 1)
    light = window.colour * 60 * random.uniform(-1, 1)
    values_V1 = np.arange(256, dtype=np.float32)[:, None]
    changed_V3 = np.clip((values_V1 - 128) * (contrast * gains_3) + 128 + light, 0, 255)
    told = changed_V3.astype(np.uint8).T.ravel().tolist()
    return np.array(Image.fromarray(view_HW3).point(told)), objects


def undone(found: Found, view: View, size: tuple[int, int]) -> Found:
    """Return what was found in a view where it is in the picture of (height, width)."""
    back = replace(view, scale=1 / view.scale, left=0, top=0, side=max(size))
    shift = found.boxes_N4.new_tensor([view.left, view.top])
    joints_NJ3, masks_NHW = found.joints_NJ3, found.masks_NHW
    if joints_NJ3 is not None:
        points_NJ2 = (joints_NJ3[..., :2] + shift) / view.scale
        joints_NJ3 = torch.cat([points_NJ2, joints_NJ3[..., 2:]], -1)
    if masks_NHW is not None:
        masks_NHW = back.masks(masks_NHW)[:, : size[0], : size[1]]
    boxes_N4 = clip((found.boxes_N4 + shift.repeat(2)) / view.scale, *size)
    return found._replace(boxes_N4=boxes_N4, joints_NJ3=joints_NJ3, masks_NHW=masks_NHW)


def _drawn(image_HW3: Bytes, window: Window, random: np.random.RandomState) -> View:
    whole = fitted(image_HW3, window.side)
    scale = whole.scale * window.scale ** random.uniform(-1, 1)
    room = [round(n * scale) - window.side for n in (image_HW3.shape[1], image_HW3.shape[0])]
    left, top = (round(random.uniform(min(0, n), max(0, n))) for n in room)
    return View(window.side, scale, left, top, window.flip and random.rand() < 0.5)


def _joints(joints_NJ3: Tensor, view: View, mirror: tuple[int, ...]) -> Tensor:
    points_NJ2, visible_NJ = view.points(joints_NJ3[..., :2]), joints_NJ3[..., 2]
    inside_NJ = ((points_NJ2 >= 0) & (points_NJ2 < view.side)).all(-1)
    moved_NJ3 = torch.cat([points_NJ2, (visible_NJ * inside_NJ)[..., None]], -1)
    return moved_NJ3[:, list(mirror)] if view.flip and mirror else moved_NJ3
