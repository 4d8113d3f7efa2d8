"""Folders of WIDER FACE and of RetinaFace, tiny ones made here, and what is said of broken ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from dlplatform.errors import UsageError
from trainers.data.skeletons import FACES
from trainers.data.widerface import load_faces

GT = """0--Parade/a.jpg
2
1 2 5 4 0 0 0 0 2 1
3 3 9 9 2 0 0 1 0 0
0--Parade/b.jpg
0
0 0 0 0 0 0 0 0 0 0
1--Riot/c.jpg
2
0 0 0 0 0 0 0 0 0 0
2 1 3 3 0 0 0 0 0 0
"""
SEEN = "2.5 3 0.0 4 3.5 0.0 3 4 1.0 2 5 0.0 4 5 0.0"
MARKED = f"""# 0--Parade/a.jpg
1 2 5 4 {SEEN} 0.82
3 3 2 2 {" ".join(["-1.0"] * 15)} 0.2
# 0--Parade/b.jpg
# 1--Riot/c.jpg
2 1 3 3
"""
BOXED = "wider_face_split/wider_face_{}_bbx_gt.txt"


@pytest.fixture(autouse=True)
def _afresh() -> None:
    load_faces.cache_clear()


def pictures(folder: Path) -> None:
    for name in ("0--Parade/a.jpg", "0--Parade/b.jpg", "1--Riot/c.jpg"):
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 7)).save(path)


def boxed(root: Path, part: str, text: str = GT) -> None:
    pictures(root / f"WIDER_{part}")
    (root / "wider_face_split").mkdir(exist_ok=True)
    (root / BOXED.format(part)).write_text(text)


def marked(root: Path, part: str, text: str = MARKED) -> None:
    pictures(root / part)
    (root / part / "label.txt").write_text(text)


def test_the_boxes_of_wider_face(tmp_path: Path) -> None:
    boxed(tmp_path, "train")
    boxed(tmp_path, "val")
    parts = load_faces(str(tmp_path))
    assert {name: len(part) for name, part in parts.items()} == {"train": 3, "val": 1, "test": 2}
    assert parts["train"].kinds.names == ("face",) and parts["train"].kinds.skeleton is None
    image_HW3, true = parts["train"][0]
    assert image_HW3.shape == (7, 8, 3)
    assert true.boxes_N4.tolist() == [[1, 2, 6, 6], [3, 3, 8, 7]]
    assert true.labels_N.tolist() == [0, 0] and true.joints_NJ3 is None
    assert true.ignored_N is not None and true.ignored_N.tolist() == [False, True]
    assert parts["test"][0][1].boxes_N4.shape == (0, 4)
    # A box without a width is left out.
    assert parts["test"][1][1].boxes_N4.tolist() == [[2, 1, 5, 4]]


def test_the_landmarks_of_retinaface(tmp_path: Path) -> None:
    marked(tmp_path, "train")
    boxed(tmp_path, "val")
    parts = load_faces(str(tmp_path))
    assert parts["test"].kinds.skeleton == FACES
    true = parts["train"][0][1]
    assert true.boxes_N4.tolist() == [[1, 2, 6, 6], [3, 3, 5, 5]]
    assert true.joints_NJ3 is not None
    seen, unknown = true.joints_NJ3.tolist()
    assert seen == [[2.5, 3, 2], [4, 3.5, 2], [3, 4, 1], [2, 5, 2], [4, 5, 2]]
    assert unknown == [[0, 0, 0]] * 5
    assert parts["train"][1][1].joints_NJ3 is None and len(parts["train"][1][1].boxes_N4) == 0
    joints_NJ3 = parts["train"][2][1].joints_NJ3
    assert joints_NJ3 is not None and not joints_NJ3.any()


def test_landmarks_beside_the_pictures_of_wider_face(tmp_path: Path) -> None:
    for part in ("train", "val"):
        boxed(tmp_path, part)
        (tmp_path / part).mkdir()
        (tmp_path / part / "label.txt").write_text(MARKED)
    assert load_faces(str(tmp_path))["val"][0][1].joints_NJ3 is not None


def test_folders_with_a_part_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no list of faces for train - allowed: WIDER_\{train"):
        load_faces(str(tmp_path))
    boxed(tmp_path, "train")
    with pytest.raises(UsageError, match="has no list of faces for val"):
        load_faces(str(tmp_path))
    (tmp_path / BOXED.format("val")).write_text(GT)
    with pytest.raises(UsageError, match="has no pictures for val"):
        load_faces(str(tmp_path))
    boxed(tmp_path, "val", "".join(GT.splitlines(True)[:4]))
    with pytest.raises(UsageError, match="has 1 pictures in val - allowed: 2 or more"):
        load_faces(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no pictures - allowed: one or more"),
        ("a.jpg", "line 1 has 'a.jpg' with '' below - allowed: the file of a picture, and below"),
        (GT.replace("\n2\n1 2", "\n1\n1 2"), "line 4 has '3 3 9 9 2 0 0 1 0 0' with '0--Parade/b"),
        (
            GT.replace("\n2\n2 1", "\n9\n2 1").replace("\n2\n0 0", "\n9\n0 0"),
            "tells of 9 faces",
        ),
        (GT.replace("1 2 5 4", "1 2 5"), "line 3 has '1 2 5 0 0 0 0 2 1' - allowed: 10 numbers"),
        (GT.replace("1 2 5 4", "1 2 5 x"), "line 3 has '1 2 5 x"),
        (GT.replace("1 2 5 4", "1 2 -5 4"), "line 3 has '1 2 -5 4"),
        (GT.replace("Parade/b", "Parade/z"), r"z.jpg is not there \(wider_face_train_bbx_gt.txt\)"),
    ],
)
def test_lists_of_boxes_that_cannot_be(tmp_path: Path, text: str, said: str) -> None:
    boxed(tmp_path, "train", text)
    with pytest.raises(UsageError, match=said) as refused:
        load_faces(str(tmp_path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\n", "names no pictures"),
        ("1 2 3 4\n", "line 1 tells of a face before any picture - allowed: # and a file"),
        (MARKED.replace("4 2.5 3", "4 3").replace(" 0.82", ""), "line 2 has .* 4 or 19 or 20 num"),
        (MARKED.replace("2.5", "nan"), "line 2 has '1 2 5 4 nan"),
    ],
)
def test_lists_of_landmarks_that_cannot_be(tmp_path: Path, text: str, said: str) -> None:
    marked(tmp_path, "train", text)
    with pytest.raises(UsageError, match=said):
        load_faces(str(tmp_path))


def test_a_file_that_is_no_picture(tmp_path: Path) -> None:
    boxed(tmp_path, "train")
    boxed(tmp_path, "val")
    (tmp_path / "WIDER_train/images/0--Parade/a.jpg").write_text("no picture")
    with pytest.raises(UsageError, match=r"a.jpg cannot be read as an image"):
        load_faces(str(tmp_path))["train"][0]
