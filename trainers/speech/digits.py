"""speech/digits: a small recurrent network writes down strings of spoken digits.

Masks are those of SpecAugment (Park et al., 2019); the first epoch goes from short to long as in
Deep Speech 2 (Amodei et al., 2016).

Shape legend: B batch, T frames or steps, F bands, L digits, K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dlplatform.seeds import derive
from dlplatform.task import Models, task
from trainers.blocks.annealed import Annealed
from trainers.blocks.settings import check

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from trainers.synth.speech import Utterance

Batch = tuple["Tensor", "Tensor", "Tensor", "Tensor"]
SPLITS = {"train": (0, 48), "val": (48, 10), "test": (58, 12)}
"""First voice and how many: nobody speaks in two of them."""
EVALUATION_BATCH = 50
LINEAR_MINIBATCHES = 150


@task("speech/digits")
@dataclass
class SpokenDigits(Annealed):
    """Strings of one to five digits at 8 kHz, by voices of a formant synthesiser or in wav files.

    A batch is (log-mel x_BTF, frames_B, digits_BL from 1 for "zero", their number_B).
    """

    primary: ClassVar[str] = "word_accuracy"
    source: ClassVar[str] = "Graves et al., Connectionist temporal classification (2006)"
    parameters: ClassVar[int] = 111_051
    expected: ClassVar[str] = "0.99"

    minibatches: int = 800
    lr: float = 3e-3
    warmup: float = 0.02
    data: str = ""
    """Folder of wav files with transcripts; empty: the synthesiser."""
    net: str = "gru"
    """gru, lstm, or linear: a classifier of single frames, to compare with."""
    units: int = 64
    """Units of each convolution and of each direction of the recurrent layer."""
    bands: int = 32
    """Mel bands of a frame."""
    utterances: int = 800
    """Recordings to synthesise for training; a sixth as many are for validation, and for test."""
    masks: bool = True
    """Blank a few bands and frames of the training recordings at random."""
    short_first: bool = True
    """Go through the recordings once from the shortest to the longest (SortaGrad)."""
    beam: int = 4
    """Strings that are followed while decoding; 1: the likeliest path alone."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        super().__post_init__()
        check("net", self.net, self.net in ("gru", "lstm", "linear"), "gru, lstm or linear")
        check("units", self.units, 1 <= self.units <= 4096, "1 to 4096")
        check("bands", self.bands, 8 <= self.bands <= 40, "8 to 40")
        check("utterances", self.utterances, self.utterances >= 120, "120 or more")
        check("beam", self.beam, 1 <= self.beam <= 100, "1 to 100")

    def models(self) -> Models:
        """Build the network."""
        from trainers.nets.ctc import LinearFrames, Recogniser
        from trainers.synth.speech import WORDS

        classes = 1 + len(WORDS)
        if self.net == "linear":
            return {"net": LinearFrames(self.bands, classes)}
        return {"net": Recogniser(self.bands, classes, self.net, self.units)}

    def spoken(self, split: str) -> tuple[Utterance, ...]:
        """Return the recordings of ``train``, ``val`` or ``test``."""
        from trainers.data.speech import load_speech
        from trainers.synth.speech import utterances

        check("split", split, split in SPLITS, ", ".join(SPLITS))
        if self.data:
            return load_speech(self.data)[split]
        count = self.utterances if split == "train" else self.utterances // 6
        return utterances(self.seed, *SPLITS[split], count)

    def batch(self, split: str, number: int) -> Batch:
        """Return minibatch ``number``, with masks if so configured."""
        from trainers.blocks.logmel import mask
        from trainers.data.sampling import draw

        spoken = self.spoken(split)
        x, digits = features(spoken, self.bands)
        if self.short_first and number < len(x) // self.batch_size:
            order = sorted(range(len(x)), key=lambda n: len(x[n]))
            picked = order[number * self.batch_size : (number + 1) * self.batch_size]
        else:
            picked = draw(self.seed, number, self.batch_size, len(spoken)).tolist()
        shown = [x[n] for n in picked]
        if self.masks:
            seeds = (derive(self.seed, "mask", number, place) for place in range(len(shown)))
            shown = [mask(x_TF, seed) for x_TF, seed in zip(shown, seeds, strict=True)]
        return _batch(shown, [digits[n] for n in picked])

    def batches(self, split: str) -> Iterator[Batch]:
        """Yield all recordings of a split, in a fixed order."""
        x, digits = features(self.spoken(split), self.bands)
        for first in range(0, len(x), EVALUATION_BATCH):
            part = slice(first, first + EVALUATION_BATCH)
            yield _batch(x[part], digits[part])

    def loss(self, models: Models, batch: Batch) -> Tensor:
        """Return minus the log probability of the digits over all alignments, by their number."""
        from torch.nn import functional

        x_BTF, frames_B, digits_BL, number_B = batch
        logp_BTK, steps_B = models["net"](x_BTF, frames_B)
        return functional.ctc_loss(
            logp_BTK.transpose(0, 1), digits_BL, steps_B, number_B, zero_infinity=True
        )

    def score(self, models: Models, batches: Iterable[Batch]) -> dict[str, float]:
        """Return 1 - WER, the word error rate and the share of strings that are right."""
        from trainers.scores.words import word_scores

        pairs: list[tuple[list[int], list[int]]] = []
        for x_BTF, frames_B, digits_BL, number_B in batches:
            logp_BTK, steps_B = models["net"](x_BTF, frames_B)
            heard = map(self._decode, logp_BTK, steps_B.tolist())
            truth = (row[:n].tolist() for row, n in zip(digits_BL, number_B, strict=True))
            pairs += zip(truth, heard, strict=True)
        return word_scores(pairs)

    def predict(self, models: Models, raw: Path) -> dict[str, Any]:
        """Return the digits spoken in a wav file, and how sure the network is of the whole."""
        import torch

        from trainers.blocks.logmel import log_mel
        from trainers.data.wav import read_wav
        from trainers.synth.speech import RATE, WORDS

        samples_S = read_wav(raw, RATE)
        x_1TF = log_mel(torch.from_numpy(samples_S), RATE, self.bands)[None]
        logp_TK, heard = self._hear(models, x_1TF)
        steps_1, digits_1 = torch.tensor([[len(logp_TK)], [len(heard)]])
        truth_1L = torch.tensor([heard]).long()
        logp = -torch.nn.functional.ctc_loss(
            logp_TK[:, None], truth_1L, steps_1, digits_1, reduction="sum"
        )
        return {
            "digits": "".join(str(k - 1) for k in heard),
            "words": " ".join(WORDS[k - 1] for k in heard),
            "confidence": round(float(logp.exp()), 4),
            "seconds": round(len(samples_S) / RATE, 3),
        }

    def baselines(self) -> dict[str, float]:
        """Return the score of the commonest string, an untrained net and a linear classifier."""
        from trainers.blocks.alone import train_alone, untrained
        from trainers.scores.words import word_scores

        common = Counter(one.digits for one in self.spoken("train")).most_common(1)[0][0]
        guesses = word_scores((one.digits, common) for one in self.spoken("test"))
        linear = replace(self, net="linear", minibatches=LINEAR_MINIBATCHES, lr=0.01, beam=1)
        nets = {"untrained": (self, untrained(self)), "linear": (linear, train_alone(linear))}
        return {"commonest string": guesses[self.primary]} | {
            name: how.score(models, how.batches("test"))[self.primary]
            for name, (how, models) in nets.items()
        }

    def picture(self, models: Models) -> Image.Image:
        """Draw test recordings with what was said, what was heard, and all of the answer."""
        import torch

        from trainers.pictures.speech import Heard, draw_heard

        with torch.no_grad():
            scores = self.score(models, self.batches("test"))
        rows = []
        for one, x_TF in zip(self.spoken("test"), features(self.spoken("test"), self.bands)[0],
                             strict=True):  # fmt: skip
            logp_TK, heard = self._hear(models, x_TF[None])
            said = tuple(k - 1 for k in heard)
            rows.append(Heard(one, x_TF.numpy(), logp_TK.exp().cpu().numpy(), said))
        return draw_heard(rows, scores["word_accuracy"], scores["string_accuracy"])

    def example(self) -> tuple[Tensor, ...]:
        """Return a second of silence."""
        import torch

        return (torch.zeros(1, 100, self.bands), torch.tensor([100]))

    def _decode(self, logp_TK: Tensor, steps: int) -> list[int]:
        from trainers.nets.ctc import beam_search, greedy

        logp_TK = logp_TK[:steps].float()
        return greedy(logp_TK) if self.beam == 1 else beam_search(logp_TK, self.beam)

    def _hear(self, models: Models, x_1TF: Tensor) -> tuple[Tensor, list[int]]:
        import torch

        device = next(models["net"].parameters()).device
        length_1 = torch.tensor([x_1TF.shape[1]], device=device)
        with torch.no_grad():
            logp_1TK, _ = models["net"](x_1TF.to(device), length_1)
        return logp_1TK[0].float().cpu(), self._decode(logp_1TK[0], logp_1TK.shape[1])


@lru_cache(maxsize=6)
def features(spoken: tuple[Utterance, ...], bands: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return log-mel x_TF and the symbols (digit + 1) of each recording, computed once."""
    import torch

    from trainers.blocks.logmel import log_mel
    from trainers.synth.speech import RATE

    x = [log_mel(torch.from_numpy(one.samples_S), RATE, bands) for one in spoken]
    return x, [torch.tensor(one.digits) + 1 for one in spoken]


def _batch(x: list[Tensor], digits: list[Tensor]) -> Batch:
    from trainers.nets.ctc import padded

    return (*padded(x), *padded(digits))
