"""Work: who trains which minibatch, by number from the job's global counter.

A worker claims a number by compare-and-swap after writing down which one it is about to take,
so a number that a dead worker held is always found and given out again: every number is
trained at least once and, without failures, exactly once (P-HET 40-42).
"""

from __future__ import annotations

from dlplatform.memorybox.cluster import Cluster
from dlplatform.memorybox.counter import Counter
from dlplatform.memorybox.session import JOINED
from dlplatform.world import World

NOTHING = 0
SLOTS = 32
"""Numbers one worker can hold: as many as form one step at most (run.accumulate)."""


class Claims:
    """The numbers that one worker holds, claimed and not trained yet, each in a counter."""

    def __init__(self, cluster: Cluster, rank: int) -> None:
        self.cluster, self.rank, self.taken = cluster, rank, 0
        self._used = cluster.counter(f"claims/{rank}")
        self._most = 0

    def _slot(self, n: int) -> Counter:
        return self.cluster.counter(f"claim/{self.rank}/{n % SLOTS}")

    def slots(self) -> list[Counter]:
        """Return all slots that the worker has ever used, as others see them."""
        return [self._slot(n) for n in range(self._used.value)]

    def numbers(self) -> list[int]:
        """Return the numbers it holds, as others see them."""
        return [held - 1 for slot in self.slots() if (held := slot.value) != NOTHING]

    def open(self) -> Counter:
        """Return this worker's next slot, for one more number."""
        self.taken += 1
        if self._most < min(self.taken, SLOTS):
            self._most = self.taken
            self._used.set(self._most)
        return self._slot(self.taken - 1)

    def clear(self) -> None:
        """Hold nothing any more."""
        for n in range(min(self.taken, SLOTS)):
            self._slot(n).set(NOTHING)
        self.taken = 0


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
        self._claims = [Claims(cluster, rank) for rank in range(max(cluster.size, 1))]
        self._mine = self._claims[max(cluster.rank, 0)]
        self._trained = False
        if cluster.rank <= 0:
            self._global.swap(0, first)

    def done(self) -> None:
        """Note that all numbers claimed so far are trained; run after every step.

        They are let go with the next claim, since a step may have several parts.
        """
        self._trained = True

    def _begin(self) -> None:
        """Forget the numbers and the company of the last step, if there was one."""
        if self._trained:
            self._mine.clear()
            self.present, self._trained = 0, False

    def next(self, count: int = 1) -> int | None:
        """Claim ``count`` numbers in a row; return the first, or None when none is left."""
        self._begin()
        self.rounds += 1
        if self._stop.value:
            self.stopped = True
            return None
        alone, free = count == 1, not self._mine.taken
        claimed = self._reclaim() if alone else None
        claimed = self._claim(count) if claimed is None else claimed
        return self._last_words() if claimed is None and alone and free else claimed

    def _claim(self, count: int) -> int | None:
        seen = self._global.value
        if seen < self.total:
            slot = self._mine.open()
        while seen < self.total:
            slot.set(seen + 1)
            held = self._global.swap(seen, min(seen + count, self.total))
            if held == seen:
                self.position = min(seen + count, self.total)
                return seen
            seen = held
            slot.set(NOTHING)
        self.position = self.total
        return None

    def _reclaim(self) -> int | None:
        """Take over what a dead worker had claimed and not finished."""
        for rank in self.cluster.dead():
            for theirs in self._claims[rank].slots():
                held = theirs.value
                if held == NOTHING or held > self._global.value:
                    continue
                mine = self._mine.open()
                mine.set(held)
                if theirs.swap(held, NOTHING) == held:
                    return held - 1
                mine.set(NOTHING)
        return None

    def _last_words(self) -> int | None:
        """Stay until nobody holds a number: one who dies now leaves it to those still here."""
        others = [r for r in range(len(self._claims)) if r != self.cluster.rank]
        end = self.cluster.clock.now() + self.cluster.timeout_s
        while self.cluster.clock.now() < end:
            if (number := self._reclaim()) is not None:
                return number
            if not any(self._holds(rank) for rank in others):
                break
            self.cluster.check()
            self.cluster.clock.sleep(0.005)
        return None

    def _holds(self, rank: int) -> bool:
        return bool(self._claims[rank].numbers()) and self.cluster.state(rank) == JOINED

    def deal(self, world: World) -> int | None:
        """Return the number dealt to a rank in the next synchronous round; None at the end."""
        stop = self._stop.value
        if stop and self.rounds >= stop:
            self.stopped = True
            return None
        self.rounds += 1
        return self.take(self.first + (self.rounds - 1) * world.size, world)

    def take(self, first: int, world: World) -> int | None:
        """Return a rank's own number of a row dealt to its group.

        The first take of a step says how many take part in it (``present``).
        """
        self._begin()
        if first >= self.total:
            self.position = self.total
            return None
        self.present = self.present or min(world.size, self.total - first)
        self.position = min(max(first + world.size, self.position), self.total)
        number = first + world.rank
        return number if number < self.total else None

    def request_stop(self) -> None:
        """Ask all workers to stop; synchronous ones all do so before the same round."""
        self._stop.swap(0, self.rounds + 2)

    def safe_position(self) -> int:
        """Return the number to resume from: all below it have been trained."""
        others = [claims for claims in self._claims if claims is not self._mine]
        return min([self.position, *(n for claims in others for n in claims.numbers())])
