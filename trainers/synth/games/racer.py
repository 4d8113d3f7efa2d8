"""Racer: a car on a winding road that scrolls by, with obstacles on it.

Shape legend: N games, H height, W width.
"""

from __future__ import annotations

import numpy as np

from trainers.synth.games.game import BRIGHT, DIM, GREY, SIDE, Array, Game, bar, screens

CAR, HALF = SIDE - 2, 3
"""The car's row of pixels, and how far the road reaches to each side of its middle."""
TURN, OBSTACLE, GAP = 0.4, 0.25, 4
"""How often the road turns or has an obstacle, and rows between two obstacles."""
NONE = -1


class Racer(Game):
    """+0.1 for a step on the road; an episode ends with -1 off the road or on an obstacle."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.car, self.since, self.bend = np.zeros((3, count), np.int64)
        self.road_NH, self.block_NH = np.zeros((2, count, SIDE), np.int64)

    def _begin(self, which: Array) -> None:
        self.car[which] = SIDE // 2
        self.road_NH[which] = SIDE // 2
        self.block_NH[which] = NONE
        self.since[which] = self.bend[which] = 0

    def _play(self, action: Array) -> tuple[Array, Array]:
        self.car[:] = np.clip(self.car + action - 1, 0, SIDE - 1)
        self._scroll()
        off = abs(self.car - self.road_NH[:, CAR]) > HALF
        crashed = off | (self.block_NH[:, CAR] == self.car)
        return np.where(crashed, -1.0, 0.1), crashed

    def _scroll(self) -> None:
        draw, count = self.random, self.count
        # A bend lasts for a while, so that the road winds instead of trembling.
        turning = draw.random(count) < TURN / 2
        self.bend[:] = np.where(turning, draw.integers(-1, 2, count), self.bend)
        moved = self.bend * (draw.random(count) < TURN)
        for kept in (self.road_NH, self.block_NH):
            kept[:, 1:] = kept[:, :-1].copy()
        self.road_NH[:, 0] = np.clip(self.road_NH[:, 1] + moved, HALF, SIDE - 1 - HALF)
        self.since += 1
        put = (self.since >= GAP) & (draw.random(count) < OBSTACLE)
        place = self.road_NH[:, 0] + draw.integers(-HALF, HALF + 1, count)
        self.block_NH[:, 0] = np.where(put, place, NONE)
        self.since[put] = 0

    def look(self) -> Array:
        """Return screens of the road, its obstacles and the car."""
        screen_NHW = screens(self.count)
        distance_NHW = abs(np.arange(SIDE) - self.road_NH[:, :, None])
        screen_NHW[distance_NHW <= HALF] = DIM
        games, rows = np.nonzero(self.block_NH != NONE)
        screen_NHW[games, rows, self.block_NH[games, rows]] = GREY
        bar(screen_NHW, CAR, self.car, 0, BRIGHT)
        return screen_NHW
