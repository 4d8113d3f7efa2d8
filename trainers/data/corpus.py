"""Text in parts to train on and to be held out, and its characters as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from unicodedata import normalize

import torch
from torch import Tensor

from dlplatform.errors import UsageError
from dlplatform.seeds import derive
from trainers.blocks.vocabulary import Vocabulary
from trainers.data.text import read_text
from trainers.synth.korean import sentences

SENTENCES = {"train": 4000, "val": 400, "test": 800}
SHARES = {"train": (0.0, 0.9), "val": (0.9, 0.95), "test": (0.95, 1.0)}
"""Which part of a text file is which split."""
LINE = 128
"""Characters of a stretch of held-out text."""
LEAST = 20 * (LINE + 2)
"""Characters a text file must have, so that each split has a stretch."""


@dataclass(frozen=True)
class Corpus:
    """A text file, or Korean sentences by rule, split at fixed places.

    Args:
        data: path of a text file in UTF-8, or empty.
        jamo: split Hangul syllables into their letters.
        seed: of the sentences.
    """

    data: str
    jamo: bool
    seed: int

    @cached_property
    def texts(self) -> dict[str, str]:
        """Return the text of each split."""
        if not self.data:
            return {
                split: self.units(sentences(derive(self.seed, split), count))
                for split, count in SENTENCES.items()
            }
        text = self.units(read_text(Path(self.data), LEAST))
        return {
            split: text[int(len(text) * first) : int(len(text) * last)]
            for split, (first, last) in SHARES.items()
        }

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Return the characters of the training text."""
        # The sentences of seed 0 have all characters that those of any other seed have.
        known = self if self.data or not self.seed else corpus(self.data, self.jamo, 0)
        return Vocabulary.of(known.texts["train"])

    @cached_property
    def tokens(self) -> dict[str, Tensor]:
        """Return the numbers of the characters (T,) of each split."""
        return {split: self.encode(text) for split, text in self.texts.items()}

    def units(self, text: str) -> str:
        """Return a text as it is read: its syllables whole, or as letters."""
        return normalize("NFD" if self.jamo else "NFC", text)

    def encode(self, text: str) -> Tensor:
        """Return the numbers of the characters of a text (T,)."""
        return torch.tensor(self.vocabulary.encode(self.units(text), ends=False), dtype=torch.long)

    def lines(self, split: str) -> Tensor:
        """Return a split as stretches (B, LINE + 1) that meet; the rest of the last is left out.

        Raises:
            UsageError: for a split that is not known.
        """
        if split not in self.tokens:
            raise UsageError(
                f"split={split} is not known - allowed: {', '.join(SHARES)} - do: take one of them"
            )
        return self.tokens[split].unfold(0, LINE + 1, LINE)

    def stretches(self, seed: int, count: int, span: int) -> Tensor:
        """Return ``count`` stretches of ``span`` characters from anywhere in the training text.

        Raises:
            UsageError: when the text is shorter.
        """
        tokens = self.tokens["train"]
        if len(tokens) < span:
            raise UsageError(
                f"task.segments times task.truncation is {span - 1} characters - allowed: up to "
                f"{len(tokens) - 1}, as long as the training text - do: take fewer"
            )
        random = torch.Generator().manual_seed(seed)
        starts = torch.randint(len(tokens) - span + 1, (count,), generator=random)
        return torch.stack([tokens[at : at + span] for at in starts.tolist()])


@lru_cache(maxsize=4)
def corpus(data: str, jamo: bool, seed: int) -> Corpus:
    """Return a corpus, read once."""
    return Corpus(data, jamo, seed)
