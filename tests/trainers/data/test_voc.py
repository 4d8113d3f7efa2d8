"""Folders of PASCAL VOC, tiny ones made here, and what is said of broken ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from dlplatform.errors import UsageError
from trainers.data.voc import CLASSES, load_voc

OBJECT = (
    "<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{xmin}</xmin>"
    "<ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox>"
    "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax>"
    "</bndbox></part></object>"
)
DOG = {"name": "dog", "difficult": 0, "xmin": 1, "ymin": 2, "xmax": 8, "ymax": 5}
CAR = {"name": "car", "difficult": 1, "xmin": 3, "ymin": 3, "xmax": 3, "ymax": 99}
NAMES = {"train": ("a", "b"), "val": ("c", "d", "e")}


@pytest.fixture(autouse=True)
def _afresh() -> None:
    load_voc.cache_clear()


def annotate(root: Path, name: str, *objects: dict[str, object]) -> None:
    told = "".join(OBJECT.format(**entry) for entry in objects)
    (root / f"Annotations/{name}.xml").write_text(f"<annotation>{told}</annotation>")


def write(root: Path, first: dict[str, object] = DOG) -> None:
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for part, names in NAMES.items():
        (root / f"ImageSets/Main/{part}.txt").write_text("".join(f"{name}  1\n" for name in names))
        for name in names:
            Image.new("L", (8, 6), ord(name)).save(root / f"JPEGImages/{name}.jpg")
            annotate(root, name, first, CAR)
    annotate(root, "b")


def test_boxes_classes_and_what_is_difficult(tmp_path: Path) -> None:
    write(tmp_path)
    parts = load_voc(str(tmp_path))
    assert {name: len(part) for name, part in parts.items()} == {"train": 2, "val": 1, "test": 2}
    assert parts["test"].kinds.names == CLASSES and len(parts["test"].kinds.colours) == 20
    image_HW3, true = parts["test"][1]
    assert image_HW3.shape == (6, 8, 3) and abs(int(image_HW3[0, 0, 0]) - ord("e")) < 3
    # VOC counts pixels from 1 and the last one belongs to the box; what leaves the picture is cut.
    assert true.boxes_N4.tolist() == [[0, 1, 8, 5], [2, 2, 3, 6]]
    assert [CLASSES[label] for label in true.labels_N.tolist()] == ["dog", "car"]
    assert true.ignored_N is not None and true.ignored_N.tolist() == [False, True]
    assert true.masks_NHW is None and true.joints_NJ3 is None
    empty = parts["train"][1][1]
    assert empty.boxes_N4.shape == (0, 4) and empty.ignored_N is None


def test_a_test_of_its_own_and_other_classes(tmp_path: Path) -> None:
    write(tmp_path, DOG | {"name": "zebra"})
    (tmp_path / "ImageSets/Main/test.txt").write_text("a\n\n")
    parts = load_voc(str(tmp_path))
    assert [len(part) for part in parts.values()] == [2, 3, 1]
    assert parts["train"].kinds.names == ("car", "zebra")


@pytest.mark.parametrize("folder", ["JPEGImages", "Annotations", "ImageSets/Main"])
def test_a_folder_of_another_layout(tmp_path: Path, folder: str) -> None:
    write(tmp_path)
    shutil.rmtree(tmp_path / folder)
    with pytest.raises(UsageError, match=f"has no folder {folder} - allowed: a folder with JPEG"):
        load_voc(str(tmp_path))


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("ImageSets/Main/train.txt", None, r"train.txt cannot be read \(.*allowed: names of pic"),
        ("ImageSets/Main/train.txt", "\n", "train.txt names no pictures - allowed: one or more"),
        ("ImageSets/Main/val.txt", "a\n", "has 1 pictures in val - allowed: 2 or more"),
        ("ImageSets/Main/val.txt", "a\nz\n", "z.jpg is not there - allowed: every picture that"),
        ("Annotations/c.xml", None, r"c.xml cannot be read \(.*allowed: an annotation of VOC"),
        ("Annotations/c.xml", "<annotation>", r"c.xml cannot be read \(no element found"),
        ("Annotations/c.xml", OBJECT, r"has an object '{name}' with xmin, ymin, xmax, ymax = {x"),
        ("Annotations/c.xml", OBJECT.format(**DOG | {"name": " "}), "has an object '' with"),
        ("Annotations/c.xml", OBJECT.format(**DOG | {"xmax": 0}), "xmax, ymax = 1, 2, 0, 5 - all"),
        ("Annotations/c.xml", "<annotation><object><name>dog</name></object></annotation>", "dog"),
    ],
)
def test_files_that_cannot_be(tmp_path: Path, file: str, text: str | None, said: str) -> None:
    write(tmp_path)
    path = tmp_path / file
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=said) as refused:
        load_voc(str(tmp_path))
    assert "\n" not in str(refused.value)


def test_no_objects_at_all_and_one_outside_its_picture(tmp_path: Path) -> None:
    write(tmp_path, DOG | {"xmin": 9, "xmax": 12})
    with pytest.raises(UsageError, match=r"a.xml has an object 'dog' outside its picture of \(6, "):
        load_voc(str(tmp_path))["train"][0]
    load_voc.cache_clear()
    for name in "abcde":
        annotate(tmp_path, name)
    with pytest.raises(UsageError, match="Annotations hold no objects - allowed: one or more"):
        load_voc(str(tmp_path))


def test_a_file_that_is_no_picture(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "JPEGImages/a.jpg").write_text("no picture")
    with pytest.raises(UsageError, match=r"a.jpg cannot be read as an image"):
        load_voc(str(tmp_path))["train"][0]
