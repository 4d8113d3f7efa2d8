"""The words (or characters) a network reads and writes, by number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

PAD, START, END, UNKNOWN = range(4)
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


@dataclass(frozen=True)
class Vocabulary:
    """Words in the order of their numbers; the first four mean padding, start, end, unknown."""

    words: tuple[str, ...]

    @classmethod
    def of(cls, sentences: Iterable[Sequence[str]], least: int = 1) -> Vocabulary:
        """Return all words that come ``least`` times or more, the frequent ones first."""
        counts = Counter(word for sentence in sentences for word in sentence)
        kept = [word for word, count in counts.items() if count >= least]
        return cls((*SPECIAL, *sorted(kept, key=lambda word: (-counts[word], word))))

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Return the number of each word."""
        return {word: number for number, word in enumerate(self.words)}

    def encode(self, sentence: Iterable[str], ends: bool = True) -> list[int]:
        """Return the numbers of words, with those of start and end around them if asked for."""
        inner = [self.numbers.get(word, UNKNOWN) for word in sentence]
        return [START, *inner, END] if ends else inner

    def decode(self, numbers: Iterable[int]) -> list[str]:
        """Return the words of numbers up to the end, without start and padding."""
        words = []
        for number in numbers:
            if number == END:
                break
            if number not in (PAD, START):
                words.append(self.words[number])
        return words

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.words)
