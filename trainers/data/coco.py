"""Pictures with their objects in the layout of COCO: masks, joints, states and crowds.

A folder has ``annotations/<what>_<name>.json`` and beside it a folder ``<name>`` with the pictures,
for names that begin with train, val and test; ``what`` is ``instances`` or ``person_keypoints``.
Where nothing begins with test (COCO keeps its labels), the second half of val is the test.
A state is an annotation's ``attributes.state``, by name. Format:
https://cocodataset.org/#format-data

Shape legend: N objects, J joints, H height, W width, 3 RGB.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dlplatform.errors import UsageError
from trainers.data import rle
from trainers.data.instances import (
    Instances,
    InstanceSet,
    Kinds,
    Skeleton,
    clipped,
    palette,
    refused,
)
from trainers.data.parts import halves
from trainers.data.scenes import Bytes
from trainers.pictures.files import open_picture

SIGMAS = {
    **{"nose": 0.026, "eye": 0.025, "ear": 0.035, "shoulder": 0.079, "elbow": 0.072},
    **{"wrist": 0.062, "hip": 0.107, "knee": 0.087, "ankle": 0.089, "neck": 0.079},
}
"""Of COCO's joints, by their names without left and right."""
USUAL_SIGMA = 0.05
"""Of a joint that COCO does not have."""
WANTED = (
    "a folder with annotations/{what}_train2017.json, annotations/{what}_val2017.json, "
    "train2017/ and val2017/"
)
Annotation = dict[str, Any]


@dataclass(frozen=True)
class _Shown:
    """A picture file, its (height, width) if told, and what is said of its objects."""

    path: Path
    size: tuple[int, int] | None
    objects: tuple[Annotation, ...]


@dataclass(frozen=True)
class _Part:
    file: Path
    categories: tuple[Annotation, ...]
    """In the order of their ids, which is that of the labels."""
    shown: Sequence[_Shown]


@lru_cache(maxsize=4)
def load_coco(
    folder: str, what: str = "instances", states: tuple[str, ...] = (), masks: bool = True
) -> dict[str, InstanceSet]:
    """Return the parts ``train``, ``val`` and ``test``; pictures are read when asked for.

    Args:
        folder: the root of COCO's layout.
        what: first part of the names of the annotation files.
        states: the states there may be; none: those that the files name.
        masks: also make masks, which takes most of the time of reading.

    Raises:
        UsageError: for a folder or a file that is not as COCO's, now or when a picture is read.
    """
    root = Path(folder)
    if not root.is_dir():
        raise refused(
            f"task.data={folder}", "is not a folder", WANTED.format(what=what), "check it"
        )
    train, held = _part(root, what, "train"), _part(root, what, "val")
    if any(root.glob(f"annotations/{what}_test*.json")):
        test = _part(root, what, "test")
    else:
        val, rest = halves(held.shown, str(held.file))
        held, test = replace(held, shown=val), replace(held, shown=rest)
    parts = {"train": train, "val": held, "test": test}
    kinds = _kinds(list(parts.values()), states)
    return {name: _set(part, kinds, masks) for name, part in parts.items()}


def _part(root: Path, what: str, name: str) -> _Part:
    found = sorted(root.glob(f"annotations/{what}_{name}*.json"))
    if not found:
        raise refused(
            f"task.data={root}",
            f"has no annotations/{what}_{name}*.json",
            WANTED.format(what=what),
            "unpack the annotations of COCO there",
        )
    file = found[0]
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        categories = sorted(told["categories"], key=lambda entry: int(entry["id"]))
        objects: dict[Any, list[Annotation]] = {entry["id"]: [] for entry in told["images"]}
        names = [str(entry["name"]) for entry in categories]
        known = {entry["id"] for entry in categories}
        for entry in told["annotations"]:
            _check(file, entry, objects, known)
            objects[entry["image_id"]].append(entry)
        images = root / file.stem.removeprefix(f"{what}_")
        shown = tuple(_shown(file, images, entry, objects[entry["id"]]) for entry in told["images"])
    except UsageError:
        raise  # it is a ValueError, and already says all
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise refused(
            file,
            f"cannot be read ({type(error).__name__}: {error})",
            "images (id, file_name), categories (id, name) and annotations (image_id, "
            "category_id, bbox)",
            "get it again",
        ) from error
    if not shown or not names or len(set(names)) < len(names):
        lacks = f"has {len(shown)} pictures and the classes {', '.join(names) or 'none'}"
        raise refused(file, lacks, "one or more of each, every class once", "get it again")
    return _Part(file, tuple(categories), shown)


def _check(file: Path, entry: Annotation, images: Mapping[Any, Any], known: set[Any]) -> None:
    box, attributes = entry["bbox"], entry.get("attributes", {})
    if entry["image_id"] not in images:
        raise _wrong(file, entry, f"is of image {entry['image_id']}", "an image of the file")
    if entry["category_id"] not in known:
        category = f"is of category {entry['category_id']}"
        raise _wrong(file, entry, category, "a category of the file")
    if not _numbers(box) or len(box) != 4 or min(box[2:]) < 0:
        allowed = "4 numbers: left, top, and a width and height that are not negative"
        raise _wrong(file, entry, f"has bbox={box}", allowed)
    if not isinstance(attributes, dict):
        raise _wrong(file, entry, f"has attributes={attributes}", "an object, as {'state': ...}")


def _shown(file: Path, images: Path, entry: Annotation, told: list[Annotation]) -> _Shown:
    path = images / str(entry["file_name"])
    if not path.is_file():
        raise refused(
            file,
            f"tells of a picture {path} that is not there",
            f"every picture of the file in {images}",
            "unpack the pictures of COCO there",
        )
    size = (entry["height"], entry["width"]) if {"height", "width"} <= entry.keys() else None
    return _Shown(path, size, tuple(told))


def _kinds(parts: Sequence[_Part], states: tuple[str, ...]) -> Kinds:
    """Return what objects may be, which all parts must agree on."""
    names, *others = [tuple(str(entry["name"]) for entry in part.categories) for part in parts]
    for part, other in zip(parts[1:], others, strict=True):
        if other != names:
            differ = sorted(set(other) ^ set(names)) or list(other)
            raise refused(
                part.file,
                f"has other classes than the file to train on ({', '.join(differ[:3])})",
                "the same in every file, in the same order",
                "write the files together",
            )
    told = parts[0].categories
    jointed = next((entry for entry in told if entry.get("keypoints")), None)
    return Kinds(
        names,
        palette(len(names)),
        _skeleton(parts[0].file, jointed) if jointed else None,
        states
        or next((tuple(entry["states"]) for entry in told if "states" in entry), ())
        or tuple(sorted(_states(parts))),
    )


def _states(parts: Iterable[_Part]) -> set[str]:
    objects = (entry for part in parts for shown in part.shown for entry in shown.objects)
    said = (entry.get("attributes", {}).get("state") for entry in objects)
    return {str(state) for state in said if state is not None}


def _skeleton(file: Path, category: Annotation) -> Skeleton:
    names = tuple(map(str, category["keypoints"]))
    bones = tuple((int(a) - 1, int(b) - 1) for a, b in category.get("skeleton", ()))
    if any(not 0 <= end < len(names) for bone in bones for end in bone):
        raise refused(
            file, f"has skeleton={category['skeleton']}", f"1 to {len(names)}", "get it again"
        )
    partners = (_mirrored(name) for name in names)
    by_name = [names.index(name) if name in names else n for n, name in enumerate(partners)]
    sigmas = [SIGMAS.get(name.split("_")[-1], USUAL_SIGMA) for name in names]
    return Skeleton(
        names,
        bones,
        tuple(category.get("mirrored", by_name)),
        tuple(category.get("sigmas", sigmas)),
    )


def _mirrored(name: str) -> str:
    swapped = {"left": "right", "right": "left"}
    return "_".join(swapped.get(word, word) for word in name.split("_"))


def _set(part: _Part, kinds: Kinds, masks: bool) -> InstanceSet:
    labels = {entry["id"]: label for label, entry in enumerate(part.categories)}

    def read(index: int) -> tuple[Bytes, Instances]:
        shown = part.shown[index]
        image_HW3 = np.asarray(open_picture(shown.path, "RGB"))
        size = image_HW3.shape[0], image_HW3.shape[1]
        if shown.size not in (None, size):
            allowed = f"the {shown.size} of {part.file.name}"
            raise refused(shown.path, f"has {size} pixels", allowed, "unpack the pictures again")
        return image_HW3, _Reader(part.file, kinds, size).instances(shown.objects, labels, masks)

    return InstanceSet(kinds, len(part.shown), read)


@dataclass(frozen=True)
class _Reader:
    """Reads the objects of one picture."""

    file: Path
    kinds: Kinds
    size: tuple[int, int]

    def instances(
        self, objects: Sequence[Annotation], labels: Mapping[Any, int], masks: bool
    ) -> Instances:
        """Return the objects that have a part in the picture."""
        boxes = [(x, y, x + w, y + h) for x, y, w, h in (entry["bbox"] for entry in objects)]
        boxes_N4, there_N = clipped(boxes, self.size)
        kept = [entry for entry, there in zip(objects, there_N.tolist(), strict=True) if there]
        crowds = [bool(entry.get("iscrowd")) for entry in kept]
        with_masks = masks and any(entry.get("segmentation") for entry in kept)
        return Instances(
            boxes_N4,
            torch.tensor([labels[entry["category_id"]] for entry in kept], dtype=torch.int64),
            self._all(kept, self._mask) if with_masks else None,
            self._all(kept, self._joints) if self.kinds.skeleton and kept else None,
            torch.tensor([self._state(entry) for entry in kept]) if self.kinds.states else None,
            torch.tensor(crowds) if any(crowds) else None,
        )

    def _all(self, kept: list[Annotation], one: Callable[[Annotation], Any]) -> torch.Tensor:
        return torch.from_numpy(np.stack([one(entry) for entry in kept]))

    def _mask(self, entry: Annotation) -> rle.Mask:
        told = entry.get("segmentation") or []
        height, width = self.size
        try:
            if isinstance(told, list):
                whole = all(len(line) >= 6 and len(line) % 2 == 0 for line in told)
                if not whole or not all(map(_numbers, told)):
                    raise ValueError("a polygon of fewer than 3 pairs of numbers")
                return rle.fill(told, height, width)
            if list(told["size"]) != [height, width]:
                raise ValueError(f"size {told['size']}, where the picture has {self.size}")
            counts = told["counts"]
            return rle.decode(
                rle.from_text(counts) if isinstance(counts, str) else counts, height, width
            )
        except (ValueError, KeyError, TypeError, IndexError) as error:
            allowed = "polygons of 3 or more corners, or run lengths (size, counts) of the picture"
            raise _wrong(self.file, entry, f"has a segmentation with {error}", allowed) from error

    def _joints(self, entry: Annotation) -> np.typing.NDArray[np.float32]:
        assert self.kinds.skeleton is not None
        count = len(self.kinds.skeleton.names)
        told = entry.get("keypoints") or [0] * 3 * count
        if not _numbers(told) or len(told) != 3 * count or not set(told[2::3]) <= {0, 1, 2}:
            allowed = f"{count} times x, y and a visibility of 0, 1 or 2"
            raise _wrong(self.file, entry, f"has keypoints={told}", allowed)
        joints_J3 = np.array(told, np.float32).reshape(count, 3)
        return joints_J3 * 0 if entry.get("iscrowd") else joints_J3

    def _state(self, entry: Annotation) -> int:
        state = entry.get("attributes", {}).get("state")
        if state is None:
            return -1
        if state not in self.kinds.states:
            raise _wrong(self.file, entry, f"has state={state}", ", ".join(self.kinds.states))
        return self.kinds.states.index(state)


def _numbers(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, int | float) and isfinite(value) for value in values
    )


def _wrong(file: Path, entry: Annotation, what: str, allowed: str) -> UsageError:
    return refused(f"{file}: annotation {entry.get('id')}", what, allowed, "mend or remove it")
