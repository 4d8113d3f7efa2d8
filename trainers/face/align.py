"""Faces turned and scaled so that eyes, nose and mouth are where a recogniser expects them.

Source: Umeyama (1991), without mirroring; the places are those of ArcFace's 112 x 112 pictures.

Shape legend: J landmarks, H height, W width, 3 RGB.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainers.data.scenes import Bytes

SIDE = 112
TEMPLATE = ((38.29, 51.70), (73.53, 51.50), (56.03, 71.74), (41.55, 92.37), (70.73, 92.20))
"""Eyes, tip of the nose and corners of the mouth in a picture of 112 x 112, the left ones first."""
Reals = NDArray[np.float64]


def similarity(places_J2: Reals, wanted_J2: Reals) -> Reals:
    """Return the matrix (2, 3) that turns, scales and shifts places to where they are wanted.

    It leaves the least sum of squares of the distances.
    """
    middle_2, other_2 = places_J2.mean(0), wanted_J2.mean(0)
    from_J2, to_J2 = places_J2 - middle_2, wanted_J2 - other_2
    left, sizes, right = np.linalg.svd(to_J2.T @ from_J2)
    signs = np.array([1.0, np.sign(np.linalg.det(left @ right))])
    turn_22 = left @ np.diag(signs) @ right
    scale = (sizes * signs).sum() / max(float((from_J2**2).sum()), 1e-9)
    shift_2 = other_2 - scale * turn_22 @ middle_2
    return np.concatenate([scale * turn_22, shift_2[:, None]], 1)


def aligned(image_HW3: Bytes, landmarks_J2: Reals, side: int = SIDE) -> Bytes:
    """Return the face with these five landmarks as a square picture of so many pixels."""
    wanted_J2 = np.array(TEMPLATE) * side / SIDE
    back_23 = similarity(wanted_J2, np.asarray(landmarks_J2, np.float64))
    picture = Image.fromarray(image_HW3)
    turned = picture.transform(
        (side, side), Image.Transform.AFFINE, tuple(back_23.ravel()), Image.Resampling.BILINEAR
    )
    return np.array(turned)
