"""human/pose and human/state: joints, states and falls of people, scored, learnt, told of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import SMALL, begun, in_halves, scored, written

from dlplatform.errors import UsageError
from dlplatform.task import added, numbers
from trainers.blocks.centermask import measured
from trainers.data.coco_writing import write_coco
from trainers.data.instances import Found, Instances, InstanceSet
from trainers.human.people import People, joint_scores, mean_pose, placed
from trainers.human.pose import Pose
from trainers.human.state import State, state_scores
from trainers.nets.convnet import parameter_count
from trainers.synth.human_scenes import people

both = pytest.mark.parametrize("cls", [Pose, State])


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def small(cls: type[People], **more: Any) -> Any:
    return cls(**{**SMALL, **more})


@both
def test_size_by_default(cls: type[People]) -> None:
    assert parameter_count(cls().models()["net"]) == cls.parameters


@both
def test_losses_are_those_of_one_worker_on_all_pictures(cls: type[People]) -> None:
    task = small(cls, batch_size=4)
    x_BCHW, truths = task.batch("train", 0)
    # One half has neither joints nor masks nor states.
    bare = {"joints_NJ3": None, "masks_NHW": None, "states_N": None}
    batch = x_BCHW, [*truths[:2], *(one._replace(**bare) for one in truths[2:])]
    _, parts = in_halves(task, begun(task), batch)
    assert numbers(parts[1])["joints"] == 0 < numbers(parts[0])["joints"]


def test_joints_that_are_found_are_right_and_others_are_not() -> None:
    task = small(Pose)
    truths = [task.examples("test")[index][1] for index in range(8)]
    right = joint_scores(((one.joints_NJ3, one) for one in truths), task)
    assert right["pck"] == right["pck_upright"] == 1
    mean_J2 = mean_pose(truths)
    assert mean_J2.shape == (17, 2) and 0 < float(mean_J2.min()) < float(mean_J2.max()) < 1.3
    nose, ankle = 0, 15
    assert float(mean_J2[nose, 1]) < float(mean_J2[ankle, 1])
    mean = joint_scores(((placed(mean_J2, one).joints_NJ3, one) for one in truths), task)
    assert 0.1 < mean["pck"] < 0.7


def test_joints_of_true_boxes_are_in_the_picture_and_sure() -> None:
    task = small(Pose, joints=18)
    models = begun(task)
    with torch.no_grad():
        pairs = list(task.at_truth(models, [task.batch("train", 0)]))
    for joints_NJ3, truth in pairs:
        assert joints_NJ3.shape == (len(truth.labels_N), 18, 3)
        assert ((joints_NJ3[..., 2] >= 0) & (joints_NJ3[..., 2] <= 1)).all()
        low_N12, high_N12 = truth.boxes_N4[:, None, :2], truth.boxes_N4[:, None, 2:]
        assert ((joints_NJ3[..., :2] >= low_N12) & (joints_NJ3[..., :2] <= high_N12)).all()


def test_measures_of_a_region_by_hand() -> None:
    logits_1JHW = torch.full((1, 1, 56, 56), -30.0)
    logits_1JHW[0, 0, 0, 0] = 30.0
    numbers = measured(torch.tensor([[10.0, 20, 30, 60]]), logits_1JHW, (100.0, 80.0))[0].tolist()
    area = torch.tensor(800 / 8000).log().item() / 4
    # The joint is half a 56th of the box from its corner, which is at -1.
    corner = -1 + 1 / 56
    expected = [torch.tensor(0.5).log().item(), area, 0.4, corner, corner, 1]
    assert numbers == pytest.approx(expected, rel=1e-4)


def test_scores_of_states_by_hand() -> None:
    states = ("Lying", "Sitting")
    # Two lie, one of them is not found; one sits; somebody is found where nobody is.
    table_SS = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 0]])
    scores = state_scores(table_SS, states)
    assert scores == pytest.approx(
        {"macro_f1": (0.5 + 1) / 2, "lying_recall": 0.5, "lying_precision": 0.5}
    )


def test_states_are_told_from_what_is_asked_for() -> None:
    counts = []
    for use in ({"use_mask": False}, {"use_joints": False}, {"use_box": False}, {}):
        net = small(State, **use).models()["net"]
        counts.append(parameter_count(net.states))
    assert max(counts[:3]) < counts[3]
    rule = State(zones="0,5.5 9,0 9,9; 1,1 2,2 3,1", crouched=True, fallen=2).watching().rules[0]
    assert rule.states == ("Lying", "Crouch") and rule.lasts == 2
    assert rule.zones == {"1": ((0, 5.5), (9, 0), (9, 9)), "2": ((1, 1), (2, 2), (3, 1))}
    with pytest.raises(UsageError, match=r"task\.zones=0,5 9,0 cannot"):
        State(zones="0,5 9,0")
    with pytest.raises(UsageError, match=r"task\.use_box=False cannot"):
        State(use_box=False, use_mask=False, use_joints=False)


def test_one_record_has_state_joints_and_mask(tmp_path: Path) -> None:
    task = small(State, shown=0.0, most=2)
    with torch.no_grad():
        answer = task.predict(begun(task), written(task, tmp_path))
    json.dumps(answer)
    kinds = task.examples("test").kinds
    for record in answer["objects"]:
        assert record["state"] in kinds.states and 1 / 6 <= record["sure"] <= 1
        assert set(record["joints"]) == set(kinds.skeleton.names)
        assert record["mask"]["size"] == [100, 160]
    assert set(kinds.states) == {"Lying", "Crouch", "Sitting", "Walking", "Standing", "Running"}


class _Fixed(State):
    """Answers everybody lies, at one place."""

    def look(self, models: Any, image_HW3: Any) -> Found:
        states_NS = torch.eye(6)[:1]
        return Found(torch.tensor([[9.0, 9, 60, 40]]), torch.zeros(1).long(), torch.ones(1), None,
                     torch.ones(1, 17, 3), states_NS)  # fmt: skip


@pytest.mark.parametrize(("seconds", "falls"), [(1.0, 1), (5.0, 0)])
def test_a_moving_picture_tells_of_falls_and_of_states_over_time(
    tmp_path: Path, seconds: float, falls: int
) -> None:
    task = _Fixed(**SMALL, fallen=seconds)
    answer = task.predict({}, written(task, tmp_path, frames=4))
    json.dumps(answer)
    assert answer["states"] == {"1": [{"state": "Lying", "begin": 0, "end": 1.5}]}
    assert [alert["time"] for alert in answer["alerts"]] == [1.0] * falls


@both
def test_folders_of_coco_may_lack_labels(cls: type[People], tmp_path: Path) -> None:
    whole = people(3, 4, 64)

    def bare(index: int) -> tuple[Any, Instances]:
        image_HW3, truth = whole[index]
        if index % 2:
            truth = truth._replace(joints_NJ3=None, states_N=None)
        return image_HW3, truth

    sets = {name: InstanceSet(whole.kinds, 4, bare) for name in ("train", "val")}
    write_coco(sets, tmp_path, "person_keypoints")
    task = small(cls, data=str(tmp_path), batch_size=4)
    models = begun(task)
    terms = task.loss(models, task.batch("train", 0))
    added(terms).backward()
    assert float(terms["joints"].number) > 0
    weight_S = task.state_weights()
    if cls is State:
        assert weight_S is not None and weight_S.shape == (6,) and float(weight_S.min()) == 1
    with torch.no_grad():
        task.score(models, task.batches("test"))


@pytest.mark.slow
def test_joints_are_learnt() -> None:
    task = Pose(side=96, width=32, towers=1, pictures=100, batch_size=4, lr=4e-3, scale=1.0)
    after, before = scored(task, 130)
    assert after["pck"] > 0.15 > before["pck"] + 0.05
    assert after["box_AP50"] > 0.15 > before["box_AP50"] + 0.1
    assert after["loss_joints"] < before["loss_joints"] - 0.5


@pytest.mark.slow
def test_states_are_learnt_with_masks_and_joints() -> None:
    task = State(side=96, width=32, towers=1, pictures=100, batch_size=4, lr=4e-3, scale=1.0)
    after, before = scored(task, 110)
    assert after["box_AP50"] > 0.15 > before["box_AP50"] + 0.1
    assert after["mask_AP50"] > 0.08 > before["mask_AP50"] + 0.05
    for name, less in (("masks", 0.15), ("joints", 0.5), ("states", 0.0)):
        assert after[f"loss_{name}"] < before[f"loss_{name}"] - less
