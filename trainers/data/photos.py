"""Pictures to repaint and paintings to learn from: folders, or two photos and drawn ones.

The photos are those that scikit-learn bundles; only their files are read. A band in their middle is
held out, what is left and right of it is for training.

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dlplatform.errors import EnvironmentMissing, UsageError
from dlplatform.seeds import derive
from trainers.data.sampling import draw
from trainers.pictures.files import open_picture, read_fitted
from trainers.synth.paintings import painting
from trainers.synth.scenes import draw_scene

PHOTOS = ("china.jpg", "flower.jpg")
BANDS = {"train": ((0, 220), (440, 640)), "val": ((220, 440),), "test": ((220, 440),)}
"""Columns of the photos, of 640, that are for training and that are held out."""
CROP = (110, 190)
"""Smallest and largest side of a crop of the photos."""
KINDS = 4
"""One picture in so many is a drawn scene, the others are crops of the photos."""
HELD_OUT = {"val": 16, "test": 32}
WANTED = "a folder with content/ (10 pictures or more) and style/ (1 or more)"


@dataclass(frozen=True)
class Studio:
    """What a style transfer trains on.

    Args:
        data: folder with ``content`` and ``style``, or empty.
        side: pixels of the square pictures.
        paintings: how many to draw where no folder is given.
        seed: of what is drawn.
    """

    data: str
    side: int
    paintings: int
    seed: int

    @cached_property
    def style_BCHW(self) -> Tensor:
        """Return the paintings in [0, 1]."""
        if self.data:
            return _stacked([self._read(path) for path in _files(Path(self.data), "style", 1)])
        drawn = [
            painting(derive(self.seed, "painting", n), self.side) for n in range(self.paintings)
        ]
        return _stacked([image_HWC.transpose(2, 0, 1) for image_HWC in drawn])

    @cached_property
    def files(self) -> dict[str, list[Path]]:
        """Return the content files by split: every tenth is for the test, the next to validate."""
        found = _files(Path(self.data), "content", 10)
        kinds = {"test": found[::10], "val": found[1::10]}
        held = {path for paths in kinds.values() for path in paths}
        return {**kinds, "train": [path for path in found if path not in held]}

    def batch(self, number: int, count: int) -> Tensor:
        """Return the pictures of minibatch ``number`` in [0, 1]: x_BCHW."""
        if not self.data:
            return self._drawn("train", range(number * count, number * count + count))
        paths = self.files["train"]
        picked = draw(self.seed, number, count, len(paths)).tolist()
        return _stacked([self._read(paths[n]) for n in picked])

    def held_out(self, split: str) -> Tensor:
        """Return the pictures of ``val`` or ``test`` in [0, 1]: x_BCHW.

        Raises:
            UsageError: for another split.
        """
        if split not in HELD_OUT:
            raise UsageError(
                f"split={split} is not held out - allowed: {', '.join(HELD_OUT)} - do: take one"
            )
        if self.data:
            return _stacked([self._read(path) for path in self.files[split]])
        return self._drawn(split, range(HELD_OUT[split]))

    def _read(self, path: Path) -> NDArray[np.uint8]:
        return read_fitted(path, 3, self.side, self.side)

    def _drawn(self, split: str, numbers: range) -> Tensor:
        # Held-out pictures are the same for every seed.
        seed = self.seed if split == "train" else 0
        images = [self._one(split, n, derive(seed, split, n)) for n in numbers]
        return _stacked([image_HWC.transpose(2, 0, 1) for image_HWC in images])

    def _one(self, split: str, number: int, seed: int) -> NDArray[np.uint8]:
        if number % KINDS == KINDS - 1:
            drawn = Image.fromarray(draw_scene(seed).image_HWC)
            return np.asarray(drawn.resize((self.side, self.side), Image.Resampling.BOX))
        random = np.random.RandomState(seed % 2**32)
        photo = _photos()[number % KINDS % len(PHOTOS)]
        first, last = BANDS[split][random.randint(len(BANDS[split]))]
        size = random.randint(*CROP)
        left, top = random.randint(first, last - size + 1), random.randint(photo.height - size)
        box = (left, top, left + size, top + size)
        return np.asarray(photo.resize((self.side, self.side), Image.Resampling.BOX, box))


@lru_cache(maxsize=4)
def studio(data: str, side: int, paintings: int, seed: int) -> Studio:
    """Return what a style transfer trains on, read once."""
    return Studio(data, side, paintings, seed)


def _stacked(images: Sequence[NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.stack(images)) / 255


def _files(folder: Path, name: str, least: int) -> list[Path]:
    where = folder / name
    endings = set(Image.registered_extensions())
    found = sorted(path for path in where.glob("*") if path.suffix.lower() in endings)
    if len(found) < least:
        raise UsageError(
            f"task.data={folder} has {len(found)} pictures in {name} - allowed: {WANTED} - do: "
            f"put pictures into {where}"
        )
    return found


@lru_cache(maxsize=1)
def _photos() -> tuple[Image.Image, ...]:
    spec = find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise EnvironmentMissing(
            "the bundled photos are part of scikit-learn, which is not installed - "
            "pip install scikit-learn, or set task.data to a folder with content/ and style/"
        )
    folder = Path(spec.submodule_search_locations[0], "datasets", "images")
    return tuple(open_picture(folder / name, "RGB") for name in PHOTOS)
