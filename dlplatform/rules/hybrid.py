"""``hybrid``: synchronous inside a group, elastic between groups (specs S6; ShmCaffe's HSGD).

The members of a group (by default a node's workers) average gradients every step (ssgd) and so
hold equal weights. One leader per group averages them elastically with the centre, behind the
computation; it puts D where the group can reach it and every member takes the same D off its
weights. ``between`` puts another rule in the place of elastic averaging
(``dlplatform/rules/between.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlplatform.errors import UsageError
from dlplatform.rules.asgd import Staleness, check_interval
from dlplatform.rules.between import Leaders
from dlplatform.rules.easgd import UpdateThread, moving_rate
from dlplatform.rules.inside import Inside
from dlplatform.rules.rule import Rule, rule
from dlplatform.rules.ssgd import SSGD, STALL_S, shared_weights

if TYPE_CHECKING:
    from dlplatform.flat import FlatGroup
    from dlplatform.job import Job
    from dlplatform.memorybox.buffer import SharedBuffer
    from dlplatform.world import World


STOPPED = -1
RING = 64
"""Claims a leader may be ahead of its slowest member (gradient accumulation)."""


@rule("hybrid")
@dataclass
class Hybrid(Rule):
    """Train synchronously in groups and average the groups elastically.

    A single group has nobody to average with: it is ``ssgd``, unless ``rate`` is given.
    """

    group_size: int | None = None
    """Workers in a group, neighbouring ranks; none: each host's workers, or 2 on one host."""
    interval: int = 1
    """Steps between a leader's exchanges."""
    rate: float | None = None
    """Moving rate between groups, or rate of the other rule; none: 0.9 / groups, or its own."""
    between: str = "easgd"
    """What leaders do: easgd, diloco, quorum or adiloco."""
    wire: str = "fp32"
    """Format in which diloco, quorum and adiloco send a drift."""
    inner: str = "auto"
    """What averages gradients in a group: boxes, host (a box there), torch (gloo), or auto.

    auto: host where that is nearer than the job's boxes.
    """
    bucket_mb: float = 0.0
    """Send gradients in buckets of so many MiB while backward computes; 0: after it."""

    def start(self, job: Job, group: FlatGroup) -> None:
        """Form the group, share rank 0's weights, start the leader's update thread."""
        check_interval("hybrid", self.interval)
        world = job.world
        groups = places(job, group.name, self.group_size)
        number = next(n for n, ranks in enumerate(groups) if world.rank in ranks)
        self.group, self.company = group, world.part(groups[number])
        self.leader = self.company.rank == 0
        self.label = f"{group.name}/group/{number}"
        self.sync = SSGD(bucket_mb=self.bucket_mb, inner=self.inner)
        inside = Inside(job, self.company, self.label, self.inner)
        self.sync.meet(job, group, self.company, self.label, inside)
        self.cluster = inside.cluster
        self.single = len(groups) == 1 and self.rate is None and self.between == "easgd"
        # Two, in turn: the leader may fill one while a slow member still reads the other.
        self.differences = [
            self.cluster.buffer(f"{self.label}/difference/{n}", group.length, self.leader)
            for n in range(0 if self.single else 2)
        ]
        self.ready = self.cluster.counter(f"{self.label}/ready")
        self.dealt = self.cluster.counter(f"{self.label}/dealt")
        self.steps = self.exchanges = self.taken = self.claims = self.sent = 0
        self.others = None if self.between == "easgd" else Leaders(self, job, groups)
        if self.others:
            return
        self.centre = self.sync.weight = shared_weights(job, group)
        self.staleness = Staleness(self.centre)
        self.moving_rate = 0.0 if self.single else moving_rate(self.rate, len(groups))
        leads = self.leader and not self.single
        self.update = UpdateThread(self._exchange, job.cluster.clock) if leads else None

    def _exchange(self) -> None:
        difference = self.differences[self.exchanges % 2]
        self.group.landed()
        self.centre.difference(self.moving_rate, self.sent, difference.region)
        self.group.lift(difference.region)
        self.staleness.count()
        difference.write()
        self.ready.add(1)

    def claim(self, job: Job) -> int | None:
        """Let the leader claim for the whole group; members take their own of the row."""
        base = self.cluster.counter(f"{self.label}/base/{self.claims % RING}")
        if self.leader:
            first = job.work.next(self.company.size)
            end = STOPPED if job.work.stopped else job.work.total
            base.set(end if first is None else first)
            self.dealt.add(1)
        self.claims += 1
        self.dealt.wait(self.claims, STALL_S, self.sync.check)
        if (first := base.value) == STOPPED:
            job.work.stopped = True
            return None
        return job.work.take(first, self.company)

    def numbers(self, own: dict[str, float]) -> dict[str, float]:
        """Return the means over the group."""
        return self.sync.numbers(own)

    def gradients(self) -> None:
        """Average the group's gradients; the leader waits for its exchange under way."""
        self.sync.gradients()
        if self.others:
            self.others.gradients()
        elif self.update:
            self.update.join()

    def weights(self) -> None:
        """Take the group's last D off the weights; the leader sends them on."""
        if self.others:
            self.others.weights()
            return
        if self.single:
            return
        self._take()
        self.steps += 1
        if self.steps % self.interval == 0:
            self.exchanges += 1
            if self.update:
                self.sent = self.group.hand_over()
                self.update.wake()

    def _take(self) -> None:
        if self.taken == self.exchanges:
            return
        self.ready.wait(self.exchanges, STALL_S, self.sync.check)
        difference = self.differences[self.exchanges % 2]
        if not self.leader:  # who has it still where it was computed
            difference.read()
        self.group.take(difference.region)
        self.taken = self.exchanges

    def master(self, into: int) -> None:
        """Copy the centre; of a single group the weights that all its members hold."""
        if self.others:
            self.others.master(into)
        elif self.single:
            self.sync.master(into)
        else:
            self.centre.read(into)

    def states(self) -> dict[str, SharedBuffer]:
        """Return what the leaders' rule keeps in the boxes."""
        return self.others.rule.states() if self.others and self.leader else {}

    def close(self) -> None:
        """End the threads of the buckets, and leave the box inside the host."""
        self.sync.close()

    def finish(self) -> None:
        """Complete the last exchange and end the update thread."""
        if self.single:
            self.sync.finish()
            return
        self.sync.end()
        if self.others:
            self.others.finish()
            return
        if self.update:
            self.update.join()
            self.update.end()
        self._take()

    def report(self) -> dict[str, float]:
        """Return staleness, the hidden share of the exchange, the distance to the centre."""
        figures = self.sync.report()
        if self.others:
            return figures | (self.others.rule.report() if self.leader else {})
        if self.update:
            figures |= {
                "sync/staleness": float(self.staleness.last),
                "sync/hidden": self.update.hidden(),
            }
        if self.taken and self.moving_rate:
            step = self.group.norm(self.differences[self.taken % 2].region)
            figures["sync/distance"] = step / self.moving_rate
        return figures


def places(job: Job, name: str, size: int | None) -> list[list[int]]:
    """Return the ranks of each group: neighbours, or those who share a host.

    Without a size, a job on several hosts has a group for each of them, however many workers it
    has; they find out through the notice board.
    """
    world = job.world
    if size is not None or world.local_size >= world.size:
        size = group_size(size, world)
        ranks = list(range(world.size))
        return [ranks[first : first + size] for first in range(0, world.size, size)]
    job.cluster.publish(f"{name}/host/{world.rank}", world.node)
    hosts: dict[str, list[int]] = {}
    for rank in range(world.size):
        hosts.setdefault(job.cluster.lookup(f"{name}/host/{rank}"), []).append(rank)
    return list(hosts.values())


def group_size(size: int | None, world: World) -> int:
    """Return how many workers form a group: 2 unless a number is given."""
    size = min(2, world.size) if size is None else size
    if not 1 <= size <= world.size:
        raise UsageError(
            f"rule.group_size={size} of {world.size} workers - allowed: 1 to {world.size} - "
            "do: choose a divisor of the number of workers"
        )
    return size
