"""``ssp``: asynchronous SGD in which nobody is too far ahead (SSP, Ho et al., NIPS 2013).

Every worker counts its steps; who would be more than ``staleness`` steps ahead of the slowest waits
for it. A gain enters the shared weights with 1 / workers, so that a step of all workers is a step
of ssgd, only not all of them have seen it yet. With staleness 0 nobody may be ahead, and the rule
is ssgd, bit by bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlplatform.errors import UsageError
from dlplatform.memorybox.counter import SLICE_MS
from dlplatform.memorybox.session import JOINED
from dlplatform.rules.drift import Drift
from dlplatform.rules.rule import Rule, rule
from dlplatform.rules.ssgd import SSGD, STALL_S, shared_weights

if TYPE_CHECKING:
    from dlplatform.flat import FlatGroup
    from dlplatform.job import Job
    from dlplatform.memorybox.counter import Counter

ENDED = 1 << 62


@rule("ssp")
@dataclass
class SSP(Rule):
    """Push own steps, and wait for those who are too many steps behind."""

    staleness: int = 3
    """Steps a worker may be ahead of the slowest; 0: ssgd."""
    gain: float | None = None
    """Weight of one worker's gain; none: 1 / workers."""

    def start(self, job: Job, group: FlatGroup) -> None:
        """Share rank 0's weights and start everybody's clock at 0."""
        if self.staleness < 0 or (self.gain is not None and not 0 < self.gain <= 1):
            raise UsageError(
                f"rule.staleness={self.staleness} rule.gain={self.gain} - allowed: 0 or more, and "
                "above 0 to 1 - do: rule.staleness=3, and leave gain out"
            )
        self.exact = None if self.staleness else SSGD()
        self.steps = self.gap = 0
        if self.exact:
            self.exact.start(job, group)
            return
        self.job, self.group = job, group
        self.share = self.gain or 1.0 / job.size
        self.weight = shared_weights(job, group)
        self.drift = Drift(group)

    def _clock(self, rank: int) -> Counter:
        return self.job.cluster.counter(f"{self.group.name}/clock/{rank}")

    def claim(self, job: Job) -> int | None:
        """Wait for the slowest, then claim a number; whoever gets none holds nobody up."""
        if self.exact:
            return self.exact.claim(job)
        self._wait()
        return job.work.next()

    def _wait(self) -> None:
        slowest = self.steps
        for rank in self.job.world.ranks:
            slowest = min(slowest, self._wait_for(rank))
        self.gap = self.steps - slowest

    def _wait_for(self, rank: int) -> int:
        """Wait until a worker is near enough or trains no more; return its clock."""
        clock, cluster = self._clock(rank), self.job.cluster
        end = cluster.clock.now() + STALL_S
        while cluster.state(rank) == JOINED and cluster.clock.now() < end:
            if clock.reached(self.steps - self.staleness, SLICE_MS):
                return clock.value
            cluster.check()
        return self.steps

    def gradients(self) -> None:
        """Average gradients where nobody may be ahead."""
        if self.exact:
            self.exact.gradients()

    def weights(self) -> None:
        """Push what this step gained and take along what the others gained."""
        self.steps += 1
        if self.exact:
            return
        drift = self.drift.measure()
        assert isinstance(drift, int), "the answer comes back in its place"
        self.weight.apply("fetch", drift, a=-self.share)
        self.drift.adopt(drift)
        self._clock(self.job.cluster.rank).set(self.steps)

    def master(self, into: int) -> None:
        """Copy the shared weights."""
        if self.exact:
            self.exact.master(into)
        else:
            self.weight.read(into)

    def finish(self) -> None:
        """Hold nobody up any more."""
        if self.exact:
            self.exact.finish()
        else:
            self._clock(self.job.cluster.rank).set(ENDED)

    def report(self) -> dict[str, float]:
        """Return how many steps the slowest was behind at the last claim."""
        return {"sync/staleness": float(self.gap)}
