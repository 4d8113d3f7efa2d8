"""zoo/shapes: a small CNN names simple shapes in noise and clutter, all data procedural.

A task for comparing rules: quick to compute, far from solved by a linear classifier, and with as
many pictures as one asks for.

Shape legend: B batch, H height, W width, N pictures, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from dlplatform.seeds import derive
from dlplatform.task import task
from trainers.blocks.classifier import Classifier

if TYPE_CHECKING:
    import torch
    from torch import nn

    from trainers.data.samples import Samples

COUNTS = {"train": 4096, "val": 1000, "test": 2000}


@task("zoo/shapes")
@dataclass
class Shapes(Classifier):
    """Ten shapes in 20x20 grey pictures, turned, shifted and scaled, under lines and noise.

    A batch is a pair (x_B1HW in [0, 1], labels).
    """

    source: ClassVar[str] = "procedural, for docs/rules.md"
    parameters: ClassVar[int] = 41_850
    expected: ClassVar[str] = "0.88"
    title: ClassVar[str] = "Shapes"
    answer: ClassVar[str] = "shape"

    minibatches: int = 3000
    lr: float = 0.2
    momentum: float = 0.0
    """Of SGD; asynchronous rules bring their own."""
    width: int = 12
    """Channels of the first convolution; the second has twice as many."""
    noise: float = 0.15
    """Standard deviation of the noise of every pixel."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        from trainers.blocks.settings import check

        super().__post_init__()
        check("momentum", self.momentum, 0 <= self.momentum < 1, "0 up to, not including, 1")
        check("width", self.width, self.width >= 1, "1 or more")
        check("noise", self.noise, self.noise >= 0, "0 or more")

    def network(self) -> nn.Module:
        """Build the network: two strided convolutions and a hidden layer."""
        from trainers.nets.convnet import small_cnn
        from trainers.synth.shapes import SHAPES, SIZE

        return small_cnn(SIZE, self.width, len(SHAPES))

    def samples(self, split: str) -> Samples:
        """Return the pictures of a split."""
        from trainers.blocks.settings import check

        check("split", split, split in COUNTS, ", ".join(COUNTS))
        return pictures(derive(self.seed, split), COUNTS[split], self.noise)

    def optimizer(self, group: str, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return SGD."""
        from torch.optim import SGD

        return SGD(parameters, lr=self.lr, momentum=self.momentum)

    def rate(self, progress: float) -> float:
        """Stay at the peak for half of the run, then fall to a hundredth along a line."""
        return 1.0 - 1.98 * max(0.0, progress - 0.5)


@lru_cache(maxsize=8)
def pictures(seed: int, count: int, noise: float) -> Samples:
    """Return pictures with their labels, drawn once."""
    from trainers.data.samples import Samples
    from trainers.synth.shapes import SHAPES, Difficulty, draw_shapes

    x_NHW, labels = draw_shapes(seed, count, Difficulty(noise=noise))
    return Samples(x_NHW[:, None], labels, tuple(SHAPES))
