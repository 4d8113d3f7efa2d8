"""Views of pictures with objects: boxes, masks and joints go where their pixels go."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainers.data.instances import Found, Instances, boxes_around
from trainers.synth.instance_views import View, Window, fitted, random_view, seen, undone


def picture() -> tuple[np.ndarray, Instances]:
    """Return a dark picture of 60 x 90 with two bright squares."""
    image_HW3 = np.zeros((60, 90, 3), np.uint8)
    masks_NHW = np.zeros((2, 60, 90), np.bool_)
    for mask_HW, (left, top, side) in zip(masks_NHW, ((10, 20, 16), (60, 30, 20)), strict=True):
        mask_HW[top : top + side, left : left + side] = True
        image_HW3[mask_HW] = 255
    boxes_N4 = boxes_around(masks_NHW)
    joints_NJ3 = torch.cat([boxes_N4[:, None, :2] + 0.5, boxes_N4[:, None, 2:] - 0.5], 1)
    joints_NJ3 = torch.cat([joints_NJ3, torch.full((2, 2, 1), 2.0)], -1)
    return image_HW3, Instances(
        boxes_N4, torch.tensor([0, 1]), torch.from_numpy(masks_NHW), joints_NJ3
    )


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scale", [1.0, 2.0, 0.5])
def test_boxes_masks_and_joints_follow_the_pixels(scale: float, flip: bool) -> None:
    image_HW3, truth = picture()
    view = View(64, scale, left=round(8 * scale), top=round(6 * scale), flip=flip)
    view_HW3, own = seen(image_HW3, truth, view, Window(64, joints=(0, 1)))
    assert view_HW3.shape == (64, 64, 3) and own.masks_NHW is not None
    bright_HW = torch.from_numpy(view_HW3[..., 0] > 150)
    inside_HW = own.masks_NHW.any(0)
    assert float((bright_HW & inside_HW).sum() / inside_HW.sum()) > 0.95
    assert torch.allclose(own.boxes_N4, boxes_around(own.masks_NHW.numpy()), atol=1.01)
    assert own.joints_NJ3 is not None
    corners_NJ2 = own.joints_NJ3[..., :2]
    shown = own.joints_NJ3[..., 2] > 0
    near = torch.stack([own.boxes_N4[:, :2], own.boxes_N4[:, 2:]], 1)
    if flip:
        near = torch.stack([own.boxes_N4[:, [2, 1]], own.boxes_N4[:, [0, 3]]], 1)
    assert torch.allclose(corners_NJ2[shown], near[shown], atol=scale)


def test_what_is_out_of_sight_is_gone_and_what_is_hardly_seen_ignored() -> None:
    image_HW3, truth = picture()
    # Of the first square 3 of 16 columns are left, of the second all.
    _, own = seen(image_HW3, truth, View(64, 1.0, left=23), Window(64))
    assert own.labels_N.tolist() == [0, 1] and own.ignored_N is not None
    assert own.ignored_N.tolist() == [True, False]
    assert own.joints_NJ3 is not None and own.joints_NJ3[0, :, 2].tolist() == [0, 2]
    _, gone = seen(image_HW3, truth, View(64, 1.0, left=27), Window(64))
    assert gone.labels_N.tolist() == [1]
    _, small = seen(image_HW3, truth, View(64, 0.2), Window(64, least=4.0))
    assert small.ignored_N is not None and small.ignored_N.tolist() == [True, False]


def test_mirrored_joints_change_their_names() -> None:
    image_HW3, truth = picture()
    view = View(96, 1.0, flip=True)
    _, named = seen(image_HW3, truth, view, Window(96, joints=(1, 0)))
    _, plain = seen(image_HW3, truth, view, Window(96, joints=(0, 1)))
    assert named.joints_NJ3 is not None and plain.joints_NJ3 is not None
    assert torch.equal(named.joints_NJ3, plain.joints_NJ3[:, [1, 0]])


def test_random_views_are_a_function_of_the_seed_and_keep_an_object() -> None:
    image_HW3, truth = picture()
    window = Window(64, scale=3.0)
    first, again = (random_view(image_HW3, truth, window, 5) for _ in range(2))
    assert np.array_equal(first[0], again[0]) and torch.equal(first[1].boxes_N4, again[1].boxes_N4)
    kept = [random_view(image_HW3, truth, window, seed)[1].ignored_N for seed in range(40)]
    assert sum(one is not None and not one.all() for one in kept) >= 39
    _, none = random_view(image_HW3, Instances.none(), window, 0)
    assert none.boxes_N4.shape == (0, 4)


def test_answers_return_to_the_picture() -> None:
    image_HW3, truth = picture()
    view = fitted(image_HW3, 180)
    view_HW3, own = seen(image_HW3, truth, view, Window(180))
    assert view.scale == 2 and (view_HW3[120:] == view_HW3[-1, -1]).all()
    found = Found(own.boxes_N4, own.labels_N, torch.ones(2), own.masks_NHW, own.joints_NJ3)
    back = undone(found, view, (60, 90))
    assert torch.allclose(back.boxes_N4, truth.boxes_N4)
    assert back.masks_NHW is not None and truth.masks_NHW is not None
    assert torch.equal(back.masks_NHW, truth.masks_NHW)
    assert back.joints_NJ3 is not None and truth.joints_NJ3 is not None
    assert torch.allclose(back.joints_NJ3, truth.joints_NJ3)
