"""Statistics: BatchNorm's running figures, averaged over workers where weights are judged.

They are no gradients: they never enter an exchange. Each worker leaves its own in a region of
the boxes; whoever evaluates or writes a checkpoint takes the mean over the living.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlplatform.flat import vector
from dlplatform.memorybox.buffer import SharedBuffer
from dlplatform.memorybox.memory import Memory

if TYPE_CHECKING:
    from dlplatform.job import Job
    from dlplatform.task import Models

REMOTE_EVERY = 10  # steps between writes where a write crosses a network


def floating(models: Models) -> list[Tensor]:
    """Return the floating-point buffers of all networks, in a fixed order."""
    buffers = [b for name in models for b in models[name].buffers()]
    return [b for b in dict.fromkeys(buffers) if b.is_floating_point()]


def _views(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    parts = torch.split(flat, [b.numel() for b in like])
    return [part.view(b.shape) for part, b in zip(parts, like, strict=True)]


class Statistics:
    """This worker's running figures, and how to reach everybody's.

    Args:
        job: gives the boxes and the ranks.
        models: the networks whose buffers they are.
    """

    def __init__(self, job: Job, models: Models) -> None:
        self.job, self.buffers = job, floating(models)
        self.length, self.steps = sum(b.numel() for b in self.buffers), 0
        self.regions: dict[int, SharedBuffer] = {}
        if not self.length:
            return
        mine = self._region(job.rank)
        self._flat = vector(mine.region, self.length)
        self._written = _views(self._flat, self.buffers)
        self.publish(now=True)

    def _region(self, rank: int) -> SharedBuffer:
        if rank not in self.regions:
            name, first = f"statistics/{rank}", rank == self.job.rank
            self.regions[rank] = self.job.cluster.buffer(name, self.length, first)
        return self.regions[rank]

    def publish(self, now: bool = False) -> None:
        """Leave this worker's figures where others find them; run after every step."""
        if not self.length:
            return
        self.steps += 1
        mine = self.regions[self.job.rank]
        if now or mine.mapped or self.steps % REMOTE_EVERY == 0:
            torch._foreach_copy_(self._written, self.buffers)
            mine.write()

    def average(self, models: Models) -> None:
        """Put the mean over all workers that have not died into networks of the same shape."""
        if not self.length:
            return
        dead = self.job.cluster.dead()
        living = [rank for rank in range(self.job.size) if rank not in dead]
        read = Memory(self.length)
        total, one = torch.zeros(self.length), vector(read.address, self.length)
        for rank in living:
            self._region(rank).read(read.address)
            total += one
        with torch.no_grad():
            for target, mean in zip(
                floating(models), _views(total / len(living), self.buffers), strict=True
            ):
                target.copy_(mean)
