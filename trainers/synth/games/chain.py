"""Chain: the smallest game whose best values are known exactly, to check a learner.

Shape legend: N games, S states, A actions.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from trainers.synth.games.game import Array, Game

LENGTH = 6


class Chain(Game):
    """Walk left or right along a chain; +1 at its right end, where the episode ends."""

    actions: ClassVar[tuple[str, ...]] = ("left", "right")
    shape = (LENGTH,)
    limit = 50

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.place = np.zeros(count, np.int64)

    def _begin(self, which: Array) -> None:
        self.place[which] = self.random.integers(LENGTH, size=int(which.sum()))

    def _play(self, action: Array) -> tuple[Array, Array]:
        self.place[:] = np.maximum(self.place + 2 * action - 1, 0)
        arrived = self.place == LENGTH
        return arrived, arrived

    def look(self) -> Array:
        """Return where the walkers are, one place of the chain set to 255."""
        return (255 * np.eye(LENGTH, dtype=np.uint8))[np.minimum(self.place, LENGTH - 1)]


def best_values(discount: float) -> Array:
    """Return Q*_SA: a step is worth the discount for every step that is still to go."""
    place = np.arange(LENGTH)
    right = discount ** (LENGTH - 1.0 - place)
    left = discount * right[np.maximum(place - 1, 0)]
    return np.stack([left, right], 1)
