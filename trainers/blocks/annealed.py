"""Tasks that train with Adam at a rate that rises briefly, then falls along a cosine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainers.blocks.settings import check
from trainers.blocks.supervised import Supervised, cosine

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass
class Annealed(Supervised):
    """A supervised task whose optimizer is Adam."""

    warmup: float = 0.05
    """Share of the run in which the rate rises to its peak."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything starts."""
        super().__post_init__()
        check("warmup", self.warmup, 0 <= self.warmup < 1, "0 up to, not including, 1")

    def optimizer(self, group: str, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return Adam."""
        from torch.optim import Adam

        return Adam(parameters, lr=self.lr)

    def rate(self, progress: float) -> float:
        """Rise linearly during the warm-up, then fall to 1 % along half a cosine."""
        return cosine(progress, self.warmup)
