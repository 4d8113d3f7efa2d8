"""Pictures in folders by class, as ImageNet comes: read when asked for, in fixed parts.

``root/{train,val,test}/class/*.jpg``, or ``root/class/*.jpg``, which is split here.

Shape legend: N pictures, B batch, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dlplatform.errors import UsageError
from trainers.data.digits import stratified
from trainers.data.readers import read_all
from trainers.pictures.files import ENDINGS, open_picture

PARTS = ("train", "val", "test")
LAYOUT = "root/class/*.jpg, or root/{train,val,test}/class/*.jpg"
VALIDATION, TEST = 0.1, 0.2
"""Shares of the pictures where the folders hold no such part."""
FEWEST = 10
"""Pictures that can be split into three parts."""


@dataclass(frozen=True)
class View:
    """How a picture becomes a square: its shorter side is scaled, and a square is cut out."""

    side: int
    """Of the square."""
    scale: tuple[int, int] = (0, 0)
    """Least and largest shorter side of a picture to train on (VGG has 256 and 512)."""


@dataclass(frozen=True)
class PictureFiles:
    """Files of RGB pictures with their labels and the names; like ``Samples``, but on disk."""

    paths: tuple[Path, ...]
    labels: Tensor
    names: tuple[str, ...]
    view: View

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return channels, height and width of a picture."""
        return 3, self.view.side, self.view.side

    def take(self, index: Tensor | slice) -> PictureFiles:
        """Return the pictures at some indices, in that order."""
        places = range(len(self))[index] if isinstance(index, slice) else index.tolist()
        paths = tuple(self.paths[place] for place in places)
        return replace(self, paths=paths, labels=self.labels[index])

    def pair(self) -> tuple[Tensor, Tensor]:
        """Return (x_BCHW in [0, 1], labels): the middle of every picture."""
        return self._read([(0.0, 0.5, 0.5)] * len(self))

    def crops(self, seed: int) -> tuple[Tensor, Tensor]:
        """Return (x_BCHW in [0, 1], labels): squares cut at random from pictures scaled at random.

        Scales are drawn evenly, as in VGG (section 3.1.2).
        """
        draws = torch.rand(len(self), 3, generator=torch.Generator().manual_seed(seed))
        return self._read([(a, b, c) for a, b, c in draws.tolist()])

    def _read(self, places: list[tuple[float, float, float]]) -> tuple[Tensor, Tensor]:
        def square(picture: tuple[Path, tuple[float, float, float]]) -> NDArray[np.uint8]:
            path, at = picture
            return _square(path, self.view, *at)

        x_BHWC = np.stack(read_all(square, zip(self.paths, places, strict=True)))
        return torch.from_numpy(x_BHWC).movedim(-1, 1) / 255, self.labels


def _square(path: Path, view: View, scale: float, right: float, down: float) -> NDArray[np.uint8]:
    picture = open_picture(path, "RGB")
    least, most = (max(size, view.side) for size in view.scale)
    shorter = round(least + scale * (most - least))
    # Cutting first and scaling the cut is the same, and quicker than scaling all of a photograph.
    width, height = picture.size
    cut = view.side / shorter * min(width, height)
    left, top = (width - cut) * right, (height - cut) * down
    box = (left, top, left + cut, top + cut)
    size = (view.side, view.side)
    return np.asarray(picture.resize(size, Image.Resampling.BILINEAR, box=box))


@cache
def load_folders(root: Path, view: View) -> dict[str, PictureFiles]:
    """Return the parts ``train``, ``val`` and ``test`` of pictures in folders.

    Without a folder ``test`` the pictures of ``val`` are the test (as for ImageNet, whose test
    labels are secret), and a tenth of ``train`` becomes ``val``. The split is fixed.

    Raises:
        UsageError: for a folder that is laid out in no such way.
    """
    if not root.is_dir():
        raise UsageError(f"task.data={root} is not a folder - allowed: {LAYOUT} - check the path")
    if not (root / "train").is_dir():
        whole = _listed(root, view, _classes(root))
        if len(whole) < FEWEST:
            raise _bad(root, f"has {len(whole)} pictures, too few for three parts")
        sizes = [int(len(whole) * TEST), int(len(whole) * VALIDATION)]
        test, val, train = map(whole.take, stratified(whole.labels, sizes))
        return {"train": train, "val": val, "test": test}
    names = _classes(root / "train")
    given = [part for part in PARTS if (root / part).is_dir()]
    parts = {part: _listed(root / part, view, names) for part in given}
    if "test" not in parts and "val" in parts:
        parts["test"] = parts.pop("val")
    if "test" not in parts:
        raise _bad(root, "has a folder train, but neither val nor test")
    if "val" not in parts:
        train = parts["train"]
        val, rest = map(
            train.take, stratified(train.labels, [max(1, int(len(train) * VALIDATION))])
        )
        parts |= {"train": rest, "val": val}
    return parts


def _classes(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != "."))
    if len(names) < 2:
        raise _bad(folder, f"has {len(names)} folders of classes, where 2 or more are needed")
    return names


def _listed(folder: Path, view: View, names: tuple[str, ...]) -> PictureFiles:
    if strange := set(_classes(folder)) - set(names):
        raise _bad(folder, f"has a class {min(strange)}, which the folder train lacks")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        inside = sorted((folder / name).glob("*"))
        found = [path for path in inside if path.suffix.lower() in ENDINGS]
        if not found:
            raise _bad(folder, f"has no pictures in its class {name}")
        paths += found
        labels += [label] * len(found)
    return PictureFiles(tuple(paths), torch.tensor(labels), names, view)


def _bad(folder: Path, what: str) -> UsageError:
    endings = " ".join(sorted(ENDINGS))
    return UsageError(
        f"task.data: {folder} {what} - allowed: {LAYOUT} - do: put each class in a folder of its "
        f"name, its pictures ({endings}) directly inside"
    )
