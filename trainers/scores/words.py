"""How well strings of words were recognised."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def edits(truth: Sequence[int], heard: Sequence[int]) -> int:
    """Return the fewest substitutions, insertions and deletions between two strings.

    Source: Levenshtein (1966).
    """
    row = list(range(len(heard) + 1))
    for above, wanted in enumerate(truth, 1):
        corner, row[0] = row[0], above
        for place, word in enumerate(heard, 1):
            change = corner + (word != wanted)
            corner, row[place] = row[place], min(change, row[place] + 1, row[place - 1] + 1)
    return row[-1]


def word_scores(pairs: Iterable[tuple[Sequence[int], Sequence[int]]]) -> dict[str, float]:
    """Return 1 - WER, the word error rate (WER) and the share of whole strings that are right.

    Pairs are (truth, heard); the WER is the edits of all strings by the words of all truths, and
    may be above 1.
    """
    wrong, words, whole, strings = 0, 0, 0, 0
    for truth, heard in pairs:
        away = edits(truth, heard)
        wrong, words = wrong + away, words + len(truth)
        whole, strings = whole + (away == 0), strings + 1
    rate = wrong / words
    return {"word_accuracy": 1 - rate, "wer": rate, "string_accuracy": whole / strings}
