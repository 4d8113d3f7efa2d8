"""Blurring of regions of a picture, so that plates and faces in it cannot be recognised.

Every pixel outside the regions stays as it was, bit by bit; what was done is told.

Shape legend: H height, W width, 3 RGB, N regions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from trainers.data.instances import Found, Kinds
from trainers.data.scenes import Bytes
from trainers.pictures.files import writing

METHODS = ("gauss", "mosaic")
FOLDER, LOG = "blurred", "audit.jsonl"
STRENGTH = 0.25
"""Deviation of the Gaussian as a share of a region's shorter side."""
CELLS = 3
"""Of a mosaic along the shorter side of a region."""


@dataclass(frozen=True)
class Blur:
    """How regions are made unrecognisable."""

    method: str = "gauss"
    """gauss or mosaic."""
    grow: float = 0.1
    """Share of its sides by which a region is enlarged; the added part fades out."""


def blurred(image_HW3: Bytes, found: Found, how: Blur | None = None) -> Bytes:
    """Return a picture whose regions are blurred; what lies outside of them is not touched."""
    how, made_HW3 = how or Blur(), image_HW3.copy()
    for box_4 in found.boxes_N4.tolist():
        left, top, right, bottom = _edges(box_4, how.grow, image_HW3.shape[:2])
        if right <= left or bottom <= top:
            continue
        part_HW3 = made_HW3[top:bottom, left:right]
        soft_HW3 = _soft(part_HW3, how.method)
        share_HW1 = _share(box_4, (left, top, right, bottom))[..., None]
        mixed_HW3 = part_HW3 * (1 - share_HW1) + soft_HW3 * share_HW1
        made_HW3[top:bottom, left:right] = mixed_HW3.round().astype(np.uint8)
    return made_HW3


def audit(
    found: Found, kinds: Kinds, size: tuple[int, int], how: Blur | None = None
) -> list[dict[str, Any]]:
    """Return a record of every region that is blurred in a picture of (height, width)."""
    how = how or Blur()
    rows = zip(
        found.labels_N.tolist(), found.scores_N.tolist(), found.boxes_N4.tolist(), strict=True
    )
    return [
        {
            "kind": kinds.names[label],
            "score": round(score, 4),
            "box": [round(edge, 1) for edge in box_4],
            "blurred": list(_edges(box_4, how.grow, size)),
            "method": how.method,
        }
        for label, score, box_4 in rows
    ]


def write_blurred(
    raw: Path, image_HW3: Bytes, found: Found, kinds: Kinds, how: Blur
) -> dict[str, Any]:
    """Write a picture file's blurred picture and a line of what was done; return both.

    They are in the folder ``blurred`` beside it: a PNG, which keeps nothing of the camera's notes,
    and a line of JSON in ``audit.jsonl``, instead of an older one of the same file.
    """
    folder = raw.parent / FOLDER
    path, log = folder / f"{raw.stem}.png", folder / LOG
    regions = audit(found, kinds, image_HW3.shape[:2], how)
    record = {"file": raw.name, "picture": path.name, "regions": regions}
    with writing(folder):
        Image.fromarray(blurred(image_HW3, found, how)).save(path)
        lines = log.read_text().splitlines() if log.exists() else []
        lines = [line for line in lines if json.loads(line)["file"] != raw.name]
        log.write_text("\n".join([*lines, json.dumps(record)]) + "\n")
    return {"regions": regions, "picture": str(path), "audit": str(log)}


def _edges(box_4: list[float], grow: float, size: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Return the whole pixels (left, top, right, bottom) of an enlarged box in the picture."""
    x0, y0, x1, y1 = box_4
    wide, high = grow * (x1 - x0) / 2, grow * (y1 - y0) / 2
    return (
        max(0, int(np.floor(x0 - wide))),
        max(0, int(np.floor(y0 - high))),
        min(size[1], int(np.ceil(x1 + wide))),
        min(size[0], int(np.ceil(y1 + high))),
    )


def _soft(part_HW3: Bytes, method: str) -> Bytes:
    height, width = part_HW3.shape[:2]
    picture, shorter = Image.fromarray(part_HW3), min(height, width)
    if method == "mosaic":
        cells = max(1, round(CELLS * width / shorter)), max(1, round(CELLS * height / shorter))
        small = picture.resize(cells, Image.Resampling.BOX)
        return np.array(small.resize((width, height), Image.Resampling.NEAREST))
    return np.array(picture.filter(ImageFilter.GaussianBlur(max(1.0, STRENGTH * shorter))))


def _share(box_4: list[float], edges: tuple[int, int, int, int]) -> NDArray[np.float64]:
    """Return how much of each pixel is replaced: all in the box, and less and less around it."""
    along = []
    for low, high, begin, end in (
        (box_4[0], box_4[2], edges[0], edges[2]),
        (box_4[1], box_4[3], edges[1], edges[3]),
    ):
        place = np.arange(begin, end) + 0.5
        outside = np.maximum(np.maximum(np.floor(low) - place, place - np.ceil(high)), 0)
        reach = max(np.floor(low) - begin, end - np.ceil(high), 0) + 1
        along.append(1 - outside / reach)
    share_HW: NDArray[np.float64] = np.minimum(along[1][:, None], along[0][None])
    return share_HW.clip(0, 1)
