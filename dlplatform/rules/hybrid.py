"""``hybrid``: synchronous inside a group, elastic between groups (specs S6; ShmCaffe's HSGD).

The members of a group average gradients every step (ssgd) and so hold equal weights. One
leader per group averages them elastically with the centre, behind the computation; it puts D
where the group can reach it and every member takes the same D off its weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlplatform.errors import UsageError
from dlplatform.rules.asgd import Staleness, check_interval
from dlplatform.rules.easgd import UpdateThread, moving_rate, take
from dlplatform.rules.rule import Rule, rule
from dlplatform.rules.ssgd import SSGD, STALL_S, shared_weights

if TYPE_CHECKING:
    from dlplatform.flat import FlatGroup
    from dlplatform.job import Job
    from dlplatform.world import World


STOPPED = -1
RING = 64
"""Claims a leader may be ahead of its slowest member (gradient accumulation)."""


@rule("hybrid")
@dataclass
class Hybrid(Rule):
    """Train synchronously in groups and average the groups elastically."""

    group_size: int | None = None
    """Workers in a group (neighbouring ranks, as a rule one node's); none: 2."""
    interval: int = 1
    """Steps between a leader's exchanges."""
    rate: float | None = None
    """Moving rate between groups; none: 0.9 / groups."""

    def start(self, job: Job, group: FlatGroup) -> None:
        """Form the group, share rank 0's weights, start the leader's update thread."""
        check_interval("hybrid", self.interval)
        world = job.world
        size = self._size(world)
        self.group, self.cluster, self.inner = group, job.cluster, world.group(size)
        self.leader = self.inner.rank == 0
        self.label = f"{group.name}/group/{world.rank // size}"
        self.sync = SSGD()
        self.sync.meet(job, group, self.inner, self.label)
        self.centre = shared_weights(job, group)
        self.staleness = Staleness(self.centre)
        self.moving_rate = moving_rate(self.rate, -(-world.size // size))
        # Two, in turn: the leader may fill one while a slow member still reads the other.
        self.differences = [
            job.cluster.buffer(f"{self.label}/difference/{n}", group.length, self.leader)
            for n in range(2)
        ]
        self.ready = job.cluster.counter(f"{self.label}/ready")
        self.dealt = job.cluster.counter(f"{self.label}/dealt")
        self.steps = self.exchanges = self.taken = self.claims = 0
        self.update = UpdateThread(self._exchange, job.cluster.clock) if self.leader else None

    def _size(self, world: World) -> int:
        size = min(2, world.size) if self.group_size is None else self.group_size
        if not 1 <= size <= world.size:
            raise UsageError(
                f"rule.group_size={size} of {world.size} workers - allowed: 1 to {world.size} - "
                "do: choose a divisor of the number of workers"
            )
        return size

    def _exchange(self) -> None:
        difference = self.differences[self.exchanges % 2]
        x = self.group.weight_address
        self.centre.difference(self.moving_rate, x, difference.region)
        self.staleness.count()
        difference.write()
        self.ready.add(1)

    def claim(self, job: Job) -> int | None:
        """Let the leader claim for the whole group; members take their own of the row."""
        base = self.cluster.counter(f"{self.label}/base/{self.claims % RING}")
        if self.leader:
            first = job.work.next(self.inner.size)
            end = STOPPED if job.work.stopped else job.work.total
            base.set(end if first is None else first)
            self.dealt.add(1)
        self.claims += 1
        self.dealt.wait(self.claims, STALL_S, self.sync.check)
        if (first := base.value) == STOPPED:
            job.work.stopped = True
            return None
        return job.work.take(first, self.inner)

    def gradients(self) -> None:
        """Average the group's gradients; the leader waits for its exchange under way."""
        self.sync.gradients()
        if self.update:
            self.update.join()

    def weights(self) -> None:
        """Take the group's last D off the weights; the leader sends them on."""
        self._take()
        self.steps += 1
        if self.steps % self.interval == 0:
            self.exchanges += 1
            if self.update:
                self.update.wake()

    def _take(self) -> None:
        if self.taken == self.exchanges:
            return
        self.ready.wait(self.exchanges, STALL_S, self.sync.check)
        difference = self.differences[self.exchanges % 2]
        difference.read()
        take(self.group, difference.region)
        self.taken = self.exchanges

    def master(self, into: int) -> None:
        """Copy the centre."""
        self.centre.read(into)

    def finish(self) -> None:
        """Complete the last exchange and end the update thread."""
        if self.update:
            self.update.join()
            self.update.end()
        self._take()

    def report(self) -> dict[str, float]:
        """Return staleness, and how far the group's weights were from the centre."""
        figures = {"sync/staleness": float(self.staleness.last)} if self.leader else {}
        if self.taken and self.moving_rate:
            step = self.group.norm(self.differences[self.taken % 2].region)
            figures["sync/distance"] = step / self.moving_rate
        return figures
