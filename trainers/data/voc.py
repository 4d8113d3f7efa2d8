"""Pictures with boxes in the layout of PASCAL VOC.

A folder has ``JPEGImages``, ``Annotations`` (an XML file for each picture) and
``ImageSets/Main/{train,val,test}.txt`` with the names of the pictures. Without a test.txt (VOC 2012
keeps its labels) the second half of val is the test. What is ``difficult`` is ignored, as VOC does.
Format: http://host.robots.ox.ac.uk/pascal/VOC/voc2007/devkit_doc_07-Jun-2007.pdf

Shape legend: N objects, H height, W width, 3 RGB.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch

from trainers.data.instances import Instances, InstanceSet, Kinds, clipped, palette, refused
from trainers.data.parts import halves
from trainers.data.scenes import Bytes
from trainers.pictures.files import ENDINGS, open_picture

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
"""Of VOC itself; a set with others has those that its files name, in the order of letters."""
WANTED = "a folder with JPEGImages, Annotations and ImageSets/Main/{train,val}.txt"
EDGES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class _Object:
    name: str
    box: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True)
class _Shown:
    path: Path
    file: Path
    objects: tuple[_Object, ...]


@lru_cache(maxsize=4)
def load_voc(folder: str) -> dict[str, InstanceSet]:
    """Return the parts ``train``, ``val`` and ``test``; pictures are read when asked for.

    Raises:
        UsageError: for a folder or a file that is not as VOC's, now or when a picture is read.
    """
    root = Path(folder)
    for needed in ("JPEGImages", "Annotations", "ImageSets/Main"):
        if not (root / needed).is_dir():
            remedy = "name the folder VOC2007 or VOC2012 inside VOCdevkit"
            raise refused(f"task.data={folder}", f"has no folder {needed}", WANTED, remedy)
    parts: dict[str, Sequence[_Shown]] = {part: _part(root, part) for part in ("train", "val")}
    if (root / "ImageSets/Main/test.txt").is_file():
        parts["test"] = _part(root, "test")
    else:
        parts["val"], parts["test"] = halves(parts["val"], f"task.data={folder}")
    kinds = _kinds(root, [shown for part in parts.values() for shown in part])
    return {name: _set(part, kinds) for name, part in parts.items()}


def _part(root: Path, part: str) -> list[_Shown]:
    listed = root / f"ImageSets/Main/{part}.txt"
    try:
        lines = listed.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        allowed = "names of pictures in lines"
        raise refused(listed, f"cannot be read ({error})", allowed, "add it") from error
    names = [line.split()[0] for line in lines if line.strip()]
    if not names:
        raise refused(listed, "names no pictures", "one or more, each in a line", "add some")
    return [_shown(root, name) for name in names]


def _shown(root: Path, name: str) -> _Shown:
    file = root / "Annotations" / f"{name}.xml"
    paths = [root / "JPEGImages" / f"{name}{ending}" for ending in (".jpg", *sorted(ENDINGS))]
    path = next(filter(Path.is_file, paths), None)
    if path is None:
        allowed = "every picture that ImageSets/Main names"
        raise refused(f"{paths[0]}", "is not there", allowed, "unpack the pictures again")
    try:
        tree = ElementTree.parse(file)
    except (OSError, ElementTree.ParseError) as error:
        allowed = f"an annotation of VOC for {path.name}"
        raise refused(
            file, f"cannot be read ({error})", allowed, "unpack the annotations"
        ) from error
    return _Shown(path, file, tuple(_object(file, entry) for entry in tree.iter("object")))


def _object(file: Path, entry: ElementTree.Element) -> _Object:
    name = (entry.findtext("name") or "").strip()
    told = [entry.findtext(f"bndbox/{edge}") or "" for edge in EDGES]
    try:
        left, top, right, bottom = map(float, told)
    except ValueError:
        left, top, right, bottom = (float("nan"),) * 4
    if not name or not all(map(isfinite, (left, top))) or not (left <= right and top <= bottom):
        raise refused(
            file,
            f"has an object {name!r} with {', '.join(EDGES)} = {', '.join(told)}",
            "a name, and numbers that do not fall from min to max",
            "mend or remove it",
        )
    # Pixels are counted from 1, and the last one belongs to the box.
    return _Object(name, (left - 1, top - 1, right, bottom), _yes(entry.findtext("difficult")))


def _yes(told: str | None) -> bool:
    return (told or "0").strip() == "1"


def _kinds(root: Path, all_shown: Iterable[_Shown]) -> Kinds:
    names = {told.name for shown in all_shown for told in shown.objects}
    if not names:
        raise refused(root / "Annotations", "hold no objects", "one or more", "check the files")
    ordered = CLASSES if names <= set(CLASSES) else tuple(sorted(names))
    return Kinds(ordered, palette(len(ordered)))


def _set(part: Sequence[_Shown], kinds: Kinds) -> InstanceSet:
    def read(index: int) -> tuple[Bytes, Instances]:
        shown = part[index]
        image_HW3 = np.asarray(open_picture(shown.path, "RGB"))
        size = image_HW3.shape[0], image_HW3.shape[1]
        boxes_N4, there_N = clipped([told.box for told in shown.objects], size)
        if not there_N.all():
            lost = shown.objects[int(there_N.int().argmin())]
            outside = f"has an object {lost.name!r} outside its picture of {size} pixels"
            raise refused(shown.file, outside, "boxes inside", "mend or remove it")
        difficult = [told.difficult for told in shown.objects]
        return image_HW3, Instances(
            boxes_N4,
            torch.tensor([kinds.names.index(told.name) for told in shown.objects]).long(),
            ignored_N=torch.tensor(difficult) if any(difficult) else None,
        )

    return InstanceSet(kinds, len(part), read)
