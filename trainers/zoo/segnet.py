"""zoo/segnet: SegNet names every pixel of a road scene, as a car would have it.

Shape legend: B batch, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dlplatform.task import Models, task
from trainers.blocks.segmenter import Pair, Segmenter
from trainers.blocks.settings import check

if TYPE_CHECKING:
    from torch import Tensor, nn

NETS, UPSAMPLES = ("basic", "vgg16"), ("index", "bilinear")


@task("zoo/segnet")
@dataclass
class SegNetTask(Segmenter):
    """Every pixel of a road scene, with maxima put back where the encoder found them.

    A batch is a pair (x_BCHW normalised, labels_BHW with 255 where ignored).
    """

    source: ClassVar[str] = "Badrinarayanan, Kendall and Cipolla, SegNet (2017)"
    parameters: ClassVar[int] = 106_590
    expected: ClassVar[str] = "0.75"
    title: ClassVar[str] = "Road scenes, SegNet"

    minibatches: int = 600
    crop: int = 64
    scale: float = 1.25
    lr: float = 0.1
    net: str = "basic"
    """basic: four convolutions down and four up; vgg16: thirteen and thirteen."""
    width: int = 24
    """Channels of the basic net; the paper has 64."""
    kernel: int = 5
    """Side of the basic net's filters; the paper has 7."""
    upsample: str = "index"
    """index: maxima go back to where they were; bilinear: without indices, to compare."""
    contrast: int = 0
    """Side in pixels of the window of local contrast normalisation, odd; 0: none."""
    balance: float = 1.0
    """Weigh classes in the loss by (median frequency / own) to this power; the paper has 1."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        super().__post_init__()
        check("net", self.net, self.net in NETS, "basic or vgg16")
        check("width", self.width, self.width >= 1, "1 or more")
        check("kernel", self.kernel, self.kernel in (3, 5, 7, 9), "3, 5, 7 or 9")
        check("upsample", self.upsample, self.upsample in UPSAMPLES, "index or bilinear")
        fits = self.contrast == 0 or (self.contrast >= 3 and self.contrast % 2 == 1)
        check("balance", self.balance, 0 <= self.balance <= 1, "0 to 1")
        check("contrast", self.contrast, fits, "0, or an odd number from 3 on")

    def network(self, classes: int) -> nn.Module:
        """Build the network with He-initialised weights."""
        from trainers.nets.segnet import VGG16, SegNet, basic

        if self.net == "vgg16":
            return SegNet(classes, VGG16, 3, self.upsample, self.contrast)
        return SegNet(classes, basic(self.width), self.kernel, self.upsample, self.contrast)

    def weights(self) -> Tensor | None:
        """Return the weights_K of the classes: rare ones weigh more, if so configured."""
        from trainers.blocks.pixels import median_frequency

        return median_frequency(self.scenes("train")) ** self.balance if self.balance else None

    def score(self, models: Models, batches: Iterable[Pair]) -> dict[str, float]:
        """Return the scores of every segmenter, and the IoU of what drawn roads are judged by."""
        counted, names = self.tally(models, batches), self.scenes("test").kinds.names
        iou = dict(zip(names, counted.iou().tolist(), strict=True))
        asked = {"IoU_lane": "lane marking", "IoU_vehicle": "vehicle", "IoU_car": "car"}
        own = {key: iou[name] for key, name in asked.items() if name in iou}
        return {**counted.scores(), **own}
