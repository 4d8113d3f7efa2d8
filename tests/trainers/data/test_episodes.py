"""Episodes: disjoint pictures, classes apart or shared, and the criterion on labels."""

from __future__ import annotations

import pytest
import torch

from dlplatform.errors import UsageError
from trainers.data.episodes import Episodes, draw_classes, few_of_each

LABELS = torch.arange(15).repeat(12)


def test_classes_of_support_and_query_differ_unless_shared() -> None:
    for shared in (False, True):
        plan = Episodes(shared=shared)
        for seed in range(20):
            support, query = plan.draw(LABELS, seed)
            assert len(support) == 40 and len(query) == 20
            assert not set(support.tolist()) & set(query.tolist())
            known, asked = (set(LABELS[part].tolist()) for part in (support, query))
            assert len(known) == 8 and len(asked) == 4
            assert asked <= known if shared else not asked & known
            assert LABELS[support].bincount().max() == LABELS[query].bincount().max() == 5
    assert torch.equal(*(Episodes().draw(LABELS, 3)[0] for _ in range(2)))
    assert not torch.equal(*(Episodes().draw(LABELS, seed)[0] for seed in (3, 4)))


def test_support_has_more_labels_than_the_criterion_and_query_fewer() -> None:
    assert Episodes(criterion=7) and Episodes(criterion=30, label_unit="images")
    for criterion in (4, 8):
        with pytest.raises(UsageError, match=f"task.criterion={criterion} cannot work"):
            Episodes(criterion=criterion)
    with pytest.raises(UsageError, match="fewer than the 40 images of support"):
        Episodes(criterion=5, label_unit="images")
    with pytest.raises(UsageError, match=r"task\.label_unit=pounds"):
        Episodes(label_unit="pounds")
    with pytest.raises(UsageError, match=r"task\.shots=1"):
        Episodes(shots=1)


def test_too_small_a_set_is_one_line() -> None:
    with pytest.raises(UsageError, match="12 classes of 5 pictures and the set has only 11 such"):
        Episodes().draw(torch.arange(11).repeat(5), 0)
    with pytest.raises(UsageError, match="only 0 such"):
        draw_classes(torch.arange(30), 2, 2, 0)


def test_a_few_of_each_class_and_the_rest() -> None:
    few, rest = few_of_each(LABELS, 2, 1)
    assert LABELS[few].bincount().tolist() == [2] * 15
    assert sorted([*few.tolist(), *rest.tolist()]) == list(range(len(LABELS)))
    more, _ = few_of_each(LABELS, 3, 1)
    assert set(few.tolist()) <= set(more.tolist()), "more shots keep those there were"
    with pytest.raises(UsageError, match="a class of 12 pictures - allowed: 13 or more"):
        few_of_each(LABELS, 11, 1, spare=2)
