"""zoo/fcn: a fully convolutional net names every pixel of a road scene in one pass.

It replaces a classifier of windows that runs once for every pixel (``net=patch``).

Shape legend: B batch, H height, W width, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dlplatform.task import task
from trainers.blocks.segmenter import Segmenter
from trainers.blocks.settings import check

if TYPE_CHECKING:
    from torch import nn

SKIPS = {"32s": 0, "16s": 1, "8s": 2}
NETS = (*SKIPS, "patch")
DEPTHS = (11, 13, 16, 19)


@task("zoo/fcn")
@dataclass
class FullyConvolutional(Segmenter):
    """Every pixel of a road scene, with a VGG whose linear layers became convolutions.

    Scores of 32s are one for 32 x 32 pixels (16 x 16 with ``fine``) and enlarged; 16s and 8s add
    finer ones from the layers before. ``patch`` is the CNN that was run on the window around each
    pixel before there was FCN; here it, too, takes one pass (``PatchNet.patchwise`` takes one
    pass a pixel, to compare).

    A batch is a pair (x_BCHW normalised, labels_BHW with 255 where ignored).
    """

    source: ClassVar[str] = "Long, Shelhamer and Darrell, Fully Convolutional Networks (2015)"
    parameters: ClassVar[int] = 187_890
    expected: ClassVar[str] = "0.75"
    title: ClassVar[str] = "Road scenes, FCN"

    scale: float = 1.25
    net: str = "8s"
    """8s, 16s or 32s: how fine the finest scores are; patch: the windows of old, in one pass."""
    depth: int = 11
    """Of the VGG: 11, 13, 16 or 19."""
    width: float = 0.125
    """Share of the VGG's channels; the paper has 1."""
    hidden: int = 64
    """Channels of the two layers that were linear; the paper has 4096."""
    side: int = 96
    """Pixels of the pictures that those linear layers were for; the paper has 224."""
    fine: bool = True
    """Leave out the first pooling, so that all strides are half as long: for small pictures."""
    norm: bool = True
    """BatchNorm after each convolution of the VGG; the paper started from trained weights."""
    dropout: float = 0.1
    """Share of the hidden channels left out; the paper has 0.5."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        super().__post_init__()
        check("net", self.net, self.net in NETS, ", ".join(NETS))
        check("depth", self.depth, self.depth in DEPTHS, "11, 13, 16 or 19")
        check("width", self.width, 0 < self.width <= 4, "above 0, up to 4")
        check("hidden", self.hidden, self.hidden >= 1, "1 or more")
        odd = self.side % 32 == 0 and self.side // 32 % 2 == 1
        check("side", self.side, odd, "32, 96, 160, 224, ...: odd multiples of 32")
        check("dropout", self.dropout, 0 <= self.dropout < 1, "0 up to, not including, 1")

    def network(self, classes: int) -> nn.Module:
        """Build the network."""
        from trainers.nets.fcn import FCN, PatchNet
        from trainers.nets.vgg import VGG, Head

        if self.net == "patch":
            return PatchNet(classes)
        head = Head(1, self.hidden, self.side, self.dropout)
        vgg = VGG(self.depth, self.width, self.norm, head)
        return FCN(vgg, classes, SKIPS[self.net], self.fine)
