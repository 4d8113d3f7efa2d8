"""Writing pictures with their objects in the layout of COCO, as ``load_coco`` reads them.

Besides what COCO has, categories tell ``mirrored`` and ``sigmas`` of their joints and the
``states`` of objects; other tools leave these aside.

Shape legend: N objects, J joints, H height, W width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from trainers.data import rle
from trainers.data.instances import Instances, InstanceSet, Kinds

DIGITS = 3
"""Digits after the point of coordinates."""


def write_coco(
    sets: Mapping[str, InstanceSet], folder: Path, what: str = "instances", most: int | None = None
) -> None:
    """Write sets as ``annotations/<what>_<name>.json`` and pictures ``<name>/000000.png`` ...

    ``most`` is how many pictures of each set are written, all by default. A mask without holes
    becomes polygons, others and those of ignored objects run lengths.
    """
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for name, pictures in sets.items():
        (folder / name).mkdir(exist_ok=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(len(pictures) if most is None else min(most, len(pictures))):
            image_HW3, true = pictures[number]
            file_name, (height, width) = f"{number:06d}.png", image_HW3.shape[:2]
            Image.fromarray(image_HW3).save(folder / name / file_name)
            images.append(
                {"id": number + 1, "file_name": file_name, "height": height, "width": width}
            )
            for index in range(len(true.boxes_N4)):
                told = {"id": len(annotations) + 1, "image_id": number + 1}
                annotations.append(told | _annotation(true, index, pictures.kinds))
        written = {
            "info": {"description": f"{name}, written by dlplatform"},
            "images": images,
            "annotations": annotations,
            "categories": _categories(pictures.kinds),
        }
        file = folder / "annotations" / f"{what}_{name}.json"
        file.write_text(json.dumps(written), encoding="utf-8")


def _categories(kinds: Kinds) -> list[dict[str, Any]]:
    more: dict[str, Any] = {}
    if kinds.skeleton:
        more = {
            "keypoints": kinds.skeleton.names,
            "skeleton": [(a + 1, b + 1) for a, b in kinds.skeleton.bones],
            "mirrored": kinds.skeleton.mirrored,
            "sigmas": kinds.skeleton.sigmas,
        }
    if kinds.states:
        more["states"] = kinds.states
    return [
        {"id": label + 1, "name": name, "supercategory": name} | more
        for label, name in enumerate(kinds.names)
    ]


def _annotation(true: Instances, index: int, kinds: Kinds) -> dict[str, Any]:
    x0, y0, x1, y1 = true.boxes_N4[index].tolist()
    ignored = true.ignored_N is not None and bool(true.ignored_N[index])
    told: dict[str, Any] = {
        "category_id": int(true.labels_N[index]) + 1,
        "bbox": [round(value, DIGITS) for value in (x0, y0, x1 - x0, y1 - y0)],
        "area": round((x1 - x0) * (y1 - y0), DIGITS),
        "iscrowd": int(ignored),
    }
    if true.masks_NHW is not None and true.masks_NHW[index].any():
        mask_HW = true.masks_NHW[index].numpy()
        told["segmentation"] = (None if ignored else rle.outline(mask_HW)) or {
            "size": list(mask_HW.shape),
            "counts": rle.to_text(rle.encode(mask_HW)),
        }
        told["area"] = int(mask_HW.sum())
    if true.joints_NJ3 is not None:
        joints = true.joints_NJ3[index].tolist()
        flat = [(round(x, DIGITS), round(y, DIGITS), int(seen)) for x, y, seen in joints]
        told["keypoints"] = [value for joint in flat for value in joint]
        told["num_keypoints"] = sum(seen > 0 for _, _, seen in joints)
    if true.states_N is not None and true.states_N[index] >= 0:
        told["attributes"] = {"state": kinds.states[int(true.states_N[index])]}
    return told
