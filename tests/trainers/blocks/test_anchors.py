"""Anchors: their shapes, what they are judged to be, and which are learnt from."""

from __future__ import annotations

import pytest
import torch

from trainers.blocks.anchors import (
    LEFT_OUT,
    NOTHING,
    OBJECT,
    Anchors,
    Overlap,
    choose,
    judge,
    within,
)
from trainers.blocks.boxes import pair_iou
from trainers.data.instances import Instances

HERE = torch.zeros(())


def truth(*boxes: tuple[float, ...], ignored: list[bool] | None = None) -> Instances:
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    mark = None if ignored is None else torch.tensor(ignored)
    return Instances(torch.tensor(boxes).reshape(-1, 4), labels, ignored_N=mark)


def test_there_are_three_ratios_at_every_place() -> None:
    anchors = Anchors((16.0, 32.0), stride=8)
    boxes_A4 = anchors.boxes(2, 3, HERE)
    assert len(anchors) == 6 and boxes_A4.shape == (2 * 3 * 6, 4)
    sides_A2 = boxes_A4[:, 2:] - boxes_A4[:, :2]
    ratio_A = sides_A2[:, 1] / sides_A2[:, 0]
    assert ratio_A[:6].tolist() == pytest.approx([0.5, 1, 2, 0.5, 1, 2])
    areas = sides_A2.prod(1)[:6]
    assert areas.tolist() == pytest.approx([256.0] * 3 + [1024.0] * 3)
    middles = (boxes_A4[::6, 2:] + boxes_A4[::6, :2]) / 2
    assert middles.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]


def test_anchors_are_judged_by_their_overlap() -> None:
    boxes_A4 = torch.tensor(
        [
            [0.0, 0, 10, 10],  # the object itself
            [0, 0, 10, 5],  # half of it
            [0, 0, 10, 2],  # a fifth
            [50, 50, 60, 60],  # nothing
        ]
    )
    judged = judge(boxes_A4, truth((0, 0, 10, 10)), Overlap())
    assert judged.kind_A.tolist() == [OBJECT, LEFT_OUT, NOTHING, NOTHING]
    floor = Overlap(0.5, 0.5, floor=0.1, best=False)
    assert judge(boxes_A4, truth((0, 0, 10, 10)), floor).kind_A.tolist() == [
        *(OBJECT, OBJECT, NOTHING, LEFT_OUT),
    ]


def test_every_object_has_its_best_anchor_however_small_the_overlap() -> None:
    boxes_A4 = torch.tensor([[0.0, 0, 10, 10], [0, 0, 100, 100]])
    objects = truth((0, 0, 10, 10), (0, 0, 40, 40))
    judged = judge(boxes_A4, objects, Overlap())
    assert judged.kind_A.tolist() == [OBJECT, OBJECT]
    assert judged.object_A.tolist() == [0, 1]
    assert judge(boxes_A4, objects, Overlap(best=False)).kind_A.tolist() == [OBJECT, NOTHING]


def test_without_objects_all_is_nothing() -> None:
    judged = judge(torch.rand(5, 4), Instances.none(), Overlap())
    assert judged.kind_A.tolist() == [NOTHING] * 5 and judged.object_A.tolist() == [0] * 5


def test_nothing_is_asked_of_what_lies_in_a_crowd() -> None:
    boxes_A4 = torch.tensor([[0.0, 0, 10, 10], [40, 40, 50, 50], [80, 80, 90, 90]])
    objects = truth((35, 35, 60, 60), (0, 0, 10, 10), ignored=[True, False])
    judged = judge(boxes_A4, objects, Overlap())
    assert judged.kind_A.tolist() == [OBJECT, LEFT_OUT, NOTHING]
    assert int(judged.object_A[0]) == 1


def test_anchors_across_the_border_are_told() -> None:
    boxes_A4 = torch.tensor([[0.0, 0, 20, 10], [-1, 0, 5, 5], [10, 0, 21, 5], [0, 5, 5, 10.5]])
    assert within(boxes_A4, 10, 20).tolist() == [True, False, False, False]


def test_objects_are_at_most_their_share_and_the_rest_is_filled_up() -> None:
    torch.manual_seed(0)
    kind_A = torch.full((100,), LEFT_OUT)
    kind_A[:30], kind_A[30:80] = OBJECT, NOTHING
    picked = choose(kind_A, 32, 0.5)
    assert len(picked.unique()) == 32 and int((kind_A[picked] == OBJECT).sum()) == 16
    kind_A[4:30] = LEFT_OUT
    picked = choose(kind_A, 32, 0.5)
    assert int((kind_A[picked] == OBJECT).sum()) == 4 and len(picked) == 32
    assert not torch.equal(picked, choose(kind_A, 32, 0.5))
    assert len(choose(kind_A, 1000, 0.5)) == 54


def test_long_objects_need_more_ratios_than_one() -> None:
    middle = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)) * 64 + 32
    half = torch.tensor([11.3, 22.6])
    tall = torch.cat([middle - half, middle + half], 1)  # 2:1, of the area of a square of 32
    boxes = {
        ratios: Anchors((32.0,), ratios).boxes(16, 16, HERE) for ratios in ((1.0,), (0.5, 1.0, 2.0))
    }
    square, three = (pair_iou(tall, anchors).amax(1) for anchors in boxes.values())
    assert float(square.max()) < 0.6 < float(three.min())
