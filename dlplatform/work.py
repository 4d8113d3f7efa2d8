"""Work: who trains which minibatch, by number from the job's global counter.

A worker claims a number by compare-and-swap after writing down which one it is about to take,
so a number that a dead worker held is always found and given out again: every number is
trained at least once and, without failures, exactly once (P-HET 40-42).
"""

from __future__ import annotations

import time

from dlplatform.memorybox.box import JOINED
from dlplatform.memorybox.cluster import Cluster
from dlplatform.world import World

NOTHING = 0


class Work:
    """The numbers first..total-1 of one job, dealt or claimed.

    ``position`` is this worker's best knowledge of how far the job is; ``present`` counts who
    takes part in the current synchronous step (0: not dealt); ``stopped`` tells that training
    ends early because someone asked for it.
    """

    def __init__(self, cluster: Cluster, first: int, total: int) -> None:
        self.cluster, self.first, self.total = cluster, first, total
        self.position, self.rounds = first, 0
        self.present, self.stopped = 0, False
        self._stop = cluster.counter("stop")
        self._global = cluster.counter("minibatch")
        self._mine = cluster.counter(f"claim/{max(cluster.rank, 0)}")
        self._size = max(cluster.size, 1)
        if cluster.rank <= 0:
            self._global.swap(0, first)

    def next(self, count: int = 1) -> int | None:
        """Claim ``count`` numbers in a row; return the first, or None when none is left."""
        self._mine.set(NOTHING)
        self.rounds += 1
        if self._stop.value:
            self.stopped = True
            return None
        claimed = self._reclaim() if count == 1 else None
        claimed = self._claim(count) if claimed is None else claimed
        return self._last_words() if claimed is None and count == 1 else claimed

    def _claim(self, count: int) -> int | None:
        seen = self._global.value
        while seen < self.total:
            self._mine.set(seen + 1)
            held = self._global.swap(seen, min(seen + count, self.total))
            if held == seen:
                self.position = min(seen + count, self.total)
                return seen
            seen = held
        self._mine.set(NOTHING)
        self.position = self.total
        return None

    def _reclaim(self) -> int | None:
        """Take over what a dead worker had claimed and not finished."""
        for rank in self.cluster.dead():
            theirs = self.cluster.counter(f"claim/{rank}")
            held = theirs.value
            if held == NOTHING or held > self._global.value:
                continue
            self._mine.set(held)
            if theirs.swap(held, NOTHING) == held:
                return held - 1
            self._mine.set(NOTHING)
        return None

    def _last_words(self) -> int | None:
        """Stay until nobody holds a number: one who dies now leaves it to those still here."""
        others = [r for r in range(self._size) if r != self.cluster.rank]
        end = time.monotonic() + self.cluster.timeout_s
        while time.monotonic() < end:
            if (number := self._reclaim()) is not None:
                return number
            if not any(self._holds(rank) for rank in others):
                break
            self.cluster.check()
            time.sleep(0.005)
        return None

    def _holds(self, rank: int) -> bool:
        busy = self.cluster.counter(f"claim/{rank}").value != NOTHING
        return busy and self.cluster.state(rank) == JOINED

    def deal(self, world: World) -> int | None:
        """Return the number dealt to a rank in the next synchronous round; None at the end."""
        first = self.first + self.rounds * world.size
        stop = self._stop.value
        if stop and self.rounds >= stop:
            self.stopped, first = True, self.total
        self.rounds += 1
        return self.take(first, world)

    def take(self, first: int, world: World) -> int | None:
        """Return a rank's own number of a row dealt to its group.

        The first take of a step says how many take part in it (``present``).
        """
        self.present = self.present or max(0, min(world.size, self.total - first))
        self.position = min(max(first + world.size, self.position), self.total)
        number = first + world.rank
        return number if number < self.total else None

    def request_stop(self) -> None:
        """Ask all workers to stop; synchronous ones all do so before the same round."""
        self._stop.swap(0, self.rounds + 2)

    def safe_position(self) -> int:
        """Return the number to resume from: all below it have been trained."""
        claims = [self.cluster.counter(f"claim/{rank}").value for rank in range(self._size)]
        held = [c - 1 for rank, c in enumerate(claims) if c and rank != self.cluster.rank]
        return min([self.position, *held])
