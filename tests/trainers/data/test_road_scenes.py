"""Drawn road scenes: a pure function of the seed, and objects grow from the vanishing point."""

from __future__ import annotations

import numpy as np

from trainers.synth.road import LANE, POLE, ROAD, SKY, VEHICLE, road_scene, road_scenes
from trainers.synth.views import Window, random_view


def test_scenes_are_a_pure_function_of_the_seed() -> None:
    image, labels = road_scene(7)
    again, same = road_scene(7)
    assert image.shape == (64, 128, 3) and labels.shape == (64, 128)
    assert np.array_equal(image, again) and np.array_equal(labels, same)
    assert not np.array_equal(labels, road_scene(8)[1])
    assert np.array_equal(road_scenes(5, 3)[2][1], road_scene(7)[1])
    assert road_scene(7, 48, 80)[1].shape == (48, 80)


def test_every_class_is_there_where_it_belongs() -> None:
    labels = np.stack([road_scene(seed)[1] for seed in range(40)])
    shares = np.bincount(labels.ravel(), minlength=6) / labels.size
    assert len(shares) == 6 and shares.min() > 0.02
    rows = {k: np.nonzero(labels == k)[1].mean() for k in range(6)}
    assert rows[SKY] < rows[POLE] < rows[ROAD] and rows[VEHICLE] < rows[LANE]


def test_what_is_near_is_larger() -> None:
    far, near = [], []
    for seed in range(60):
        labels = road_scene(seed)[1]
        for column in (labels == VEHICLE).T:
            if column.any():
                rows = np.flatnonzero(column)
                if not 38 < rows[-1] < 54:
                    (near if rows[-1] >= 54 else far).append(len(rows))
    assert np.mean(near) > 2 * np.mean(far)


def test_views_move_the_labels_with_the_picture() -> None:
    labels = np.zeros((32, 48), np.uint8)
    labels[8:24, 10:30] = 1
    scene = np.repeat(labels[..., None] * np.uint8(200), 3, 2), labels
    for seed in range(20):
        image, moved = random_view(scene, Window(32, 40), seed)
        assert image.shape == (32, 40, 3) and moved.shape == (32, 40)
        known = moved != 255
        # Bilinear pixels on an edge may fall on either side of the middle.
        assert ((image[..., 0] > 100) == (moved == 1))[known].mean() > 0.95
    again, _ = random_view(scene, Window(32, 40), 3)
    assert np.array_equal(again, random_view(scene, Window(32, 40), 3)[0])


def test_views_are_scaled_between_a_half_and_two_flipped_and_padded() -> None:
    scene = road_scene(3)
    plain, labels = random_view(scene, Window(64, 128, scale=1.0, flip=False), 0)
    assert np.array_equal(plain, scene[0]) and np.array_equal(labels, scene[1])
    views = [random_view(scene, Window(64, 128, scale=2.0), seed)[1] for seed in range(30)]
    shares = [(view == 255).mean() for view in views]
    assert min(shares) == 0 and 0.5 < max(shares) < 0.76  # a quarter is left of one scaled by 1/2
    flipped = [random_view(scene, Window(64, 128, scale=1.0), seed)[1] for seed in range(30)]
    mirrored = [np.array_equal(view, scene[1][:, ::-1]) for view in flipped]
    assert 5 < sum(mirrored) < 25
