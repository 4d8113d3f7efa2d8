"""Source and target of few-shot retrieval: glyphs and real digits, or two folders of classes.

Shape legend: N pictures, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dlplatform.errors import UsageError
from dlplatform.seeds import derive
from trainers.blocks.maml import Labelled
from trainers.data.class_folders import load_class_folders, pictures_in
from trainers.data.digits import from_ink, load_digits, stratified
from trainers.data.meta import MetaDataset
from trainers.data.readers import read_all
from trainers.data.samples import Samples
from trainers.pictures.files import read_fitted
from trainers.pictures.ink import read_ink
from trainers.retrieval.device import Database
from trainers.synth.glyphs import draw_glyphs

GLYPHS, EACH = 72, 16
HELD_OUT = 8
"""One in so many classes of the source is never trained on, only measured; two at least."""


class Draw(NamedTuple):
    """A few labelled pictures to adapt to, and the rest, of which each asks for the others."""

    support: Labelled
    rest: Labelled

    @staticmethod
    def of(samples: Samples, few: Tensor, rest: Tensor) -> Draw:
        """Return a draw from the indices of its parts."""
        return Draw(*(Labelled(*samples.take(part).pair()) for part in (few, rest)))


@dataclass(frozen=True)
class Domains:
    """Where pictures come from and what size they have."""

    data: str
    side: int
    channels: int
    seed: int

    def source(self) -> dict[str, Samples]:
        """Return dataset 1 by part: ``train`` classes, and ``val`` classes held out."""
        return _source(self)

    def target(self) -> dict[str, Samples]:
        """Return dataset 2 by part: other pictures of the same classes in each."""
        return _target(self)

    def database(self, folder: str = "") -> Database:
        """Return what is searched: the pictures of a folder, or the test pictures with classes."""
        if folder:
            files = pictures_in(Path(folder))
            x_NCHW = torch.stack(read_all(self.read, files))
            return Database(x_NCHW, tuple(str(path) for path in files))
        test = self.target()["test"]
        names = tuple(f"test/{place}" for place in range(len(test)))
        if self.data:
            files = pictures_in(Path(self.data, "target"))
            part = _parts(load_class_folders(Path(self.data, "target"), self.channels, self.side))
            names = tuple(str(files[place]) for place in part["test"].tolist())
        return Database(test.pair()[0], names, tuple(test.names[k] for k in test.labels.tolist()))

    def read(self, path: Path) -> Tensor:
        """Return a user's picture (C, H, W) like those of the target."""
        if self.data:
            return torch.tensor(read_fitted(path, self.channels, self.side, self.side)) / 255
        digit_HW = from_ink(read_ink(path), native=True)
        return _resized(digit_HW[None, None] / 255, self.side)[0]


@lru_cache(maxsize=4)
def _source(of: Domains) -> dict[str, Samples]:
    if of.data:
        everything = load_class_folders(Path(of.data, "source"), of.channels, of.side)
    else:
        x_NHW, labels = draw_glyphs(derive(of.seed, "glyphs"), GLYPHS, EACH, of.side)
        names = tuple(f"glyph {k}" for k in range(GLYPHS))
        everything = Samples(x_NHW[:, None], labels, names)
    classes = len(everything.names)
    if classes < 4:
        raise UsageError(
            f"task.data={of.data} has {classes} classes in source - allowed: 4 or more, two of "
            "them are held out - do: add classes"
        )
    held = everything.labels >= classes - max(classes // HELD_OUT, 2)
    return {"train": everything.take(~held), "val": everything.take(held)}


@lru_cache(maxsize=4)
def _target(of: Domains) -> dict[str, Samples]:
    if not of.data:
        return {
            name: Samples(_resized(part.pair()[0], of.side), part.labels, part.names)
            for name, part in load_digits().items()
        }
    everything = load_class_folders(Path(of.data, "target"), of.channels, of.side)
    MetaDataset(_source(of)["train"]).shared_classes(MetaDataset(everything))
    return {name: everything.take(part) for name, part in _parts(everything).items()}


def _parts(everything: Samples) -> dict[str, Tensor]:
    """Return the indices of each part: half is for the test, the classes in proportion."""
    count = len(everything)
    parts = stratified(everything.labels, [count // 2, count // 4])
    return dict(zip(("test", "val", "train"), parts, strict=True))


def stacked(sets: Sequence[Samples]) -> Labelled:
    """Return sets of one size as one minibatch."""
    pictures, labels = zip(*(one.pair() for one in sets), strict=True)
    return Labelled(torch.stack(pictures), torch.stack(labels))


def _resized(x_NCHW: Tensor, side: int) -> Tensor:
    return functional.interpolate(
        x_NCHW, size=(side, side), mode="bilinear", antialias=True, align_corners=False
    )
