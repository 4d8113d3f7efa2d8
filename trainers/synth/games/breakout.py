"""Breakout: a paddle keeps a ball in play that breaks three rows of bricks.

Shape legend: N games, H height, W width, R rows of bricks.
"""

from __future__ import annotations

import numpy as np

from trainers.synth.games.game import BRIGHT, DIM, GREY, SIDE, Array, Game, bar, screens

ROWS, TOP = 3, 5
"""Rows of bricks, and the row of pixels that the first of them is in."""
FLOOR, HALF = SIDE - 1, 1
"""The paddle's row of pixels, and how far it reaches to each side of its middle."""


class Breakout(Game):
    """+1 for a brick; an episode ends when the ball is missed or no brick is left."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.paddle, self.x, self.y, self.dx, self.dy = np.zeros((5, count), np.int64)
        self.bricks_NRW = np.zeros((count, ROWS, SIDE), bool)

    def _begin(self, which: Array) -> None:
        some = int(which.sum())
        self.paddle[which] = SIDE // 2
        self.x[which] = self.random.integers(SIDE, size=some)
        self.y[which] = TOP + ROWS + 1
        self.dx[which] = self.random.choice((-1, 1), some)
        self.dy[which] = 1
        self.bricks_NRW[which] = True

    def _play(self, action: Array) -> tuple[Array, Array]:
        self.paddle[:] = np.clip(self.paddle + action - 1, HALF, SIDE - 1 - HALF)
        self.dx[:] = np.where((self.x + self.dx < 0) | (self.x + self.dx >= SIDE), -1, 1) * self.dx
        self.dy[:] = np.where(self.y + self.dy < 0, 1, self.dy)
        x, y = self.x + self.dx, self.y + self.dy
        hit = self._break(x, y)
        caught = (y == FLOOR) & (abs(x - self.paddle) <= HALF)
        # The middle sends the ball on as it came, an end sends it to its own side.
        side = np.sign(x - self.paddle)
        self.dx[:] = np.where(caught & (side != 0), side, self.dx)
        self.dy[:] = np.where(hit | caught, -self.dy, self.dy)
        self.x[:], self.y[:] = x, np.where(hit | caught, self.y, y)
        return hit, (self.y == FLOOR) | ~self.bricks_NRW.any((1, 2))

    def _break(self, x: Array, y: Array) -> Array:
        row = y - TOP
        games = np.flatnonzero((row >= 0) & (row < ROWS))
        hit = np.zeros(self.count, bool)
        hit[games] = self.bricks_NRW[games, row[games], x[games]]
        games = np.flatnonzero(hit)
        self.bricks_NRW[games, row[games], x[games]] = False
        return hit

    def look(self) -> Array:
        """Return screens of bricks, ball and paddle."""
        screen_NHW = screens(self.count)
        screen_NHW[:, TOP : TOP + ROWS] = DIM * self.bricks_NRW
        bar(screen_NHW, FLOOR, self.paddle, HALF, GREY)
        screen_NHW[np.arange(self.count), self.y, self.x] = BRIGHT
        return screen_NHW
