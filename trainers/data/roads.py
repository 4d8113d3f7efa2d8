"""Road scenes in the folders of Cityscapes and of CamVid as SegNet's tutorial has it.

Shape legend: H height, W width, 3 RGB.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from dlplatform.errors import UsageError
from trainers.data.scenes import Bytes, Kinds, Scene, Scenes
from trainers.pictures.files import open_picture
from trainers.scores.segmentation import IGNORED

CITYSCAPES = Kinds(
    (
        *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light"),
        *("traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car", "truck"),
        *("bus", "train", "motorcycle", "bicycle"),
    ),
    (
        *((128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153)),
        *((153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152)),
        *((70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100)),
        *((0, 80, 100), (0, 0, 230), (119, 11, 32)),
    ),
    free=(0,),
)
CAMVID = Kinds(
    (
        *("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car"),
        *("pedestrian", "bicyclist"),
    ),
    (
        *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222)),
        *((128, 128, 0), (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0)),
        (0, 128, 192),
    ),
    free=(3,),
)
CAMVID_VOID = 11
HELD_OUT = 12
"""One in so many training pictures of Cityscapes is for validation; its own val is the test."""
IMAGE, LABELS = "_leftImg8bit.png", "_gtFine_labelTrainIds.png"
WANTED = (
    "leftImg8bit/{train,val} with gtFine/{train,val} (Cityscapes), or train, trainannot, val, "
    "valannot, test and testannot (CamVid)"
)
Pair = tuple[Path, Path]


@lru_cache(maxsize=4)
def load_roads(folder: str) -> dict[str, Scenes]:
    """Return the parts ``train``, ``val`` and ``test`` of a folder; pictures are read when asked.

    Raises UsageError for a folder of neither layout, or one with a file missing.
    """
    root = Path(folder)
    if (root / "leftImg8bit").is_dir():
        pairs, kinds = _cityscapes(root), CITYSCAPES
    elif (root / "trainannot").is_dir():
        pairs, kinds = {split: _camvid(root, split) for split in ("train", "val", "test")}, CAMVID
    else:
        raise UsageError(
            f"task.data={folder} has no folder leftImg8bit and none trainannot - "
            f"allowed: a folder with {WANTED} - check the path"
        )
    return {split: _scenes(some, kinds) for split, some in pairs.items()}


def _cityscapes(root: Path) -> dict[str, list[Pair]]:
    train, test = (_of_cities(root, split) for split in ("train", "val"))
    return {
        "train": [pair for n, pair in enumerate(train) if n % HELD_OUT],
        "val": train[::HELD_OUT],
        "test": test,
    }


def _of_cities(root: Path, split: str) -> list[Pair]:
    images = sorted((root / "leftImg8bit" / split).glob(f"*/*{IMAGE}"))
    of = {image: image.name.removesuffix(IMAGE) + LABELS for image in images}
    gone = "make them with createTrainIdLabelImgs.py of cityscapesScripts"
    return _whole(
        root / "leftImg8bit" / split,
        [(image, root / "gtFine" / split / image.parent.name / of[image]) for image in images],
        gone,
    )


def _camvid(root: Path, split: str) -> list[Pair]:
    images = sorted((root / split).glob("*.png"))
    pairs = [(image, root / f"{split}annot" / image.name) for image in images]
    return _whole(root / split, pairs, "copy the file, or remove its picture")


def _whole(folder: Path, pairs: list[Pair], remedy: str) -> list[Pair]:
    if not pairs:
        raise UsageError(f"{folder} has no pictures - allowed: a folder with {WANTED}")
    for image, labels in pairs:
        if not labels.is_file():
            raise UsageError(
                f"{labels} is not there - allowed: labels for every picture, here for "
                f"{image.name} - {remedy}"
            )
    return pairs


def _scenes(pairs: list[Pair], kinds: Kinds) -> Scenes:
    return Scenes(kinds, len(pairs), lambda index: _read(*pairs[index], kinds))


def _read(image_path: Path, label_path: Path, kinds: Kinds) -> Scene:
    image_HW3 = np.asarray(open_picture(image_path, "RGB"))
    labels_HW = _labels(label_path, kinds)
    if labels_HW.shape != image_HW3.shape[:2]:
        raise UsageError(
            f"{label_path} has {labels_HW.shape} pixels, its picture {image_HW3.shape[:2]} - "
            "allowed: the same size - do: make the labels again"
        )
    return image_HW3, labels_HW


def _labels(path: Path, kinds: Kinds) -> Bytes:
    labels_HW = np.array(open_picture(path))
    if labels_HW.ndim != 2 or labels_HW.dtype != np.uint8:
        raise UsageError(
            f"{path} has {labels_HW.ndim} axes of {labels_HW.dtype} - allowed: one grey or palette "
            "channel of 8 bits that holds class numbers - do: save it so"
        )
    if kinds is CAMVID:
        labels_HW[labels_HW == CAMVID_VOID] = IGNORED
    wrong = (labels_HW >= len(kinds)) & (labels_HW != IGNORED)
    if wrong.any():
        raise UsageError(
            f"{path} holds class {labels_HW[wrong][0]} - allowed: 0 to {len(kinds) - 1}, and "
            f"{IGNORED} for none - do: check the mapping of its classes"
        )
    return labels_HW
