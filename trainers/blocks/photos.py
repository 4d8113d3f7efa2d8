"""What classifiers of colour pictures share: the data, its augmentation, SGD and its rate.

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dlplatform.seeds import derive
from dlplatform.task import Models
from trainers.blocks.classifier import Classifier, Pair
from trainers.blocks.settings import check
from trainers.blocks.supervised import cosine

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from trainers.data.samples import PictureSet

COUNTS = {"train": 4000, "val": 500, "test": 1000}
"""Procedural pictures of each part."""
SMALLEST = 32


@dataclass
class Photos(Classifier):
    """A classifier of RGB pictures: shapes with textures, CIFAR-10, or folders of photographs."""

    data: str = ""
    """Folder of CIFAR-10 (either version) or of pictures by class; empty: drawn shapes."""
    side: int = 32
    """Height and width of the pictures; CIFAR-10 has 32."""
    shorter: int = 0
    """Train on squares out of pictures whose shorter side is scaled to this (0: to the side) ..."""
    longest: int = 0
    """... up to this, drawn for each picture (0: always to the least)."""
    width: float = 1.0
    """Factor on the channels of all layers."""
    centred: bool = True
    """Take its mean colour off every picture before the first layer."""
    augment: bool = True
    """Mirror, shift and tint the training pictures at random."""
    momentum: float = 0.9
    """Of SGD."""
    decay: float = 5e-4
    """Weight decay."""
    schedule: str = "cosine"
    """Of the rate: cosine, or steps: a tenth after a half and again after three quarters."""
    warmup: float = 0.05
    """Share of the run in which the rate of the cosine rises to its peak."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        super().__post_init__()
        check("side", self.side, self.side >= SMALLEST, f"{SMALLEST} or more")
        check("shorter", self.shorter, self.shorter >= 0, "0 or more")
        good = self.longest == 0 or self.longest >= max(self.shorter, self.side)
        check("longest", self.longest, good, "0, or at least side and shorter")
        check("width", self.width, self.width > 0, "above 0")
        check("momentum", self.momentum, 0 <= self.momentum < 1, "0 up to, not including, 1")
        check("decay", self.decay, self.decay >= 0, "0 or more")
        check("schedule", self.schedule, self.schedule in ("cosine", "steps"), "cosine or steps")
        check("warmup", self.warmup, 0 <= self.warmup < 1, "0 up to, not including, 1")

    def samples(self, split: str) -> PictureSet:
        """Return the pictures of a part."""
        check("split", split, split in COUNTS, ", ".join(COUNTS))
        if not self.data:
            from trainers.synth.shapes_textures import shapes_textures

            return shapes_textures(derive(self.seed, split), COUNTS[split], self.side)
        from trainers.data.cifar import cifar_folder, load_cifar
        from trainers.data.folders import View, load_folders

        if cifar := cifar_folder(Path(self.data)):
            check("side", self.side, self.side == SMALLEST, f"{SMALLEST}, with CIFAR-10")
            return load_cifar(cifar)[split]
        return load_folders(
            Path(self.data), View(self.side, (self.shorter, max(self.shorter, self.longest)))
        )[split]

    def models(self) -> Models:
        """Build the network."""
        from trainers.nets.backbone import Centred

        models = super().models()
        if self.centred:
            models["net"].inputs = Centred()
        return models

    @property
    def classes(self) -> int:
        """Return the number of classes."""
        return len(self.samples("train").names)

    def pair(self, part: PictureSet, number: int) -> Pair:
        """Return the pictures of minibatch ``number``: of files squares cut at random."""
        from trainers.data.folders import PictureFiles

        if self.augment and isinstance(part, PictureFiles):
            return part.crops(derive(self.seed, "crops", number))
        return super().pair(part, number)

    def augmented(self, x_BCHW: Tensor, number: int) -> Tensor:
        """Mirror, shift and tint the pictures at random, if so configured."""
        from trainers.synth.augment import mirror_shift_tint

        if not self.augment:
            return x_BCHW
        # Squares of files were already cut at random.
        pixels = 0 if self.shorter else self.side // 8
        return mirror_shift_tint(x_BCHW, derive(self.seed, "augment", number), pixels)

    def optimizer(self, group: str, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return SGD with momentum and weight decay."""
        from torch.optim import SGD

        return SGD(parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.decay)

    def rate(self, progress: float) -> float:
        """Follow the schedule."""
        if self.schedule == "steps":
            return float(0.1 ** sum(progress >= share for share in (0.5, 0.75)))
        return cosine(progress, self.warmup)
