"""zoo/inception: GoogLeNet, deep and wide with four branches in each block, names a picture.

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dlplatform.errors import UsageError
from dlplatform.task import Models, Split, task
from trainers.blocks.classifier import Pair
from trainers.blocks.photos import Photos
from trainers.blocks.settings import check

if TYPE_CHECKING:
    from torch import Tensor, nn

EPOCHS, FALL = 8, 0.96
"""The paper lowers the rate by 4 % every 8 epochs."""


@task("zoo/inception")
@dataclass
class InceptionPictures(Photos):
    """Ten classes of shapes with textures in 32x32 RGB, CIFAR-10, or folders of photographs.

    A batch is a pair (x_BCHW in [0, 1], labels). By default an eighth of GoogLeNet's channels.
    """

    source: ClassVar[str] = "Szegedy et al., Going Deeper with Convolutions (CVPR 2015)"
    parameters: ClassVar[int] = 117_766
    expected: ClassVar[str] = "0.98"
    title: ClassVar[str] = "Pictures named by GoogLeNet"

    batch_size: int = 32
    minibatches: int = 2000
    lr: float = 0.03
    width: float = 0.125
    norm: bool = True
    """BatchNorm after every convolution; the paper has local response normalisation instead."""
    auxiliary: float = 0.3
    """Weight of each of two classifiers that help the middle to train; 0: build none."""
    at_once: bool = False
    """Compute the four branches of a block in threads of their own."""
    stepwise: bool = False
    """Lower the rate by 4 % every 8 epochs, as the paper does, and by no other schedule."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        super().__post_init__()
        check("auxiliary", self.auxiliary, self.auxiliary >= 0, "0 or more")

    def network(self) -> nn.Module:
        """Build the network; pictures below 112 pixels get a stem of stride 2."""
        from trainers.nets.inception import GoogLeNet, Plan

        return GoogLeNet(
            Plan(
                classes=self.classes,
                side=self.side,
                width=self.width,
                small=self.side < 112,
                norm=self.norm,
                auxiliary=self.auxiliary > 0,
                at_once=self.at_once,
            )
        )

    def loss(self, models: Models, batch: Pair) -> Tensor | dict[str, Tensor]:
        """Return the cross-entropy, in training with those of the auxiliary classifiers."""
        import torch
        from torch.nn import functional

        x_BCHW, labels = batch
        answers = models["net"](x_BCHW)
        if isinstance(answers, torch.Tensor):
            return functional.cross_entropy(answers, labels)
        main, *helped = (functional.cross_entropy(logits, labels) for logits in answers)
        return {"main": main, "auxiliary": self.auxiliary * torch.stack(helped).sum()}

    def split(self, models: Models, count: int) -> Split:
        """Cut between blocks; the auxiliary classifiers must be off, they sit in the middle."""
        if self.auxiliary and count > 1:
            raise UsageError(
                f"stages={count} with task.auxiliary={self.auxiliary}, whose classifiers sit "
                "inside - allowed: stages=1 - do: task.auxiliary=0"
            )
        return super().split(models, count)

    def rate(self, progress: float) -> float:
        """Follow the schedule, or the steps of the paper."""
        if not self.stepwise:
            return super().rate(progress)
        epochs = progress * self.minibatches * self.batch_size / len(self.samples("train"))
        return float(FALL ** (epochs // EPOCHS))
