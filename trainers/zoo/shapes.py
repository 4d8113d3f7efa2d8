"""zoo/shapes: a small CNN names simple shapes in noise and clutter, all data procedural.

A task for comparing rules: quick to compute, far from solved by a linear classifier, and with as
many pictures as one asks for.

Shape legend: B batch, H height, W width, N pictures, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dlplatform.seeds import derive
from dlplatform.task import Models, Task, task

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor, nn

Pair = tuple["Tensor", "Tensor"]
COUNTS = {"train": 4096, "val": 1000, "test": 2000}
EVALUATION_BATCH = 500


@task("zoo/shapes")
@dataclass
class Shapes(Task):
    """Ten shapes in 20x20 grey pictures, turned, shifted and scaled, under lines and noise.

    A batch is a pair (x_B1HW in [0, 1], labels).
    """

    source: ClassVar[str] = "procedural, for docs/rules.md"

    batch_size: int = 16
    """Pictures of one minibatch."""
    minibatches: int = 3000
    """Minibatches a whole run should train (all workers together)."""
    lr: float = 0.2
    """Peak learning rate of SGD."""
    momentum: float = 0.0
    """Of SGD; asynchronous rules bring their own."""
    width: int = 12
    """Channels of the first convolution; the second has twice as many."""
    noise: float = 0.15
    """Standard deviation of the noise of every pixel."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        from trainers.blocks.settings import check

        check("batch_size", self.batch_size, 1 <= self.batch_size <= 4096, "1 to 4096")
        check("minibatches", self.minibatches, self.minibatches >= 1, "1 or more")
        check("lr", self.lr, self.lr > 0, "above 0")
        check("momentum", self.momentum, 0 <= self.momentum < 1, "0 up to, not including, 1")
        check("width", self.width, self.width >= 1, "1 or more")
        check("noise", self.noise, self.noise >= 0, "0 or more")

    def models(self) -> Models:
        """Build the network: two strided convolutions and a hidden layer."""
        from trainers.blocks.convnet import small_cnn
        from trainers.synth.shapes import SHAPES, SIZE

        return {"net": small_cnn(SIZE, self.width, len(SHAPES))}

    def batch(self, split: str, number: int) -> Pair:
        """Return minibatch ``number`` of the training pictures."""
        from trainers.data.sampling import draw

        x_N1HW, labels = self._pictures(split)
        picked = draw(self.seed, number, self.batch_size, len(labels))
        return x_N1HW[picked], labels[picked]

    def batches(self, split: str) -> Iterator[Pair]:
        """Yield all pictures of a split in a fixed order."""
        x_N1HW, labels = self._pictures(split)
        for first in range(0, len(labels), EVALUATION_BATCH):
            part = slice(first, first + EVALUATION_BATCH)
            yield x_N1HW[part], labels[part]

    def loss(self, models: Models, batch: Pair) -> Tensor:
        """Return the softmax cross-entropy."""
        from torch.nn import functional

        x_B1HW, labels = batch
        return functional.cross_entropy(models["net"](x_B1HW), labels)

    def score(self, models: Models, batches: Iterable[Pair]) -> dict[str, float]:
        """Return the accuracy and the mean cross-entropy."""
        from trainers.blocks.classify import scores

        return scores(models["net"], batches)

    def predict(self, models: Models, raw: Path) -> dict[str, Any]:
        """Return the shape in an image file, bright on dark."""
        import numpy as np
        import torch
        from PIL import Image

        from trainers.blocks.classify import logits
        from trainers.synth.shapes import SHAPES, SIZE

        with Image.open(raw) as image:
            grey = np.asarray(image.convert("L").resize((SIZE, SIZE)), np.float32) / 255
        sure = logits(models["net"], torch.from_numpy(grey)[None, None]).softmax(1)[0]
        best = int(sure.argmax())
        return {"shape": list(SHAPES)[best], "confidence": round(float(sure[best]), 4)}

    def optimizer(self, group: str, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return SGD."""
        from torch.optim import SGD

        return SGD(parameters, lr=self.lr, momentum=self.momentum)

    def rate(self, progress: float) -> float:
        """Stay at the peak for half of the run, then fall to a hundredth along a line."""
        return 1.0 - 1.98 * max(0.0, progress - 0.5)

    def baselines(self) -> dict[str, float]:
        """Return the test accuracy of a guess, an untrained CNN and a linear classifier."""
        import torch

        from trainers.blocks.linear import fit_linear

        (train, truth), (test, labels) = self._pictures("train"), self._pictures("test")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(self.seed, "untrained"))
            untrained = self.models()
        guess = fit_linear(train.flatten(1), truth, classes=10)(test.flatten(1)).argmax(1)
        return {
            "chance": 0.1,
            "untrained": self.score(untrained, self.batches("test"))["accuracy"],
            "linear": float((guess == labels).double().mean()),
        }

    def picture(self, models: Models) -> Image.Image:
        """Draw four test pictures of each class with the answers, and then the mistakes."""
        import torch

        from trainers.blocks.classify import logits
        from trainers.pictures.answers import Answer, draw_answers
        from trainers.synth.shapes import SHAPES

        x_N1HW, labels = self._pictures("test")
        sure = torch.cat([logits(models["net"], x) for x, _ in self.batches("test")]).softmax(1)
        images = (255 * x_N1HW[:, 0]).byte().numpy()
        names = list(SHAPES)
        said = ([names[k] for k in column.tolist()] for column in (labels, sure.argmax(1)))
        columns = (*said, sure.amax(1).tolist())
        return draw_answers("Shapes", [Answer(*row) for row in zip(images, *columns, strict=True)])

    def example(self) -> tuple[Tensor, ...]:
        """Return one blank picture."""
        import torch

        return (torch.zeros(1, 1, 20, 20),)

    def _pictures(self, split: str) -> Pair:
        from trainers.blocks.settings import check

        check("split", split, split in COUNTS, ", ".join(COUNTS))
        return pictures(derive(self.seed, split), COUNTS[split], self.noise)


@lru_cache(maxsize=8)
def pictures(seed: int, count: int, noise: float) -> Pair:
    """Return (x_N1HW, labels), drawn once."""
    from trainers.synth.shapes import Difficulty, draw_shapes

    x_NHW, labels = draw_shapes(seed, count, Difficulty(noise=noise))
    return x_NHW[:, None], labels
