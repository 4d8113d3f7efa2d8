"""zoo/fast_rcnn: proposals from outside, moved with their pictures, and scenes are learnt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from learning import some, trained

from dlplatform.errors import UsageError
from dlplatform.task import added
from trainers.blocks.boxes import pair_iou
from trainers.blocks.pixels import normalised, shown
from trainers.blocks.proposals import apart, joined, proposals_of
from trainers.blocks.twostage import two_stages
from trainers.nets.convnet import parameter_count
from trainers.zoo.fast_rcnn import FastRCNN

SMALL: dict[str, Any] = {"hidden": 16, "batch_size": 2}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def test_size_by_default() -> None:
    assert parameter_count(FastRCNN().models()["net"]) == FastRCNN.parameters


def test_pictures_come_back_from_what_networks_see() -> None:
    images = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8)
    assert torch.equal(shown(normalised(images)), images)


def test_proposals_move_with_the_views_of_their_pictures() -> None:
    task = FastRCNN(**SMALL)
    _, rows = task.batch("train", 3)
    for one in rows:
        truth, boxes_N4 = apart(one)
        assert len(truth.labels_N) and int(truth.labels_N.min()) >= 0
        assert len(boxes_N4) > 20
        sure = truth.boxes_N4[~truth.ignored_N] if truth.ignored_N is not None else truth.boxes_N4
        best = pair_iou(sure, boxes_N4).amax(1)
        assert float(best.min()) > 0.5


def test_proposals_are_no_objects_where_answers_are_judged() -> None:
    task = FastRCNN(**SMALL)
    models = task.models()
    models["net"].eval()
    batch = task.batch("train", 0)
    for _, truth in task.answers(models, [batch]):
        assert int(truth.labels_N.min()) >= 0
    assert all(int(truth.labels_N.min()) >= 0 for _, truth in (task.examples("test")[0],))


def test_proposals_of_a_picture_are_searched_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    image_HW3 = np.random.RandomState(5).randint(0, 256, (40, 40, 3)).astype(np.uint8)
    first = proposals_of(image_HW3, "fast", 50)
    import trainers.blocks.proposals as module

    monkeypatch.setattr(module, "selective_search", None)
    assert torch.equal(proposals_of(image_HW3.copy(), "fast", 50), first)
    truth, boxes_N4 = FastRCNN(**SMALL).examples("val")[0][1], first
    again, apart_N4 = apart(joined(truth, boxes_N4))
    assert torch.equal(again.boxes_N4, truth.boxes_N4) and torch.equal(apart_N4, first)


def test_one_net_is_learnt_in_one_stage_and_sees_each_picture_once() -> None:
    task = FastRCNN(**SMALL)
    models = task.models()
    net = two_stages(models)
    assert net.rpn is None and list(task.groups(models)) == ["main"]
    seen: list[int] = []
    net.trunk.register_forward_hook(lambda *call: seen.append(len(call[1][0])))
    terms = task.loss(models, task.batch("train", 0))
    added(terms).backward()  # type: ignore[no-untyped-call]
    assert set(terms) == {"class", "box"} and seen == [2]
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize(("name", "value"), [("search", "slow"), ("proposed", 0), ("floor", 0.5)])
def test_settings_that_cannot_work(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"task.{name}={value} cannot work - allowed: "):
        FastRCNN(**{name: value})  # type: ignore[arg-type]


@pytest.mark.slow
def test_it_finds_shapes_in_scenes() -> None:
    task = FastRCNN(minibatches=60, batch_size=3)
    scores, base = task.score(trained(task, task.minibatches), some(task)), task.baselines()
    print(scores, base)
    assert scores["recall"] >= 0.9 and scores["proposals"] <= 300
    # A tenth of a run; a whole one reaches 0.93.
    assert scores["box_AP50"] > 0.3 > max(base.values()) + 0.1
