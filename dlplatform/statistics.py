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
        self.rank, self.same = job.cluster.rank, job.world.members
        self.length, self.steps = sum(b.numel() for b in self.buffers), 0
        self.regions: dict[int, SharedBuffer] = {}
        if not self.length:
            return
        if job.world.late:  # the networks of the others have seen data already
            self.average(models)
        name = f"statistics/{self.rank}"
        info = job.cluster.create(name, self.length)
        mine = self.regions[self.rank] = job.cluster.attach(info)
        self._flat = vector(mine.region, self.length)
        self._written = _views(self._flat, self.buffers)
        self.publish(now=True)
        job.cluster.publish(f"buffer/{name}", info)  # now there is something to average

    def _region(self, rank: int) -> SharedBuffer:
        if rank not in self.regions:
            self.regions[rank] = self.job.cluster.buffer(f"statistics/{rank}", self.length, False)
        return self.regions[rank]

    def publish(self, now: bool = False) -> None:
        """Leave this worker's figures where others find them; run after every step."""
        if not self.length:
            return
        self.steps += 1
        mine = self.regions[self.rank]
        if now or mine.mapped or self.steps % REMOTE_EVERY == 0:
            torch._foreach_copy_(self._written, self.buffers)
            mine.write()

    def average(self, models: Models) -> None:
        """Put the mean over all workers that are here into networks of the same shape.

        Of a part of a job, the mean over that part: those who train the same stage.
        """
        cluster = self.job.cluster
        here = [r for r in cluster.here() if r in (self.same or cluster.ranks())]
        living = [r for r in here if cluster.glance(f"buffer/statistics/{r}")]
        if not self.length or not living:
            return
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
