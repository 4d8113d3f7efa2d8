"""Decisions while samples arrive: sliding windows, each smoothed by those before it.

Shape legend: S samples, C channels, T time, W windows, K classes.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

K = TypeVar("K", bound=Hashable)


@dataclass
class Stream(Generic[K]):
    """Take samples in pieces of any size; give a decision for every whole window.

    ``decide`` names the class of one window (C, T); ``vote`` is how many of the last windows the
    majority is taken over.
    """

    decide: Callable[[NDArray[np.float32]], K]
    window: int
    step: int
    vote: int = 5

    def __post_init__(self) -> None:
        """Start with nothing heard."""
        self._waiting: NDArray[np.float32] | None = None
        self._last: deque[K] = deque(maxlen=self.vote)

    def feed(self, samples_SC: NDArray[np.float32]) -> Iterator[tuple[K, K]]:
        """Yield (decision, majority of the last windows) of each window that is now whole."""
        if self._waiting is not None:
            samples_SC = np.concatenate([self._waiting, samples_SC])
        while len(samples_SC) >= self.window:
            self._last.append(self.decide(samples_SC[: self.window].T))
            yield self._last[-1], majority(self._last)
            samples_SC = samples_SC[self.step :]
        self._waiting = samples_SC


def periods(decisions: Sequence[K]) -> list[tuple[int, K]]:
    """Return where each run of equal decisions starts, and what it is."""
    before = [None, *decisions]
    return [(n, k) for n, k in enumerate(decisions) if k != before[n]]


def majority(votes: Sequence[K] | deque[K]) -> K:
    """Return the commonest class; of several, the one that was there last."""
    counts = Counter(votes)
    return max(counts, key=lambda k: (counts[k], max(n for n, v in enumerate(votes) if v == k)))
