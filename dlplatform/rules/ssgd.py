"""``ssgd``: synchronous SGD (specs S1; P-PS 119-136).

Every worker's gradients live in its own region of the boxes. When all are in, each worker has
its share of the average computed, in rank order and in place in all regions; when all shares
are done, everybody holds the mean gradient. Every worker applies the same optimizer to the
same numbers, so the weights stay equal bit by bit and the run is repeatable.

Where boxes are mapped nothing is copied: 2 memory streams a worker, whatever the number of
workers. Over tcp a region is written once and read once, the boxes do the sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlplatform.errors import PeerLost
from dlplatform.memorybox.buffer import average
from dlplatform.memorybox.counter import SLICE_MS
from dlplatform.rules.rule import Rule, rule

if TYPE_CHECKING:
    from dlplatform.flat import FlatGroup
    from dlplatform.job import Job
    from dlplatform.memorybox.buffer import SharedBuffer
    from dlplatform.memorybox.counter import Counter
    from dlplatform.world import World

STALL_S = 1800.0
"""A worker may evaluate or load for so long before the others give it up."""


@rule("ssgd")
@dataclass
class SSGD(Rule):
    """Average all workers' gradients, every step, in rank order."""

    def start(self, job: Job, group: FlatGroup) -> None:
        """Share rank 0's weights and give every worker a gradient region."""
        self.meet(job, group, job.world, group.name)
        self.weight = shared_weights(job, group)

    def meet(self, job: Job, group: FlatGroup, world: World, label: str) -> None:
        """Create this worker's gradient region and attach to those of its group."""
        self.job, self.group, self.world = job, group, world
        self.ranks = world.ranks
        self.regions = [
            job.cluster.buffer(f"{label}/gradient/{rank}", group.length, rank == world.rank)
            for rank in range(world.size)
        ]
        mine = self.regions[world.rank]
        group.place_grad(mine.region, mine)
        self.arrived = job.cluster.counter(f"{label}/accumulated")
        self.averaged = job.cluster.counter(f"{label}/averaged")
        self.met, self.needed = 0, self.ranks

    def claim(self, job: Job) -> int | None:
        """Take the number dealt to this rank; the last round may leave some without."""
        return job.work.deal(self.world)

    def gradients(self) -> None:
        """Replace this worker's gradients by the mean over all who work on this step."""
        present = self.job.work.present or self.world.size
        if present == 1:
            return
        mine = self.regions[self.world.rank]
        mine.write()
        self.met += present
        self.needed = self.ranks[:present]
        self._meet(self.arrived)
        start, count = mine.share(self.world.rank, present)
        if count:
            average(self.regions[:present], start, count, 1.0 / present)
        self._meet(self.averaged)
        mine.read()

    def _meet(self, counter: Counter) -> None:
        counter.add(1)
        counter.wait(self.met, STALL_S, self.check)

    def check(self) -> None:
        """Raise PeerLost when someone this step waits for is gone."""
        self.job.cluster.check_peers(self.needed)

    def master(self, into: int) -> None:
        """Copy this worker's weights: all hold the same."""
        self.group.copy_weight(into)

    def finish(self) -> None:
        """Leave the final weights in the boxes (S10)."""
        if self.world.rank == 0:
            self.weight.write(self.group.weight_address)


def shared_weights(job: Job, group: FlatGroup) -> SharedBuffer:
    """Return the group's weight buffer, holding rank 0's weights, which all now have (S5)."""
    first = job.world.rank == 0
    buffer = job.cluster.buffer(f"{group.name}/weight", group.length, first)
    ready = job.cluster.counter(f"{group.name}/initialised")
    if first:
        buffer.write(group.weight_address)
        ready.add(1)
    else:
        ready.wait(1, job.cluster.timeout_s, job.cluster.check_peers)
        buffer.read(group.weight_address)
    _all_have_read(job, job.cluster.counter(f"{group.name}/started"))
    return buffer


def _all_have_read(job: Job, started: Counter) -> None:
    """Wait until nobody can read weights that somebody else has trained already."""
    started.add(1)
    end = job.cluster.clock.now() + job.cluster.timeout_s
    while not started.reached(job.size - len(_gone(job)), SLICE_MS):
        job.cluster.check()
        if job.cluster.clock.now() > end:
            raise PeerLost(
                f"{started.value} of {job.size} workers are ready to train, waited "
                f"{job.cluster.timeout_s:g} s - allowed: all who live - do: look for a stuck worker"
            )


def _gone(job: Job) -> list[int]:
    return [rank for rank in job.cluster.gone() if rank in job.world.ranks]
