"""Scores of rankings, against values counted by hand."""

from __future__ import annotations

import pytest
import torch

from trainers.scores.retrieval import (
    agreement,
    map_at_r,
    rank_others,
    ranked,
    recall_at,
    separability,
)


def test_map_at_r_and_recall_by_hand() -> None:
    right = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
    # R is 2 and 3: (1/1 + 0) / 2 and (0 + 1/2 + 2/3) / 3; who has nobody to find does not count.
    assert map_at_r(right) == pytest.approx((0.5 + (1 / 2 + 2 / 3) / 3) / 2)
    assert recall_at(right, 1) == pytest.approx(1 / 3)
    assert recall_at(right, 2) == pytest.approx(2 / 3)
    assert map_at_r(torch.zeros(2, 3, dtype=torch.bool)) == 0


def test_equal_distances_keep_the_order_of_the_database() -> None:
    square = torch.tensor([[0.5, 0.2, 0.5 + 1e-8, 0.2 - 1e-8, 0.1]])
    assert ranked(square).tolist() == [[4, 1, 3, 0, 2]]


def test_nobody_finds_himself() -> None:
    z_ND = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    labels = torch.tensor([0, 1, 0, 1])
    assert rank_others(z_ND, labels).tolist() == [
        [False, True, False], [False, False, True], [False, True, False], [False, False, True]
    ]  # fmt: skip
    long = 7 * z_ND
    assert torch.equal(rank_others(long, labels), rank_others(z_ND, labels))


def test_separability_and_agreement() -> None:
    square = torch.tensor([[0.0, 1, 16], [1, 0, 16], [16, 16, 0]])
    assert separability(square, torch.tensor([0, 0, 1])) == pytest.approx(1 / 4)
    assert agreement(0.4, 0.5) == agreement(0.5, 0.4) == pytest.approx(0.8)
    assert agreement(0.3, 0.3) == 1
