"""zoo/dqn: a deep Q-network learns small arcade games from their screens by trial and error.

Every worker plays games of its own, remembers them in a replay of its own and learns from what
it draws there, as in Gorila; only the network is shared. What a minibatch chooses at random -
which actions are random, what the games draw, what is drawn from the replay - is a pure function
of its number.

Shape legend: N games, B batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dlplatform.seeds import derive
from dlplatform.task import Models, task
from trainers.blocks.settings import check
from trainers.blocks.supervised import Supervised, cosine

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor, nn

    from trainers.blocks.qlearning import Episodes, Evaluation, Player, Turn
    from trainers.synth.games import Game

OWN = ("breakout", "racer", "galaga", "chain")
GYM = "gym:"
EPISODES = {"train": 40, "val": 40, "test": 100}


@task("zoo/dqn")
@dataclass
class DQN(Supervised):
    """A Q-network plays breakout, racer or galaga (16x16), or an environment of gymnasium.

    A batch is a ``Turn``; the score is the mean return of whole episodes.
    """

    primary: ClassVar[str] = "return"
    source: ClassVar[str] = "Mnih et al. 2015; Nair et al. 2015 (Gorila)"
    parameters: ClassVar[int] = 70_995
    expected: ClassVar[str] = "16"

    batch_size: int = 64
    minibatches: int = 10_000
    lr: float = 1e-3
    game: str = "breakout"
    """breakout, racer, galaga, chain, or gym:NAME of an environment of gymnasium."""
    games: int = 32
    """Games that a worker plays in lockstep; each makes one step a minibatch."""
    stack: int = 2
    """Observations that the network sees at once; the paper has 4."""
    hidden: int = 128
    """Units of the layer before the values; the paper has 512."""
    replay: int = 20_000
    """Steps that a worker remembers; the paper has 1,000,000."""
    warm: int = 1000
    """Random steps before a worker's first minibatch."""
    discount: float = 0.97
    """What a reward is worth one step later."""
    ahead: int = 6
    """Steps whose rewards are added before the network's own estimate; the paper has 1."""
    sync: int = 50
    """Minibatches of the job from one copy of the network to the target to the next."""
    double: bool = True
    """Double Q-learning: the network in training says which next action is best."""
    explore: float = 0.05
    """Share of random actions in the end; it falls from 1 along a line."""
    annealed: float = 0.3
    """Share of task.minibatches after which it is reached."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        super().__post_init__()
        known = self.game in OWN or (self.game.startswith(GYM) and self.game != GYM)
        check("game", self.game, known, f"{', '.join(OWN)}, {GYM}NAME")
        for name in ("games", "stack", "hidden", "ahead", "sync"):
            check(name, getattr(self, name), getattr(self, name) >= 1, "1 or more")
        least = self.games * (self.ahead + self.stack + 2)
        check("warm", self.warm, self.warm >= least, f"{least} or more for so many games")
        check("replay", self.replay, self.replay >= self.warm, "at least task.warm")
        check("discount", self.discount, 0 <= self.discount < 1, "0 up to, not including, 1")
        check("explore", self.explore, 0 <= self.explore <= 1, "0 to 1")
        check("annealed", self.annealed, 0 < self.annealed <= 1, "above 0, up to 1")
        self._player: Player | None = None

    def models(self) -> Models:
        """Build the network of action values; the target network is a worker's own."""
        from trainers.blocks.qlearning import QNet

        game = _specimen(self.game)
        return {"online": QNet(game.shape, self.stack, len(game.names), self.hidden)}

    def batch(self, split: str, number: int) -> Turn:
        """Return what minibatch ``number`` chooses at random."""
        import torch

        from trainers.blocks.qlearning import Turn

        draw = torch.Generator().manual_seed(derive(self.seed, split, number))
        chance_N = torch.rand(self.games, generator=draw)
        actions = len(_specimen(self.game).names)
        random_N = torch.randint(actions, (self.games,), generator=draw)
        share_B = torch.rand(self.batch_size, generator=draw, dtype=torch.float64)
        seed = derive(self.seed, "games", split, number)
        return Turn(number, seed, chance_N, random_N, share_B)

    def batches(self, split: str) -> Iterator[Evaluation]:
        """Yield how many episodes to play, and from which seed."""
        from trainers.blocks.qlearning import Evaluation

        check("split", split, split in EPISODES, ", ".join(EPISODES))
        yield Evaluation(derive(self.seed, "episodes", split), EPISODES[split])

    def loss(self, models: Models, batch: Turn) -> Tensor:
        """Play one step in this worker's games, then learn from steps it remembers."""
        from trainers.blocks.qlearning import epsilon, explorer, td_loss

        net, player = models["online"], self._opened(models, batch)
        share = epsilon(batch.number / self.minibatches, 1.0, self.explore, self.annealed)
        player.act(explorer(net, batch.chance_N, batch.random_N, share), batch.seed)
        past = player.replay.draw(batch.share_B, self.ahead, self.discount)
        return td_loss(net, player.target, past, self.discount**self.ahead, self.double)

    def after(self, models: Models, number: int) -> None:
        """Copy the network to the target network whenever ``sync`` more minibatches are done."""
        if self._player:
            self._player.sync(models["online"], (number + 1) // self.sync)

    def state(self) -> dict[str, Tensor]:
        """Return the replay, the games and the target network."""
        return self._player.state() if self._player else {}

    def restore(self, models: Models, state: dict[str, Tensor]) -> None:
        """Go on with a saved replay, its games and target network."""
        if state:
            self._player = self._new(models, 0)
            self._player.restore(state)

    def score(self, models: Models, batches: Iterable[Evaluation]) -> dict[str, float]:
        """Return the mean return and length of episodes, also as multiples of random play's."""
        from trainers.blocks.qlearning import greedy, play

        (batch,) = batches
        game = self._games(batch.episodes)
        told = play(game, greedy(models["online"]), self.stack, batch.seed)
        chance = random_play(self.game, *batch)
        found = {"return": told.mean, "steps": float(told.steps.mean())}
        found["times_random_steps"] = found["steps"] / float(chance.steps.mean())
        if chance.mean > 0:  # a multiple of a loss says nothing
            found["times_random"] = found["return"] / chance.mean
        return found

    def optimizer(self, group: str, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return Adam."""
        from torch.optim import Adam

        return Adam(parameters, lr=self.lr)

    def rate(self, progress: float) -> float:
        """Fall to 1 % along half a cosine."""
        return cosine(progress)

    def baselines(self) -> dict[str, float]:
        """Return the mean return of random play, of the best single action, of no training."""
        from trainers.blocks.alone import untrained
        from trainers.blocks.qlearning import play, single

        (batch,) = self.batches("test")
        game = self._games(batch.episodes)
        always = (play(game, single(n), 1, batch.seed).mean for n in range(len(game.names)))
        return {
            "random": random_play(self.game, *batch).mean,
            "one action": max(always),
            "untrained": self.score(untrained(self), [batch])["return"],
        }

    def picture(self, models: Models) -> Image.Image:
        """Draw moments of an episode with the values of all actions, and one of random play."""
        from trainers.blocks.qlearning import blind, greedy, play
        from trainers.pictures.episodes import Played, draw_episodes

        net, game = models["online"], self._games(1)
        (batch,) = self.batches("test")
        told = (
            play(game, choose, self.stack, batch.seed)
            for choose in (greedy(net), blind(len(game.names), batch.seed))
        )
        usual = self.score(models, [batch])["return"], random_play(self.game, *batch).mean
        rows = map(Played, ("Q-network", "random play"), told, usual)
        return draw_episodes(f"DQN: {self.game}", list(rows), game.names, net)

    def predict(self, models: Models, raw: Path) -> dict[str, Any]:
        """Return the action for what is seen, or play an episode.

        A picture (of a GIF: its end) or JSON ``{"observation": [...]}`` gives the best action
        and all values. JSON ``{"seed": 7}`` plays an episode and writes a GIF beside the file.
        """
        from trainers.pictures.episodes import answer

        return answer(raw, self._games(1), models["online"], self.stack)

    def example(self) -> tuple[Tensor, ...]:
        """Return blank observations."""
        from trainers.blocks.replay import Replay

        return (Replay(0, _specimen(self.game).look(), self.stack).look(),)

    def _games(self, count: int) -> Game:
        from trainers.synth.games import open_games

        return open_games(self.game, count)

    def _opened(self, models: Models, turn: Turn) -> Player:
        if self._player is None:
            self._player = self._new(models, turn.seed)
        self._player.warm(self.warm, turn.seed)
        return self._player

    def _new(self, models: Models, seed: int) -> Player:
        from trainers.blocks.qlearning import Player

        return Player(self._games(self.games), self.replay, self.stack, seed, models["online"])


@lru_cache(maxsize=4)
def _specimen(name: str) -> Game:
    from trainers.synth.games import open_games

    return open_games(name, 1)


@lru_cache(maxsize=8)
def random_play(name: str, seed: int, episodes: int) -> Episodes:
    """Return what random play comes to in these episodes."""
    from trainers.blocks.qlearning import blind, play
    from trainers.synth.games import open_games

    game = open_games(name, episodes)
    return play(game, blind(len(game.names), seed), 1, seed)
