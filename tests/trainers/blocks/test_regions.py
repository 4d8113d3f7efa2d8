"""Regions: levels, reading, what is learnt from them and what is pasted, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dlplatform.task import added
from trainers.blocks.levels import level_of, pooled
from trainers.blocks.regions import (
    Regions,
    joint_loss,
    located,
    mask_loss,
    pasted,
    regions_of,
    state_loss,
)
from trainers.data.instances import Found, Instances

BOX = torch.tensor([[8.0, 4, 24, 20]])


def truth(**more: Tensor | None) -> Instances:
    mask_1HW = torch.zeros(1, 32, 32, dtype=torch.bool)
    mask_1HW[0, 4:20, 8:16] = True  # the left half of the box
    joints_1J3 = torch.tensor([[[8.5, 4.5, 2.0], [23.9, 19.9, 1], [0, 0, 0]]])
    full = Instances(BOX, torch.tensor([1]), mask_1HW, joints_1J3, torch.tensor([2]))
    return full._replace(**more)


def alone() -> Regions:
    return Regions([BOX], [torch.tensor([0])])


def test_levels_by_the_share_of_the_picture() -> None:
    def box(side: float) -> tuple[float, ...]:
        return (0, 0, side, side)

    # The whole picture, half, a quarter and a sixteenth of it, and next to nothing.
    boxes_R4 = torch.tensor([box(100), box(70.8), box(50.1), box(25.1), box(1)])
    assert level_of(boxes_R4, 1e4, 3).tolist() == [2, 2, 1, 0, 0]
    assert level_of(boxes_R4, 1e4, 5).tolist() == [4, 4, 3, 1, 0]
    assert level_of(boxes_R4, 1e4, 3, largest=4).tolist() == [2, 2, 2, 1, 0]


def test_each_region_is_read_from_its_map() -> None:
    maps = [torch.full((2, 1, 16 // s, 16 // s), float(s)) for s in (1, 2, 4)]
    maps[0][1] += 100
    rois = [torch.tensor([[0.0, 0, 16, 16], [0, 0, 2, 2]]), torch.tensor([[4.0, 4, 6, 6]])]
    read_RCHW = pooled(maps, (8, 16, 32), [8 * one for one in rois], 2)
    assert read_RCHW.shape == (3, 1, 2, 2)
    assert read_RCHW.flatten(1).mean(1).tolist() == [4, 1, 101]
    assert pooled(maps, (8, 16, 32), [rois[0][:0], rois[1][:0]], 2).shape == (0, 1, 2, 2)


def test_learnt_are_objects_and_what_is_found_of_them() -> None:
    true = Instances(
        torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]]),
        torch.tensor([0, 0]),
        ignored_N=torch.tensor([False, True]),
    )
    found = Found(
        torch.tensor([[0.0, 0, 10, 8], [20, 20, 30, 30], [0, 0, 10, 4]]),
        torch.zeros(3).long(),
        torch.tensor([0.9, 0.8, 0.7]),
    )
    regions = regions_of([found], [true], 10)
    assert regions.boxes[0].tolist() == [[0, 0, 10, 10], [0, 0, 10, 8]]
    assert regions.owners[0].tolist() == [0, 0]
    assert len(regions_of([found], [true], 1).boxes[0]) == 1
    assert not len(regions_of([found], [Instances.none()], 10).boxes[0])


def test_masks_are_learnt_of_the_class_alone() -> None:
    logits_1KHW = torch.zeros(1, 3, 28, 28)
    logits_1KHW[0, 0] = 50.0  # another class
    flat = mask_loss(logits_1KHW, alone(), [truth()])
    assert float(flat.total) == pytest.approx(math.log(2)) and flat.number == 1
    logits_1KHW[0, 1, :, :14], logits_1KHW[0, 1, :, 14:] = 20.0, -20.0
    assert float(mask_loss(logits_1KHW, alone(), [truth()]).total) < 1e-4


def test_joints_are_learnt_where_they_are_labelled() -> None:
    logits_1JHW = torch.zeros(1, 3, 56, 56)
    flat = joint_loss(logits_1JHW, alone(), [truth()])
    assert float(flat.total) == pytest.approx(2 * math.log(56 * 56)) and flat.number == 2
    # 0.5 of 16 pixels is place 1 of 56; 15.9 place 55.
    logits_1JHW[0, 0, 1, 1] = logits_1JHW[0, 1, 55, 55] = 50.0
    assert float(joint_loss(logits_1JHW, alone(), [truth()]).total) < 1e-4


def test_states_by_hand_and_by_weight() -> None:
    logits_1S = torch.zeros(1, 6)
    assert float(added({"states": state_loss(logits_1S, alone(), [truth()])})) == pytest.approx(
        math.log(6), rel=1e-4
    )
    logits_1S[0, 2] = 30.0
    sure = state_loss(logits_1S, alone(), [truth()], smoothing=0.0)
    assert float(sure.total) < 1e-4 and sure.number == 1
    weight_S = torch.tensor([1.0, 1, 3, 1, 1, 1])
    assert state_loss(logits_1S, alone(), [truth()], weight_S).number == 3


def test_missing_labels_neither_cost_nor_dilute() -> None:
    regions = Regions([BOX, BOX], [torch.tensor([0]), torch.tensor([0])])
    missing = truth(masks_NHW=None, joints_NJ3=None, states_N=None)
    empty = truth(
        masks_NHW=torch.zeros(1, 32, 32, dtype=torch.bool),
        joints_NJ3=torch.zeros(1, 3, 3),
        states_N=torch.tensor([-1]),
    )
    torch.manual_seed(0)
    masks, joints, states = torch.randn(2, 2, 28, 28), torch.randn(2, 3, 56, 56), torch.randn(2, 6)
    for without in (missing, empty):
        for loss, said in ((mask_loss, masks), (joint_loss, joints), (state_loss, states)):
            both = loss(said, regions, [without, truth()])  # type: ignore[operator]
            own = loss(said[1:], alone(), [truth()])  # type: ignore[operator]
            assert float(both.total) == pytest.approx(float(own.total), rel=1e-5)
            assert float(both.number) == float(own.number) > 0
            none = loss(said[:1], alone(), [without])  # type: ignore[operator]
            assert float(none.total) == 0 == float(none.number)


def test_masks_are_pasted_where_their_box_is() -> None:
    chances_DHW = torch.zeros(2, 28, 28)
    chances_DHW[0, :, :14] = 1.0
    chances_DHW[1] = 1.0
    boxes_D4 = torch.cat([BOX, torch.tensor([[30.0, 30, 40, 34]])])
    masks_DHW = pasted(chances_DHW, boxes_D4, (32, 36))
    assert masks_DHW.shape == (2, 32, 36) and masks_DHW.dtype == torch.bool
    assert masks_DHW[0].nonzero().amin(0).tolist() == [4, 8]
    assert masks_DHW[0].nonzero().amax(0).tolist() == [19, 15]
    assert int(masks_DHW[0].sum()) == 16 * 8
    assert masks_DHW[1, 30:, 30:].all() and int(masks_DHW[1].sum()) == 2 * 6
    assert pasted(chances_DHW[:0], boxes_D4[:0], (8, 8)).shape == (0, 8, 8)


def test_joints_are_at_the_peak_and_a_quarter_towards_the_neighbour() -> None:
    logits_DJHW = torch.full((1, 2, 56, 56), -30.0)
    logits_DJHW[0, 0, 10, 20] = 30.0
    logits_DJHW[0, 1, 54, 0], logits_DJHW[0, 1, 53, 0] = 2.0, 1.0
    joints_DJ3 = located(logits_DJHW, torch.tensor([[100.0, 50, 156, 162]]))
    x, y, sure = joints_DJ3[0, 0].tolist()
    assert (x, y) == pytest.approx((120.5, 50 + 2 * 10.5)) and sure == pytest.approx(1)
    x, y, sure = joints_DJ3[0, 1].tolist()
    assert (x, y) == pytest.approx((100.5, 50 + 2 * 54.25)) and sure == pytest.approx(1, abs=1e-4)
    flat_DJHW = torch.zeros(1, 1, 56, 56)
    assert float(located(flat_DJHW, BOX)[..., 2]) < 26 / 56**2
    assert located(flat_DJHW[:0], BOX[:0]).shape == (0, 1, 3)
