"""Replay: what it keeps, overwrites, stacks and draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainers.blocks.replay import Replay
from trainers.synth.games.game import Step

GAMES = 2


def told(time: int, terminated: bool = False, truncated: bool = False) -> Step:
    """Return a step to observations that say their time and game; both games do the same."""
    seen = np.array([[time, game] for game in range(GAMES)], np.float32)
    ends = (np.full(GAMES, end) for end in (terminated, truncated))
    return Step(seen, np.full(GAMES, time, np.float32), *ends)


def filled(steps: int, capacity: int = 100, stack: int = 3, **ends: int) -> Replay:
    replay = Replay(capacity, told(0).seen, stack)
    for time in range(1, steps + 1):
        end = {name: time == when for name, when in ends.items()}
        replay.add(np.full(GAMES, time % 3), told(time, **end))
    return replay


def times(seen: torch.Tensor) -> list[list[int]]:
    return seen[:, :, 0].int().tolist()


def test_a_step_is_drawn_as_it_was() -> None:
    replay = filled(10)
    past = replay.draw((torch.arange(20) + 0.5) / 20)
    assert len(replay) == 20
    for n in range(20):
        time, game = divmod(n, GAMES)
        assert past.seen[n, -1].tolist() == [time, game]
        assert past.following[n, -1].tolist() == [time + 1, game]
        assert past.reward[n] == time + 1 and past.action[n] == (time + 1) % 3


def test_stacks_stay_within_an_episode() -> None:
    replay = filled(6, terminated=4)  # what follows the fourth step is the first of an episode
    past = replay.draw((torch.arange(0, 12, 2) + 0.5) / 12)
    assert times(past.seen) == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3], [4, 4, 4], [4, 4, 5]]
    assert past.terminated.tolist() == [False] * 3 + [True] + [False] * 2
    assert times(past.following)[-1] == [4, 5, 6]
    assert times(replay.look()) == [[4, 5, 6]] * GAMES


def test_what_was_cut_off_is_not_learned_from() -> None:
    replay = filled(6, truncated=4)
    assert sorted({time for time, _ in replay.choices().tolist()}) == [0, 1, 2, 4, 5]


def test_rewards_of_some_steps_are_added_up_to_the_end_of_an_episode() -> None:
    replay = filled(7, terminated=4)
    assert sorted({time for time, _ in replay.choices(3).tolist()}) == [0, 1, 2, 3, 4]
    past = replay.draw((torch.arange(0, 10, 2) + 0.5) / 10, ahead=3, discount=0.5)
    wanted = [1 + 2 / 2 + 3 / 4, 2 + 3 / 2 + 4 / 4, 3 + 4 / 2, 4, 5 + 6 / 2 + 7 / 4]
    assert past.reward.tolist() == wanted
    assert past.terminated.tolist() == [False, True, True, True, False]
    assert times(past.following)[0] == [1, 2, 3] and times(past.following)[-1] == [5, 6, 7]


def test_rewards_are_not_added_across_a_cut() -> None:
    replay = filled(7, truncated=4)
    assert sorted({time for time, _ in replay.choices(3).tolist()}) == [0, 4]


@pytest.mark.parametrize("stack", [1, 3])
def test_the_oldest_steps_are_overwritten(stack: int) -> None:
    replay = filled(57, capacity=20, stack=stack)
    choices = replay.choices()
    assert choices[:, 0].min() == 57 - 10 + stack and choices[:, 0].max() == 56
    share = (torch.arange(len(choices)) + 0.5) / len(choices)
    past = replay.draw(share.double())
    assert past.seen[:, -1, 0].tolist() == choices[:, 0].tolist()
    wanted = [list(range(time - stack + 1, time + 1)) for time in choices[:, 0].tolist()]
    assert times(past.seen) == wanted
    assert past.reward.tolist() == [time + 1 for time in choices[:, 0].tolist()]


def test_steps_are_drawn_uniformly() -> None:
    replay = filled(8, capacity=10_000)
    share = torch.rand(8000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = replay.draw(share).seen[:, -1, 0].int().bincount(minlength=8)
    assert counts.min() > 880 and counts.max() < 1120  # four standard deviations around 1000
