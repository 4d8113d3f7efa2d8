"""Small games that run in lockstep, and the environments of gymnasium beside them."""

from __future__ import annotations

from trainers.synth.games.breakout import Breakout
from trainers.synth.games.chain import Chain
from trainers.synth.games.galaga import Galaga
from trainers.synth.games.game import Game, Step
from trainers.synth.games.racer import Racer

__all__ = ["GAMES", "GYM", "Game", "Step", "open_games"]

GAMES: dict[str, type[Game]] = {
    "breakout": Breakout,
    "racer": Racer,
    "galaga": Galaga,
    "chain": Chain,
}
GYM = "gym:"
"""Before the name of an environment of gymnasium."""


def open_games(name: str, count: int) -> Game:
    """Return ``count`` games: one of ``GAMES``, or ``gym:`` and the name of an environment."""
    if name.startswith(GYM):
        from trainers.synth.games.gym import Gym

        return Gym(name.removeprefix(GYM), count)
    return GAMES[name](count)
