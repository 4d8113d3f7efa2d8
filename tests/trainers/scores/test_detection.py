"""Scores of detections: the same as COCO's own, and known ones of small cases."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trainers.data.instances import Found, Instances, Kinds
from trainers.data.skeletons import FACES, NECKED, PEOPLE
from trainers.scores.detection import DetectionTally, pairs, state_table
from trainers.scores.joints import auroc, nme, pck, torso

SIDE, CLASSES = 176, 3
KINDS = Kinds(("a", "b", "c"), skeleton=PEOPLE)
WHAT = ("box", "mask", "joint")


def picture(random: np.random.RandomState, objects: int, answers: int) -> tuple[Found, Instances]:
    """Objects of all sizes, crowds among them, and answers that are near some of them."""
    sizes = random.uniform(4, 150, (objects, 2))
    corners = random.uniform(0, 1, (objects, 2)) * (SIDE - sizes)
    boxes = np.concatenate([corners, corners + sizes], 1).round().astype(np.float32)
    joints = random.uniform(0, 1, (objects, 17, 3)) * [*(1, 1), 3] * np.ones(1)
    joints[..., :2] = boxes[:, None, :2] + joints[..., :2] * (boxes[:, 2:] - boxes[:, :2])[:, None]
    joints[..., 2] = np.floor(joints[..., 2]) * (random.rand(objects, 1) < 0.8)
    truth = Instances(
        torch.from_numpy(boxes),
        torch.from_numpy(random.randint(0, CLASSES, objects)),
        ellipses(boxes),
        torch.from_numpy(joints).float(),
        ignored_N=torch.from_numpy(random.rand(objects) < 0.1),
    )
    near = random.randint(0, max(objects, 1), answers)
    guess = boxes[near] + random.normal(0, 1, (answers, 4)) * random.choice(
        [1, 3, 12], (answers, 1)
    )
    guess[:, 2:] = np.maximum(guess[:, 2:], guess[:, :2] + 2)
    guess = guess.clip(-8, SIDE + 8).astype(np.float32)
    off = random.normal(0, 1, (answers, 17, 3)) * random.choice([0.5, 2, 6], (answers, 1, 1))
    labels = truth.labels_N[near].numpy().copy()
    mixed = random.rand(answers) < 0.2
    labels[mixed] = random.randint(0, CLASSES, int(mixed.sum()))
    scores = random.uniform(0, 1, answers).round(2)  # ties, too
    order = np.argsort(-scores, kind="stable")
    found = Found(
        torch.from_numpy(guess),
        torch.from_numpy(labels),
        torch.from_numpy(scores).float(),
        ellipses(guess),
        torch.from_numpy(joints[near] + off).float(),
    )
    return found.take(torch.from_numpy(order)), truth


def ellipses(boxes: Any) -> Tensor:
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    left, top, right, bottom = (boxes[:, n, None, None] for n in range(4))
    across = (2 * x - left - right) / np.maximum(right - left, 1)
    down = (2 * y - top - bottom) / np.maximum(bottom - top, 1)
    return torch.from_numpy(across**2 + down**2 <= 1)


@pytest.fixture(scope="module")
def pictures() -> list[tuple[Found, Instances]]:
    random = np.random.RandomState(0)
    counts = [(6, 14), (0, 3), (5, 0), (1, 4), *((8, 30),) * 8, (3, 130)]
    made = [picture(random, max(objects, 1), answers) for objects, answers in counts]
    nothing = Instances.none()
    return [(f, t if n else nothing) for (f, t), (n, _) in zip(made, counts, strict=True)]


def coco(pictures: list[tuple[Found, Instances]], kind: str, most: int) -> dict[str, float]:
    """Score with the evaluation everybody uses."""
    from faster_coco_eval import COCO, COCOeval_faster
    from faster_coco_eval.core import mask as coder

    def code(mask: Tensor) -> Any:
        return coder.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))

    truths, answers = [], []
    for number, (found, truth) in enumerate(pictures, 1):
        for n, (box, label) in enumerate(zip(truth.boxes_N4, truth.labels_N, strict=True)):
            assert truth.masks_NHW is not None and truth.joints_NJ3 is not None
            assert truth.ignored_N is not None
            (x0, y0, x1, y1), mask, joints = box.tolist(), truth.masks_NHW[n], truth.joints_NJ3[n]
            one = {
                **{"id": len(truths) + 1, "image_id": number, "category_id": int(label) + 1},
                **{"bbox": [x0, y0, x1 - x0, y1 - y0], "area": int(mask.sum())},
                **{"iscrowd": int(truth.ignored_N[n]), "segmentation": code(mask)},
                "keypoints": joints.double().flatten().tolist(),
                "num_keypoints": int((joints[:, 2] > 0).sum()),
            }
            truths.append(one)
        for n, (box, label) in enumerate(zip(found.boxes_N4, found.labels_N, strict=True)):
            assert found.masks_NHW is not None and found.joints_NJ3 is not None
            x0, y0, x1, y1 = box.tolist()
            same = {"image_id": number, "category_id": int(label) + 1}
            shown = {
                "bbox": {"bbox": [x0, y0, x1 - x0, y1 - y0]},
                "segm": {"segmentation": code(found.masks_NHW[n])},
                "keypoints": {"keypoints": found.joints_NJ3[n].double().flatten().tolist()},
            }
            answers.append({**same, "score": float(found.scores_N[n]), **shown[kind]})
    images = [{"id": n + 1, "height": SIDE, "width": SIDE} for n in range(len(pictures))]
    categories = [{"id": n + 1, "name": name} for n, name in enumerate(KINDS.names)]
    dataset = COCO({"images": images, "annotations": truths, "categories": categories})
    judge = COCOeval_faster(dataset, dataset.loadRes(answers), kind, print_function=str)
    judge.params.maxDets = [most] if kind == "keypoints" else [1, 10, most]
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    stats = [float(value) for value in judge.stats]
    if kind == "keypoints":
        names = ("AP", "AP50", "AP75", "AP_medium", "AP_large", "AR")
        return dict(zip(names, stats[:6], strict=True))
    names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
    return {**dict(zip(names, stats[:6], strict=True)), "AR": stats[8]}


@pytest.mark.parametrize(
    "kind, name, most", [("box", "bbox", 100), ("mask", "segm", 100), ("joint", "keypoints", 20)]
)
def test_scores_are_those_of_coco(
    pictures: list[tuple[Found, Instances]], kind: Any, name: str, most: int
) -> None:
    tally = DetectionTally(KINDS, [kind], most=most)
    for found, truth in pictures:
        tally.add(found, truth)
    ours, theirs = tally.scores(), coco(pictures, name, most)
    assert 0.05 < theirs["AP"] < 0.95
    for key, value in theirs.items():
        assert ours[f"{kind}_{key}"] == pytest.approx(value, abs=1e-9), key


def boxes(*corners: tuple[float, float, float, float]) -> Tensor:
    return torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)


def answers(boxes_N4: Tensor, *scores: float) -> Found:
    return Found(boxes_N4, torch.zeros(len(scores), dtype=torch.int64), torch.tensor(scores))


def objects(boxes_N4: Tensor) -> Instances:
    return Instances(boxes_N4, torch.zeros(len(boxes_N4), dtype=torch.int64))


A, B, C = (0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10)
NEAR_A = (1, 0, 11, 10)


def test_voc_scores_of_two_right_one_double_and_one_missed() -> None:
    tally = DetectionTally(Kinds(("it",)))
    tally.add(answers(boxes(A, NEAR_A, B), 0.9, 0.8, 0.7), objects(boxes(A, B, C)))
    assert tally.voc() == pytest.approx(1 / 3 + 2 / 9)
    assert tally.voc(eleven=True) == pytest.approx((4 + 3 * 2 / 3) / 11)
    assert tally.at(0.75) == {"precision": 0.5, "recall": 1 / 3, "false_alarms": 1.0}
    assert tally.by_class(overlap=0.5) == [pytest.approx((34 + 33 * 2 / 3) / 101)]


def test_what_is_hard_to_see_is_neither_right_nor_wrong() -> None:
    tally = DetectionTally(Kinds(("it",)))
    truth = objects(boxes(A, B))._replace(ignored_N=torch.tensor([False, True]))
    tally.add(answers(boxes(A, B, B), 0.5, 0.9, 0.8), truth)
    assert tally.voc() == tally.voc(eleven=True) == 1.0
    assert tally.scores()["box_AP"] == pytest.approx(1.0)
    assert tally.at(0.0)["false_alarms"] == 0.0


def test_nothing_found_and_nothing_there() -> None:
    tally = DetectionTally(KINDS, WHAT)
    tally.add(Found(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0)), Instances.none())
    assert tally.scores() == {} and math.isnan(tally.voc())
    tally.add(Found(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0)), objects(boxes(A)))
    assert tally.scores()["box_AP"] == 0.0 and tally.voc() == 0.0


def test_the_surest_answer_chooses_its_object_first() -> None:
    found = answers(boxes(NEAR_A, A, C), 0.3, 0.6, 0.9)
    chosen, whose, overlap = pairs(found, objects(boxes(B, A)))
    assert (chosen.tolist(), whose.tolist(), overlap.tolist()) == ([1], [1], [1.0])
    assert pairs(found, objects(boxes(A)), score=0.7)[0].tolist() == []


def test_states_of_the_missed_and_of_the_invented_count() -> None:
    states = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    found = answers(boxes(A, C, (60, 0, 70, 10)), 0.9, 0.8, 0.7)._replace(states_NS=states)
    truth = objects(boxes(A, B, C))._replace(states_N=torch.tensor([0, 1, -1]))
    # A is right, B is missed, C's state is not known, and at 60 there is nobody
    assert state_table(found, truth, 2).tolist() == [[1, 0, 0], [0, 0, 1], [1, 0, 0]]


def test_joints_are_right_within_a_fifth_of_the_torso() -> None:
    truth = torch.zeros(1, 17, 3)
    for place, at in {5: (0, 0), 6: (30, 0), 11: (0, 40), 12: (30, 40), 0: (15, -20)}.items():
        truth[0, place] = torch.tensor([*at, 2.0])
    size = torso(truth, PEOPLE)
    assert size.tolist() == [50.0]
    found = truth.clone()
    found[0, 0, 0] += 9.9
    found[0, 5, 1] += 10.1
    assert pck(found, truth, size) == pytest.approx(4 / 5)


def test_landmarks_are_measured_by_the_distance_of_the_eyes() -> None:
    truth = torch.tensor([[(10.0, 10, 2), (30, 10, 2), (20, 20, 2), (12, 30, 2), (28, 30, 0)]])
    found = truth.clone()
    found[..., 0] += 2
    assert nme(found, truth) == pytest.approx(0.1)
    assert math.isnan(nme(found, truth * torch.tensor([1.0, 1, 0])))
    assert len(FACES.names) == 5


def test_sureness_that_tells_right_from_wrong() -> None:
    sure = torch.tensor([0.9, 0.8, 0.4, 0.4, 0.1])
    right = torch.tensor([True, True, True, False, False])
    assert auroc(sure, right) == pytest.approx(5.5 / 6)
    assert auroc(-sure, right) == pytest.approx(0.5 / 6)
    assert math.isnan(auroc(sure, torch.ones(5, dtype=torch.bool)))


def test_skeletons_mirror_and_hang_together() -> None:
    for skeleton in (PEOPLE, NECKED, FACES):
        count = len(skeleton.names)
        assert len(skeleton.mirrored) == len(skeleton.sigmas) == count
        assert [skeleton.mirrored[n] for n in skeleton.mirrored] == list(range(count))
        for here, there in enumerate(skeleton.mirrored):
            name = skeleton.names[here].replace("left", "LEFT").replace("right", "left")
            assert name.replace("LEFT", "right") == skeleton.names[there]
        assert {joint for bone in skeleton.bones for joint in bone} == set(range(count))
