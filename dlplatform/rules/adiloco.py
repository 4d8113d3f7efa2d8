"""``adiloco``: asynchronous DiLoCo with delayed Nesterov and local updates by speed.

A worker brings its drift g whenever it has one and waits for nobody: w = w - rate g / n at once,
and every n-th time the momentum follows, m = mu m + mean g, w = w - rate mu m. Momentum on every
stale drift would overshoot (Async Local-SGD, arXiv:2401.09135, algorithm 3 with c = 0). Slow
workers bring theirs after fewer steps (DyLU), so that all drifts are about equally old.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dlplatform.errors import UsageError
from dlplatform.memorybox.memory import Memory
from dlplatform.rules.asgd import Staleness, check_interval
from dlplatform.rules.drift import Drift
from dlplatform.rules.rule import Rule, rule
from dlplatform.rules.ssgd import shared_weights

if TYPE_CHECKING:
    from dlplatform.flat import FlatGroup
    from dlplatform.job import Job
    from dlplatform.memorybox.buffer import SharedBuffer
    from dlplatform.memorybox.cluster import Cluster
    from dlplatform.memorybox.payload import Payload

MILLI = 1000


class DelayedNesterov:
    """Weights in the boxes that move with every drift, their momentum with every n-th one.

    Args:
        weight: the weights.
        states: a buffer of momentum and two to gather in, cut like the weights.
        every: drifts between two steps of the momentum (n).
        rate: of the outer step.
        momentum: Nesterov's.
    """

    def __init__(
        self, weight: SharedBuffer, states: list[SharedBuffer], every: int, rate: float,
        momentum: float,
    ) -> None:  # fmt: skip
        self.weight, self.every, self.rate, self.momentum = weight, every, rate, momentum
        self.velocity, *self._gathered = states
        self.staleness = Staleness(weight)

    def push(self, drift: int | Payload) -> int:
        """Bring a drift; return how many were brought before."""
        turn = self.staleness.updated.value // self.every % 2
        self.weight.gather(-self.rate / self.every, drift, self._gathered[turn])
        before = self.staleness.count()
        if (before + 1) % self.every == 0 and self.momentum:
            # Who still adds to this window's sum is in the sum after the next.
            gathered = self._gathered[before // self.every % 2]
            self.weight.fold(
                1 / self.every, gathered, self.rate, self.velocity, self.momentum, now=0.0
            )
        return before


def delayed_nesterov(
    weight: SharedBuffer, create: Callable[[str], SharedBuffer], every: int, rate: float,
    momentum: float,
) -> DelayedNesterov:  # fmt: skip
    """Return shared weights under delayed Nesterov; ``create`` makes a buffer of its states."""
    if every < 1 or rate <= 0 or not 0 <= momentum < 1:
        raise UsageError(
            f"rule.every={every} rule.rate={rate} rule.momentum={momentum} - allowed: 1 or more, "
            "above 0, 0 up to, not including, 1 - do: leave them out"
        )
    states = [create(name) for name in ("momentum", "gathered/0", "gathered/1")]
    return DelayedNesterov(weight, states, every, rate, momentum)


def states_of(job: Job, group: FlatGroup) -> Callable[[str], SharedBuffer]:
    """Return what makes a buffer beside a group's shared weights; rank 0 creates it."""
    return lambda name: job.cluster.buffer(f"{group.name}/{name}", group.length, job.rank == 0)


class Pace:
    """How many steps a worker takes between exchanges, by its speed beside the fastest (DyLU).

    Args:
        cluster: where the workers' speeds are told.
        label: of the group.
        interval: steps of the fastest.
    """

    def __init__(self, cluster: Cluster, label: str, interval: int) -> None:
        self._cluster, self._label, self._interval = cluster, label, interval
        self._since, self.steps = cluster.clock.now(), interval

    def _speed(self, rank: int) -> int:
        return self._cluster.counter(f"{self._label}/speed/{rank}").value

    def exchanged(self, steps: int) -> None:
        """Tell the others how fast so many steps were, and choose the next number of steps."""
        now = self._cluster.clock.now()
        speed = max(1, round(MILLI * steps / max(now - self._since, 1e-9)))
        self._since, rank = now, self._cluster.rank
        self._cluster.counter(f"{self._label}/speed/{rank}").set(speed)
        gone = self._cluster.gone()
        others = (self._speed(r) for r in self._cluster.ranks() if r not in gone)
        self.steps = max(1, self._interval * speed // max(speed, *others))


@rule("adiloco")
@dataclass
class AsyncDiLoCo(Rule):
    """Bring drifts to the shared weights, waiting for nobody; momentum follows now and then."""

    survives: ClassVar[bool] = True
    reads_gradients: ClassVar[bool] = False
    elastic: ClassVar[bool] = True

    interval: int = 20
    """Steps of the fastest worker between exchanges (H)."""
    rate: float = 0.7
    """Rate of the outer step."""
    momentum: float = 0.5
    """Nesterov momentum of the outer step."""
    every: int | None = None
    """Drifts between two steps of the momentum (n); none: as many as workers."""
    dynamic: bool = True
    """Slow workers exchange after fewer steps (DyLU)."""
    wire: str = "fp32"
    """Format of the drift on its way: fp32, fp16, bf16, int8, topk or topk:SHARE."""

    def start(self, job: Job, group: FlatGroup) -> None:
        """Share rank 0's weights, with momentum beside them."""
        check_interval("adiloco", self.interval)
        every = job.size if self.every is None else self.every
        self.weight = shared_weights(job, group)
        self.outer = delayed_nesterov(
            self.weight, states_of(job, group), every, self.rate, self.momentum
        )
        self.drift, self._new = Drift(group, self.wire), Memory(group.length)
        self.pace = Pace(job.cluster, group.name, self.interval)
        self.since = 0

    def weights(self) -> None:
        """Exchange when this worker's interval is over."""
        self.since += 1
        if self.since >= (self.pace.steps if self.dynamic else self.interval):
            self._exchange()

    def _exchange(self) -> None:
        self.outer.push(self.drift.measure())
        self.weight.read(self._new.address)
        self.drift.adopt(self._new.address)
        self.pace.exchanged(self.since)
        self.since = 0

    @property
    def moves(self) -> int:
        """Return how often the rule has replaced this worker's weights."""
        return self.drift.adopted

    def master(self, into: int) -> None:
        """Copy the shared weights."""
        self.weight.read(into)

    def states(self) -> dict[str, SharedBuffer]:
        """Return the outer momentum."""
        return {"momentum": self.outer.velocity}

    def finish(self) -> None:
        """Bring what was learnt since the last exchange."""
        if self.since:
            self._exchange()

    def report(self) -> dict[str, float]:
        """Return staleness, the drift's length, and the steps between exchanges."""
        return {
            "sync/staleness": float(self.outer.staleness.last),
            "sync/distance": self.drift.length,
            "sync/interval": float(self.pace.steps if self.dynamic else self.interval),
        }
