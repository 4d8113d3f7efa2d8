"""Pictures with faces in the layout of WIDER FACE, with RetinaFace's landmarks where they are.

For each of train and val a folder has ``WIDER_<part>/images`` and
``wider_face_split/wider_face_<part>_bbx_gt.txt``, or ``<part>/images`` and ``<part>/label.txt``
(boxes and five landmarks, as RetinaFace ships them). The second half of val is the test, since
WIDER FACE keeps the labels of its own. Faces that it calls invalid are ignored.
Formats: readme.txt of wider_face_split; https://github.com/biubug6/Pytorch_Retinaface

Shape legend: N faces, J landmarks, H height, W width, 3 RGB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from pathlib import Path

import numpy as np
import torch

from dlplatform.errors import UsageError
from trainers.data.instances import HIDDEN, SEEN, Instances, InstanceSet, Kinds, clipped, refused
from trainers.data.parts import halves
from trainers.data.scenes import Bytes
from trainers.data.skeletons import FACES
from trainers.pictures.files import ENDINGS, open_picture

INVALID = 7
"""Column of a face's line in WIDER FACE: x, y, width, height, blur, expression, light, invalid."""
COLUMNS = 10
BOX = 4
LANDMARKS = 3 * len(FACES.names)
WANTED = (
    "WIDER_{train,val}/images with wider_face_split/wider_face_{train,val}_bbx_gt.txt, or "
    "{train,val}/images with {train,val}/label.txt"
)
Numbers = tuple[float, ...]


@dataclass(frozen=True)
class _Shown:
    path: Path
    faces: tuple[tuple[int, Numbers], ...]
    """The number of the line and what it says, for each face."""


@dataclass(frozen=True)
class _Part:
    file: Path
    landmarks: bool
    shown: Sequence[_Shown]


@lru_cache(maxsize=4)
def load_faces(folder: str) -> dict[str, InstanceSet]:
    """Return the parts ``train``, ``val`` and ``test``; pictures are read when asked for.

    Raises:
        UsageError: for a folder or a file of neither layout, now or when a picture is read.
    """
    root = Path(folder)
    train, held = _part(root, "train"), _part(root, "val")
    val, test = halves(held.shown, str(held.file))
    skeleton = FACES if train.landmarks or held.landmarks else None
    kinds = Kinds(("face",), ((60, 220, 255),), skeleton)
    parts = {"train": (train, train.shown), "val": (held, val), "test": (held, test)}
    return {name: _set(shown, part, kinds) for name, (part, shown) in parts.items()}


def _part(root: Path, part: str) -> _Part:
    marked = root / part / "label.txt"
    boxed = root / "wider_face_split" / f"wider_face_{part}_bbx_gt.txt"
    file = next(filter(Path.is_file, (marked, boxed)), None)
    images = next(
        filter(Path.is_dir, (root / part / "images", root / f"WIDER_{part}" / "images")), None
    )
    if file is None or images is None:
        lacks = f"has {'no pictures' if file else 'no list of faces'} for {part}"
        raise refused(f"task.data={root}", lacks, WANTED, "unpack the files of WIDER FACE there")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise refused(file, f"cannot be read ({error})", "lines of text", "get it again") from error
    found = _with_landmarks(file, lines) if file == marked else _with_counts(file, lines)
    shown = [_Shown(images / name, faces) for name, faces in found]
    if not shown:
        raise refused(file, "names no pictures", "one or more with their faces", "get it again")
    for one in shown:
        if not one.path.is_file():
            allowed = "every picture of the list"
            raise refused(one.path, f"is not there ({file.name})", allowed, "unpack the pictures")
    marks = any(len(numbers) > COLUMNS for one in shown for _, numbers in one.faces)
    return _Part(file, marks, shown)


Entry = tuple[str, tuple[tuple[int, Numbers], ...]]


def _with_counts(file: Path, lines: list[str]) -> Iterator[Entry]:
    """Yield a picture's name and its faces, whose count stands between them."""
    at = 0
    while at < len(lines):
        name, count = lines[at].strip(), lines[at + 1].strip() if at + 1 < len(lines) else ""
        if Path(name).suffix.lower() not in ENDINGS or not count.isdecimal():
            allowed = "the file of a picture, and below the number of its faces"
            raise _wrong(file, at + 1, f"has {name!r} with {count!r} below", allowed)
        first, last = at + 2, at + 2 + int(count)
        if last > len(lines):
            allowed = "a line for each face"
            raise _wrong(file, at + 2, f"tells of {count} faces, more than lines follow", allowed)
        faces = [(n + 1, _numbers(file, n + 1, lines[n], (COLUMNS,))) for n in range(first, last)]
        yield name, tuple(faces)
        # A picture without faces has a line of zeros.
        empty = int(count) == 0 and first < len(lines) and not lines[first].strip(" 0")
        at = last + empty


def _with_landmarks(file: Path, lines: list[str]) -> Iterator[Entry]:
    """Yield a picture's name after ``#`` and the faces in the lines below it."""
    name, faces = "", list[tuple[int, Numbers]]()
    for number, line in enumerate(lines, 1):
        if line.startswith("#"):
            if name:
                yield name, tuple(faces)
            name, faces = line[1:].strip(), []
        elif line.strip():
            if not name:
                raise _wrong(file, number, "tells of a face before any picture", "# and a file")
            lengths = (BOX, BOX + LANDMARKS, BOX + LANDMARKS + 1)
            faces.append((number, _numbers(file, number, line, lengths)))
    if name:
        yield name, tuple(faces)


def _numbers(file: Path, number: int, line: str, lengths: tuple[int, ...]) -> Numbers:
    try:
        values = tuple(map(float, line.split()))
    except ValueError:
        values = ()
    if len(values) not in lengths or not all(map(isfinite, values)) or min(values[2:4]) < 0:
        allowed = f"{' or '.join(map(str, lengths))} numbers: x, y, width, height and more"
        raise _wrong(file, number, f"has {line.strip()!r}", allowed)
    return values


def _set(shown: Sequence[_Shown], part: _Part, kinds: Kinds) -> InstanceSet:
    def read(index: int) -> tuple[Bytes, Instances]:
        image_HW3 = np.asarray(open_picture(shown[index].path, "RGB"))
        faces = [numbers for _, numbers in shown[index].faces]
        boxes = [(x, y, x + wide, y + high) for x, y, wide, high, *_ in faces]
        boxes_N4, there_N = clipped(boxes, (image_HW3.shape[0], image_HW3.shape[1]))
        kept = [face for face, there in zip(faces, there_N.tolist(), strict=True) if there]
        ignored = [len(face) == COLUMNS and face[INVALID] == 1 for face in kept]
        joints_NJ3 = np.array([_landmarks(face) for face in kept], np.float32)
        return image_HW3, Instances(
            boxes_N4,
            torch.zeros(len(kept), dtype=torch.int64),
            joints_NJ3=torch.from_numpy(joints_NJ3) if kinds.skeleton and kept else None,
            ignored_N=torch.tensor(ignored) if any(ignored) else None,
        )

    return InstanceSet(kinds, len(shown), read)


def _landmarks(face: Numbers) -> list[tuple[float, float, float]]:
    """Return x, y and visibility: RetinaFace has 0 for seen, 1 for hidden and -1 for unknown."""
    if len(face) <= COLUMNS:
        return [(0, 0, 0)] * len(FACES.names)
    told = face[BOX : BOX + LANDMARKS]
    threes = zip(told[::3], told[1::3], told[2::3], strict=True)
    return [(0, 0, 0) if flag < 0 else (x, y, HIDDEN if flag else SEEN) for x, y, flag in threes]


def _wrong(file: Path, number: int, what: str, allowed: str) -> UsageError:
    return refused(f"{file}: line {number}", what, allowed, "get the file again")
