"""Selective search: likenesses, grouping to the last region, and objects found in few boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainers.blocks.boxes import pair_iou
from trainers.blocks.selective import (
    SIMILARITIES,
    describe,
    group,
    in_space,
    initial_regions,
    selective_search,
    similarities,
    sliding_windows,
    slopes,
)
from trainers.synth.scenes import draw_scene


def two_halves() -> np.ndarray:
    image_HW3 = np.zeros((20, 30, 3), np.uint8)
    image_HW3[:, 15:] = (250, 20, 20)
    return image_HW3


def test_first_regions_are_what_differs_and_small_ones_are_taken_in() -> None:
    image_HW3 = two_halves()
    labels_HW = initial_regions(image_HW3, sigma=0.0)
    assert len(np.unique(labels_HW)) == 2
    assert len(np.unique(labels_HW[:, :15])) == len(np.unique(labels_HW[:, 15:])) == 1
    image_HW3[5:7, 5:7] = 255
    assert len(np.unique(initial_regions(image_HW3, 1.0, 0.0, least=1))) == 3
    assert len(np.unique(initial_regions(image_HW3, 1.0, 0.0, least=20))) == 2


def test_a_larger_scale_leaves_fewer_regions() -> None:
    image_HW3 = draw_scene(1).image_HWC
    counts = [int(initial_regions(image_HW3, scale).max()) for scale in (20.0, 100.0, 500.0)]
    assert counts[0] > counts[1] > counts[2]


def test_likenesses_are_those_worked_out_by_hand() -> None:
    image_HWC = in_space(two_halves(), "rgb")
    labels_HW = np.zeros((20, 30), np.int64)
    labels_HW[:, 10:] = 1  # black; half black and half red
    labels_HW[:, 15:] = 2
    regions = describe(image_HWC, slopes(image_HWC), labels_HW)
    alike = similarities(regions, 0, np.array([1, 2]))
    assert alike["colour"] == pytest.approx([1.0, 0.0])
    assert alike["size"] == pytest.approx([1 - 300 / 600, 1 - 500 / 600])
    # Around the first and the last third lies the one between: 600 - 200 - 300 pixels of 600.
    assert alike["fill"] == pytest.approx([1.0, 1 - 100 / 600])


def test_all_likenesses_are_from_0_to_1_and_grouping_ends_in_one_region() -> None:
    image_HW3 = draw_scene(2).image_HWC
    image_HWC = in_space(image_HW3, "hsv")
    begun = describe(image_HWC, slopes(image_HWC), initial_regions(image_HW3))
    regions, first = group(begun), len(begun.sizes_R)
    assert len(regions.sizes_R) == 2 * first - 1
    assert regions.sizes_R[-1] == regions.sizes_R[:first].sum() == image_HW3.shape[0] ** 2
    assert regions.boxes_R4[-1].tolist() == [0, 0, 128, 128]
    for one in range(first):
        for name, values in similarities(regions, one, np.flatnonzero(begun.near_RR[one])).items():
            assert name in SIMILARITIES
            assert values.min() >= 0 and values.max() <= 1 + 1e-5, name
    np.testing.assert_allclose(regions.colour_RD.sum(1), 1, rtol=1e-4)


def test_histograms_of_joined_regions_are_those_of_their_pixels() -> None:
    image_HWC = in_space(draw_scene(3).image_HWC, "hsv")
    labels_HW = np.arange(128)[:, None] // 43 * np.ones((1, 128), np.int64)
    regions = group(describe(image_HWC, slopes(image_HWC), labels_HW))
    whole = describe(image_HWC, slopes(image_HWC), np.zeros_like(labels_HW))
    np.testing.assert_allclose(regions.colour_RD[-1], whole.colour_RD[0], atol=1e-5)
    np.testing.assert_allclose(regions.texture_RD[-1], whole.texture_RD[0], atol=1e-5)


@pytest.mark.parametrize("mode", ["fast", "quality"])
def test_objects_are_among_few_boxes(mode: str) -> None:
    best: list[float] = []
    counts: list[int] = []
    for seed in range(4):
        scene = draw_scene(100 + seed)
        boxes_N4 = selective_search(scene.image_HWC, mode, 300)
        assert len(np.unique(boxes_N4, axis=0)) == len(boxes_N4) <= 300
        overlap = pair_iou(torch.from_numpy(scene.boxes_N4), torch.from_numpy(boxes_N4))
        best += overlap.amax(1).tolist()
        counts.append(len(boxes_N4))
    recall = np.mean(np.array(best) >= 0.5)
    windows = len(sliding_windows((128, 128)))
    print(f"{mode}: recall {recall:.2f}, {np.mean(counts):.0f} boxes, windows {windows}")
    assert recall >= 0.9
    assert windows / np.mean(counts) > 50


def test_the_order_is_a_function_of_the_seed() -> None:
    image_HW3 = draw_scene(4).image_HWC
    one, again, other = (selective_search(image_HW3, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    assert np.array_equal(np.unique(one, axis=0), np.unique(other, axis=0))


def test_windows_stay_in_the_picture_in_all_ratios() -> None:
    boxes_N4 = sliding_windows((40, 60), (16.0,))
    assert boxes_N4.min() >= 0 and boxes_N4[:, 2].max() <= 60 and boxes_N4[:, 3].max() <= 40
    sides_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
    assert set((sides_N2[:, 1] / sides_N2[:, 0]).round(3)) == {0.5, 1.0, 2.0}
    assert len(sliding_windows((8, 8), (16.0,))) == 0
