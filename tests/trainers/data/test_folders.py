"""Pictures in folders by class: both layouts, fixed splits, views, and what broken ones say."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from dlplatform.errors import UsageError
from trainers.data.folders import View, load_folders
from trainers.zoo.vgg import VggPictures

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


def fill(folder: Path, count: int, names: tuple[str, ...] = tuple(COLOURS)) -> None:
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            picture = Image.new("RGB", (60 + number, 48), COLOURS[name])
            picture.save(folder / name / f"{number}.{'jpg' if number % 2 else 'PNG'}")


def test_one_folder_of_classes_is_split_in_proportion(tmp_path: Path) -> None:
    fill(tmp_path, 10)
    (tmp_path / "red" / "notes.txt").write_text("no picture")
    parts = load_folders(tmp_path, View(32))
    assert {name: len(part) for name, part in parts.items()} == {"train": 21, "val": 3, "test": 6}
    assert parts["test"].labels.bincount().tolist() == [2, 2, 2]
    assert parts["test"].names == ("blue", "green", "red")
    paths = [path for part in parts.values() for path in part.paths]
    assert len(set(paths)) == 30


def test_labels_are_those_of_the_folders(tmp_path: Path) -> None:
    fill(tmp_path, 10)
    for part in load_folders(tmp_path, View(32)).values():
        x_BCHW, labels = part.pair()
        assert x_BCHW.shape == (len(part), 3, 32, 32) == (len(part), *part.shape)
        assert x_BCHW.mean((2, 3)).argmax(1).tolist() == [2 - label for label in labels.tolist()]
        assert float(x_BCHW.min()) >= 0 and float(x_BCHW.max()) <= 1


def test_given_parts_are_taken_as_they_are(tmp_path: Path) -> None:
    for name, count in (("train", 10), ("val", 2), ("test", 3)):
        fill(tmp_path / name, count)
    parts = load_folders(tmp_path, View(32))
    assert {name: len(part) for name, part in parts.items()} == {"train": 30, "val": 6, "test": 9}
    assert all(path.parts[-3] == "test" for path in parts["test"].paths)


def test_without_a_test_the_validation_is_the_test(tmp_path: Path) -> None:
    """As ImageNet comes: a tenth of train is held out to tune on."""
    fill(tmp_path / "train", 10)
    fill(tmp_path / "val", 2)
    parts = load_folders(tmp_path, View(32))
    assert {name: len(part) for name, part in parts.items()} == {"train": 27, "val": 3, "test": 6}
    assert all(path.parts[-3] == "val" for path in parts["test"].paths)
    assert all(path.parts[-3] == "train" for path in parts["val"].paths)


def test_squares_come_from_the_middle_or_from_anywhere(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(10):
            picture = Image.new("RGB", (96, 48))
            picture.putdata([(x * 2, y * 5, 0) for y in range(48) for x in range(96)])
            picture.save(tmp_path / name / f"{number}.png")
    train = load_folders(tmp_path, View(32, (48, 64)))["train"]
    middle_BCHW, _ = train.pair()
    assert torch.allclose(middle_BCHW[0, 0].mean() * 255, torch.tensor(95.0), atol=2)
    cut_BCHW, labels = train.crops(1)
    assert torch.equal(cut_BCHW, train.crops(1)[0]) and torch.equal(labels, train.labels)
    assert not torch.equal(cut_BCHW, train.crops(2)[0])
    left_B = cut_BCHW[:, 0].amin((1, 2)) * 255
    assert float(left_B.max() - left_B.min()) > 30
    # 32 of 48 to 64 pixels along the shorter side: squares of 24 to 32 pixels of the file.
    high_B = (cut_BCHW[:, 1].amax((1, 2)) - cut_BCHW[:, 1].amin((1, 2))) * 51
    assert 22 <= float(high_B.min()) < float(high_B.max()) <= 32


def test_a_task_trains_on_the_folder(tmp_path: Path) -> None:
    fill(tmp_path, 10)
    task = VggPictures(data=str(tmp_path), batch_size=4, shorter=40, longest=48)
    x_BCHW, labels = task.batch("train", 2)
    assert x_BCHW.shape == (4, 3, 32, 32) and labels.shape == (4,)
    assert torch.equal(x_BCHW, task.batch("train", 2)[0])
    models = task.models()
    task.loss(models, (x_BCHW, labels)).backward()
    assert set(task.score(models, task.batches("test"))) == {"accuracy", "loss"}
    assert set(task.baselines()) == {"chance", "untrained", "linear"}
    answer = task.predict(models, tmp_path / "red" / "0.PNG")
    assert answer["class"] in COLOURS and 0.33 < answer["confidence"] <= 1
    assert task.picture(models).width > 300


def test_baselines_and_picture_of_a_large_set_look_at_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, 10)
    task = VggPictures(data=str(tmp_path), batch_size=4)
    monkeypatch.setattr("trainers.blocks.classifier.MOST_VALUES", 3 * 3 * 32 * 32)
    read = []
    monkeypatch.setattr(
        "trainers.data.folders.open_picture",
        lambda path, mode: read.append(path) or Image.open(path).convert(mode),
    )
    task.baselines()
    assert 0 < len(read) <= 9


def no_folder(root: Path) -> Path:
    return root / "missing"


def no_classes(root: Path) -> Path:
    return root


def one_class(root: Path) -> Path:
    fill(root, 12, ("red",))
    return root


def few(root: Path) -> Path:
    fill(root, 2)
    return root


def empty_class(root: Path) -> Path:
    fill(root, 10)
    (root / "violet").mkdir()
    return root


def strange_class(root: Path) -> Path:
    fill(root / "train", 3, ("blue", "red"))
    fill(root / "val", 3)
    return root


def only_train(root: Path) -> Path:
    fill(root / "train", 3)
    return root


@pytest.mark.parametrize(
    ("make", "message"),
    [(no_folder, "missing is not a folder"), (no_classes, "has 0 folders of classes"),
     (one_class, "has 1 folders of classes"), (few, "has 6 pictures, too few"),
     (empty_class, "has no pictures in its class violet"),
     (strange_class, "has a class green, which the folder train lacks"),
     (only_train, "has a folder train, but neither val nor test")],
)  # fmt: skip
def test_what_is_laid_out_otherwise_is_refused(
    tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as refused:
        VggPictures(data=str(make(tmp_path))).samples("train")
    assert " - allowed: root/class/*.jpg" in str(refused.value) and "\n" not in str(refused.value)


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    fill(tmp_path, 10)
    for path in (tmp_path / "red").iterdir():
        path.write_bytes(b"not a picture")
    with pytest.raises(UsageError, match=r"red/\d\.\w+ cannot be read as an image"):
        load_folders(tmp_path, View(32))["train"].pair()
