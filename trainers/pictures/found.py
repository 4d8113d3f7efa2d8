"""What a detector found in a user's file: as records, and drawn into files beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trainers.data.instances import Found, Kinds
from trainers.data.rle import encode, to_text
from trainers.data.scenes import Bytes
from trainers.pictures.files import open_picture, writing
from trainers.pictures.instances import draw_objects

FOLDER = "found"
"""Beside the pictures."""


def told(found: Found, kinds: Kinds) -> list[dict[str, Any]]:
    """Return what was found as JSON-ready records, the surest first; masks are COCO's RLE."""
    return [_record(found, kinds, number) for number in range(len(found.labels_N))]


def answer_file(raw: Path, look: Callable[[Bytes], Found], kinds: Kinds) -> dict[str, Any]:
    """Return the records of a picture's objects, and the path of the picture they are drawn on."""
    image_HW3 = np.array(open_picture(raw, "RGB"))
    found, folder = look(image_HW3), raw.parent / FOLDER
    path = folder / f"{raw.stem}_found.png"
    with writing(folder):
        draw_objects(image_HW3, found, kinds, 0.0).save(path)
    return {"objects": told(found, kinds), "picture": str(path)}


def _record(found: Found, kinds: Kinds, number: int) -> dict[str, Any]:
    record: dict[str, Any] = {
        "kind": kinds.names[int(found.labels_N[number])],
        "score": round(float(found.scores_N[number]), 4),
        "box": [round(value, 1) for value in found.boxes_N4[number].tolist()],
    }
    if found.states_NS is not None and kinds.states:
        chance, state = found.states_NS[number].max(0)
        record["state"], record["sure"] = kinds.states[int(state)], round(float(chance), 4)
    if found.joints_NJ3 is not None and kinds.skeleton:
        rows = [[round(value, 3) for value in row] for row in found.joints_NJ3[number].tolist()]
        record["joints"] = dict(zip(kinds.skeleton.names, rows, strict=True))
    if found.masks_NHW is not None:
        mask_HW = found.masks_NHW[number].numpy()
        record["mask"] = {"size": list(mask_HW.shape), "counts": to_text(encode(mask_HW))}
    return record
