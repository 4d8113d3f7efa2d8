"""Environments of gymnasium: seeded, in lockstep, refused in one line where they do not fit."""

from __future__ import annotations

import numpy as np
import pytest

from dlplatform.errors import UsageError
from trainers.synth.games import open_games

pytest.importorskip("gymnasium")


def test_vectors_are_the_same_for_the_same_seed() -> None:
    told = []
    for _ in range(2):
        game = open_games("gym:CartPole-v1", 3)
        seen = [game.reset(5)]
        seen += [game.step(np.array([0, 1, n % 2])).seen for n in range(40)]
        told.append(np.stack(seen))
    assert told[0].shape == (41, 3, 4) and told[0].dtype == np.float32
    assert np.array_equal(*told) and not np.array_equal(told[0][0, 0], told[0][0, 1])


def test_an_environment_that_ends_begins_anew_at_once() -> None:
    game = open_games("gym:CartPole-v1", 2)
    game.reset(0)
    ends = [game.step(np.array([0, 0])) for _ in range(15)]
    over = [step for step in ends if step.terminated[0]]
    assert over and abs(over[0].seen[0]).max() < 0.06, "where episodes of CartPole begin"
    assert not any(step.truncated.any() for step in ends)


def test_one_of_a_few_states_is_a_vector() -> None:
    game = open_games("gym:FrozenLake-v1", 2)
    seen = game.reset(0)
    assert seen.shape == (2, 16) and seen.sum(1).tolist() == [255, 255] and seen[0, 0] == 255


@pytest.mark.parametrize(
    ("name", "said"),
    [("CartPoll-v1", "cannot be made"), ("no_such_module:X-v0", "cannot be made"),
     ("Pendulum-v1", "acts in Box"), ("Blackjack-v1", "acts in .* and sees Tuple")],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_a_line(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=f"task.game=gym:{name} {said}.* - allowed: ") as caught:
        open_games(f"gym:{name}", 1)
    assert "\n" not in str(caught.value)
