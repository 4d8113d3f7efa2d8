"""``dcasgd``: asynchronous SGD whose delayed steps are corrected (DC-ASGD-a, arXiv:1609.08326).

A step u that a worker computed with old weights s is not what the weights w of now would have asked
for. To first order the difference is the Hessian times w - s, and the squared gradient stands for
its diagonal: w = w + u - lambda u u / root (w - s), where root is the root mean square of all
steps so far. Written with steps instead of gradients the learning rate drops out, so that every
optimizer may make them; with plain SGD it is the paper's rule. The boxes keep s for every worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dlplatform.errors import UsageError
from dlplatform.rules.asgd import Staleness, check_interval
from dlplatform.rules.drift import Drift
from dlplatform.rules.rule import Rule, rule
from dlplatform.rules.ssgd import shared_weights

if TYPE_CHECKING:
    from dlplatform.flat import FlatGroup
    from dlplatform.job import Job
    from dlplatform.memorybox.buffer import SharedBuffer

EPS = 1e-16
"""Keeps 0 / 0 away; steps are much smaller than the paper's gradients."""


@rule("dcasgd")
@dataclass
class DCASGD(Rule):
    """Push own steps to the shared weights, corrected there for what changed meanwhile."""

    survives: ClassVar[bool] = True
    reads_gradients: ClassVar[bool] = False
    elastic: ClassVar[bool] = True

    interval: int = 1
    """Steps between exchanges."""
    correction: float = 2.0
    """Strength of the correction (lambda); 0: none, as asgd."""
    decay: float = 0.95
    """Decay of the mean square, 0 up to, not including, 1."""

    def start(self, job: Job, group: FlatGroup) -> None:
        """Share rank 0's weights, a mean square, and a backup of each worker's weights."""
        check_interval("dcasgd", self.interval)
        if self.correction < 0 or not 0 <= self.decay < 1:
            raise UsageError(
                f"rule.correction={self.correction} rule.decay={self.decay} - allowed: 0 or more, "
                "and 0 up to, not including, 1 - do: leave them out"
            )
        self.steps, make = 0, job.cluster.buffer
        self.weight = shared_weights(job, group)
        self.square = make(f"{group.name}/square", group.length, job.rank == 0)
        self.backup = make(f"{group.name}/backup/{job.rank}", group.length, True)
        self.backup.write(group.weight_address)
        self.drift, self.staleness = Drift(group), Staleness(self.weight)

    def weights(self) -> None:
        """Exchange when the interval is over."""
        self.steps += 1
        if self.steps % self.interval == 0:
            self._exchange()

    def _exchange(self) -> None:
        drift = self.drift.measure()
        assert isinstance(drift, int), "the answer comes back in its place"
        states = [self.backup, self.square]
        self.weight.adapted(drift, 1.0, self.correction, states, self.decay, EPS)
        self.drift.adopt(drift)
        self.staleness.count()

    def master(self, into: int) -> None:
        """Copy the shared weights."""
        self.weight.read(into)

    def states(self) -> dict[str, SharedBuffer]:
        """Return the mean square."""
        return {"square": self.square}

    def finish(self) -> None:
        """Push a last incomplete interval."""
        if self.steps % self.interval:
            self._exchange()

    def report(self) -> dict[str, float]:
        """Return how many updates of others came between the last two of this worker."""
        return {"sync/staleness": float(self.staleness.last)}
