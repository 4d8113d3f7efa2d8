"""``halos``: local boxes near the workers, global boxes between the groups (arXiv:2506.04531).

The workers of a group bring their drifts to weights of their own group, which lie in one box; they
wait for nobody. Every few of these updates, what the group has gained goes to the global weights,
and a share of the way to them comes back. So the slow links between groups carry one vector up and
one down for ``updates`` x ``interval`` steps, however many workers a group has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dlplatform.errors import UsageError
from dlplatform.memorybox.memory import Memory
from dlplatform.rules.adiloco import delayed_nesterov, states_of
from dlplatform.rules.asgd import check_interval
from dlplatform.rules.drift import Drift, payload
from dlplatform.rules.hybrid import group_size
from dlplatform.rules.rule import Rule, rule
from dlplatform.rules.ssgd import shared_weights
from kernels import cpu

if TYPE_CHECKING:
    from dlplatform.flat import FlatGroup
    from dlplatform.job import Job
    from dlplatform.memorybox.buffer import SharedBuffer
    from dlplatform.memorybox.counter import Counter


@rule("halos")
@dataclass
class HALoS(Rule):
    """Train asynchronously in groups, and merge the groups asynchronously."""

    survives: ClassVar[bool] = True
    reads_gradients: ClassVar[bool] = False

    interval: int = 8
    """Steps of a worker between updates of its group's weights."""
    updates: int = 4
    """Updates of a group's weights between its exchanges with the global ones."""
    group_size: int | None = None
    """Workers in a group; none: those of a host, or 2."""
    rate: float = 0.7
    """Rate of the global outer step."""
    momentum: float = 0.5
    """Nesterov momentum of the global outer step, which follows once in as many as groups."""
    local_momentum: float = 0.0
    """The same for a group's weights, which follow with rate 1."""
    merge: float = 0.25
    """Share of the way to the global weights that a group goes after an exchange, 0 to 1."""
    wire: str = "fp32"
    """Format of what goes to the global weights: fp32, fp16, bf16, int8, topk or topk:SHARE."""

    def start(self, job: Job, group: FlatGroup) -> None:
        """Share rank 0's weights and make a copy for every group, in a box of its own."""
        check_interval("halos", self.interval)
        check_interval("halos", self.updates)
        if not 0 < self.merge <= 1:
            raise UsageError(
                f"rule.merge={self.merge} - allowed: above 0, to 1 - do: rule.merge=0.25"
            )
        self.group, self.cluster, self.steps = group, job.cluster, 0
        size = group_size(self.group_size, job.world)
        self.inner, self.number = job.world.group(size), job.rank // size
        self.weight = shared_weights(job, group)
        self.near, self.base = self._own("weight", True), self._own("base", True)
        self.local = delayed_nesterov(self.near, self._own, size, 1.0, self.local_momentum)
        groups = -(-job.size // size)
        self.outer = delayed_nesterov(
            self.weight, states_of(job, group), groups, self.rate, self.momentum
        )
        self.drift, self._new = Drift(group), Memory(group.length)
        self._ours, self._gain = Memory(group.length), Memory(group.length)
        self.payload = payload(self.wire, group.length)
        self.merging, self.ended = self._counter("merging"), self._counter("ended")

    def _counter(self, name: str) -> Counter:
        return self.cluster.counter(f"{self.group.name}/group/{self.number}/{name}")

    def _own(self, name: str, filled: bool = False) -> SharedBuffer:
        """Return a buffer of this group, whole in one box; its first worker creates it."""
        name = f"{self.group.name}/group/{self.number}/{name}"
        boxes = len(self.cluster.transports)
        if self.inner.rank:
            return self.cluster.attach(self.cluster.lookup(f"buffer/{name}"))
        weights = [float(box == self.number % boxes) for box in range(boxes)]
        info = self.cluster.create(name, self.group.length, weights)
        buffer = self.cluster.attach(info)
        if filled:
            buffer.write(self.group.weight_address)
        self.cluster.publish(f"buffer/{name}", info)
        return buffer

    def weights(self) -> None:
        """Exchange with the group's weights when the interval is over."""
        self.steps += 1
        if self.steps % self.interval == 0:
            self._exchange()

    def _exchange(self) -> None:
        if (self.local.push(self.drift.measure()) + 1) % self.updates == 0:
            self._merge()
        self.near.read(self._new.address)
        self.drift.adopt(self._new.address)

    def _merge(self) -> None:
        """Bring what the group gained to the global weights and go a share of the way to them.

        One worker of the group at a time; the next update does it where another is at it. The base
        is moved first: a worker that dies here leaves the group's own weights as they are, and its
        gain is brought once or, if death comes right then, not at all.
        """
        busy = self.merging.value
        if busy and busy - 1 not in self.cluster.dead():
            return
        if self.merging.swap(busy, self.cluster.rank + 1) != busy:
            return
        ours, gain, n = self._ours.address, self._gain.address, self.group.length
        self.near.read(ours)
        self.base.read(gain)
        self.base.write(ours)
        cpu.run("axpy", gain, ours, n, -1.0)  # base - ours: the group's drift
        self.outer.push(self.payload.pack(gain) if self.payload else gain)
        self.weight.read(gain)
        cpu.run("axpby", gain, ours, n, -self.merge, self.merge)
        for buffer in (self.near, self.base):
            buffer.axpy(1.0, gain)
        self.merging.set(0)

    def master(self, into: int) -> None:
        """Copy the global weights."""
        self.weight.read(into)

    def states(self) -> dict[str, SharedBuffer]:
        """Return the momentum of the global weights; groups begin anew."""
        return {"momentum": self.outer.velocity}

    def finish(self) -> None:
        """Bring what is left; the last one of a group merges it."""
        if self.steps % self.interval:
            self._exchange()
        dead = self.cluster.dead()
        living = [rank for rank in self.inner.ranks if rank not in dead]
        if self.ended.add(1) + 1 >= len(living):
            self._merge()

    def report(self) -> dict[str, float]:
        """Return staleness in the group, between groups, and the drift's length."""
        return {
            "sync/staleness": float(self.local.staleness.last),
            "sync/group_staleness": float(self.outer.staleness.last),
            "sync/distance": self.drift.length,
        }
