"""``localsgd``: every few steps all workers take the mean of their weights (arXiv:1805.09767).

Between two exchanges everybody steps alone, so that an exchange is worth ``interval`` steps. The
mean is taken in rank order, and numbers are dealt: a run is repeatable to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dlplatform.memorybox.buffer import average
from dlplatform.rules.asgd import check_interval
from dlplatform.rules.rule import Rule, rule
from dlplatform.rules.ssgd import STALL_S, shared_weights

if TYPE_CHECKING:
    from dlplatform.flat import FlatGroup
    from dlplatform.job import Job
    from dlplatform.memorybox.counter import Counter


@rule("localsgd")
@dataclass
class LocalSGD(Rule):
    """Step alone, and average all workers' weights every few steps."""

    reads_gradients: ClassVar[bool] = False

    interval: int = 8
    """Steps between exchanges."""

    def start(self, job: Job, group: FlatGroup) -> None:
        """Share rank 0's weights and give every worker a region for its own."""
        check_interval("localsgd", self.interval)
        self.job, self.group, self.world = job, group, job.world
        self.regions = [
            job.cluster.buffer(f"{group.name}/local/{rank}", group.length, rank == job.rank)
            for rank in range(self.world.size)
        ]
        self.mine = self.regions[job.rank]
        self.weight = shared_weights(job, group)
        self.mine.write(group.weight_address)
        self.arrived = job.cluster.counter(f"{group.name}/arrived")
        self.averaged = job.cluster.counter(f"{group.name}/averaged")
        self.steps = self.met = 0
        self.short = False

    def claim(self, job: Job) -> int | None:
        """Take the number dealt to this rank; the last round may leave some without."""
        number = job.work.deal(self.world)
        self.short = self.short or 0 < job.work.present < self.world.size
        return number

    def weights(self) -> None:
        """Average when the interval is over and everybody has taken this step."""
        self.steps += 1
        if self.steps % self.interval == 0 and not self.short:
            self._exchange()

    def _exchange(self) -> None:
        if self.world.size == 1:
            return
        self.mine.write(self.group.weight_address)
        self.met += self.world.size
        self._meet(self.arrived)
        start, count = self.mine.share(self.world.rank, self.world.size)
        if count:
            average(self.regions, start, count, 1.0 / self.world.size)
        self._meet(self.averaged)
        self.mine.read(self.group.weight_address)

    def _meet(self, counter: Counter) -> None:
        counter.add(1)
        counter.wait(self.met, STALL_S, lambda: self.job.cluster.check_peers(self.world.ranks))

    def master(self, into: int) -> None:
        """Copy the mean of the last exchange: all workers held it."""
        if self.world.size == 1:
            self.group.copy_weight(into)
        else:
            self.mine.read(into)

    def finish(self) -> None:
        """Average a last incomplete interval and leave the final weights in the boxes (S10)."""
        if self.short or self.steps % self.interval:
            self._exchange()
        if self.world.rank == 0:
            self.weight.write(self.group.weight_address)
