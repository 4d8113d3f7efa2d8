"""zoo/nic: Neural Image Caption, a CNN looks at a picture and an LSTM writes a sentence about it.

Shape legend: B batch, C channels, H height, W width, R references of a picture, T time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from dlplatform.task import Models, task
from trainers.blocks.annealed import Annealed

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor, nn

    from trainers.data.pictured import Captions, Pictured

Batch = tuple["Tensor", "Tensor", "Tensor"]
Words = list[str]
SHOWN = 12


@task("zoo/nic")
@dataclass
class ImageCaption(Annealed):
    """Sentences about pictures of two shapes, or about those of COCO.

    Pairs of shapes and colours of the test never come in training. A batch is (x_BCHW in [0, 1],
    tokens_BRT of R sentences each, the number of the minibatch B times).
    """

    primary: ClassVar[str] = "bleu4"
    source: ClassVar[str] = "Vinyals et al., Show and Tell (2015)"
    parameters: ClassVar[int] = 362_146
    expected: ClassVar[str] = "0.94"

    batch_size: int = 32
    minibatches: int = 2500
    lr: float = 3e-3
    warmup: float = 0.02
    data: str = ""
    """Folder of COCO captions (annotations/, train2017/, val2017/); empty: drawn scenes."""
    weights: str = ""
    """Safetensors file with the CNN's weights to start from; empty: drawn at random."""
    image: int = 32
    """Pixels of the square pictures."""
    width: int = 16
    """Channels of the first convolution."""
    features: int = 128
    """Values the CNN says about a picture."""
    units: int = 128
    """Of the LSTM and of the embedding of words."""
    init: str = "state"
    """The picture is the LSTM's first state, or its first input (the paper; needs longer)."""
    dropout: float = 0.0
    """Share of the LSTM's inputs and outputs left out in training."""
    frozen: float = 0.03
    """Share of the run in which only the LSTM trains."""
    cnn_lr: float = 3e-3
    """Peak learning rate of the CNN, once it trains."""
    beams: int = 3
    """Beginnings of a sentence that the search keeps; 1 is greedy."""
    least: int = 1
    """Times a word must come in the training sentences to be in the vocabulary."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        from trainers.blocks.settings import check

        super().__post_init__()
        check("image", self.image, 16 <= self.image <= 1024, "16 to 1024")
        for name in ("width", "features", "units", "beams", "least"):
            check(name, getattr(self, name), getattr(self, name) >= 1, "1 or more")
        check("init", self.init, self.init in ("input", "state"), "input or state")
        check("dropout", self.dropout, 0 <= self.dropout < 1, "0 up to, not including, 1")
        check("frozen", self.frozen, 0 <= self.frozen <= 1, "0 to 1")
        check("cnn_lr", self.cnn_lr, self.cnn_lr > 0, "above 0")

    def pictured(self) -> Captions:
        """Return the pictures, their sentences and the vocabulary."""
        from trainers.data.pictured import pictured

        return pictured(self.data, self.image, self.least)

    def batch(self, split: str, number: int) -> Batch:
        """Return minibatch ``number``: each picture with one of its sentences."""
        shown = self.pictured().drawn(self.seed, number, self.batch_size)
        return self._tensors(shown, number)

    def batches(self, split: str) -> Iterator[Batch]:
        """Yield the pictures of a split with all their sentences."""
        for shown in self.pictured().all(self.seed, split):
            yield self._tensors(shown, 0)

    def _tensors(self, shown: list[Pictured], number: int) -> Batch:
        import torch

        x_BCHW = torch.stack([torch.from_numpy(image) for image, _ in shown]) / 255
        tokens_BRT = self.pictured().tokens([captions for _, captions in shown])
        return x_BCHW, tokens_BRT, torch.full((len(shown),), number)

    def models(self) -> Models:
        """Build the CNN and the LSTM."""
        from trainers.data.weights import read_weights
        from trainers.nets.caption import Looker, Teller
        from trainers.nets.convnet import channels_last

        looker = Looker(self.image, self.width, self.features)
        if self.weights:
            read_weights(looker, Path(self.weights), "task.weights")
        words = len(self.pictured().vocabulary)
        teller = Teller(self.features, words, self.units, self.init, self.dropout)
        return {"cnn": channels_last(looker), "rnn": teller}

    def groups(self, models: Models) -> dict[str, Iterable[nn.Parameter]]:
        """Return the LSTM and the CNN as groups of their own."""
        return {"rnn": models["rnn"].parameters(), "cnn": models["cnn"].parameters()}

    def loss(self, models: Models, batch: Batch) -> Tensor:
        """Return the negative log-likelihood of a sentence, on average."""
        from trainers.nets.caption import Teller, caption_loss

        x_BCHW, tokens_BRT, _ = batch
        return caption_loss(cast(Teller, models["rnn"]), models["cnn"](x_BCHW), tokens_BRT)

    def losses(self, models: Models, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Yield the LSTM's loss, then one whose gradient is the CNN's: zero while it is frozen."""
        import torch

        from trainers.nets.caption import Teller, caption_loss

        x_BCHW, tokens_BRT, number_B = batch
        features = models["cnn"](x_BCHW)
        seen = features.detach().requires_grad_()
        loss = caption_loss(cast(Teller, models["rnn"]), seen, tokens_BRT)
        slope = torch.zeros_like(seen)
        if int(number_B[0]) >= self.frozen * self.minibatches:
            (slope,) = torch.autograd.grad(loss, seen, retain_graph=True)
        yield "rnn", loss
        # Both groups step in every minibatch, so that no worker waits for one that is frozen.
        told = (features * slope).sum()
        yield "cnn", told - told.detach()

    def optimizer(self, group: str, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return Adam with the rate of the group."""
        from torch.optim import Adam

        return Adam(parameters, lr=self.lr if group == "rnn" else self.cnn_lr)

    def score(self, models: Models, batches: Iterable[Batch]) -> dict[str, float]:
        """Return BLEU-1 to -4, the share of sentences that are a reference, and the loss.

        ``shuffled`` is the share that is a reference of another picture, the next of the batch.
        """
        from trainers.nets.caption import Teller, caption_loss
        from trainers.scores.bleu import bleu

        teller = cast(Teller, models["rnn"])
        said: list[Words] = []
        references: list[list[Words]] = []
        swapped: list[list[Words]] = []
        losses = []
        for batch in batches:
            good = self._references(batch)
            features_BF = models["cnn"](batch[0])
            said += self._tell(teller, features_BF)[0]
            references += good
            swapped += [*good[1:], good[0]]
            losses.append(float(caption_loss(teller, features_BF, batch[1]).detach()))
        return {
            **{f"bleu{n}": value for n, value in enumerate(bleu(said, references), 1)},
            "exact": _share(said, references),
            "shuffled": _share(said, swapped),
            "loss": sum(losses) / len(losses),
        }

    def _references(self, batch: Batch) -> list[list[Words]]:
        decode = self.pictured().vocabulary.decode
        return [[words for line in row if (words := decode(line))] for row in batch[1].tolist()]

    def _tell(self, teller: nn.Module, features_BF: Tensor) -> tuple[list[Words], list[float]]:
        """Return a sentence about each picture, and its log-probability."""
        from trainers.nets.caption import Teller, beam_search

        tokens_BT, sure_B = beam_search(cast(Teller, teller), features_BF, self.beams)
        decode = self.pictured().vocabulary.decode
        return [decode(line) for line in tokens_BT.tolist()], sure_B.tolist()

    def baselines(self) -> dict[str, float]:
        """Return BLEU-4 of an untrained network, the usual sentence, and the nearest picture's."""
        import torch

        from trainers.blocks.alone import untrained
        from trainers.scores.bleu import bleu

        seen = [self.batch("train", number) for number in range(20)]
        told = [row[0] for batch in seen for row in self._references(batch)]
        usual = max(told, key=told.count)
        known = torch.cat([x_BCHW for x_BCHW, _, _ in seen]).flatten(1)
        test = list(self.batches("test"))
        references = [row for batch in test for row in self._references(batch)]
        nearest = torch.cat([torch.cdist(x.flatten(1), known).argmin(1) for x, _, _ in test])
        with torch.no_grad():
            before = self.score(untrained(self), test)["bleu4"]
        return {
            "untrained": before,
            "usual": bleu([usual] * len(references), references)[3],
            "nearest": bleu([told[n] for n in nearest.tolist()], references)[3],
        }

    def predict(self, models: Models, raw: Path) -> dict[str, Any]:
        """Return a sentence about a picture file, and its log-probability."""
        import torch

        from trainers.pictures.files import read_fitted

        x_1CHW = torch.from_numpy(read_fitted(raw, 3, self.image, self.image))[None] / 255
        features_1F = models["cnn"](x_1CHW.to(next(models["cnn"].parameters()).device))
        (words,), (sure,) = self._tell(models["rnn"], features_1F)
        return {"caption": " ".join(words), "log_probability": round(sure, 4)}

    def picture(self, models: Models) -> Image.Image:
        """Draw test pictures with what the network says, and what is right where that is not."""
        import torch

        from trainers.pictures.told import Told, draw_told

        with torch.no_grad():
            scores = self.score(models, self.batches("test"))
            batch = next(iter(self.batches("test")))
            told, _ = self._tell(models["rnn"], models["cnn"](batch[0]))
        good = self._references(batch)
        images = (batch[0] * 255).byte().movedim(1, -1).numpy()
        rows = zip(images[:SHOWN], told, good, strict=False)
        return draw_told(
            "Pictures in words",
            "test pictures" + ("" if self.data else ", of pairs it never saw together"),
            f"BLEU-4 {scores['bleu4']:.2f}, {scores['exact']:.0%} exactly as a reference",
            [Told(image, words, one) for image, words, one in rows],
        )


def _share(said: list[Words], references: list[list[Words]]) -> float:
    return sum(map(list.__contains__, references, said)) / len(said)
