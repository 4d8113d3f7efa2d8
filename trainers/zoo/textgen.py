"""zoo/textgen: a recurrent network writes text, a character at a time.

A minibatch is a few stretches of the text, each from anywhere to ``segments * truncation``
characters on. The state goes through a stretch from its first character to its last; gradients go
through one segment. A stretch begins without memory, so that a minibatch is a function of its
number.

Shape legend: B batch, T time, V characters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from unicodedata import normalize

from dlplatform.seeds import derive
from dlplatform.task import Models, task
from trainers.blocks.supervised import Supervised, cosine
from trainers.blocks.vocabulary import SPECIAL

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor, nn

    from trainers.data.corpus import Corpus


@task("zoo/textgen")
@dataclass
class TextGenerator(Supervised):
    """Characters of Korean sentences made by rule, or of any text file, one after another.

    A batch is tokens_BT.
    """

    primary: ClassVar[str] = "gain"
    source: ClassVar[str] = "Graves, Generating Sequences With Recurrent Neural Networks (2013)"
    parameters: ClassVar[int] = 70_733
    expected: ClassVar[str] = "17.7"

    minibatches: int = 500
    lr: float = 5e-3
    data: str = ""
    """Text file in UTF-8; it must be there to predict, too. Empty: Korean sentences by rule."""
    cell: str = "gru"
    """rnn (tanh), gru or lstm."""
    units: int = 96
    """Of each layer."""
    layers: int = 1
    """Recurrent layers."""
    truncation: int = 35
    """Characters that gradients go back through."""
    segments: int = 2
    """Segments of that length in a stretch; the state goes on from one to the next."""
    jamo: bool = False
    """Split Hangul syllables into their letters, so that rules reach words never seen."""
    length: int = 60
    """Characters that ``dlp predict`` adds."""
    temperature: float = 0.5
    """How freely it chooses them; 0: always the likeliest."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        from trainers.blocks.settings import check

        super().__post_init__()
        check("cell", self.cell, self.cell in ("rnn", "gru", "lstm"), "rnn, gru or lstm")
        for name in ("units", "layers", "truncation", "segments", "length"):
            check(name, getattr(self, name), getattr(self, name) >= 1, "1 or more")
        check("temperature", self.temperature, self.temperature >= 0, "0 or more")

    @property
    def corpus(self) -> Corpus:
        """Return the text, and its characters as numbers."""
        from trainers.data.corpus import corpus

        return corpus(self.data, self.jamo, self.seed)

    def batch(self, split: str, number: int) -> Tensor:
        """Return minibatch ``number``: stretches of the training text."""
        span = self.truncation * self.segments + 1
        return self.corpus.stretches(derive(self.seed, "stretch", number), self.batch_size, span)

    def batches(self, split: str) -> Iterator[Tensor]:
        """Yield a split as stretches that meet."""
        import torch

        yield from torch.split(self.corpus.lines(split), 64)

    def models(self) -> Models:
        """Build the network."""
        from torch import nn

        from trainers.nets.sequence import Next

        count = len(self.corpus.vocabulary)
        embed = nn.Embedding(count, self.units)
        return {"net": Next(embed, self.cell, self.units, count, self.layers)}

    def loss(self, models: Models, batch: Tensor) -> Tensor:
        """Return the cross-entropy of the next character, truncated in time."""
        from trainers.nets.sequence import truncated_loss

        return truncated_loss(models["net"], batch, self.truncation, _entropy)

    def optimizer(self, group: str, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return Adam."""
        from torch.optim import Adam

        return Adam(parameters, lr=self.lr)

    def rate(self, progress: float) -> float:
        """Fall to 1 % along half a cosine."""
        return cosine(progress, warmup=0.02)

    def score(self, models: Models, batches: Iterable[Tensor]) -> dict[str, float]:
        """Return the perplexity, and how many times below that of single characters it is.

        Also the share of next characters that are the likeliest, and of topic particles:
        ``particle`` where the text has some, ``held_out`` after nouns that are not in training.
        """
        import torch

        stretches_BT = torch.cat(list(batches))
        logits_BTV = models["net"](stretches_BT[:, :-1])[0]
        entropy = float(_entropy(logits_BTV, stretches_BT[:, 1:]))
        right_BT = logits_BTV.argmax(2) == stretches_BT[:, 1:]
        held = stretches_BT[:0] if self.data else self._held_out().to(stretches_BT.device)
        scores = {
            "gain": math.exp(min(self._counted(stretches_BT)[0] - entropy, 50.0)),
            "perplexity": math.exp(min(entropy, 50.0)),
            "accuracy": float(right_BT.double().mean()),
            "particle": self._particles(models, stretches_BT),
            "held_out": self._particles(models, held),
        }
        return {name: value for name, value in scores.items() if not math.isnan(value)}

    def _particles(self, models: Models, tokens_BT: Tensor) -> float:
        from trainers.scores.language import foretold
        from trainers.synth.korean import PARTICLES

        phrases = [
            self.corpus.encode(particle + " ").to(tokens_BT.device) for particle in PARTICLES
        ]
        return foretold(models["net"](tokens_BT)[0].argmax(2), tokens_BT, phrases)

    def _held_out(self) -> Tensor:
        from trainers.synth.korean import sentences

        return self.corpus.encode(sentences(derive(self.seed, "held out"), 60, held_out=True))[None]

    def _counted(self, stretches_BT: Tensor) -> tuple[float, float]:
        """Return the entropy of the frequencies of single characters, and of pairs."""
        from trainers.scores.language import bigram_entropy, unigram_entropy

        counted = self.corpus.tokens["train"], stretches_BT.cpu()
        count = len(self.corpus.vocabulary)
        return unigram_entropy(*counted, count), bigram_entropy(*counted, count)

    def baselines(self) -> dict[str, float]:
        """Return the gain of an untrained network, and of the frequencies of pairs."""
        import torch

        from trainers.blocks.alone import untrained

        with torch.no_grad():
            gain = self.score(untrained(self), self.batches("test"))["gain"]
        unigram, bigram = self._counted(torch.cat(list(self.batches("test"))))
        return {"untrained": gain, "unigram": 1.0, "bigram": math.exp(unigram - bigram)}

    def predict(self, models: Models, raw: Path) -> dict[str, Any]:
        """Return how a text file goes on, and the likeliest next characters with their chances."""
        from trainers.data.text import read_text

        return self.go_on(models, read_text(raw).rstrip("\n"))

    def go_on(self, models: Models, prompt: str) -> dict[str, Any]:
        """Return ``text``: the prompt and more; ``next``: chances of its next characters."""
        import torch

        from trainers.nets.sequence import chooser, generate

        # A line break before the prompt: it is the beginning of something.
        where = next(models["net"].parameters()).device
        tokens_1T = self.corpus.encode("\n" + prompt)[None].to(where)
        words = self.corpus.vocabulary.words
        with torch.no_grad():
            best = models["net"](tokens_1T)[0][0, -1].softmax(0).topk(3)
        choose = chooser(derive(self.seed, "choose"), self.temperature, len(SPECIAL))
        said = generate(models["net"], tokens_1T, self.length, choose)[0].tolist()
        chances = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return {
            "text": normalize("NFC", prompt + "".join(words[token] for token in said)),
            "next": {words[token]: round(chance, 4) for token, chance in chances},
        }

    def picture(self, models: Models) -> Image.Image:
        """Draw what comes next after some nouns (or pieces of the text), and how it goes on."""
        import torch

        from trainers.pictures.writing import Written, draw_writing

        rows = {}
        for label, prompts in self._prompts().items():
            told = [(prompt, truth, self.go_on(models, prompt)) for prompt, truth in prompts]
            rows[label] = [Written(p, truth, one["next"], one["text"]) for p, truth, one in told]
        with torch.no_grad():
            scores = self.score(models, self.batches("test"))
        note = f"perplexity {scores['perplexity']:.2f}, {scores['gain']:.1f} times below counting"
        return draw_writing("Text, a character at a time", note, rows)

    def _prompts(self) -> dict[str, list[tuple[str, str]]]:
        """Return beginnings with the character that follows, by the label of their row."""
        from trainers.synth.korean import HELD_OUT, NOUNS, particle

        if self.data:
            text = self.corpus.texts["test"]
            cuts = [len(text) * n // 9 for n in range(1, 9)]
            asked = [(text[at - 24 : at], text[at]) for at in cuts]
            return {"test text": asked[:4], "": asked[4:]}
        nouns = {"nouns it": NOUNS[::8], "has read": NOUNS[2::8], "never read": HELD_OUT[::2][:4]}
        return {
            label: [(noun, self.corpus.units(particle(noun))[0]) for noun in some]
            for label, some in nouns.items()
        }

    def example(self) -> tuple[Tensor, ...]:
        """Return a few characters."""
        return (self.corpus.encode("\n" * 8)[None],)


def _entropy(logits_BTV: Tensor, truth_BT: Tensor) -> Tensor:
    from torch.nn import functional

    return functional.cross_entropy(logits_BTV.flatten(0, 1), truth_BT.flatten())
