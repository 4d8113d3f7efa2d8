"""People: bodies are as their states say, and boxes, masks and joints as the picture shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainers.data.instances import InstanceSet, boxes_around
from trainers.data.skeletons import NECKED, STATES
from trainers.synth.human import POSES, Body, Pose, Random, body, build, upright
from trainers.synth.human_scenes import Look, people

AT = {name: number for number, name in enumerate(NECKED.names)}


@pytest.fixture(scope="module")
def drawn() -> InstanceSet:
    return people(1, 60, side=96)


def poses(state: str, count: int = 60) -> list[tuple[Pose, Body, float]]:
    random = Random(0)
    found = []
    for _ in range(count):
        person, pose = build(random), POSES[state](random)
        found.append((pose, body(person, pose, random.uniform(0, 360)), person.height))
    return found


def angle(where: Body, ends: tuple[str, str, str]) -> float:
    one, middle, other = (where.joints_J3[AT[end]] for end in ends)
    a, b = one - middle, other - middle
    return float(np.degrees(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))))


def test_those_who_lie_have_their_torso_near_the_ground_plane_and_others_do_not() -> None:
    assert max(abs(upright(pose)) for pose, _, _ in poses("Lying")) < 25
    for state in ("Standing", "Walking", "Sitting"):
        assert min(upright(pose) for pose, _, _ in poses(state)) > 70
    assert all(65 < upright(pose) < 80 for pose, _, _ in poses("Running"))


def test_hips_and_knees_of_those_who_sit_are_about_square() -> None:
    for pose, where, _ in poses("Sitting"):
        assert 70 < angle(where, ("left_hip", "left_knee", "left_ankle")) < 110
        assert 70 < pose.hips[0] + pose.lean < 130


def test_those_who_crouch_are_low_and_their_knees_bent() -> None:
    for _, where, height in poses("Crouch"):
        assert where.joints_J3[:, 2].max() < 0.72 * height
        assert angle(where, ("left_hip", "left_knee", "left_ankle")) < 100


def test_runners_take_longer_strides_than_walkers_and_who_stands_takes_none() -> None:
    strides = {}
    for state in ("Standing", "Walking", "Running"):
        gaps = [
            np.linalg.norm(w.joints_J3[AT["left_ankle"]] - w.joints_J3[AT["right_ankle"]]) / height
            for _, w, height in poses(state)
        ]
        strides[state] = min(gaps), max(gaps)
    assert strides["Standing"][1] < 0.2 < strides["Walking"][0]
    assert strides["Walking"][1] < strides["Running"][1]
    for _, where, _ in poses("Running"):
        assert angle(where, ("left_shoulder", "left_elbow", "left_wrist")) < 105


def test_everybody_touches_the_ground_and_nobody_sinks_in() -> None:
    for state in STATES:
        for pose, where, height in poses(state):
            lowest = min(where.joints_J3[:, 2].min(), where.toes_23[:, 2].min())
            assert -0.01 < lowest - pose.floats < 0.1 * height
            assert np.allclose(
                where.joints_J3[AT["neck"]],
                (where.joints_J3[AT["left_shoulder"]] + where.joints_J3[AT["right_shoulder"]]) / 2,
            )


def test_a_picture_is_a_function_of_its_seed(drawn: InstanceSet) -> None:
    image, who = drawn[3]
    people.cache_clear()
    again, same = people(1, 60, side=96)[3]
    assert np.array_equal(image, again)
    assert all(torch.equal(a, b) for a, b in zip(who, same, strict=True))  # type: ignore[arg-type]
    assert not np.array_equal(image, people(2, 60, side=96)[3][0])


def test_all_states_occur_with_boxes_around_masks_that_do_not_overlap(drawn: InstanceSet) -> None:
    states = set()
    for image, who in map(drawn.read, range(len(drawn))):
        assert who.masks_NHW is not None and who.states_N is not None
        assert image.shape == (96, 96, 3) and image.dtype == np.uint8
        assert who.masks_NHW.sum(0).max() <= 1
        assert torch.equal(who.boxes_N4, boxes_around(who.masks_NHW.numpy()))
        states |= set(who.states_N.tolist())
    assert states == set(range(len(STATES)))


def test_joints_that_are_seen_lie_on_the_mask(drawn: InstanceSet) -> None:
    seen = hidden = 0
    for _, who in map(drawn.read, range(len(drawn))):
        assert who.joints_NJ3 is not None and who.masks_NHW is not None
        assert who.joints_NJ3.shape[1:] == (17, 3)
        for joints, mask in zip(who.joints_NJ3, who.masks_NHW, strict=True):
            for x, y, visible in joints[joints[:, 2] == 2].tolist():
                near = mask[max(0, int(y) - 1) : int(y) + 2, max(0, int(x) - 1) : int(x) + 2]
                assert visible == 2 and near.any()
            seen += int((joints[:, 2] == 2).sum())
            hidden += int((joints[:, 2] == 1).sum())
    assert 0.1 < hidden / (seen + hidden) < 0.6


def test_the_form_of_the_box_does_not_tell_who_lies() -> None:
    look = Look(most=1, things=0, hidden=0, states=("Lying",))
    set_ = people(5, 60, side=96, look=look)
    boxes = torch.cat([set_[number][1].boxes_N4 for number in range(60)])
    wide = (boxes[:, 2] - boxes[:, 0]) > (boxes[:, 3] - boxes[:, 1])
    assert 0.4 < wide.float().mean() < 0.85


def test_the_neck_is_an_option_and_nobody_may_be_there() -> None:
    with_neck, without = people(1, 4, side=96, neck=True), people(1, 4, side=96)
    joints, fewer = with_neck[0][1].joints_NJ3, without[0][1].joints_NJ3
    assert joints is not None and fewer is not None and joints.shape[1] == 18
    assert torch.equal(joints[:, :17], fewer)
    assert len(people(1, 1, side=96, look=Look(least=0, most=0))[0][1].boxes_N4) == 0
