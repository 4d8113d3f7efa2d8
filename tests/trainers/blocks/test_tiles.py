"""Tiles: they cover a picture, and what is found in them is what is found in the whole."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from trainers.blocks.tiles import Tiles, corners, crops, found_in_tiles
from trainers.data.instances import Found, Instances, InstanceSet, Kinds
from trainers.data.scenes import Bytes


def squares(image_HW3: Bytes) -> Found:
    """Find what is brighter than 9, every value of it one object: its box as far as it is seen."""
    values = [value for value in np.unique(image_HW3[..., 0]).tolist() if value > 9]
    boxes = []
    for value in values:
        rows, columns = np.nonzero(image_HW3[..., 0] == value)
        boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    where = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    scores = torch.tensor(values, dtype=torch.float32) / 255
    return Found(where, torch.zeros(len(values), dtype=torch.int64), scores)


def picture(height: int, width: int, count: int) -> Bytes:
    random, image_HW3 = np.random.RandomState(1), np.zeros((height, width, 3), np.uint8)
    taken = np.zeros((height, width), bool)
    value = 10
    while value < 10 + count:
        wide, high = random.randint(6, 30, 2)
        x, y = random.randint(width - wide), random.randint(height - high)
        if not taken[y : y + high, x : x + wide].any():
            taken[y : y + high, x : x + wide] = True
            image_HW3[y : y + high, x : x + wide] = value
            value += 1
    return image_HW3


@pytest.mark.parametrize("length", [10, 64, 65, 100, 128, 513])
def test_tiles_cover_a_length_and_share_what_they_should(length: int) -> None:
    places = corners(length, 64, 16)
    assert places[0] == 0 and places[-1] == max(0, length - 64)
    assert all(0 < b - a <= 64 - 16 for a, b in pairwise(places))


@pytest.mark.parametrize("size", [(50, 40), (64, 200), (150, 170)])
def test_tiles_find_what_the_whole_picture_has(size: tuple[int, int]) -> None:
    image_HW3 = picture(*size, count=size[0] * size[1] // 1500 + 1)
    whole = squares(image_HW3)
    parts = found_in_tiles(image_HW3, squares, Tiles(64, 32), iou=0.3)
    assert sorted(parts.boxes_N4.tolist()) == sorted(whole.boxes_N4.tolist())


def test_what_no_tile_has_all_of_is_found_in_part() -> None:
    image_HW3 = np.zeros((40, 150, 3), np.uint8)
    image_HW3[10:30, 20:130] = 99
    parts = found_in_tiles(image_HW3, squares, Tiles(64, 16), iou=0.3)
    covered = np.zeros(150, bool)
    for x0, _, x1, _ in parts.boxes_N4.int().tolist():
        covered[x0:x1] = True
    assert covered[20:130].all() and not covered[:20].any()


@pytest.mark.parametrize("size", [(40, 150), (41, 151)])
def test_what_is_larger_than_a_tile_is_found_in_the_halved_picture(size: tuple[int, int]) -> None:
    image_HW3 = np.zeros((*size, 3), np.uint8)
    image_HW3[10:30, 20:100] = 99
    image_HW3[32:40, 138:150] = 50
    found = found_in_tiles(image_HW3, squares, Tiles(64, 16, halvings=2), iou=0.3)
    assert [20, 10, 100, 30] in found.boxes_N4.tolist()
    assert [138, 32, 150, 40] in found.boxes_N4.tolist()
    assert found.boxes_N4[:, 2].max() <= size[1] and found.boxes_N4[:, 3].max() <= size[0]


def test_crops_have_one_size_and_hold_objects() -> None:
    truth = Instances(torch.tensor([[5.0, 5, 15, 15], [80, 60, 95, 75]]), torch.tensor([0, 0]))
    examples = InstanceSet(Kinds(("thing",)), 3, lambda index: (picture(90, 120, 2), truth))
    cut = crops(examples, 64, 4, seed=1)
    assert len(cut) == 12
    for number in range(12):
        image_HW3, seen = cut[number]
        assert image_HW3.shape == (64, 64, 3)
        assert np.array_equal(image_HW3, cut[number][0])
        if number % 4:
            assert len(seen.boxes_N4) >= 1
    assert not np.array_equal(cut[1][0], cut[2][0])
