"""face/detection: faces and landmarks are found, none where there is none, and it is learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectors import SMALL, begun, certain, in_halves, scored, written
from PIL import Image

from dlplatform.errors import UsageError
from dlplatform.task import added
from trainers.data.instances import Found, Instances
from trainers.face.align import aligned
from trainers.face.detection import Faces
from trainers.nets.convnet import parameter_count


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def small(**more: Any) -> Faces:
    return Faces(**{**SMALL, **more})


def test_size_by_default_and_smaller_than_another() -> None:
    assert parameter_count(Faces().models()["net"]) == Faces.parameters
    sizes = [
        parameter_count(Faces(backbone=size).models()["net"])
        for size in ("tiny", "19-slim-dw", "19-slim")
    ]
    assert sizes == sorted(sizes)


def test_attention_is_before_the_towers_and_can_be_left_out() -> None:
    on, off = (small(attention=on).models()["net"].state_dict() for on in (True, False))
    assert set(on) - set(off) == {"head.attention.conv.weight"}


def test_losses_are_those_of_one_worker_on_all_pictures() -> None:
    task = small(batch_size=4)
    whole, _ = in_halves(task, begun(task), task.batch("train", 0))
    assert set(whole) == {"classes", "boxes", "centre", "joints"}


class _Told(Faces):
    """Answers the truth, its landmarks a little off."""

    off: float = 0.0
    alarm: bool = False

    def answers(self, models: Any, batches: Any) -> Any:
        for _, truths in batches:
            for truth in truths:
                count = len(truth.labels_N)
                joints_NJ3 = torch.zeros(count, 5, 3)
                if truth.joints_NJ3 is not None:
                    joints_NJ3 = truth.joints_NJ3 + torch.tensor([self.off, 0, 0])
                scores_N = torch.ones(count)
                found = Found(truth.boxes_N4, truth.labels_N, scores_N, joints_NJ3=joints_NJ3)
                yield self._more(found), truth

    def _more(self, found: Found) -> Found:
        if not self.alarm:
            return found
        more = Found(torch.tensor([[0.0, 0, 4, 4]]), torch.zeros(1).long(), torch.ones(1))
        more = more._replace(joints_NJ3=torch.zeros(1, 5, 3))
        parts = zip(found, more, strict=True)
        return Found(*(None if a is None else torch.cat([a, b]) for a, b in parts))


def test_scores_are_of_boxes_landmarks_and_false_alarms() -> None:
    task = _Told(**SMALL)
    right = task.score({}, task.batches("test"))
    assert right["box_AP50"] == right["recall_at_0.5"] == 1
    assert right["nme"] == right["false_alarms"] == 0
    task.off, task.alarm = 1.0, True
    wrong = task.score({}, task.batches("test"))
    assert wrong["nme"] > 0 and wrong["false_alarms"] == 1 and wrong["precision_at_0.5"] < 1


def test_landmarks_of_an_answer_align_a_face(tmp_path: Path) -> None:
    task = small(shown=0.0, most=2)
    path = written(task, tmp_path)
    with torch.no_grad():
        answer = task.predict(certain(begun(task)), path)
    (record, *_) = answer["objects"]
    names = task.examples("test").kinds.skeleton
    assert names is not None and tuple(record["joints"]) == names.names
    landmarks_J2 = np.array(list(record["joints"].values()))[:, :2]
    assert aligned(np.array(Image.open(path)), landmarks_J2).shape == (112, 112, 3)


def test_no_face_is_an_empty_answer(tmp_path: Path) -> None:
    task = small(shown=1.0)
    Image.new("RGB", (50, 70)).save(tmp_path / "empty.png")
    models = begun(task)
    with torch.no_grad():
        assert task.predict(models, tmp_path / "empty.png")["objects"] == []
    x_BCHW, _ = task.batch("train", 0)
    terms = task.loss(models, (x_BCHW, [Instances.none()] * len(x_BCHW)))
    added(terms).backward()
    assert float(terms["boxes"].number) == 0


def test_wider_face_is_learnt_from(tmp_path: Path) -> None:
    image_HW3 = np.full((80, 100, 3), 90, np.uint8)
    image_HW3[20:60, 30:60] = 200
    marks = "40 30 0.0 50 30 0.0 45 40 0.0 40 50 0.0 50 50 0.0"
    for part in ("train", "val"):
        (tmp_path / part / "images").mkdir(parents=True)
        names = [f"{number}.png" for number in range(4)]
        for name in names:
            Image.fromarray(image_HW3).save(tmp_path / part / "images" / name)
        lines = [f"# {name}\n30 20 30 40 {marks} 0.9\n" for name in names]
        (tmp_path / part / "label.txt").write_text("".join(lines))
    task = small(data=str(tmp_path))
    models = begun(task)
    terms = task.loss(models, task.batch("train", 0))
    added(terms).backward()
    assert float(terms["joints"].number) > 0
    with torch.no_grad():
        assert "box_AP50" in task.score(models, task.batches("test"))


@pytest.mark.parametrize(("name", "value"), [("learnt", 0), ("pictures", 0)])
def test_settings_that_cannot_work(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"task.{name}={value} cannot work - allowed: "):
        Faces(**{name: value})  # type: ignore[arg-type]


@pytest.mark.slow
def test_it_learns() -> None:
    task = Faces(side=96, width=32, towers=1, pictures=100, batch_size=4, lr=3e-3, scale=1.0)
    after, before = scored(task, 200)
    assert after["box_AP50"] > 0.15 > before["box_AP50"] + 0.1
    assert after["nme"] < 0.6 < before.get("nme", 1.0), "who knows nothing finds no face"
