"""Reader of a folder with a folder of pictures for each class, at any depth.

``root/class/image.png`` as most sets of pictures come (ImageFolder, CUB-200-2011, Cars-196),
and ``root/alphabet/character/image.png`` as Omniglot does: every folder that holds pictures is a
class, named by its path.

Shape legend: N pictures, C channels, H height, W width.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from dlplatform.errors import UsageError
from trainers.data.readers import read_all
from trainers.data.samples import Samples
from trainers.pictures.files import ENDINGS, read_fitted

SHAPE = "root/class/image or root/alphabet/character/image"


def pictures_in(folder: Path) -> list[Path]:
    """Return all pictures below a folder, sorted; raises UsageError where there are none."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder - allowed: {SHAPE} - do: name one that is")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    if not files:
        raise UsageError(
            f"{folder} holds no pictures - allowed: {SHAPE}, {' '.join(sorted(ENDINGS))} - "
            "do: name another folder"
        )
    return files


@lru_cache(maxsize=4)
def load_class_folders(folder: Path, channels: int, side: int) -> Samples:
    """Return all pictures as uint8 (N, C, side, side), with the names of their classes.

    Raises UsageError for a folder without at least two classes, or with a broken picture.
    """
    files = pictures_in(folder)
    classes = [path.parent.relative_to(folder).as_posix() for path in files]
    names = tuple(sorted(set(classes)))
    if "." in names:
        raise UsageError(
            f"{files[classes.index('.')]} is in no class - allowed: {SHAPE} - "
            "do: move it into the folder of its class"
        )
    if len(names) < 2:
        raise UsageError(
            f"{folder} has one class ({names[0]}) - allowed: two or more - do: add another"
        )
    images_NCHW = np.stack(read_all(lambda path: read_fitted(path, channels, side, side), files))
    labels = torch.tensor([names.index(name) for name in classes])
    return Samples(torch.from_numpy(images_NCHW), labels, names)
