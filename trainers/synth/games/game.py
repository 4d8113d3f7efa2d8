"""Games in lockstep: many small games of one kind, played together as arrays.

The interface is that of gymnasium's vector environments with reset in the same step: ``reset``
with a seed, then ``step`` with an action for each game. All randomness comes from the last seed.

Shape legend: N games, H height, W width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
SIDE = 16
"""Height and width of the screens of our own games."""
DIM, GREY, BRIGHT = 90, 170, 255


@dataclass(frozen=True)
class Step:
    """What an action led to, for each of N games."""

    seen: Array
    """The new observation; of a game that ended, the first of its next episode."""
    reward: Array
    """float32."""
    terminated: Array
    """Whether the episode ended within the rules of the game: nothing follows."""
    truncated: Array
    """Whether the episode was cut off by the limit of steps: more would have followed."""

    @property
    def over(self) -> Array:
        """Return whether a new episode began."""
        return self.terminated | self.truncated


class Game(ABC):
    """``count`` games of one kind in lockstep; a subclass keeps its state in arrays of N rows."""

    actions: ClassVar[tuple[str, ...]] = ("left", "stay", "right")
    shape: tuple[int, ...] = (SIDE, SIDE)
    """Of one observation."""
    dtype: type = np.uint8
    limit: int = 300
    """Steps after which an episode is cut off."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.steps = np.zeros(count, np.int64)
        self.draw(0)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the actions by name."""
        return self.actions

    def draw(self, seed: int) -> None:
        """Draw all random numbers from this seed from now on."""
        self.random = np.random.default_rng(seed)

    def reset(self, seed: int) -> Array:
        """Begin an episode in every game; return the first observations."""
        self.draw(seed)
        self._begin(np.ones(self.count, bool))
        self.steps[:] = 0
        return self.look()

    def step(self, action: Array) -> Step:
        """Play one action in each game; a game that ends begins anew at once."""
        reward, terminated = self._play(action)
        self.steps += 1
        over = terminated | (self.steps >= self.limit)
        if over.any():
            self._begin(over)
            self.steps[over] = 0
        return Step(self.look(), reward.astype(np.float32), terminated, over & ~terminated)

    def state(self) -> dict[str, Array]:
        """Return where all games are: every array that they keep, themselves and not copies."""
        return arrays(self)

    @abstractmethod
    def look(self) -> Array:
        """Return the observation of every game as it is now."""

    @abstractmethod
    def _begin(self, which: Array) -> None:
        """Begin an episode in the games of a mask."""

    @abstractmethod
    def _play(self, action: Array) -> tuple[Array, Array]:
        """Move every game by one step; return the rewards and whether each has ended."""


def arrays(holder: object) -> dict[str, Array]:
    """Return the arrays among the attributes of an object, by name."""
    return {name: value for name, value in vars(holder).items() if isinstance(value, np.ndarray)}


def screens(count: int) -> Array:
    """Return black screens."""
    return np.zeros((count, SIDE, SIDE), np.uint8)


def bar(screen_NHW: Array, row: int, middle: Array, half: int, value: int) -> None:
    """Draw a horizontal bar of 2 * half + 1 pixels into each screen."""
    rows = np.arange(len(screen_NHW))
    for shift in range(-half, half + 1):
        screen_NHW[rows, row, np.clip(middle + shift, 0, SIDE - 1)] = value
