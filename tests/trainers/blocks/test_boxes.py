"""Boxes: areas, overlaps and their spellings, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trainers.blocks.boxes import (
    areas,
    centres,
    clip,
    covered,
    from_deltas,
    from_distances,
    giou,
    grown,
    iou,
    large_enough,
    mirrored,
    pair_iou,
    to_deltas,
    to_distances,
)


def _boxes(*boxes: tuple[float, ...]) -> Tensor:
    return torch.tensor(boxes, dtype=torch.float64)


def test_areas_and_overlaps_by_hand() -> None:
    one = _boxes((0, 0, 4, 2), (1, 1, 1, 5), (3, 3, 2, 2))
    assert areas(one).tolist() == [8, 0, 0]
    assert centres(one[:1]).tolist() == [[2, 1]]
    other = _boxes((2, 0, 6, 2), (0, 0, 4, 2), (4, 0, 5, 1))
    # Half of each is shared: 4 of 12; touching sides share nothing.
    assert pair_iou(one[:1], other)[0].tolist() == pytest.approx([1 / 3, 1, 0])
    assert pair_iou(one, other).shape == (3, 3) and not pair_iou(one, other).isnan().any()
    assert covered(_boxes((0, 0, 2, 2)), _boxes((1, 0, 9, 9), (0, 0, 9, 9))).tolist() == [[0.5, 1]]
    assert iou(other, other).tolist() == pytest.approx([1, 1, 1])
    assert pair_iou(one[:0], other).shape == (0, 3)


def test_generalised_overlap_by_hand() -> None:
    one = _boxes((0, 0, 2, 2), (0, 0, 2, 2), (0, 0, 1, 1))
    other = _boxes((0, 0, 2, 2), (1, 1, 3, 3), (3, 0, 4, 1))
    # Second: 1 of 7 shared, 2 of the 9 around both are empty. Third: apart, 2 of 4 are empty.
    assert giou(one, other).tolist() == pytest.approx([1, 1 / 7 - 2 / 9, -0.5])


def test_boxes_apart_are_drawn_together() -> None:
    box = _boxes((3, 0, 4, 1)).requires_grad_()
    giou(box, _boxes((0, 0, 1, 1))).sum().backward()
    assert box.grad is not None and float(box.grad[0, 0]) < 0


def test_cut_grown_and_mirrored() -> None:
    box = _boxes((-3, 2, 12, 30))
    assert clip(box, 20, 10).tolist() == [[0, 2, 10, 20]]
    assert grown(_boxes((2, 2, 4, 6)), 2).tolist() == [[1, 0, 5, 8]]
    assert mirrored(_boxes((1, 2, 3, 4)), 10).tolist() == [[7, 2, 9, 4]]
    assert large_enough(_boxes((0, 0, 8, 7.9), (0, 0, 8, 8)), 8).tolist() == [False, True]


def test_distances_of_a_point_and_back() -> None:
    point, box = torch.tensor([[3.0, 4.0]]).double(), _boxes((1, 1, 8, 6))
    assert to_distances(point, box).tolist() == [[2, 3, 5, 2]]
    assert from_distances(point, to_distances(point, box)).tolist() == box.tolist()


def test_deltas_by_hand_and_back() -> None:
    one, other = _boxes((0, 0, 4, 2)), _boxes((2, 1, 4, 5))
    expected = [0.25, 1.0, math.log(0.5), math.log(2)]
    assert to_deltas(one, other)[0].tolist() == pytest.approx(expected)
    weights = (10.0, 10.0, 5.0, 5.0)
    weighed = [value * weight for value, weight in zip(expected, weights, strict=True)]
    assert to_deltas(one, other, weights)[0].tolist() == pytest.approx(weighed)
    back = from_deltas(one, to_deltas(one, other, weights), weights)
    assert back[0].tolist() == pytest.approx(other[0].tolist())


def test_wild_answers_make_no_endless_boxes() -> None:
    wild = from_deltas(_boxes((0, 0, 4, 2)), _boxes((0, 0, 1e4, 1e4)))
    assert wild.isfinite().all() and float(wild[0, 2] - wild[0, 0]) == pytest.approx(4 * 62.5)
