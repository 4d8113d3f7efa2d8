"""The task of naming what is in a picture: all of it but the network and the pictures.

Shape legend: B batch, N samples, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dlplatform.task import Models, Split
from trainers.blocks.supervised import Supervised

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

    from trainers.data.samples import PictureSet

Pair = tuple["Tensor", "Tensor"]
EVALUATION_BATCH = 250
MOST_VALUES = 1 << 28
"""Baselines and pictures look at so many values of a set at most; more would fill the memory."""
LINEAR_VALUES = 1024
"""The linear classifier sees pictures shrunk to so many values at most."""


@dataclass
class Classifier(Supervised):
    """A classifier of pictures; a subclass says ``network`` and ``samples``.

    A batch is a pair (x_BCHW in [0, 1], labels).
    """

    title: ClassVar[str] = "Pictures"
    answer: ClassVar[str] = "class"
    """What ``predict`` calls the name it gives."""

    @abstractmethod
    def network(self) -> nn.Module:
        """Build the network: logits_BK of x_BCHW."""

    @abstractmethod
    def samples(self, split: str) -> PictureSet:
        """Return all pictures of ``train``, ``val`` or ``test``; called often, so keep them."""

    def pair(self, part: PictureSet, number: int) -> Pair:
        """Return the pictures of minibatch ``number`` before they are augmented."""
        return part.pair()

    def augmented(self, x_BCHW: Tensor, number: int) -> Tensor:
        """Return the pictures of minibatch ``number`` changed at random (default: as they are)."""
        return x_BCHW

    def read(self, raw: Path) -> Tensor:
        """Return a user's picture as x_1CHW, like those of the set."""
        import torch

        from trainers.pictures.files import read_fitted

        return torch.from_numpy(read_fitted(raw, *self.samples("test").shape))[None] / 255

    def models(self) -> Models:
        """Build the network."""
        from trainers.nets.convnet import channels_last

        return {"net": channels_last(self.network())}

    def batch(self, split: str, number: int) -> Pair:
        """Return minibatch ``number``, augmented if so configured."""
        from trainers.data.sampling import draw

        samples = self.samples(split)
        picked = draw(self.seed, number, self.batch_size, len(samples))
        x_BCHW, labels = self.pair(samples.take(picked), number)
        return self.augmented(x_BCHW, number), labels

    def batches(self, split: str) -> Iterator[Pair]:
        """Return all pictures of a split as they are, in a fixed order."""
        return _portions(self.samples(split))

    def loss(self, models: Models, batch: Pair) -> Tensor | dict[str, Tensor]:
        """Return the softmax cross-entropy."""
        from torch.nn import functional

        x_BCHW, labels = batch
        return functional.cross_entropy(models["net"](x_BCHW), labels)

    def score(self, models: Models, batches: Iterable[Pair]) -> dict[str, float]:
        """Return the accuracy and the mean cross-entropy."""
        from trainers.blocks.classify import scores

        return scores(models["net"], batches)

    def predict(self, models: Models, raw: Path) -> dict[str, Any]:
        """Return the name of what is in a picture file, and how sure the network is."""
        from trainers.blocks.classify import logits

        sure_K = logits(models["net"], self.read(raw)).softmax(1)[0]
        best = int(sure_K.argmax())
        name = self.samples("test").names[best]
        return {self.answer: name, "confidence": round(float(sure_K[best]), 4)}

    def split(self, models: Models, count: int) -> Split:
        """Cut a network that says its ``units`` between them, balanced by multiply-adds."""
        from torch.nn import functional

        from trainers.blocks.balance import stages

        if not hasattr(models["net"], "units"):
            return super().split(models, count)
        return Split(
            stages(models["net"].units(), self.example()[0], count),  # type: ignore[operator]
            inputs=lambda batch: batch[0],
            loss=lambda logits, batch: functional.cross_entropy(logits, batch[1]),
        )

    def baselines(self) -> dict[str, float]:
        """Return the test accuracy of a guess, an untrained network and a linear classifier."""
        from torch.nn.functional import adaptive_avg_pool2d

        from trainers.blocks.alone import untrained
        from trainers.blocks.linear import fit_linear

        train, test = (_few(self.samples(split)) for split in ("train", "test"))
        (x_NCHW, truth), (test_NCHW, labels) = train.pair(), test.pair()
        most = math.isqrt(LINEAR_VALUES // x_NCHW.shape[1])
        height, width = (min(most, side) for side in x_NCHW.shape[2:])
        rows, asked = (
            adaptive_avg_pool2d(x, (height, width)).flatten(1) for x in (x_NCHW, test_NCHW)
        )
        linear = fit_linear(rows, truth, classes=len(train.names))
        return {
            "chance": float((labels == truth.bincount().argmax()).double().mean()),
            "untrained": self.score(untrained(self), _portions(test))["accuracy"],
            "linear": float((linear(asked).argmax(1) == labels).double().mean()),
        }

    def picture(self, models: Models) -> Image.Image:
        """Draw four test pictures of each class with the answers, and then the mistakes."""
        import torch

        from trainers.blocks.classify import logits
        from trainers.pictures.answers import Answer, draw_answers

        test = _few(self.samples("test"))
        said, shown = [], []
        for x_BCHW, _ in _portions(test):
            said.append(logits(models["net"], x_BCHW).softmax(1).cpu())
            shown.append((x_BCHW * 255).round().byte().movedim(1, -1))
        confidence, answer = torch.cat(said).max(1)
        images = torch.cat(shown).numpy()
        names = ([test.names[k] for k in column.tolist()] for column in (test.labels, answer))
        columns = (*names, confidence.tolist())
        rows = zip(images, *columns, strict=True)
        return draw_answers(self.title, [Answer(*row) for row in rows])

    def example(self) -> tuple[Tensor, ...]:
        """Return one blank picture."""
        import torch

        return (torch.zeros(1, *self.samples("test").shape),)


def _few(samples: PictureSet) -> PictureSet:
    """Return the set, or if it is very large, pictures from all over it."""
    most = MOST_VALUES // math.prod(samples.shape)
    return samples.take(slice(None, None, max(1, math.ceil(len(samples) / most))))


def _portions(samples: PictureSet) -> Iterator[Pair]:
    """Yield all pictures in their order, in batches of a size that fits into the memory."""
    size = max(1, min(EVALUATION_BATCH, MOST_VALUES // 32 // math.prod(samples.shape)))
    for first in range(0, len(samples), size):
        yield samples.take(slice(first, first + size)).pair()
