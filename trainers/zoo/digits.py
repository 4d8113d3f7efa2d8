"""zoo/digits: a deep CNN of 3x3 filters, or an LSTM, reads handwritten digits.

Shape legend: B batch, H height, W width, N samples, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dlplatform.errors import UsageError
from dlplatform.seeds import derive
from dlplatform.task import Models, Split, Task, task

# torch and the data come in with the first call that needs them: the command line imports
# every task to know its fields and must answer at once.
if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor, nn

    from trainers.data.digits import Samples

Pair = tuple["Tensor", "Tensor"]
EVALUATION_BATCH = 120


@task("zoo/digits")
@dataclass
class Digits(Task):
    """Digits 0-9 in 28x28 grey images, with the CNN of Saitoh's book (123,552 parameters).

    A batch is a pair (x_B1HW in [0, 1], labels).
    """

    source: ClassVar[str] = "Saitoh, Deep Learning from Scratch, chapter 8 (DeepConvNet)"

    data: str = ""
    """Folder with the MNIST idx files; empty: the 1,797 digits that scikit-learn bundles."""
    batch_size: int = 16
    """Images of one minibatch."""
    net: str = "cnn"
    """cnn, or lstm: two layers of 64 units read the image row by row."""
    minibatches: int = 2000
    """Minibatches a whole run should train (all workers together)."""
    lr: float = 2e-3
    """Peak learning rate of Adam."""
    warmup: float = 0.05
    """Share of the run in which the rate rises to its peak."""
    augment: bool = True
    """Turn, shift, scale and light the training images at random."""
    blocks: int = 3
    """Depth: blocks of two convolutions and a pooling, 1 to 3."""
    dropout: float = 0.5
    """Share of the hidden units left out before the last layer."""
    logit_dropout: float = 0.0
    """Share of the logits left out; the book has 0.5."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        from trainers.blocks.settings import check

        check("net", self.net, self.net in ("cnn", "lstm"), "cnn or lstm")
        check("batch_size", self.batch_size, self.batch_size >= 1, "1 or more")
        check("minibatches", self.minibatches, self.minibatches >= 1, "1 or more")
        check("lr", self.lr, self.lr > 0, "above 0")
        check("warmup", self.warmup, 0 <= self.warmup < 1, "0 up to, not including, 1")
        check("blocks", self.blocks, self.blocks in (1, 2, 3), "1, 2 or 3")
        for name in ("dropout", "logit_dropout"):
            share = getattr(self, name)
            check(name, share, 0 <= share < 1, "0 up to, not including, 1")

    def models(self) -> Models:
        """Build the network with He-initialised weights."""
        from trainers.blocks.convnet import DeepDigitCNN
        from trainers.blocks.recurrent import RowLSTM

        if self.net == "lstm":
            return {"net": RowLSTM(dropout=self.dropout)}
        return {"net": DeepDigitCNN(self.blocks, self.dropout, self.logit_dropout)}

    def batch(self, split: str, number: int) -> Pair:
        """Return minibatch ``number``, augmented if so configured."""
        from trainers.data.sampling import draw
        from trainers.synth.augment import distort

        samples = self._samples(split)
        picked = samples.take(draw(self.seed, number, self.batch_size, len(samples)))
        x_B1HW, labels = _pair(picked)
        if self.augment:
            x_B1HW = distort(x_B1HW, derive(self.seed, "augment", number))
        return x_B1HW, labels

    def batches(self, split: str) -> Iterator[Pair]:
        """Yield all images of a split as they are, in a fixed order."""
        samples = self._samples(split)
        for first in range(0, len(samples), EVALUATION_BATCH):
            yield _pair(samples.take(slice(first, first + EVALUATION_BATCH)))

    def loss(self, models: Models, batch: Pair) -> Tensor:
        """Return the softmax cross-entropy."""
        from torch.nn import functional

        x_B1HW, labels = batch
        return functional.cross_entropy(models["net"](x_B1HW), labels)

    def split(self, models: Models, count: int) -> Split:
        """Cut between blocks or layers, balanced by multiply-adds."""
        from torch.nn import functional

        from trainers.blocks.balance import stages

        return Split(
            stages(models["net"].units(), self.example()[0], count),  # type: ignore[operator]
            inputs=lambda batch: batch[0],
            loss=lambda logits, batch: functional.cross_entropy(logits, batch[1]),
        )

    def score(self, models: Models, batches: Iterable[Pair]) -> dict[str, float]:
        """Return the accuracy and the mean cross-entropy."""
        from trainers.blocks.classify import scores

        return scores(models["net"], batches)

    def predict(self, models: Models, raw: Path) -> dict[str, Any]:
        """Return the digit in an image file of any size, dark on light or light on dark."""
        from trainers.blocks.classify import logits
        from trainers.data.digits import from_ink
        from trainers.pictures.ink import read_ink

        x_11HW = from_ink(read_ink(raw), native=not self.data)[None, None] / 255
        confidence = logits(models["net"], x_11HW).softmax(1)[0]
        digit = int(confidence.argmax())
        return {"digit": digit, "confidence": round(float(confidence[digit]), 4)}

    def optimizer(self, group: str, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return Adam with the moments' decay of the paper (0.9, 0.999)."""
        from torch.optim import Adam

        return Adam(parameters, lr=self.lr)

    def rate(self, progress: float) -> float:
        """Rise linearly during the warm-up, then fall to 1 % along half a cosine."""
        if progress < self.warmup:
            return max(progress / self.warmup, 0.01)
        done = min((progress - self.warmup) / (1 - self.warmup), 1.0)
        return 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2

    def baselines(self) -> dict[str, float]:
        """Return the test accuracy of a guess, an untrained CNN and a linear classifier."""
        import torch

        from trainers.blocks.linear import fit_linear

        train, test = self._samples("train"), self._samples("test")
        usual = int(train.labels.bincount().argmax())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(self.seed, "untrained"))
            untrained = self.models()
        linear = fit_linear(train.images_NHW.flatten(1) / 255, train.labels, classes=10)
        guess = linear(test.images_NHW.flatten(1) / 255).argmax(1)
        return {
            "chance": float((test.labels == usual).double().mean()),
            "untrained": self.score(untrained, self.batches("test"))["accuracy"],
            "linear": float((guess == test.labels).double().mean()),
        }

    def picture(self, models: Models) -> Image.Image:
        """Draw four test digits of each class with the answers, and then the mistakes."""
        import torch

        from trainers.blocks.classify import logits
        from trainers.pictures.answers import Answer, draw_answers

        test = self._samples("test")
        said = [logits(models["net"], x_B1HW) for x_B1HW, _ in self.batches("test")]
        confidence, answer = torch.cat(said).softmax(1).cpu().max(1)
        columns = (test.labels.tolist(), answer.tolist(), confidence.tolist())
        rows = zip(test.images_NHW.numpy(), *columns, strict=True)
        return draw_answers("Handwritten digits", [Answer(*row) for row in rows])

    def example(self) -> tuple[Tensor, ...]:
        """Return one blank image."""
        import torch

        return (torch.zeros(1, 1, 28, 28),)

    def _samples(self, split: str) -> Samples:
        from trainers.data.digits import load_digits

        parts = load_digits(self.data)
        if split not in parts:
            raise UsageError(f"split={split} is not known - allowed: {', '.join(parts)}")
        return parts[split]


def _pair(samples: Samples) -> Pair:
    return samples.images_NHW[:, None] / 255, samples.labels
