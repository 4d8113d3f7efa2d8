"""BLEU: how much of a sentence's runs of words stands in sentences that people wrote.

Source: Papineni et al., BLEU: a method for automatic evaluation of machine translation (2002).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

Words = Sequence[str]


def bleu(
    said: Sequence[Words], references: Sequence[Sequence[Words]], most: int = 4
) -> list[float]:
    """Return BLEU-1 to BLEU-``most`` of a whole corpus, each from 0 to 1, without smoothing.

    Args:
        said: the words of each sentence.
        references: for each sentence the words of one or more good ones.
        most: the longest runs of words that count.

    Raises:
        ValueError: when the two differ in length, or a sentence has no reference.
    """
    if len(said) != len(references) or not all(references):
        raise ValueError(
            f"{len(said)} sentences for {len(references)} references - one or more each"
        )
    length = sum(len(words) for words in said)
    aim = sum(_closest(len(words), good) for words, good in zip(said, references, strict=True))
    if length == 0:
        return [0.0] * most
    brevity = min(0.0, 1 - aim / length)
    scores, logarithms = [], 0.0
    for n in range(1, most + 1):
        pairs = zip(said, references, strict=True)
        found, total = map(
            sum, zip(*(_clipped(words, good, n) for words, good in pairs), strict=True)
        )
        logarithms += math.log(found / total) if found else -math.inf
        scores.append(math.exp(brevity + logarithms / n))
    return scores


def _closest(length: int, references: Sequence[Words]) -> int:
    """Return the length of the reference that is nearest; of two, the shorter."""
    return min((abs(len(words) - length), len(words)) for words in references)[1]


def _clipped(words: Words, references: Sequence[Words], n: int) -> tuple[int, int]:
    """Return how many runs of n words stand in a reference, each as often as there, of how many."""
    runs = _runs(words, n)
    most: Counter[Words] = Counter()
    for good in references:
        most |= _runs(good, n)
    return (runs & most).total(), runs.total()


def _runs(words: Words, n: int) -> Counter[Words]:
    return Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1))
