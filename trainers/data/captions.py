"""Pictures with sentences about them, in the layout of COCO captions.

A folder has ``annotations/captions_<name>.json`` and beside it a folder ``<name>`` with the
pictures, for a ``<name>`` that begins with train and one that begins with val. The first half of
the latter is for validation, the second for the test. Format: https://cocodataset.org/#format-data
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dlplatform.errors import UsageError

WANTED = (
    "a folder with annotations/captions_train2017.json, annotations/captions_val2017.json, "
    "train2017/ and val2017/"
)


@dataclass(frozen=True)
class Captioned:
    """A picture file and the words of each sentence about it."""

    path: Path
    captions: tuple[tuple[str, ...], ...]


def words_of(sentence: str) -> tuple[str, ...]:
    """Return the words of a sentence in lower case, without marks."""
    return tuple(re.findall(r"\w+(?:'\w+)?", sentence.lower()))


@cache
def load_captions(folder: Path) -> dict[str, tuple[Captioned, ...]]:
    """Return what is in a COCO folder as ``train``, ``val`` and ``test``.

    Raises:
        UsageError: for a folder or a file that is not as COCO's.
    """
    if not folder.is_dir():
        raise UsageError(f"task.data={folder} is not a folder - allowed: {WANTED} - do: check it")
    train, held = _part(folder, "train"), _part(folder, "val")
    if len(held) < 2:
        raise UsageError(
            f"task.data={folder} has {len(held)} captioned pictures in val - allowed: 2 or more, "
            "half of them for the test - do: add pictures"
        )
    half = len(held) // 2
    return {"train": train, "val": held[:half], "test": held[half:]}


def _part(folder: Path, kind: str) -> tuple[Captioned, ...]:
    found = sorted(folder.glob(f"annotations/captions_{kind}*.json"))
    if not found:
        raise UsageError(
            f"task.data={folder} has no annotations/captions_{kind}*.json - allowed: {WANTED} - "
            "do: unpack the annotations of COCO there"
        )
    images = folder / found[0].stem.removeprefix("captions_")
    try:
        told = json.loads(found[0].read_text(encoding="utf-8"))
        names = {entry["id"]: str(entry["file_name"]) for entry in told["images"]}
        said: dict[Any, list[tuple[str, ...]]] = {}
        for entry in told["annotations"]:
            said.setdefault(entry["image_id"], []).append(words_of(entry["caption"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{found[0]} cannot be read ({type(error).__name__}: {error}) - allowed: COCO captions "
            "with images (id, file_name) and annotations (image_id, caption) - do: get it again"
        ) from error
    return tuple(
        Captioned(_there(images, names, number), tuple(filter(None, said[number])))
        for number in sorted(said)
        if any(said[number])
    )


def _there(images: Path, names: dict[Any, str], number: Any) -> Path:
    path = images / names.get(number, "")
    if number not in names or not path.is_file():
        raise UsageError(
            f"caption of image {number} has no picture {path} - allowed: every captioned picture "
            f"in {images} - do: unpack the pictures of COCO there"
        )
    return path
