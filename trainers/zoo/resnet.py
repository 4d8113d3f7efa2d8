"""zoo/resnet: residual networks, and plain ones of the same layers to compare, name a picture.

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, ClassVar

from dlplatform.errors import UsageError
from dlplatform.task import Models, task
from trainers.blocks.classifier import Pair
from trainers.blocks.photos import Photos
from trainers.blocks.settings import check

if TYPE_CHECKING:
    from torch import nn

    from trainers.nets.resnet import Shape

SHORTCUTS = ("projection", "pad", "none")


@task("zoo/resnet")
@dataclass
class ResnetPictures(Photos):
    """Ten classes of shapes with textures in 32x32 RGB, CIFAR-10, or folders of photographs.

    A batch is a pair (x_BCHW in [0, 1], labels). By default a ResNet-14 for small pictures with
    half the channels. Beside accuracy and loss it scores how large F(x) is beside x, which the
    paper expects to be small: ``residual_1`` of the first block and so on, ``residual`` their mean.
    """

    source: ClassVar[str] = "He et al., Deep Residual Learning (CVPR 2016)"
    parameters: ClassVar[int] = 43_634
    expected: ClassVar[str] = "0.99"
    title: ClassVar[str] = "Pictures named by ResNet"

    batch_size: int = 32
    minibatches: int = 2000
    lr: float = 0.05
    width: float = 0.5
    decay: float = 1e-4
    small: bool = True
    """Three stages of 16, 32 and 64 channels for pictures of 32 pixels; else as for ImageNet."""
    depth: int = 14
    """Layers with weights: 8, 14, 20, ..., 6n + 2 if small, else 18, 34, 50, 101 or 152."""
    shortcut: str = "pad"
    """Where the shape changes: pad or projection; none: no shortcuts at all, a plain net."""
    zero_gamma: bool = False
    """Start with F(x) = 0 in every block, so that a block returns its input."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        super().__post_init__()
        allowed = "6n + 2 from 8 on" if self.small else "18, 34, 50, 101, 152"
        good = self.depth % 6 == 2 and self.depth >= 8
        good = good if self.small else str(self.depth) in allowed.split(", ")
        check("depth", self.depth, good, allowed)
        check("shortcut", self.shortcut, self.shortcut in SHORTCUTS, ", ".join(SHORTCUTS))
        if self.shortcut == "none" and self.zero_gamma:
            raise UsageError(
                "task.zero_gamma=true with task.shortcut=none would return zero everywhere - "
                "allowed: with shortcuts - do: task.zero_gamma=false"
            )

    def shape(self) -> Shape:
        """Return which ResNet is asked for."""
        from trainers.nets.resnet import Shape

        return Shape(self.depth, self.small, self.width, self.shortcut, self.zero_gamma)

    def network(self) -> nn.Module:
        """Build the network."""
        from trainers.nets.resnet import ResNet

        return ResNet(self.shape(), self.classes)

    def score(self, models: Models, batches: Iterable[Pair]) -> dict[str, float]:
        """Return accuracy and loss, and how large the residuals are on the first batch."""
        from itertools import chain

        from trainers.nets.resnet import residual_sizes

        every = iter(batches)
        first = next(every)
        scores = super().score(models, chain([first], every))
        sizes = residual_sizes(models["net"], first[0])
        if not sizes:
            return scores
        each = {f"residual_{number}": size for number, size in enumerate(sizes.values(), 1)}
        return {**scores, "residual": fmean(sizes.values()), **each}
