"""Folders of classes: both public layouts are read, everything else is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from dlplatform.errors import UsageError
from trainers.data.class_folders import load_class_folders


def put(path: Path, grey: int = 200, size: tuple[int, int] = (20, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, grey).save(path)


def test_classes_in_folders_and_characters_in_alphabets(tmp_path: Path) -> None:
    for label, grey in (("cat", 10), ("dog", 250)):
        for number in range(3):
            put(tmp_path / "flat" / label / f"{number}.png", grey)
    samples = load_class_folders(tmp_path / "flat", channels=1, side=16)
    assert samples.names == ("cat", "dog") and samples.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert samples.images_NCHW.shape == (6, 1, 16, 16)
    assert samples.images_NCHW[:, 0, 0, 0].tolist() == [10] * 3 + [250] * 3
    for alphabet, character in (("Greek", "character01"), ("Greek", "character02"), ("Latin", "x")):
        put(tmp_path / "omniglot" / alphabet / character / "0001_01.png")
    names = load_class_folders(tmp_path / "omniglot", channels=3, side=16).names
    assert names == ("Greek/character01", "Greek/character02", "Latin/x")


def test_malformed_folders_are_one_line(tmp_path: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(UsageError, match=match):
            load_class_folders(tmp_path / "root", channels=1, side=16)

    refused("is not a folder")
    (tmp_path / "root").mkdir()
    refused("holds no pictures")
    put(tmp_path / "root" / "a" / "1.png")
    refused("has one class")
    (tmp_path / "root" / "b").mkdir()
    (tmp_path / "root" / "b" / "2.png").write_text("no picture")
    refused("cannot be read as an image")
    (tmp_path / "root" / "b" / "2.png").unlink()
    put(tmp_path / "root" / "loose.png")
    refused("is in no class")
