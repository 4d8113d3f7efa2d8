"""Small folders of drawn pictures with objects, in the public formats of detectors."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from trainers.data.coco_writing import write_coco
from trainers.synth.faces_scene import face_scenes
from trainers.synth.human_scenes import people as crowds
from trainers.synth.objects import objects
from trainers.synth.panorama import panoramas

COUNTS = {"train": 16, "val": 8}
SIDE, KINDS = 480, 20
"""About the size of COCO's pictures, and as many kinds as PASCAL VOC has."""


def coco(root: Path) -> Path:
    """Write objects with their outlines in the layout of COCO."""
    sets = {part: objects(n, count, KINDS, SIDE) for n, (part, count) in enumerate(COUNTS.items())}
    write_coco(sets, root)
    return root


def streets(root: Path) -> Path:
    """Write wide streets with plates and faces in the layout of COCO."""
    write_coco({part: panoramas(n, count) for n, (part, count) in enumerate(COUNTS.items())}, root)
    return root


def people(root: Path) -> Path:
    """Write people with joints, masks and states in the layout of COCO's keypoints."""
    sets = {part: crowds(n, count, SIDE) for n, (part, count) in enumerate(COUNTS.items())}
    write_coco(sets, root, "person_keypoints")
    return root


def wider_face(root: Path) -> Path:
    """Write scenes with faces in the layout of WIDER FACE."""
    (root / "wider_face_split").mkdir()
    for seed, (part, count) in enumerate(COUNTS.items()):
        scenes, lines = face_scenes(seed, count, SIDE), list[str]()
        home = root / f"WIDER_{part}" / "images" / "0--Street"
        home.mkdir(parents=True)
        for number in range(count):
            image_HW3, truth = scenes[number]
            Image.fromarray(image_HW3).save(home / f"{number}.jpg", quality=90)
            corners = [[round(value) for value in box] for box in truth.boxes_N4.tolist()]
            rows = [f"{a} {b} {c - a} {d - b} 0 0 0 0 0 0" for a, b, c, d in corners]
            rows = rows or ["0 0 0 0 0 0 0 0 0 0"]
            lines += [f"0--Street/{number}.jpg", str(len(corners)), *rows]
        named = root / "wider_face_split" / f"wider_face_{part}_bbx_gt.txt"
        named.write_text("\n".join(lines) + "\n")
    return root
