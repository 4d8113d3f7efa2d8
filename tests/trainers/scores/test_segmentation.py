"""Scores of class maps against values by hand, and counts that may be divided at will."""

from __future__ import annotations

import pytest
import torch

from trainers.scores.segmentation import IGNORED, tally, total

TRUTH = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, IGNORED]]])
ANSWER = torch.tensor([[[0, 1, 1, 1], [0, 0, 2, 2]]])


def test_scores_by_hand() -> None:
    counted = tally(ANSWER, TRUTH, classes=4)
    assert counted.confusion_KK.tolist() == [[3, 1, 0, 0], [0, 2, 1, 0], [0] * 4, [0] * 4]
    scores = counted.scores()
    iou = (3 / 4, 2 / 4, 0 / 1)  # the fourth class never occurs and has no say
    assert scores["mIoU"] == pytest.approx(sum(iou) / 3)
    assert scores["accuracy"] == pytest.approx(5 / 7)
    assert scores["mean_accuracy"] == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert scores["fwIoU"] == pytest.approx((4 * iou[0] + 3 * iou[1]) / 7)


def test_counts_of_shards_add_up_to_those_of_the_whole() -> None:
    draw = torch.Generator().manual_seed(0)
    answer, truth = (torch.randint(5, (9, 12, 16), generator=draw) for _ in range(2))
    truth[truth == 4] = IGNORED
    whole = tally(answer, truth, 5)
    shards = total(tally(answer[part], truth[part], 5) for part in (slice(0, 2), slice(2, 9)))
    assert torch.equal(whole.confusion_KK, shards.confusion_KK)
    assert torch.equal(whole.boundary_4K, shards.boundary_4K)
    assert whole.scores() == shards.scores()
    means = [tally(answer[n : n + 1], truth[n : n + 1], 5).scores()["mIoU"] for n in range(9)]
    assert sum(means) / 9 != pytest.approx(whole.scores()["mIoU"])  # a mean of means would not do


def square(left: int) -> torch.Tensor:
    labels = torch.zeros(1, 40, 60, dtype=torch.long)
    labels[:, 10:30, left : left + 20] = 1
    return labels


def test_boundaries_may_be_off_by_the_tolerance_and_no_more() -> None:
    def f1(left: int) -> float:
        return tally(square(left), square(10), 2).scores()["boundary_F1"]

    assert f1(10) == f1(11) == 1.0  # 0.75 % of the diagonal is less than a pixel: one is allowed
    assert 0.4 < f1(14) < 0.7  # the vertical sides are lost, the horizontal ones are not
    assert tally(square(10) * 0, square(10), 2).scores()["boundary_F1"] == 0.0


def test_ignored_pixels_are_no_boundary_and_no_mistake() -> None:
    truth = square(10)
    truth[:, :, 35:] = IGNORED
    answer = square(10)
    answer[:, :, 36:] = 1
    counted = tally(answer, truth, 2)
    assert counted.scores() == tally(square(10), square(10), 2).scores()
    assert torch.equal(counted.boundary_4K[0], counted.boundary_4K[2])
