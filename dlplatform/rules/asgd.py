"""``asgd``: asynchronous SGD (specs S2; P-PS 138-147).

A worker's optimizer steps locally; what the weights gained goes to the boxes in one fused
merge that also brings back everybody else's gains. Merges of one stripe never overlap: the
boxes serialise them. Moments of the optimizer stay with the worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dlplatform.errors import UsageError
from dlplatform.memorybox.memory import Memory
from dlplatform.rules.rule import Rule, rule
from dlplatform.rules.ssgd import shared_weights

if TYPE_CHECKING:
    from dlplatform.flat import FlatGroup
    from dlplatform.job import Job
    from dlplatform.memorybox.buffer import SharedBuffer


def check_interval(name: str, interval: int) -> None:
    """Refuse an exchange interval below 1."""
    if interval < 1:
        raise UsageError(
            f"rule.interval={interval} for {name} - allowed: 1 or more - do: give the number of "
            "steps between exchanges"
        )


@rule("asgd")
@dataclass
class ASGD(Rule):
    """Push every worker's own steps to the shared weights, waiting for nobody."""

    survives: ClassVar[bool] = True
    reads_gradients: ClassVar[bool] = False
    elastic: ClassVar[bool] = True

    interval: int = 1
    """Steps between exchanges."""

    def start(self, job: Job, group: FlatGroup) -> None:
        """Share rank 0's weights and remember them as the base of the first gain."""
        check_interval("asgd", self.interval)
        self.group, self.steps = group, 0
        self.weight = shared_weights(job, group)
        self.staleness = Staleness(self.weight)
        self._base = Memory(group.length)
        group.copy_weight(self._base.address)

    def weights(self) -> None:
        """Merge what this worker gained since the last merge."""
        self.steps += 1
        if self.steps % self.interval == 0:
            self._merge()

    def _merge(self) -> None:
        self.weight.merge(self.group.weight_address, self._base.address)
        self.staleness.count()

    def master(self, into: int) -> None:
        """Copy the shared weights."""
        self.weight.read(into)

    def finish(self) -> None:
        """Push a last incomplete interval."""
        if self.steps % self.interval:
            self._merge()

    def report(self) -> dict[str, float]:
        """Return how many updates of others came between the last two of this worker."""
        return {"sync/staleness": float(self.staleness.last)}


class Staleness:
    """Counts the updates of a buffer and how many of others came between two of one's own."""

    def __init__(self, buffer: SharedBuffer) -> None:
        self.updated = buffer.updated
        self.mine, self.last = self.updated.value, 0

    def count(self) -> int:
        """Announce one update of this worker; return how many there were before."""
        before = self.updated.add(1)
        self.last, self.mine = before - self.mine, before + 1
        return before
