"""Event: tell named processes that something happened to a buffer (P-PS 58-59, 94-96).

Two kinds are customary: *updated* (the master has written: tell everybody who shares the
buffer) and *accumulated* (all workers' accumulations are in: tell the master). Whoever sets an
event up names the processes and how many reports make it happen; the box counts the reports.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dlplatform.errors import UsageError

if TYPE_CHECKING:
    from dlplatform.memorybox.cluster import Cluster

UPDATED, ACCUMULATED = "updated", "accumulated"


class Event:
    """One event of a job: ``announce`` it, or wait for it under one's own rank.

    Args:
        cluster: of the job; its rank is who waits.
        name: of the event, the same for all.
    """

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.name = cluster, name
        self.seen = 0

    def set_up(self, ranks: Sequence[int], expect: int = 1) -> Event:
        """Have ``ranks`` told whenever ``expect`` reports have come."""
        if expect < 1 or not ranks:
            raise UsageError(
                f"event {self.name} for ranks {list(ranks)} after {expect} reports - allowed: one "
                "rank and one report or more - do: name who is to be told"
            )
        self.cluster.publish(f"event/{self.name}", {"ranks": list(ranks), "expect": expect})
        return self

    def announce(self) -> None:
        """Report that it happened here."""
        self.cluster.lookup(f"event/{self.name}")  # wait until it is set up
        self.cluster.transports[0].call("announce", event=self.name)

    def wait(self, timeout_s: float | None = None, check: Callable[[], None] | None = None) -> int:
        """Wait until this process is told once more; return how often it was told so far.

        ``check`` runs meanwhile and may raise what it sees.

        Raises:
            PeerLost: when nobody told it in time, or a box or a worker is gone.
        """
        counter = self.cluster.counter(f"event/{self.name}/{self.cluster.rank}")
        patience = self.cluster.timeout_s if timeout_s is None else timeout_s
        counter.wait(self.seen + 1, patience, check or self.cluster.check)
        self.seen += 1
        return self.seen
