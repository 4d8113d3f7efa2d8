"""Our own games: rules, rewards and ends; the same seed and actions, the same episodes."""

from __future__ import annotations

import numpy as np
import pytest

from trainers.synth.games import GAMES, Game, open_games
from trainers.synth.games.breakout import FLOOR, TOP, Breakout
from trainers.synth.games.chain import LENGTH, Chain, best_values
from trainers.synth.games.galaga import NONE, SHIP, Galaga
from trainers.synth.games.game import SIDE, Array
from trainers.synth.games.racer import CAR, HALF, Racer

SCREENS = ["breakout", "racer", "galaga"]


def acts(*actions: int) -> Array:
    return np.array(actions)


def episode(game: Game, seed: int, steps: int = 120) -> list[Array]:
    """Play actions that a seed of its own chooses; return all that was seen and told."""
    draw = np.random.default_rng(1)
    told = [game.reset(seed)]
    for _ in range(steps):
        step = game.step(draw.integers(len(game.names), size=game.count))
        told += [step.seen, step.reward, step.terminated, step.truncated]
    return told


@pytest.mark.parametrize("name", list(GAMES))
def test_an_episode_is_a_pure_function_of_seed_and_actions(name: str) -> None:
    first = episode(open_games(name, 5), 3)
    again, other = (episode(open_games(name, 5), seed) for seed in (3, 4))
    assert all(map(np.array_equal, first, again))
    assert not all(map(np.array_equal, first, other))


@pytest.mark.parametrize("name", SCREENS)
def test_screens_rewards_and_ends_have_one_form(name: str) -> None:
    game = open_games(name, 4)
    seen, *told = episode(game, 0)
    assert seen.shape == (4, SIDE, SIDE) == (4, *game.shape) and seen.dtype == np.uint8
    assert told[1].dtype == np.float32 and told[2].dtype == told[3].dtype == bool
    assert any(step.any() for step in told[2::4]), "random play ends soon"


@pytest.mark.parametrize("name", list(GAMES))
def test_games_go_on_from_a_state(name: str) -> None:
    game, other = open_games(name, 3), open_games(name, 3)
    episode(game, 5, 20)
    other.reset(9)
    for name_, value in game.state().items():
        other.state()[name_][...] = value
    for one in (game, other):
        one.draw(11)
    action = np.zeros(3, np.int64)
    for _ in range(30):
        one, two = game.step(action), other.step(action)
        assert np.array_equal(one.seen, two.seen) and np.array_equal(one.reward, two.reward)


def test_episodes_are_cut_off_at_the_limit() -> None:
    game = Chain(2)
    game.reset(0)
    game.place[:] = 0
    for _ in range(game.limit - 1):
        assert not game.step(acts(0, 0)).over.any()
    step = game.step(acts(0, 0))
    assert step.truncated.all() and not step.terminated.any() and not game.steps.any()


def test_breakout_counts_bricks_and_ends_with_a_miss() -> None:
    game = Breakout(1)
    game.reset(0)
    game.x[:], game.y[:], game.dx[:], game.dy[:] = 4, TOP + 3, 1, -1
    step = game.step(acts(1))
    assert step.reward == [1] and not game.bricks_NRW[0, 2, 5] and game.dy == [1]
    game.x[:], game.y[:], game.dx[:], game.dy[:] = 4, FLOOR - 1, 1, 1
    game.paddle[:] = 12
    assert game.step(acts(1)).terminated.all()
    assert game.bricks_NRW.all(), "a new episode begins with all bricks"


def test_breakout_returns_the_ball_where_the_paddle_is_hit() -> None:
    for shift, dx in ((-1, -1), (0, 1), (1, 1)):
        game = Breakout(1)
        game.reset(0)
        game.x[:], game.y[:], game.dx[:], game.dy[:] = 7, FLOOR - 1, 1, 1
        game.paddle[:] = 8 - shift
        step = game.step(acts(1))
        assert not step.terminated and game.dy == [-1] and game.dx == [dx] and game.y == [FLOOR - 1]


def test_breakout_is_won_without_bricks() -> None:
    game = Breakout(1)
    game.reset(0)
    game.bricks_NRW[:] = False
    game.bricks_NRW[0, 2, 5] = True
    game.x[:], game.y[:], game.dx[:], game.dy[:] = 4, TOP + 3, 1, -1
    step = game.step(acts(1))
    assert step.reward == [1] and step.terminated.all()


def test_racer_pays_for_the_road_and_ends_off_it_or_on_an_obstacle() -> None:
    game = Racer(3)
    game.reset(0)
    game.car[:] = game.road_NH[:, CAR - 1]
    game.car[1] += HALF + 1
    game.block_NH[2, CAR - 1] = game.car[2]
    step = game.step(acts(1, 1, 1))
    assert step.reward == pytest.approx([0.1, -1, -1])
    assert step.terminated.tolist() == [False, True, True]


def test_racer_s_road_winds_by_a_pixel_and_stays_on_the_screen() -> None:
    game = Racer(8)
    game.reset(2)
    for _ in range(100):
        game.car[:] = game.road_NH[:, CAR - 1]
        game.step(np.ones(8, np.int64))
        assert (abs(np.diff(game.road_NH, axis=1)) <= 1).all()
        assert (game.road_NH >= HALF).all() and (game.road_NH < SIDE - HALF).all()


def test_galaga_counts_hits_and_ends_when_the_ship_is_hit() -> None:
    game = Galaga(1)
    game.reset(0)
    game.ship[:], game.y_NE[:] = 8, -5
    game.x_NE[0, 0], game.y_NE[0, 0] = 8, SHIP - 2
    step = game.step(acts(2))
    assert step.reward == [1] and game.shot_y == [NONE] and game.y_NE[0, 0] <= 0
    game.x_NE[0, 1], game.y_NE[0, 1] = 8, SHIP - 1
    step = game.step(acts(0))
    assert step.reward == [-1] and step.terminated.all()


def test_galaga_has_one_shot_at_a_time() -> None:
    game = Galaga(1)
    game.reset(0)
    game.y_NE[:] = -50
    game.step(acts(2))
    before = int(game.shot_y[0])
    game.step(acts(2))
    assert 0 < game.shot_y[0] < before < SHIP


def test_best_values_of_the_chain_obey_bellman_s_equation() -> None:
    best_SA = best_values(0.9)
    assert best_SA.shape == (LENGTH, 2) and best_SA[-1, 1] == 1
    assert best_SA[:-1, 1] == pytest.approx(0.9 * best_SA[1:].max(1))
    assert best_SA[1:, 0] == pytest.approx(0.9 * best_SA[:-1].max(1))
