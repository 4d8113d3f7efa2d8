"""COCO's layout: what is written is read again, COCO's own forms, and every broken file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dlplatform.errors import UsageError
from trainers.data.coco import load_coco
from trainers.data.coco_writing import write_coco
from trainers.data.instances import Instances, InstanceSet, Kinds, Skeleton
from trainers.synth.objects import objects

SKELETON = Skeleton(("nose", "left_eye", "right_eye"), ((0, 1), (0, 2)), (0, 2, 1), (0.026, 0.1, 1))
PEOPLE = Kinds(("person", "dog"), skeleton=SKELETON, states=("Walking", "Lying"))
RING = torch.nn.functional.pad(torch.zeros(3, 3), (2, 2, 2, 2), value=1).bool()


@pytest.fixture(autouse=True)
def _afresh() -> None:
    load_coco.cache_clear()


def person(number: int) -> tuple[np.ndarray, Instances]:
    """Two people and a crowd on the first picture, nobody on the second."""
    image_HW3 = np.full((7, 7, 3), 40 * number, np.uint8)
    if number == 1:
        return image_HW3, Instances.none()
    corner = torch.zeros(7, 7, dtype=torch.bool)
    corner[4:, 5:] = True
    joints = [[[1.5, 2.25, 2], [0, 0, 0], [3, 4, 1]], [[0, 0, 0]] * 3, [[0, 0, 0]] * 3]
    return image_HW3, Instances(
        torch.tensor([[0.0, 0, 7, 7], [1, 1.5, 3, 6], [5, 4, 7, 7]]),
        torch.tensor([0, 1, 0]),
        torch.stack([RING, torch.zeros(7, 7, dtype=torch.bool), corner]),
        torch.tensor(joints, dtype=torch.float32),
        torch.tensor([1, -1, 0]),
        torch.tensor([False, False, True]),
    )


def write(root: Path) -> None:
    few = InstanceSet(PEOPLE, 2, person)
    write_coco({name: few for name in ("train", "val", "test")}, root)


def change(root: Path, how: Callable[[dict[str, Any]], Any], name: str = "train") -> None:
    file = root / f"annotations/instances_{name}.json"
    told = json.loads(file.read_text())
    how(told)
    file.write_text(json.dumps(told))


def test_drawn_objects_come_back_from_their_files(tmp_path: Path) -> None:
    drawn = objects(4, 6, 8, side=64)
    write_coco({"train": drawn, "val2017": drawn}, tmp_path)
    read = load_coco(str(tmp_path))
    assert {name: len(part) for name, part in read.items()} == {"train": 6, "val": 3, "test": 3}
    assert read["test"].kinds == drawn.kinds
    for number in range(3, 6):
        for part, place in (("train", number), ("test", number - 3)):
            image_HW3, true = read[part][place]
            assert np.array_equal(image_HW3, drawn[number][0])
            for mine, theirs in zip(true, drawn[number][1], strict=True):
                assert (mine is None) == (theirs is None)
                assert mine is None or (mine.dtype == theirs.dtype and torch.equal(mine, theirs))


def test_the_coco_tools_read_the_same_masks(tmp_path: Path) -> None:
    tools = pytest.importorskip("faster_coco_eval")
    drawn = objects(9, 8, side=96)
    write_coco({"train": drawn}, tmp_path)
    theirs = tools.COCO(str(tmp_path / "annotations/instances_train.json"))
    forms = set()
    for number in range(8):
        told = theirs.loadAnns(theirs.getAnnIds(imgIds=[number + 1]))
        masks_NHW = drawn[number][1].masks_NHW
        assert masks_NHW is not None and len(told) == len(masks_NHW)
        for entry, mask_HW in zip(told, masks_NHW.numpy(), strict=True):
            assert np.array_equal(theirs.annToMask(entry).astype(bool), mask_HW)
            forms.add(type(entry["segmentation"]))
    assert forms == {list, dict}


def test_joints_states_crowds_and_missing_masks_come_back(tmp_path: Path) -> None:
    write(tmp_path)
    read = load_coco(str(tmp_path))
    assert read["train"].kinds.skeleton == SKELETON
    assert read["train"].kinds.states == ("Walking", "Lying")
    true, again = person(0)[1], read["test"][0][1]
    for name, mine in again._asdict().items():
        assert torch.equal(mine, getattr(true, name)), name
    assert read["test"][1][1].boxes_N4.shape == (0, 4)
    told = json.loads((tmp_path / "annotations/instances_train.json").read_text())["annotations"]
    assert [type(entry.get("segmentation")) for entry in told] == [dict, type(None), dict]
    assert told[0]["area"] == int(RING.sum()) and told[0]["num_keypoints"] == 2
    assert load_coco(str(tmp_path), masks=False)["val"][0][1].masks_NHW is None


def test_the_forms_of_coco_itself(tmp_path: Path) -> None:
    for name in ("train2017", "val2017"):
        (tmp_path / name).mkdir()
        images = []
        for number in (7, 3):
            Image.new("L", (6, 5), number).save(tmp_path / name / f"{number:012d}.jpg")
            images.append({"id": number, "file_name": f"{number:012d}.jpg"})
        crowd = {"size": [5, 6], "counts": [10, 5, 15]}
        told = [
            {"image_id": 3, "category_id": 18, "bbox": [1, 1, 2.5, 9], "iscrowd": 0},
            {"image_id": 3, "category_id": 1, "bbox": [2, 0, 1, 5], "iscrowd": 1},
            {"image_id": 3, "category_id": 1, "bbox": [2, 1, 0, 3], "iscrowd": 0},
        ]
        told[0]["segmentation"] = [[0.4, 0, 2, 0, 2, 2, 0.4, 2], [3, 3, 5, 3, 5, 4, 3, 4]]
        told[1] |= {"segmentation": crowd, "keypoints": [1, 1, 2] * 17}
        eyes = ("nose", *(f"{side}_{n}" for n in range(8) for side in ("left", "right")))
        categories = [
            {"id": 18, "name": "dog"},
            {"id": 1, "name": "person", "keypoints": eyes, "skeleton": [[16, 14], [2, 1]]},
        ]
        file = tmp_path / f"annotations/person_keypoints_{name}.json"
        file.parent.mkdir(exist_ok=True)
        whole = {"images": images, "annotations": told, "categories": categories}
        file.write_text(json.dumps(whole))
    read = load_coco(str(tmp_path), "person_keypoints")["train"]
    assert read.kinds.names == ("person", "dog")
    skeleton = read.kinds.skeleton
    assert skeleton is not None and skeleton.bones == ((15, 13), (1, 0))
    assert skeleton.mirrored[:4] == (0, 2, 1, 4) and skeleton.sigmas[0] == 0.026
    image_HW3, true = read[1]
    assert image_HW3.shape == (5, 6, 3) and len(read[0][1].boxes_N4) == 0
    # A box that leaves the picture is cut, one without a width left out.
    assert true.boxes_N4.tolist() == [[1, 1, 3.5, 5], [2, 0, 3, 5]]
    assert true.labels_N.tolist() == [1, 0]
    assert true.ignored_N is not None and true.ignored_N.tolist() == [False, True]
    assert true.masks_NHW is not None and true.masks_NHW.sum((1, 2)).tolist() == [6, 5]
    assert true.masks_NHW[1, :, 2].all()
    assert true.joints_NJ3 is not None and not true.joints_NJ3.any()
    assert true.states_N is None


def test_states_by_name_that_a_task_knows(tmp_path: Path) -> None:
    write(tmp_path)
    read = load_coco(str(tmp_path), states=("Lying", "Walking", "Running"))
    assert read["train"].kinds.states[2] == "Running"
    states_N = read["train"][0][1].states_N
    assert states_N is not None and states_N.tolist() == [0, -1, 1]
    with pytest.raises(UsageError, match=r"annotation 1 has state=Lying - allowed: Walking - do"):
        load_coco(str(tmp_path), states=("Walking",))["train"][0]


def first(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda told: told["annotations"][0].update({key: value})


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda told: told.pop("images"), r"cannot be read \(KeyError: 'images'\) - allowed: ima"),
        (lambda told: told["images"].clear(), "annotation 1 is of image 1 - allowed: an image"),
        (lambda told: told.update(images=[], annotations=[]), "has 0 pictures and the classes"),
        (
            lambda told: told.update(categories=[], annotations=[]),
            "has 2 pictures and the classes none",
        ),
        (first("category_id", 9), "annotation 1 is of category 9 - allowed: a category"),
        (first("bbox", [1, 2, 3]), r"annotation 1 has bbox=\[1, 2, 3\] - allowed: 4 numbers"),
        (first("bbox", [1, 2, -3, 4]), "annotation 1 has bbox="),
        (first("bbox", [1, 2, float("nan"), 4]), "annotation 1 has bbox="),
        (first("attributes", ["Lying"]), r"annotation 1 has attributes=\['Lying'\]"),
        (
            lambda told: told["images"][0].update(file_name="no.png"),
            r"tells of a picture .*no.png that is not there - allowed: every picture",
        ),
        (
            lambda told: told["categories"][0].update(skeleton=[[1, 9]]),
            r"has skeleton=\[\[1, 9\]\] - allowed: 1 to 3",
        ),
        (
            lambda told: told["categories"][1].update(name="cat"),
            r"has other classes than the file to train on \(cat, dog\)",
        ),
    ],
)
def test_files_that_cannot_be(tmp_path: Path, how: Any, said: str) -> None:
    write(tmp_path)
    change(tmp_path, how)
    with pytest.raises(UsageError, match=said) as refused:
        load_coco(str(tmp_path))
    assert "UsageError" not in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (first("segmentation", [[1, 2, 3, 4]]), "annotation 1 has a segmentation with a polygon"),
        (
            first("segmentation", {"size": [7, 8], "counts": [56]}),
            r"size \[7, 8\], where the picture has \(7, 7\)",
        ),
        (
            first("segmentation", {"size": [7, 7], "counts": [50]}),
            "runs of 50 pixels, where 7 x 7 are needed - allowed: polygons of 3",
        ),
        (first("segmentation", {"size": [7, 7], "counts": "1!"}), "letter '!'"),
        (first("segmentation", {"counts": "1"}), "segmentation with 'size'"),
        (first("keypoints", [1, 2, 2]), r"annotation 1 has keypoints=\[1, 2, 2\] - allowed: 3 tim"),
        (first("keypoints", [1, 2, 3] * 3), "annotation 1 has keypoints="),
        (
            lambda told: told["images"][0].update(width=8),
            r"000000.png has \(7, 7\) pixels - allowed: the \(7, 8\) of instances_train.json",
        ),
    ],
)
def test_objects_that_cannot_be(tmp_path: Path, how: Any, said: str) -> None:
    write(tmp_path)
    change(tmp_path, how)
    train = load_coco(str(tmp_path))["train"]
    with pytest.raises(UsageError, match=said):
        train[0]


def test_folders_that_are_not_as_cocos(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder - allowed: a folder with annotations/in"):
        load_coco(str(tmp_path / "none"))
    with pytest.raises(UsageError, match=r"has no annotations/instances_train\*.json"):
        load_coco(str(tmp_path))
    write_coco({"train": objects(0, 1, side=32), "val": objects(0, 1, side=32)}, tmp_path)
    with pytest.raises(UsageError, match="has 1 pictures in val - allowed: 2 or more"):
        load_coco(str(tmp_path))
    (tmp_path / "annotations/instances_train.json").write_text("{")
    with pytest.raises(UsageError, match=r"cannot be read \(JSONDecodeError"):
        load_coco(str(tmp_path))


def test_a_file_that_is_no_picture(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "train/000000.png").write_text("no picture")
    with pytest.raises(UsageError, match=r"000000.png cannot be read as an image"):
        load_coco(str(tmp_path))["train"][0]
