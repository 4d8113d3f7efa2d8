"""zoo/vgg: rows of 3x3 convolutions and poolings, then fully connected layers, name a picture.

    dlp train task=zoo/vgg workers=2 rule=ssgd
    dlp train task=zoo/vgg task.data=/data/flowers task.side=64 task.width=0.5 task.depth=16

The net is ``trainers/nets/vgg.py``, which other tasks use for its named layers.

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from dlplatform.task import task
from trainers.blocks.photos import Photos
from trainers.blocks.settings import check

if TYPE_CHECKING:
    from torch import nn

    from trainers.data.samples import PictureSet

DEPTHS = (11, 13, 16, 19)


@task("zoo/vgg")
@dataclass
class VggPictures(Photos):
    """Ten classes of shapes with textures in 32x32 RGB, CIFAR-10, or folders of photographs.

    A batch is a pair (x_BCHW in [0, 1], labels). By default VGG-11 with an eighth of the channels.
    """

    source: ClassVar[str] = "Simonyan and Zisserman, Very Deep Convolutional Networks (ICLR 2015)"
    parameters: ClassVar[int] = 171_370
    expected: ClassVar[str] = "0.91"
    title: ClassVar[str] = "Pictures named by VGG"

    batch_size: int = 32
    minibatches: int = 4000
    lr: float = 0.02
    width: float = 0.125
    depth: int = 11
    """Layers with weights: 11, 13, 16 or 19."""
    norm: bool = True
    """BatchNorm after every convolution; the paper has none."""
    hidden: int = 128
    """Units of both hidden fully connected layers; the paper has 4096."""
    dropout: float = 0.0
    """Share of the hidden units left out in training; the paper has 0.5."""
    dense: int = 0
    """Score and name larger squares of a folder's pictures, this high and wide: the classifier
    looks at all places and its answers are averaged. 0: squares as in training."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        super().__post_init__()
        check("depth", self.depth, self.depth in DEPTHS, ", ".join(map(str, DEPTHS)))
        check("hidden", self.hidden, self.hidden >= 1, "1 or more")
        good = self.dense == 0 or self.dense >= self.side
        check("dense", self.dense, good, f"0, or {self.side} and more")
        check("dropout", self.dropout, 0 <= self.dropout < 1, "0 up to, not including, 1")

    def samples(self, split: str) -> PictureSet:
        """Return the pictures of a part; those that are only scored may be larger."""
        from trainers.data.folders import PictureFiles

        part = super().samples(split)
        if self.dense and split != "train" and isinstance(part, PictureFiles):
            return replace(part, view=replace(part.view, side=self.dense))
        return part

    def network(self) -> nn.Module:
        """Build the network; its linear layers fit pictures of ``side``."""
        from trainers.nets.vgg import VGG, Head

        head = Head(self.classes, self.hidden, self.side, self.dropout)
        return VGG(self.depth, self.width, self.norm, head)
