"""FCOS: places, what belongs to them, losses and answers, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dlplatform.task import added
from trainers.blocks.boxes import pair_iou, to_distances
from trainers.blocks.fcos import (
    IGNORED,
    NOTHING,
    Limits,
    Places,
    assigned,
    centreness,
    decoded,
    dense_loss,
    focal,
    places,
)
from trainers.data.instances import Instances
from trainers.nets.fcos import Dense, FCOSHead, HeadShape

SIZES, STRIDES = [(8, 8), (4, 4), (2, 2)], (8, 16, 32)
SIDE = 64


@pytest.fixture
def where() -> Places:
    return places(SIZES, STRIDES, reach=2.0)


def objects(*boxes: tuple[float, ...], labels: tuple[int, ...] = ()) -> Instances:
    return Instances(torch.tensor(boxes).float(), torch.tensor(labels or [0] * len(boxes)))


def perfect(where: Places, truth: Instances, classes: int = 2) -> Dense:
    """Return the answers that a head should give."""
    owner_N = assigned(where, truth)
    logits_1NK = torch.full((1, len(owner_N), classes), -20.0)
    distances_1N4, centre_1N = torch.ones(1, len(owner_N), 4), torch.full((1, len(owner_N)), -20.0)
    for place in (owner_N >= 0).nonzero()[:, 0].tolist():
        own, point_12 = int(owner_N[place]), where.points_N2[place : place + 1]
        logits_1NK[0, place, truth.labels_N[own]] = 20.0
        distances_1N4[0, place] = to_distances(point_12, truth.boxes_N4[own : own + 1])[0]
        share = float(centreness(distances_1N4[:, place])[0])
        centre_1N[0, place] = math.log(share / (1 - share)) if share < 1 else 20.0
    return Dense(logits_1NK, distances_1N4, centre_1N)


def test_places_are_in_the_middle_of_their_squares(where: Places) -> None:
    assert len(where.points_N2) == 64 + 16 + 4
    assert where.points_N2[:2].tolist() == [[4, 4], [12, 4]]
    assert where.points_N2[64].tolist() == [8, 8] and where.points_N2[-1].tolist() == [48, 48]
    assert where.reach_N2[[0, 64, 80]].tolist() == [[0, 16], [16, 32], [32, math.inf]]


def test_a_place_belongs_to_the_smallest_object_whose_middle_is_near(where: Places) -> None:
    # A small box inside a large one; 16 pixels are the first level's, 48 the third's.
    owner_N = assigned(where, objects((0, 0, 60, 60), (8, 8, 24, 24)))
    first_HW, third_HW = owner_N[:64].view(8, 8), owner_N[80:].view(2, 2)
    # Middle (16, 16), 1.5 strides are 12 pixels, of which the box itself leaves 8.
    assert (first_HW == 1).nonzero().tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert (first_HW == 0).sum() == 0 and (third_HW == 0).all()


def test_far_from_the_middle_nothing_belongs_to_a_box() -> None:
    # Of the seven places on its axis those within 12 pixels of the middle, 28.
    owner_N = assigned(places([(8, 8)], (8,)), objects((0, 1, 56, 7)))
    assert (owner_N >= 0).nonzero()[:, 0].tolist() == [2, 3, 4]


def test_places_in_ignored_objects_are_neither(where: Places) -> None:
    truth = objects((8, 8, 24, 24), (32, 0, 64, 32))._replace(ignored_N=torch.tensor([False, True]))
    owner_N = assigned(where, truth)
    assert (owner_N == 0).sum() == 4 and not (owner_N == 1).any()
    assert (owner_N[:64].view(8, 8)[:4, 4:] == IGNORED).all()
    dense = perfect(where, truth)
    wrong_1NK = dense.logits_BNK.clone()
    wrong_1NK[0, owner_N == IGNORED] = 9.0
    losses = dense_loss(dense._replace(logits_BNK=wrong_1NK), where, [truth])
    assert float(losses["classes"].total) < 1e-3 and losses["classes"].number == 4


def test_an_empty_picture_has_no_places(where: Places) -> None:
    assert (assigned(where, Instances.none()) == NOTHING).all()
    losses = dense_loss(perfect(where, Instances.none()), where, [Instances.none()])
    assert [losses[name].number for name in ("classes", "boxes", "centre")] == [0, 0, 0]
    assert 0 <= float(added(losses)) < 1e-3


def test_centreness_by_hand() -> None:
    found_N = centreness(torch.tensor([[2.0, 2, 2, 2], [1, 2, 4, 2], [1, 1, 4, 4]]))
    assert found_N.tolist() == pytest.approx([1, 0.5, 0.25])


def test_focal_loss_by_hand() -> None:
    # p = 0.5 for both classes: one is right, one is not.
    total = focal(torch.zeros(1, 2), torch.tensor([1]))
    assert float(total) == pytest.approx((0.25 + 0.75) * 0.25 * math.log(2))
    sure = focal(torch.full((1, 1), math.log(9.0)), torch.tensor([NOTHING]))  # p = 0.9
    assert float(sure) == pytest.approx(0.75 * 0.81 * -math.log(0.1), rel=1e-4)


def test_the_right_answers_cost_nothing_and_wrong_ones_something(where: Places) -> None:
    truth = objects((8, 8, 24, 24))
    dense = perfect(where, truth)
    losses = dense_loss(dense, where, [truth])
    assert {name: term.number for name, term in losses.items()} == pytest.approx(
        {"classes": 4, "boxes": 4 / 3, "centre": 4}
    )
    # What is left of the centre's is the entropy of a centreness of a third.
    entropy = -(math.log(1 / 3) / 3 + math.log(2 / 3) * 2 / 3)
    assert float(losses["centre"].total) == pytest.approx(4 * entropy, rel=1e-4)
    assert float(losses["boxes"].total) == pytest.approx(0, abs=1e-4)
    larger = dense._replace(distances_BN4=dense.distances_BN4 * 2)
    assert float(dense_loss(larger, where, [truth])["boxes"].total) > 0.5


def test_losses_of_two_halves_are_those_of_the_whole(where: Places) -> None:
    truths = [objects((8, 8, 24, 24)), objects((0, 0, 60, 60), (30, 30, 44, 46), labels=(1, 0))]
    torch.manual_seed(0)
    head = FCOSHead(HeadShape(2, 16, 3, 1), STRIDES)
    maps = [torch.randn(2, 16, *size) for size in SIZES]
    both = dense_loss(head(maps), where, truths)
    parts = [
        dense_loss(head([one[n : n + 1] for one in maps]), where, truths[n : n + 1])
        for n in range(2)
    ]
    for name, term in both.items():
        assert float(term.total.detach()) == pytest.approx(
            sum(float(part[name].total.detach()) for part in parts), rel=1e-4
        )
        assert float(term.number) == pytest.approx(sum(float(p[name].number) for p in parts))


def test_answers_are_found_once_best_first_and_within_limits(where: Places) -> None:
    truth = objects((8, 8, 24, 24), (0, 4, 60, 64), labels=(1, 0))
    dense = perfect(where, truth)
    (found,) = decoded(dense, where, (SIDE, SIDE))
    assert len(found.labels_N) == 2 and set(found.labels_N.tolist()) == {0, 1}
    order = [0 if label == 1 else 1 for label in found.labels_N.tolist()]
    assert torch.allclose(found.boxes_N4, truth.boxes_N4[order], atol=1e-3)
    assert found.scores_N.tolist() == sorted(found.scores_N.tolist(), reverse=True)
    assert len(decoded(dense, where, (SIDE, SIDE), Limits(most=1))[0].labels_N) == 1
    assert not len(decoded(dense, where, (SIDE, SIDE), Limits(least=1.0))[0].labels_N)
    every = decoded(dense, where, (SIDE, SIDE), Limits(iou=1.0))[0]
    assert len(every.labels_N) > 2 and float(pair_iou(every.boxes_N4, every.boxes_N4).max()) > 0.99


@torch.no_grad()
def test_nothing_is_found_before_training() -> None:
    torch.manual_seed(0)
    head = FCOSHead(HeadShape(80, 16, 3, 2, attention=True), STRIDES)
    dense = head([torch.randn(1, 16, *size) for size in SIZES])
    assert float(dense.logits_BNK.sigmoid().mean()) == pytest.approx(0.01, rel=0.3)
    assert bool((dense.distances_BN4 > 0).all())
    assert not len(decoded(dense, places(SIZES, STRIDES), (SIDE, SIDE), Limits(least=0.2))[0][2])


def test_a_head_is_shared_by_all_levels_but_for_a_scale() -> None:
    head = FCOSHead(HeadShape(3, 16, 3, 2), STRIDES)
    x_BCHW: Tensor = torch.randn(1, 16, 4, 4)
    with torch.no_grad():
        head.scales.copy_(torch.tensor([1.0, 2.0, 0.0]))
        dense = head([x_BCHW, x_BCHW, x_BCHW])
    logits_3NK = dense.logits_BNK.view(3, 16, 3)
    assert torch.allclose(logits_3NK[0], logits_3NK[2])
    logs_3N4 = (dense.distances_BN4.view(3, 16, 4) / torch.tensor(STRIDES).view(3, 1, 1)).log()
    assert torch.allclose(logs_3N4[1], 2 * logs_3N4[0], atol=1e-5)
    assert torch.allclose(logs_3N4[2], torch.zeros(16, 4), atol=1e-6)
