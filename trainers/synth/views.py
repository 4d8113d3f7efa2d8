"""A random view of a labelled picture: flipped, scaled and cut out, the labels alike.

Shape legend: H height, W width, 3 RGB.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from trainers.data.scenes import Scene
from trainers.scores.segmentation import IGNORED

GREY = (124, 116, 104)
"""The mean colour of ImageNet's pictures: zero after normalisation."""


@dataclass(frozen=True)
class Window:
    """How views are cut."""

    height: int
    width: int
    scale: float = 2.0
    """Views are enlarged by 1 / scale to scale, evenly on a logarithmic axis."""
    flip: bool = True
    """Mirror half of the views."""


def random_view(scene: Scene, window: Window, seed: int) -> Scene:
    """Return a view of ``window`` size; what lies beyond the picture is grey and ignored.

    Source: random scale of 0.5 to 2, flip and crop, as DeepLab trains (Chen et al., 2018).
    """
    # RandomState, not default_rng: numpy promises that its stream never changes.
    random = np.random.RandomState(seed % 2**32)
    zoom = window.scale ** random.uniform(-1, 1)
    wide, high = window.width / zoom, window.height / zoom
    image, labels = _padded(scene, int(np.ceil(wide)), int(np.ceil(high)))
    left = random.uniform(0, image.width - wide)
    top = random.uniform(0, image.height - high)
    box, size = (left, top, left + wide, top + high), (window.width, window.height)
    view_HW3 = np.array(image.resize(size, Image.Resampling.BILINEAR, box))
    labels_HW = np.array(labels.resize(size, Image.Resampling.NEAREST, box))
    if window.flip and random.rand() < 0.5:
        view_HW3, labels_HW = view_HW3[:, ::-1], labels_HW[:, ::-1]
    return view_HW3, labels_HW


def _padded(scene: Scene, width: int, height: int) -> tuple[Image.Image, Image.Image]:
    image, labels = (Image.fromarray(part) for part in scene)
    if width <= image.width and height <= image.height:
        return image, labels
    size = (max(width, image.width), max(height, image.height))
    at = ((size[0] - image.width) // 2, (size[1] - image.height) // 2)
    grey, none = Image.new("RGB", size, GREY), Image.new("L", size, IGNORED)
    grey.paste(image, at)
    none.paste(labels, at)
    return grey, none
