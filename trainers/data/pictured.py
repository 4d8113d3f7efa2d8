"""Pictures with sentences about them, and the words of these as numbers: COCO's, or drawn scenes.

Shape legend: C channels, H height, W width, B batch, R references of a picture, T time.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlplatform.errors import UsageError
from dlplatform.seeds import derive
from trainers.blocks.vocabulary import Vocabulary
from trainers.data.captions import Captioned, load_captions
from trainers.data.readers import read_all
from trainers.data.sampling import draw
from trainers.pictures.files import read_fitted
from trainers.synth.scenes import Look, Thing, draw_scene

Sentences = tuple[tuple[str, ...], ...]
Pictured = tuple[NDArray[Any], Sentences]
"""A picture (C, H, W) of bytes, and the words of each sentence about it."""
SPLITS = {"train": 25_600, "val": 200, "test": 400}
"""Scenes of each split; each is drawn once (20 to 30 s for all)."""
TENTHS = {"train": (3, 4, 5, 6, 7, 8, 9), "val": (2,), "test": (0, 1)}
"""Which tenths of all pairs of coloured shapes come in a split."""
EVALUATION_BATCH = 100
STEP = 12
"""Sentences are filled up to a multiple of this, so that batches come in few shapes."""


@dataclass(frozen=True)
class Captions:
    """What there is to caption.

    Args:
        data: folder of COCO captions, or empty: scenes of two shapes.
        side: pixels of the square pictures.
        least: times a word must come in the training sentences to be in the vocabulary.
    """

    data: str
    side: int
    least: int

    @cached_property
    def files(self) -> dict[str, tuple[Captioned, ...]]:
        """Return the pictures of a folder by split; none of the scenes."""
        return load_captions(Path(self.data)) if self.data else {}

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Return the words of the training sentences."""
        if self.data:
            said = [line for shown in self.files["train"] for line in shown.captions]
        else:
            said = [line for number in range(400) for line in scene(number, "train", 16)[1]]
        return Vocabulary.of(said, self.least)

    def drawn(self, seed: int, number: int, count: int) -> list[Pictured]:
        """Return the pictures of minibatch ``number``, each with one of its sentences."""
        random = np.random.RandomState(derive(seed, "sentence", number) % 2**32)
        picked = draw(seed, number, count, self.count("train")).tolist()
        shown = read_all(lambda n: self.picture(seed, "train", n), picked)
        return [(image, (said[random.randint(len(said))],)) for image, said in shown]

    def all(self, seed: int, split: str) -> Iterator[list[Pictured]]:
        """Yield the pictures of a split in their order, with all their sentences.

        Raises:
            UsageError: for a split that is not known.
        """
        if split not in SPLITS:
            raise UsageError(
                f"split={split} is not known - allowed: {', '.join(SPLITS)} - do: take one of them"
            )
        for first in range(0, self.count(split), EVALUATION_BATCH):
            last = min(first + EVALUATION_BATCH, self.count(split))
            yield read_all(lambda n: self.picture(seed, split, n), range(first, last))

    def count(self, split: str) -> int:
        """Return the number of pictures of a split."""
        return len(self.files[split]) if self.data else SPLITS[split]

    def picture(self, seed: int, split: str, number: int) -> Pictured:
        """Return picture ``number`` of a split."""
        if not self.data:
            return scene(derive(seed, split, number), split, self.side)
        shown = self.files[split][number]
        return read_fitted(shown.path, 3, self.side, self.side), shown.captions

    def tokens(self, captions: list[Sentences]) -> Tensor:
        """Return the sentences of each picture as tokens_BRT, filled up with padding."""
        coded = [[self.vocabulary.encode(line) for line in said] for said in captions]
        lines = max(len(said) for said in coded)
        longest = max(len(line) for said in coded for line in said)
        words = -(-longest // STEP) * STEP
        tokens_BRT = torch.zeros(len(coded), lines, words, dtype=torch.long)
        for row, said in enumerate(coded):
            for column, line in enumerate(said):
                tokens_BRT[row, column, : len(line)] = torch.tensor(line)
        return tokens_BRT


@lru_cache(maxsize=4)
def pictured(data: str, side: int, least: int) -> Captions:
    """Return what there is to caption, read once."""
    return Captions(data, side, least)


@lru_cache(maxsize=32_768)
def scene(seed: int, split: str, side: int) -> Pictured:
    """Return a scene of two shapes that are small or large, whose pair comes in this split only."""
    look = Look(side, least=2, most=2, small=(0.24, 0.3), large=(0.42, 0.5), overlap=0.0)
    shown = draw_scene(seed, look, accept=lambda things: _tenth(things) in TENTHS[split])
    # From above or the left only: to learn either order takes several times as long.
    return shown.image_HWC.transpose(2, 0, 1), (tuple(shown.captions[0].split()),)


def _tenth(things: tuple[Thing, ...]) -> int:
    pair = sorted(f"{thing.colour} {thing.label}" for thing in things)
    return zlib.crc32(" and ".join(pair).encode()) % 10
