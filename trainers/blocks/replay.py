"""Replay: what N games in lockstep went through last, to learn from in random order.

Source: Mnih et al., Human-level control through deep reinforcement learning (2015).

Shape legend: T times, N games, B batch, K stacked observations; ``...`` is one observation.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainers.synth.games.game import Array, Step, arrays


class Transitions(NamedTuple):
    """Steps drawn from a replay."""

    seen: Tensor
    """(B, K, ...), the newest observation last."""
    action: Tensor
    reward: Tensor
    """Of this step, or of some steps together."""
    terminated: Tensor
    """Whether the episode terminated with them."""
    following: Tensor
    """(B, K, ...): what was seen after them; meaningless where the episode terminated."""


class Replay:
    """A ring of the last ``capacity`` steps; every observation is kept once, stacked when drawn.

    Args:
        capacity: steps of all games together, the oldest is overwritten first.
        first: the observations that all games begin with, (N, ...).
        stack: observations that the network sees at once.
    """

    def __init__(self, capacity: int, first: Array, stack: int) -> None:
        self.games, self.stack = len(first), stack
        self.rows = max(capacity // self.games, stack + 2)
        size = self.rows, self.games
        self.seen = np.zeros((self.rows, *first.shape), first.dtype)
        self.action = np.zeros(size, np.int64)
        self.reward = np.zeros(size, np.float32)
        self.terminated, self.truncated, self.first = np.zeros((3, *size), bool)
        self.now = np.zeros(1, np.int64)
        """Times so far; the observations of now are in the ring, what was done is not yet."""
        self.seen[0], self.first[0] = first, True

    def __len__(self) -> int:
        """Return how many steps it holds."""
        return int(min(self.now[0], self.rows - 1)) * self.games

    def add(self, action: Array, step: Step) -> None:
        """Add what was done now, and what it led to."""
        row = int(self.now[0]) % self.rows
        self.action[row], self.reward[row] = action, step.reward
        self.terminated[row], self.truncated[row] = step.terminated, step.truncated
        self.now += 1
        row = int(self.now[0]) % self.rows
        self.seen[row], self.first[row] = step.seen, step.over

    def cut(self, seen: Array) -> None:
        """Break all episodes off: what follows begins with these observations."""
        row = int(self.now[0]) % self.rows
        self.truncated[row - 1] |= ~self.terminated[row - 1]
        self.seen[row], self.first[row] = seen, True

    def look(self) -> Tensor:
        """Return the stacked observations of now, (N, K, ...)."""
        times = np.full(self.games, self.now[0])
        return torch.from_numpy(self._stacked(times, np.arange(self.games)))

    def choices(self, ahead: int = 1) -> Array:
        """Return all steps that may be drawn, as (time, game): what follows them is known."""
        now = int(self.now[0])
        # The oldest rows only complete the stacks of later ones once the ring is full.
        times = np.arange(max(0, now - self.rows + self.stack), now - ahead + 1)
        cut = [self.truncated[(times + later) % self.rows] for later in range(ahead)]
        found = np.argwhere(~np.any(cut, 0))
        found[:, 0] += times[0]
        return found

    def draw(self, share_B: Tensor, ahead: int = 1, discount: float = 1.0) -> Transitions:
        """Return the steps at these shares in [0, 1) of all that may be drawn.

        With ``ahead`` above 1 the rewards of so many steps are added, each discounted, and what
        follows is seen after the last of them; an episode may terminate among them.
        """
        choices = self.choices(ahead)
        times, games = choices[(share_B.cpu().double().numpy() * len(choices)).astype(np.int64)].T
        reward, terminated = np.zeros(len(times), np.float32), np.zeros(len(times), bool)
        for later in range(ahead):
            rows = (times + later) % self.rows
            reward += discount**later * self.reward[rows, games] * ~terminated
            terminated = terminated | self.terminated[rows, games]
        action = self.action[times % self.rows, games]
        seen, following = (self._stacked(t, games) for t in (times, times + ahead))
        columns = (seen, action, reward, terminated, following)
        return Transitions(*(torch.from_numpy(column).to(share_B.device) for column in columns))

    def state(self) -> dict[str, Array]:
        """Return everything it holds."""
        return arrays(self)

    def _stacked(self, times: Array, games: Array) -> Array:
        found = [self.seen[times % self.rows, games]]
        for _ in range(1, self.stack):
            # Before an episode there was nothing: its first observation is repeated.
            times = times - ~self.first[times % self.rows, games]
            found.append(self.seen[times % self.rows, games])
        return np.stack(found[::-1], 1)
