"""Folders of Cityscapes and CamVid, tiny ones made here, and what is said of broken ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlplatform.errors import UsageError
from trainers.data.roads import load_roads
from trainers.zoo.fcn import FullyConvolutional


@pytest.fixture(autouse=True)
def _afresh() -> None:
    load_roads.cache_clear()


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def cityscapes(root: Path, last: int = 18) -> None:
    for split, count in (("train", 13), ("val", 2)):
        for number in range(count):
            name = f"{split}/ulm/ulm_{number:06d}_000019"
            save(root / "leftImg8bit" / f"{name}_leftImg8bit.png", np.full((40, 64, 3), number))
            labels = np.full((40, 64), 255)
            labels[5:, :], labels[0, 0] = number, last
            save(root / "gtFine" / f"{name}_gtFine_labelTrainIds.png", labels)


def camvid(root: Path, last: int = 10) -> None:
    for split in ("train", "val", "test"):
        for number in range(3):
            save(root / split / f"{number}.png", np.full((36, 48, 3), 9 * number))
            labels = np.full((36, 48), number)
            labels[0, 0], labels[0, 1] = last, 11
            save(root / f"{split}annot" / f"{number}.png", labels)


def test_cityscapes_folders(tmp_path: Path) -> None:
    cityscapes(tmp_path)
    parts = load_roads(str(tmp_path))
    assert {split: len(part) for split, part in parts.items()} == {"train": 11, "val": 2, "test": 2}
    assert len(parts["train"].kinds) == 19 == len(parts["train"].kinds.colours)
    image, labels = parts["test"][1]
    assert image.shape == (40, 64, 3) and image[0, 0, 0] == 1
    assert labels[0, 0] == 18 and labels[0, 1] == 255 and labels[6, 0] == 1
    held_out = {int(parts["val"][n][0][0, 0, 0]) for n in range(2)}
    trained = {int(parts["train"][n][0][0, 0, 0]) for n in range(11)}
    assert held_out | trained == set(range(13)) and not held_out & trained


def test_camvid_folders_and_their_void(tmp_path: Path) -> None:
    camvid(tmp_path)
    parts = load_roads(str(tmp_path))
    assert [len(part) for part in parts.values()] == [3, 3, 3]
    _, labels = parts["val"][2]
    assert len(parts["val"].kinds) == 11
    assert labels[0, 0] == 10 and labels[0, 1] == 255 and labels[3, 3] == 2


def test_a_task_trains_on_a_folder(tmp_path: Path) -> None:
    cityscapes(tmp_path)
    task = FullyConvolutional(data=str(tmp_path), batch_size=2, crop=32)
    x_BCHW, labels_BHW = task.batch("train", 0)
    assert x_BCHW.shape == (2, 3, 32, 32) and labels_BHW.shape == (2, 32, 32)
    models = task.models()
    assert models["net"](x_BCHW).shape == (2, 19, 32, 32)
    assert float(task.loss(models, (x_BCHW, labels_BHW))) > 0
    assert [tuple(x.shape) for x, _ in task.batches("test")] == [(1, 3, 40, 64)] * 2
    assert 0 <= task.score(models, task.batches("test"))["mIoU"] <= 1


def test_a_folder_of_neither_layout(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match="has no folder leftImg8bit and none trainannot"):
            load_roads(str(folder))


def test_pictures_without_labels(tmp_path: Path) -> None:
    cityscapes(tmp_path)
    next((tmp_path / "gtFine/val/ulm").glob("*000001_*")).unlink()
    with pytest.raises(UsageError, match=r"000001_000019_gtFine_labelTrainIds.png is not there"):
        load_roads(str(tmp_path))


def test_an_empty_split(tmp_path: Path) -> None:
    camvid(tmp_path)
    for path in (tmp_path / "val").iterdir():
        path.unlink()
    with pytest.raises(UsageError, match=r"val has no pictures - allowed: "):
        load_roads(str(tmp_path))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.full((36, 48), 12), "holds class 12 - allowed: 0 to 10, and 255"),
        (np.zeros((36, 48, 3)), "has 3 axes of uint8 - allowed: one grey or palette"),
        (np.zeros((36, 47)), r"has \(36, 47\) pixels, its picture \(36, 48\)"),
    ],
)
def test_labels_that_cannot_be(tmp_path: Path, labels: np.ndarray, said: str) -> None:
    camvid(tmp_path)
    save(tmp_path / "testannot/1.png", labels)
    test = load_roads(str(tmp_path))["test"]
    with pytest.raises(UsageError, match=said):
        test[1]


def test_a_file_that_is_no_picture(tmp_path: Path) -> None:
    camvid(tmp_path)
    (tmp_path / "test/0.png").write_text("no picture")
    with pytest.raises(UsageError, match=r"0.png cannot be read as an image"):
        load_roads(str(tmp_path))["test"][0]
