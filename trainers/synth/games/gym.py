"""Environments of gymnasium in lockstep, as if they were games of our own.

Shape legend: N games, H height, W width, C colours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from dlplatform.errors import EnvironmentMissing, UsageError
from trainers.synth.games.game import Array, Game, Step

SCREEN = 84
"""Screens are made grey, this high and wide (Mnih et al., 2015)."""


class Gym(Game):
    """``count`` environments that take one of a few actions and show screens or vectors.

    Raises:
        EnvironmentMissing: when gymnasium is not installed.
        UsageError: for a name that it does not know, and for spaces that do not fit.
    """

    limit = 20_000

    def __init__(self, name: str, count: int) -> None:
        try:
            import gymnasium
        except ImportError:
            raise EnvironmentMissing(
                f"task.game=gym:{name} needs gymnasium, which is not installed - "
                "pip install gymnasium, or choose a game of our own"
            ) from None
        try:
            self.environments: list[Any] = [gymnasium.make(name) for _ in range(count)]
        except (gymnasium.error.Error, ImportError) as error:
            said = " ".join(str(error).split()).removesuffix(".")
            raise UsageError(
                f"task.game=gym:{name} cannot be made: {said} - allowed: names of "
                "gymnasium.envs.registry, as CartPole-v1 or ale_py:ALE/Breakout-v5 - do: check "
                "the name, or install its package"
            ) from None
        acting, seeing = self.environments[0].action_space, self.environments[0].observation_space
        self.shape, self.dtype = _form(seeing, gymnasium.spaces)
        if not (isinstance(acting, gymnasium.spaces.Discrete) and self.shape):
            raise UsageError(
                f"task.game=gym:{name} acts in {acting} and sees {seeing} - allowed: Discrete "
                "actions; a vector, a picture or one of a few states - do: wrap it, or take another"
            )
        self._first, self._choices = int(acting.start), int(acting.n)
        super().__init__(count)
        self._seen: Array = np.zeros((count, *self.shape), self.dtype)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the numbers of the actions."""
        return tuple(str(n) for n in range(self._choices))

    def step(self, action: Array) -> Step:
        """Play one action in each environment; one that ends begins anew at once."""
        reward = np.zeros(self.count, np.float32)
        terminated, truncated = np.zeros((2, self.count), bool)
        self.steps += 1
        for n, environment in enumerate(self.environments):
            told = environment.step(int(action[n]) + self._first)
            seen, reward[n], terminated[n], truncated[n] = told[:4]
            self._seen[n] = self._formed(seen)
        truncated = (truncated | (self.steps >= self.limit)) & ~terminated
        self._begin(terminated | truncated)
        self.steps[terminated | truncated] = 0
        return Step(self.look(), reward, terminated, truncated)

    def state(self) -> dict[str, Array]:
        """Return nothing: where an environment is, it keeps to itself."""
        return {}

    def look(self) -> Array:
        """Return the observation of every environment."""
        return self._seen.copy()

    def _begin(self, which: Array) -> None:
        for n in np.flatnonzero(which):
            seen, _ = self.environments[n].reset(seed=int(self.random.integers(1 << 31)))
            self._seen[n] = self._formed(seen)

    def _play(self, action: Array) -> tuple[Array, Array]:
        raise AssertionError("step is its own")

    def _formed(self, seen: Any) -> Array:
        if len(self.shape) == 2:
            picture = Image.fromarray(np.asarray(seen).squeeze()).convert("L")
            return np.asarray(picture.resize((SCREEN, SCREEN), Image.Resampling.BOX))
        if self.dtype is np.uint8:
            one: Array = np.zeros(self.shape, np.uint8)
            one[int(seen)] = 255
            return one
        return np.asarray(seen, np.float32).ravel()


def _form(space: Any, spaces: Any) -> tuple[tuple[int, ...], type]:
    """Return shape and type of our observations of a space; no shape: it does not fit."""
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return (int(space.n),), np.uint8
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return tuple(space.shape), np.float32
    if isinstance(space, spaces.Box) and space.dtype == np.uint8:
        grey = len(space.shape) == 2 or (len(space.shape) == 3 and space.shape[2] in (1, 3))
        return ((SCREEN, SCREEN) if grey else ()), np.uint8
    return (), np.uint8
