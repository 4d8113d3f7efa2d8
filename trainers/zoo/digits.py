"""zoo/digits: a deep CNN of 3x3 filters, or an LSTM, reads handwritten digits.

Shape legend: B batch, H height, W width, N samples, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dlplatform.errors import UsageError
from dlplatform.seeds import derive
from dlplatform.task import Models, task
from trainers.blocks.annealed import Annealed
from trainers.blocks.classifier import Classifier

# torch and the data come in with the first call that needs them: the command line imports
# every task to know its fields and must answer at once.
if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainers.data.samples import Samples


@task("zoo/digits")
@dataclass
class Digits(Annealed, Classifier):
    """Digits 0-9 in 28x28 grey images, with the CNN of Saitoh's book (123,552 parameters).

    A batch is a pair (x_B1HW in [0, 1], labels).
    """

    source: ClassVar[str] = "Saitoh, Deep Learning from Scratch, chapter 8 (DeepConvNet)"
    parameters: ClassVar[int] = 123_552
    expected: ClassVar[str] = "0.994"

    title: ClassVar[str] = "Handwritten digits"
    answer: ClassVar[str] = "digit"

    minibatches: int = 2000
    lr: float = 2e-3
    data: str = ""
    """Folder with the MNIST idx files; empty: the 1,797 digits that scikit-learn bundles."""
    net: str = "cnn"
    """cnn, or lstm: two layers of 64 units read the image row by row."""
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

        super().__post_init__()
        check("net", self.net, self.net in ("cnn", "lstm"), "cnn or lstm")
        check("blocks", self.blocks, self.blocks in (1, 2, 3), "1, 2 or 3")
        for name in ("dropout", "logit_dropout"):
            share = getattr(self, name)
            check(name, share, 0 <= share < 1, "0 up to, not including, 1")

    def network(self) -> nn.Module:
        """Build the network with He-initialised weights."""
        from trainers.nets.convnet import DeepDigitCNN
        from trainers.nets.recurrent import RowLSTM

        if self.net == "lstm":
            return RowLSTM(dropout=self.dropout)
        return DeepDigitCNN(self.blocks, self.dropout, self.logit_dropout)

    def samples(self, split: str) -> Samples:
        """Return the digits of a split."""
        from trainers.data.digits import load_digits

        parts = load_digits(self.data)
        if split not in parts:
            raise UsageError(f"split={split} is not known - allowed: {', '.join(parts)}")
        return parts[split]

    def augmented(self, x_BCHW: Tensor, number: int) -> Tensor:
        """Turn, shift, scale and light the images at random, if so configured."""
        from trainers.synth.augment import distort

        return distort(x_BCHW, derive(self.seed, "augment", number)) if self.augment else x_BCHW

    def read(self, raw: Path) -> Tensor:
        """Return the digit in an image file of any size, dark on light or light on dark."""
        from trainers.data.digits import from_ink
        from trainers.pictures.ink import read_ink

        return from_ink(read_ink(raw), native=not self.data)[None, None] / 255

    def predict(self, models: Models, raw: Path) -> dict[str, Any]:
        """Return the digit in an image file, as a number."""
        said = super().predict(models, raw)
        return {**said, "digit": int(said["digit"])}
