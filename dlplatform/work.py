"""Work: who trains which minibatch, by number from the job's global counter.

A worker claims a number by compare-and-swap after writing down which one it is about to take,
so a number that a dead worker held is always found and given out again: every number is
trained at least once and, without failures, exactly once (P-HET 40-42).

What a living worker holds longer than a lease is given out again, too: at the end of the run,
where the others would only wait for it, and before, so that a worker that hangs does not keep
checkpoints from getting on. The clocks of hosts differ, so everyone times what it sees itself. A
worker lets a number go by compare-and-swap and so learns that it was taken away; its update
counts all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dlplatform.memorybox.cluster import Cluster
from dlplatform.memorybox.counter import Counter
from dlplatform.memorybox.session import JOINED
from dlplatform.transports.transport import MAPPED, ONE_SIDED
from dlplatform.world import World

NOTHING, PAUSE_S = 0, 0.005
LOOKS = 4
"""How often a worker looks at the others' numbers during a lease."""
SLOTS = 32
"""Numbers one worker can hold: as many as form one step at most (run.accumulate)."""


class Claims:
    """The numbers that one worker holds, claimed and not trained yet, each in a counter."""

    def __init__(self, cluster: Cluster, rank: int) -> None:
        self.cluster, self.rank = cluster, rank
        self.held: list[tuple[Counter, int]] = []
        """This worker's slots in use, and what it wrote into them."""
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
        wanted = len(self.held) + 1
        if self._most < min(wanted, SLOTS):
            self._most = wanted
            self._used.set(self._most)
        return self._slot(wanted - 1)

    def hold(self, slot: Counter, number: int) -> None:
        """Note that the number in a slot is this worker's now."""
        self.held.append((slot, number + 1))

    def clear(self) -> list[int]:
        """Hold nothing any more; return the numbers that had been taken away meanwhile."""
        lost = [held - 1 for slot, held in self.held if slot.swap(held, NOTHING) != held]
        self.held = []
        return lost


def never() -> bool:
    """Stay."""
    return False


class Work:
    """The numbers first..total-1 of one job, dealt or claimed.

    ``position`` is this worker's best knowledge of how far the job is; ``present`` counts who
    takes part in the current synchronous step (0: not dealt); ``stopped`` tells that training
    ends early because someone asked for it; ``left`` that this worker alone ends. ``lapsed`` are
    the numbers that it trained although its lease of them had run out.
    """

    leaving: Callable[[], bool] = staticmethod(never)
    """Asked before every claim: whether this worker is to leave the job to the others."""

    def __init__(self, cluster: Cluster, first: int, total: int, lease_s: float = 0.0) -> None:
        self.cluster, self.first, self.total = cluster, first, total
        self.rounds, self.lease_s = 0, lease_s
        self.left, self.lapsed = False, list[int]()
        self.present, self.stopped = 0, False
        self._stop = cluster.counter("stop")
        self._global = cluster.counter("minibatch")
        self.idle = cluster.counter("idle")
        self._quick = not {MAPPED, ONE_SIDED} & cluster.transports[0].can
        self._claims: dict[int, Claims] = {}
        self._mine = self._of(max(cluster.rank, 0))
        self._trained = False
        self._seen: dict[Counter, tuple[int, float]] = {}
        self._look = cluster.clock.now() + lease_s / LOOKS
        if cluster.rank <= 0:
            self._global.swap(0, first)
        late = cluster.rank >= cluster.size
        self.position = max(first, self._global.value) if late else first

    def _of(self, rank: int) -> Claims:
        if rank not in self._claims:
            self._claims[rank] = Claims(self.cluster, rank)
        return self._claims[rank]

    def _others(self) -> list[Claims]:
        """Return the claims of all others who ever came."""
        ranks = self.cluster.ranks()
        return [claims for rank in ranks if (claims := self._of(rank)) is not self._mine]

    def done(self) -> None:
        """Note that all numbers claimed so far are trained; run after every step.

        They are let go with ``let_go`` or the next claim, since a step may have several parts.
        """
        self._trained = True

    def let_go(self) -> None:
        """Forget the numbers and the company of the last step, if there was one."""
        if self._trained:
            self.lapsed += self._mine.clear()
            self.present, self._trained = 0, False

    def next(self, count: int = 1) -> int | None:
        """Claim ``count`` numbers in a row; return the first, or None when none is left."""
        self.rounds += 1
        if self._quick and (number := self._claim_at_once(count)) is not None:
            return number
        self.let_go()
        if self.leaving():
            self.left = True
            return None
        if self._stop.value:
            self.stopped = True
            return None
        alone, free = count == 1, not self._mine.held
        claimed = self._reclaim() if alone else None
        claimed = self._claim(count) if claimed is None else claimed
        return self._last_words() if claimed is None and alone and free else claimed

    def _claim_at_once(self, count: int) -> int | None:
        """Claim with one request, where nothing speaks against it; None: go the long way."""
        clock, held = self.cluster.clock, self._mine.held
        looks = self.lease_s and clock.now() >= self._look
        if looks or self.leaving() or len(held) != 1 or not self._trained:
            return None
        (slot, was), self._mine.held = held[0], []
        self.present, self._trained = 0, False
        answer = self.cluster.transports[0].call(
            "claim", numbers=self._global.name, slot=slot.name, held=was, count=count,
            total=self.total, unless=[self._stop.name, "departures"],
        )  # fmt: skip
        if not answer["kept"]:
            self.lapsed.append(was - 1)
        number = int(answer["number"])
        if number < 0:
            return None
        self._mine.hold(slot, number)
        self.position = min(number + count, self.total)
        return number

    def _claim(self, count: int) -> int | None:
        seen = self._global.value
        if seen < self.total:
            slot = self._mine.open()
        while seen < self.total:
            slot.set(seen + 1)
            held = self._global.swap(seen, min(seen + count, self.total))
            if held == seen:
                self.position = min(seen + count, self.total)
                self._mine.hold(slot, seen)
                return seen
            seen = held
            slot.set(NOTHING)
        self.position = self.total
        return None

    def _reclaim(self) -> int | None:
        """Take over what a dead worker had claimed and not finished, or a slow one in time."""
        for theirs, held in self._abandoned():
            if held > self._global.value:
                continue
            mine = self._mine.open()
            mine.set(held)
            if theirs.swap(held, NOTHING) == held:
                self._mine.hold(mine, held - 1)
                return held - 1
            mine.set(NOTHING)
        return None

    def _abandoned(self) -> Iterator[tuple[Counter, int]]:
        """Yield the slots of the dead, and now and then those whose lease has run out."""
        for rank in self.cluster.dead():
            yield from ((slot, held) for slot in self._of(rank).slots() if (held := slot.value))
        now = self.cluster.clock.now()
        if self.lease_s and now >= self._look:
            self._look = now + self.lease_s / LOOKS
            yield from self._overdue(now)

    def _overdue(self, now: float) -> Iterator[tuple[Counter, int]]:
        """Yield slots that have not changed for a lease before this worker's eyes."""
        for slot in [slot for claims in self._others() for slot in claims.slots()]:
            held = slot.value
            before, since = self._seen.get(slot, (NOTHING, now))
            since = since if held == before else now
            self._seen[slot] = held, since
            if held != NOTHING and now - since >= self.lease_s:
                yield slot, held

    def _last_words(self) -> int | None:
        """Stay until nobody holds a number: one who dies now leaves it to those still here."""
        self.idle.add(1)
        self.idles(self.cluster.rank).set(1)
        try:
            return self._wait_for_holders()
        finally:
            self.idles(self.cluster.rank).set(0)
            self.idle.add(-1)

    def idles(self, rank: int) -> Counter:
        """Return the counter that is 1 while a worker has nothing to train: do not wait for it."""
        return self.cluster.counter(f"idle/{rank}")

    def _wait_for_holders(self) -> int | None:
        clock = self.cluster.clock
        end = clock.now() + self.cluster.timeout_s + 2 * self.lease_s
        while clock.now() < end and not self.leaving():
            # Looked at first: whoever dies between the two looks is among the dead in the second.
            held = any(self._holds(claims) for claims in self._others())
            if (number := self._reclaim()) is not None:
                return number
            if not held:
                break
            self.cluster.check()
            clock.sleep(PAUSE_S)
        return None

    def _holds(self, claims: Claims) -> bool:
        return bool(claims.numbers()) and self.cluster.state(claims.rank) == JOINED

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
        self.let_go()
        if first >= self.total:
            self.position = self.total
            return None
        self.present = self.present or min(world.size, self.total - first)
        self.position = min(max(first + world.size, self.position), self.total)
        number = first + world.rank
        return number if number < self.total else None

    def request_stop(self, ahead: int = 2) -> None:
        """Ask all workers to stop; synchronous ones all do so before the same round."""
        self._stop.swap(0, self.rounds + ahead)

    def safe_position(self) -> int:
        """Return the number to resume from: all below it have been trained."""
        held = [number for claims in self._others() for number in claims.numbers()]
        return min([self.position, *held])
