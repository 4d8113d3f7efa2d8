"""Galaga: a ship shoots at enemies that dive at it.

Shape legend: N games, E enemies, H height, W width.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from trainers.synth.games.game import BRIGHT, DIM, GREY, SIDE, Array, Game, bar, screens

SHIP, HALF = SIDE - 1, 1
"""The ship's row of pixels, and how far it reaches to each side of its middle."""
ENEMIES, WAIT = 3, 8
"""Enemies at once, and the steps that a new one waits for at most."""
CHASE = 0.4
"""How often an enemy moves sideways towards the ship."""
SPEED = 2
"""Rows that a shot flies in a step."""
NONE = -1


class Galaga(Game):
    """+1 for an enemy that is shot; an episode ends with -1 when an enemy hits the ship."""

    actions: ClassVar[tuple[str, ...]] = ("left", "right", "fire")

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.ship, self.shot_x, self.shot_y = np.zeros((3, count), np.int64)
        self.x_NE, self.y_NE = np.zeros((2, count, ENEMIES), np.int64)

    def _begin(self, which: Array) -> None:
        self.ship[which] = SIDE // 2
        self.shot_y[which] = NONE
        self._enter(np.broadcast_to(which[:, None], self.x_NE.shape))

    def _enter(self, which_NE: Array) -> None:
        some = int(which_NE.sum())
        self.x_NE[which_NE] = self.random.integers(SIDE, size=some)
        self.y_NE[which_NE] = -self.random.integers(1, WAIT + 1, size=some)

    def _play(self, action: Array) -> tuple[Array, Array]:
        move = np.where(action == 0, -1, np.where(action == 1, 1, 0))
        self.ship[:] = np.clip(self.ship + move, HALF, SIDE - 1 - HALF)
        fired = (action == 2) & (self.shot_y == NONE)
        self.shot_x[fired], self.shot_y[fired] = self.ship[fired], SHIP
        hits = np.zeros(self.count)
        for _ in range(SPEED):
            self.shot_y[:] = np.where(self.shot_y > 0, self.shot_y - 1, NONE)
            hits += self._shoot()
        self._dive()
        hits += self._shoot()
        touched_NE = (self.y_NE == SHIP) & (abs(self.x_NE - self.ship[:, None]) <= HALF)
        self._enter(self.y_NE >= SHIP)
        lost = touched_NE.any(1)
        return hits - lost, lost

    def _shoot(self) -> Array:
        hit_NE = (self.y_NE == self.shot_y[:, None]) & (self.shot_y[:, None] >= 0)
        hit_NE &= self.x_NE == self.shot_x[:, None]
        self.shot_y[hit_NE.any(1)] = NONE
        self._enter(hit_NE)
        hits: Array = hit_NE.sum(1)
        return hits

    def _dive(self) -> None:
        self.y_NE += 1
        chasing_NE = (self.random.random(self.x_NE.shape) < CHASE) & (self.y_NE >= 0)
        self.x_NE += chasing_NE * np.sign(self.ship[:, None] - self.x_NE)

    def look(self) -> Array:
        """Return screens of the enemies, the shot and the ship."""
        screen_NHW = screens(self.count)
        games, which = np.nonzero(self.y_NE >= 0)
        screen_NHW[games, self.y_NE[games, which], self.x_NE[games, which]] = GREY
        games = np.flatnonzero(self.shot_y >= 0)
        screen_NHW[games, self.shot_y[games], self.shot_x[games]] = BRIGHT
        bar(screen_NHW, SHIP, self.ship, HALF, DIM)
        return screen_NHW
