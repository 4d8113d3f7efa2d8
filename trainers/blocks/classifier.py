"""The task of naming what is in a picture: all of it but the network and the pictures.

Shape legend: B batch, N samples, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dlplatform.seeds import derive
from dlplatform.task import Models
from trainers.blocks.supervised import Supervised

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

    from trainers.data.samples import Samples

Pair = tuple["Tensor", "Tensor"]
EVALUATION_BATCH = 250
LINEAR_SIDE = 32
"""The linear classifier sees larger pictures shrunk to this."""


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
    def samples(self, split: str) -> Samples:
        """Return all pictures of ``train``, ``val`` or ``test``; called often, so keep them."""

    def augmented(self, x_BCHW: Tensor, number: int) -> Tensor:
        """Return the pictures of minibatch ``number`` changed at random (default: as they are)."""
        return x_BCHW

    def read(self, raw: Path) -> Tensor:
        """Return a user's picture as x_1CHW, like those of the set."""
        import torch

        from trainers.pictures.files import read_fitted

        _, channels, height, width = self.samples("test").images_NCHW.shape
        return torch.from_numpy(read_fitted(raw, channels, height, width))[None] / 255

    def models(self) -> Models:
        """Build the network."""
        return {"net": self.network()}

    def batch(self, split: str, number: int) -> Pair:
        """Return minibatch ``number``, augmented if so configured."""
        from trainers.data.sampling import draw

        samples = self.samples(split)
        picked = draw(self.seed, number, self.batch_size, len(samples))
        x_BCHW, labels = samples.take(picked).pair()
        return self.augmented(x_BCHW, number), labels

    def batches(self, split: str) -> Iterator[Pair]:
        """Yield all pictures of a split as they are, in a fixed order."""
        samples = self.samples(split)
        for first in range(0, len(samples), EVALUATION_BATCH):
            yield samples.take(slice(first, first + EVALUATION_BATCH)).pair()

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

    def baselines(self) -> dict[str, float]:
        """Return the test accuracy of a guess, an untrained network and a linear classifier."""
        import torch
        from torch.nn.functional import adaptive_avg_pool2d

        from trainers.blocks.linear import fit_linear

        (x_NCHW, truth), (test_NCHW, labels) = (self.samples(s).pair() for s in ("train", "test"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(self.seed, "untrained"))
            untrained = self.models()
        height, width = (min(LINEAR_SIDE, side) for side in x_NCHW.shape[2:])
        rows, asked = (
            adaptive_avg_pool2d(x, (height, width)).flatten(1) for x in (x_NCHW, test_NCHW)
        )
        linear = fit_linear(rows, truth, classes=len(self.samples("train").names))
        return {
            "chance": float((labels == truth.bincount().argmax()).double().mean()),
            "untrained": self.score(untrained, self.batches("test"))["accuracy"],
            "linear": float((linear(asked).argmax(1) == labels).double().mean()),
        }

    def picture(self, models: Models) -> Image.Image:
        """Draw four test pictures of each class with the answers, and then the mistakes."""
        import torch

        from trainers.blocks.classify import logits
        from trainers.pictures.answers import Answer, draw_answers

        test = self.samples("test")
        said = [
            logits(models["net"], x_BCHW).softmax(1).cpu() for x_BCHW, _ in self.batches("test")
        ]
        confidence, answer = torch.cat(said).max(1)
        images = (test.pair()[0] * 255).byte().movedim(1, -1).numpy()
        names = ([test.names[k] for k in column.tolist()] for column in (test.labels, answer))
        columns = (*names, confidence.tolist())
        rows = zip(images, *columns, strict=True)
        return draw_answers(self.title, [Answer(*row) for row in rows])

    def example(self) -> tuple[Tensor, ...]:
        """Return one blank picture."""
        import torch

        return (torch.zeros(1, *self.samples("test").images_NCHW.shape[1:]),)
