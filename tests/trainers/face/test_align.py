"""Faces are turned and scaled to the places that a recogniser expects."""

from __future__ import annotations

import numpy as np
import pytest

from trainers.face.align import TEMPLATE, aligned, similarity


def turned(places_J2: np.ndarray, degrees: float, scale: float) -> np.ndarray:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return scale * places_J2 @ np.array([[cos, -sin], [sin, cos]]).T + (30, 12)


@pytest.mark.parametrize("degrees", [0, 25, -160])
def test_a_turn_a_scale_and_a_shift_are_found(degrees: float) -> None:
    wanted_J2 = np.array(TEMPLATE)
    places_J2 = turned(wanted_J2, degrees, 0.4)
    matrix_23 = similarity(places_J2, wanted_J2)
    made_J2 = places_J2 @ matrix_23[:, :2].T + matrix_23[:, 2]
    assert np.allclose(made_J2, wanted_J2)
    assert np.sqrt(np.linalg.det(matrix_23[:, :2])) == pytest.approx(1 / 0.4)


def test_a_face_is_never_mirrored() -> None:
    wanted_J2 = np.array(TEMPLATE)
    matrix_23 = similarity(wanted_J2 * (-1, 1), wanted_J2)
    assert np.linalg.det(matrix_23[:, :2]) > 0


def test_landmarks_end_where_they_are_expected() -> None:
    places_J2 = turned(np.array(TEMPLATE), 20, 0.8)
    image_HW3 = np.zeros((140, 140, 3), np.uint8)
    for x, y in places_J2:
        image_HW3[round(y) - 2 : round(y) + 3, round(x) - 2 : round(x) + 3] = 255
    face_HW3 = aligned(image_HW3, places_J2)
    assert face_HW3.shape == (112, 112, 3)
    for x, y in TEMPLATE:
        assert face_HW3[round(y), round(x)].min() > 200
    assert aligned(image_HW3, places_J2, 56).shape == (56, 56, 3)
