"""Settings and checks of every task that trains on minibatches of samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dlplatform.task import Task
from trainers.blocks.settings import check


@dataclass
class Supervised(Task):
    """A task with a size of its minibatches, a length and a rate; see a subclass for the rest."""

    batch_size: int = 16
    """Samples of one minibatch."""
    minibatches: int = 1000
    """Minibatches a whole run should train (all workers together)."""
    lr: float = 0.05
    """Peak learning rate."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        check("batch_size", self.batch_size, 1 <= self.batch_size <= 4096, "1 to 4096")
        check("minibatches", self.minibatches, self.minibatches >= 1, "1 or more")
        check("lr", self.lr, self.lr > 0, "above 0")


def cosine(progress: float, warmup: float = 0.0, least: float = 0.01) -> float:
    """Return a factor that rises linearly during the warm-up, then falls along half a cosine.

    Source: Loshchilov and Hutter, SGDR (2017), without restarts.
    """
    if progress < warmup:
        return max(progress / warmup, least)
    done = min((progress - warmup) / (1 - warmup), 1.0)
    return least + (1 - least) * (1 + math.cos(math.pi * done)) / 2


def poly(progress: float, power: float = 0.9) -> float:
    """Return (1 - progress) ** power, as in DeepLab (Chen et al., 2018), at least 0.001."""
    return float(max((1 - progress) ** power, 0.001))
