"""Q-learning: networks of action values, what they are to learn, and how they are played.

Source: Mnih et al. (2015); van Hasselt et al., Deep reinforcement learning with double Q-learning
(2016).

Shape legend: B batch, N games, K stacked observations, H height, W width, A actions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dlplatform.errors import UsageError
from dlplatform.seeds import derive
from trainers.blocks.replay import Replay, Transitions
from trainers.nets.convnet import he_init
from trainers.synth.games.game import Array, Game

Choice = Callable[[Tensor], Array]
"""Returns the actions of N games for what is seen, (N, K, ...)."""
LARGE = 36
"""Screens at least this high and wide are seen by the network of the paper."""
SMALL_LAYERS = ((16, 3, 2), (32, 3, 2))
PAPER_LAYERS = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
"""Channels, size and stride of the convolutions."""


class QNet(nn.Module):
    """Values_BA of K stacked observations: screens (uint8, HW) or vectors of numbers."""

    def __init__(self, shape: tuple[int, ...], stack: int, actions: int, hidden: int) -> None:
        """Build convolutions if an observation is a screen, and two linear layers."""
        super().__init__()
        layers: list[nn.Module] = []
        if len(shape) == 2:
            channels, large = stack, min(shape) >= LARGE
            for width, size, stride in PAPER_LAYERS if large else SMALL_LAYERS:
                padding = 0 if large else size // 2
                layers += [nn.Conv2d(channels, width, size, stride, padding), nn.ReLU()]
                channels = width
        else:
            layers += [nn.Flatten(), nn.Linear(stack * shape[0], hidden), nn.ReLU()]
        layers += [nn.Flatten()]
        with torch.no_grad():
            flat = nn.Sequential(*layers)(torch.zeros(1, stack, *shape)).shape[1]
        layers += [nn.Linear(flat, hidden), nn.ReLU(), nn.Linear(hidden, actions)]
        self.layers = nn.Sequential(*layers)
        he_init(self)

    def forward(self, seen: Tensor) -> Tensor:
        """Return values_BA of (B, K, ...)."""
        values: Tensor = self.layers(seen / 255 if seen.dtype == torch.uint8 else seen.float())
        return values


def values(net: nn.Module, seen: Tensor) -> Tensor:
    """Return values_BA on the CPU, without gradients, wherever the network is."""
    with torch.no_grad():
        found: Tensor = net(seen.to(next(net.parameters()).device))
    return found.float().cpu()


def td_target(
    reward: Tensor, terminated: Tensor, next_BA: Tensor, discount: float, chosen: Tensor
) -> Tensor:
    """Return r + discount * Q_target(s', a') where an episode goes on, r where it terminated.

    ``chosen`` is a': the best action of the target network itself, or in double Q-learning that
    of the network in training.
    """
    following = next_BA.gather(1, chosen[:, None])[:, 0]
    return reward + discount * following * ~terminated


def td_loss(
    net: nn.Module, target: nn.Module, past: Transitions, discount: float, double: bool
) -> Tensor:
    """Return the Huber loss of the values of what was done."""
    with torch.no_grad():
        next_BA = target(past.following).float()
        chosen = (net(past.following) if double else next_BA).argmax(1)
        wanted = td_target(past.reward, past.terminated, next_BA, discount, chosen)
    done = net(past.seen).float().gather(1, past.action[:, None])[:, 0]
    return functional.smooth_l1_loss(done, wanted)


def epsilon(progress: float, first: float, last: float, share: float) -> float:
    """Return the share of random actions: a line from first to last, reached at this progress."""
    return first + (last - first) * min(1.0, progress / share)


class Turn(NamedTuple):
    """What minibatch ``number`` chooses at random."""

    number: int
    seed: int
    """Of what the games draw."""
    chance_N: Tensor
    random_N: Tensor
    """A random action for every game, taken where its chance is below epsilon."""
    share_B: Tensor
    """Which steps of the replay are learned from."""


class Evaluation(NamedTuple):
    """A number of episodes to be played from a seed."""

    seed: int
    episodes: int


class Moment(NamedTuple):
    """A step of one game: (1, K, ...) as the network sees it, what was done, what it brought."""

    seen: Tensor
    action: int
    reward: float


class Episodes(NamedTuple):
    """One episode of each of N games."""

    total: Array
    """Sums of the rewards."""
    steps: Array
    moments: list[Moment]
    """All steps of the first game."""

    @property
    def mean(self) -> float:
        """Return the mean return."""
        return float(self.total.mean())


class Player:
    """One worker's own games, what it remembers of them, and its frozen target network."""

    def __init__(self, game: Game, capacity: int, stack: int, seed: int, net: nn.Module) -> None:
        """Begin the games; ``net`` is copied as the first target network."""
        self.game = game
        self.replay = Replay(capacity, game.reset(seed), stack)
        # A compiled network has the plain one inside.
        self.target = copy.deepcopy(getattr(net, "_orig_mod", net)).requires_grad_(False).eval()
        self.synced = torch.zeros(1, dtype=torch.int64)

    def act(self, choose: Choice, seed: int) -> None:
        """Play one step in every game with the actions chosen for what is seen."""
        self.game.draw(seed)
        action = choose(self.replay.look())
        self.replay.add(action, self.game.step(action))

    def warm(self, count: int, seed: int) -> None:
        """Play at random until it remembers so many steps."""
        choose = blind(len(self.game.names), seed)
        for more in range(-(-(count - len(self.replay)) // self.game.count)):
            self.act(choose, derive(seed, "warm", more))

    def sync(self, net: nn.Module, period: int) -> None:
        """Copy the network to the target if a period of minibatches begins."""
        if period > int(self.synced):
            self.target.load_state_dict(net.state_dict())
            self.synced[0] = period

    def state(self) -> dict[str, Tensor]:
        """Return all of it as tensors by name; the arrays are shared, not copied."""
        arrays = {f"replay.{name}": value for name, value in self.replay.state().items()}
        arrays |= {f"game.{name}": value for name, value in self.game.state().items()}
        target = {f"target.{name}": value for name, value in self.target.state_dict().items()}
        kept = {name: torch.from_numpy(value) for name, value in arrays.items()}
        return kept | target | {"synced": self.synced}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from a state; games that keep theirs to themselves begin a new episode.

        Raises:
            UsageError: for a state of other games, or of a replay of another size.
        """
        mine = self.state()
        for name in mine:
            if name not in state or state[name].shape != mine[name].shape:
                saved = list(state[name].shape) if name in state else "nothing"
                raise UsageError(
                    f"checkpoint has {saved} for {name} - allowed: {list(mine[name].shape)} - do: "
                    "use the task settings the checkpoint was trained with"
                )
            mine[name].copy_(state[name])
        if not self.game.state():
            self.replay.cut(self.game.look())


def play(game: Game, choose: Choice, stack: int, seed: int) -> Episodes:
    """Play one episode in each game, to its end or the limit of steps."""
    memory = Replay(0, game.reset(seed), stack)  # just long enough for stacks
    alive = np.ones(game.count, bool)
    told = Episodes(np.zeros(game.count), np.zeros(game.count), [])
    while alive.any():
        seen = memory.look()
        action = choose(seen)
        step = game.step(action)
        memory.add(action, step)
        if alive[0]:
            told.moments.append(Moment(seen[:1], int(action[0]), float(step.reward[0])))
        told.total[alive] += step.reward[alive]
        told.steps[alive] += 1
        alive &= ~step.over
    return told


def greedy(net: nn.Module) -> Choice:
    """Return the choice of the action with the greatest value."""
    return lambda seen: values(net, seen).argmax(1).numpy()


def blind(actions: int, seed: int) -> Choice:
    """Return a choice at random, whatever is seen."""
    draw = np.random.default_rng(seed)
    return lambda seen: draw.integers(actions, size=len(seen))


def single(action: int) -> Choice:
    """Return the choice of always the same action."""
    return lambda seen: np.full(len(seen), action)


def explorer(net: nn.Module, chance_N: Tensor, random_N: Tensor, share: float) -> Choice:
    """Return a choice that is random in this share of the games, else the best."""

    def choose(seen: Tensor) -> Array:
        best = values(net, seen).argmax(1)
        chosen: Array = torch.where(chance_N.cpu() < share, random_N.cpu(), best).numpy()
        return chosen

    return choose
