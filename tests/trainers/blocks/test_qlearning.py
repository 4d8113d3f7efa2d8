"""Q-learning: targets, exploration, networks, and what a player keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dlplatform.errors import UsageError
from trainers.blocks.qlearning import Player, QNet, blind, epsilon, explorer, td_loss, td_target
from trainers.blocks.replay import Transitions
from trainers.synth.games import open_games


def net(actions: int = 3, seed: int = 0) -> QNet:
    torch.manual_seed(seed)
    return QNet((16, 16), 2, actions, 8)


def test_a_target_bootstraps_unless_the_episode_terminated() -> None:
    reward, terminated = torch.tensor([1.0, 2.0, -1.0]), torch.tensor([False, True, False])
    next_BA = torch.tensor([[1.0, 5.0], [7.0, 8.0], [4.0, 2.0]])
    got = td_target(reward, terminated, next_BA, 0.5, next_BA.argmax(1))
    assert got.tolist() == [3.5, 2.0, 1.0]


def test_double_learning_asks_the_network_which_action_and_the_target_what_it_is_worth() -> None:
    class Fixed(torch.nn.Module):
        def __init__(self, *values: float) -> None:
            super().__init__()
            self.values = torch.nn.Parameter(torch.tensor([values]))

        def forward(self, seen: torch.Tensor) -> torch.Tensor:
            return self.values.expand(len(seen), -1)

    online, target = Fixed(0.0, 1.0), Fixed(0.6, 0.2)
    seen, no = torch.zeros(1, 1, 4), torch.tensor([False])
    past = Transitions(seen, torch.tensor([0]), torch.zeros(1), no, seen)
    plain, double = (td_loss(online, target, past, 1.0, way).item() for way in (False, True))
    assert plain == pytest.approx(0.6**2 / 2) and double == pytest.approx(0.2**2 / 2)


def test_only_the_network_in_training_has_gradients() -> None:
    online, target = net(), net(seed=1)
    seen = torch.zeros(4, 2, 16, 16, dtype=torch.uint8)
    past = Transitions(
        seen, torch.tensor([0, 1, 2, 0]), torch.ones(4), torch.zeros(4, dtype=torch.bool), seen
    )
    td_loss(online, target, past, 0.9, double=True).backward()
    assert all(p.grad is None for p in target.parameters())
    assert any(p.grad.abs().sum() > 0 for p in online.parameters())


def test_exploration_falls_along_a_line_and_stays() -> None:
    got = [epsilon(progress, 1.0, 0.1, 0.5) for progress in (0, 0.25, 0.5, 0.9, 2.0)]
    assert got == pytest.approx([1, 0.55, 0.1, 0.1, 0.1])


def test_actions_are_random_where_the_chance_is_below_the_share() -> None:
    online, seen = net(), torch.zeros(4, 2, 16, 16, dtype=torch.uint8)
    best = int(online(seen[:1]).argmax())
    chance_N, random_N = torch.tensor([0.1, 0.3, 0.5, 0.9]), torch.full((4,), (best + 1) % 3)
    got = explorer(online, chance_N, random_N, 0.4)(seen)
    assert got.tolist() == [(best + 1) % 3] * 2 + [best] * 2


@pytest.mark.parametrize(("shape", "stack"), [((16, 16), 2), ((84, 84), 4), ((4,), 1)])
def test_networks_fit_what_is_seen(shape: tuple[int, ...], stack: int) -> None:
    assert QNet(shape, stack, 5, 16)(torch.zeros(2, stack, *shape)).shape == (2, 5)


def test_bytes_are_scaled_and_numbers_are_not() -> None:
    online = net()
    seen = torch.randint(0, 256, (1, 2, 16, 16), dtype=torch.uint8)
    assert torch.allclose(online(seen), online(seen / 255), atol=1e-6)


def test_the_target_is_frozen_between_copies() -> None:
    online = net()
    player = Player(open_games("breakout", 2), 50, 2, 0, online)
    first = [p.clone() for p in player.target.parameters()]
    with torch.no_grad():
        for p in online.parameters():
            p.add_(1)
    player.sync(online, 0)
    assert all(map(torch.equal, player.target.parameters(), first))
    player.sync(online, 1)
    assert all(map(torch.equal, player.target.parameters(), online.parameters()))
    with torch.no_grad():
        for p in online.parameters():
            p.add_(1)
    player.sync(online, 1)
    assert not any(map(torch.equal, player.target.parameters(), online.parameters()))


@pytest.mark.parametrize("name", ["galaga", "gym:CartPole-v1"])
def test_a_player_goes_on_from_its_state(name: str) -> None:
    if name.startswith("gym:"):
        pytest.importorskip("gymnasium")
    players = []
    for seed in (0, 1):
        game = open_games(name, 3)
        online = QNet(game.shape, 2, len(game.names), 8)
        players.append(Player(game, 40, 2, seed, online))
    one, two = players
    one.warm(30, seed=5)
    one.sync(one.target, 4)
    two.restore({key: value.clone() for key, value in one.state().items()})
    assert len(two.replay) == len(one.replay) and two.synced == one.synced
    if name == "galaga":
        share = torch.arange(20) / 20
        assert all(map(torch.equal, one.replay.draw(share), two.replay.draw(share)))
        for player in players:
            player.act(blind(3, 7), seed=8)
        assert torch.equal(one.replay.look(), two.replay.look())
    else:
        assert two.replay.first[int(two.replay.now[0]) % two.replay.rows].all()


def test_a_state_of_another_size_is_refused() -> None:
    saved = Player(open_games("breakout", 2), 50, 2, 0, net()).state()
    other = Player(open_games("breakout", 4), 50, 2, 0, net())
    with pytest.raises(UsageError, match=r"checkpoint has .* for .* - allowed: "):
        other.restore(saved)
    with pytest.raises(UsageError, match=r"checkpoint has nothing for replay.seen - allowed: "):
        other.restore({})


def test_random_play_uses_all_actions() -> None:
    chosen = blind(3, 0)(torch.zeros(300, 1))
    assert np.bincount(chosen, minlength=3).min() > 60
