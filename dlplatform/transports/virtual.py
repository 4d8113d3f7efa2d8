"""Virtual time: threads of which exactly one runs at a time, in an order that never changes.

Every simulated worker and every thread it starts is a strand. A strand runs until it sleeps or
waits; then the one whose turn comes next, by (virtual time, number), gets the baton. Nothing
else decides who runs, so a run repeated is equal to the last bit.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from heapq import heappop, heappush
from typing import Any

from dlplatform.errors import PlatformError
from dlplatform.memorybox.timing import Clock

SHOWN = 12


class Deadlock(PlatformError):
    """Report simulated workers of which none can go on."""


class Gone(BaseException):
    """End a strand where it waits: its worker has died, or the simulation is over."""


class Strand:
    """One thread of the simulated world, and what it waits for."""

    def __init__(self, name: str, worker: int, run: Callable[[], None]) -> None:
        self.name, self.worker, self.run = name, worker, run
        self.baton = threading.Lock()
        self.baton.acquire()
        self.turn = 0
        self.waits = "its first turn"
        self.error: BaseException | None = None
        self.ended = False
        self.ending = Signal(f"the end of {name}")
        self.thread = threading.Thread(target=lambda: None)


class Signal:
    """Those who wait for something to become true; told whenever it may have."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.waiting: dict[Strand, Callable[[], Any]] = {}


class VirtualClock(Clock):
    """Time that passes only while everybody sleeps or waits."""

    def __init__(self) -> None:
        self._now, self._numbers = 0.0, itertools.count()
        self._agenda: list[tuple[float, int, int, Strand]] = []
        self._living: dict[Strand, None] = {}
        self._workers: set[Strand] = set()
        self._current = Strand("nobody", -1, lambda: None)
        self._over = threading.Semaphore(0)
        self._failure: BaseException | None = None
        self._closing = False
        self.events = 0

    @property
    def worker(self) -> int:
        """Return the rank of the worker that runs just now."""
        return self._current.worker

    # -- what every clock can --------------------------------------------------------------

    def now(self) -> float:
        """Return virtual seconds since the beginning."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Let virtual time pass: compute."""
        self._pause(self._now + max(seconds, 0.0), "time to pass")

    def flow(self) -> VirtualFlow:
        """Return a lock with a condition, for the threads of one worker."""
        return VirtualFlow(self)

    def start(self, name: str, run: Callable[[], None]) -> Callable[[], None]:
        """Run something beside the caller; return what waits for its end."""
        strand = self._begin(name, self._current.worker, run)

        def join() -> None:
            self.wait(strand.ending, lambda: strand.ended)

        return join

    def pool(self, size: int) -> VirtualPool:
        """Return what runs calls beside the caller."""
        return VirtualPool(self)

    # -- what simulated boxes need ------------------------------------------------------------

    def living(self) -> None:
        """End the strand that runs if its worker has died: the dead send nothing."""
        if self._current.error is not None:
            raise self._current.error

    def until(self, moment: float) -> None:
        """Let time pass until a moment, unless it is here already."""
        if moment > self._now:
            self._pause(moment, "its bytes")

    def wait(self, signal: Signal, true: Callable[[], Any], until: float = math.inf) -> bool:
        """Wait until something is true; false when the moment ``until`` has come before."""
        me = self._current
        while not true():
            if self._now >= until:
                return False
            signal.waiting[me] = true
            try:
                self._pause(until, signal.name)
            finally:
                signal.waiting.pop(me, None)
        return True

    def tell(self, signal: Signal) -> None:
        """Wake those for whom it has become true."""
        for strand, true in list(signal.waiting.items()):
            if true():
                self._wake(strand)

    def kill(self, worker: int) -> None:
        """End all strands of a worker where they are."""
        for strand in self._living:
            if strand.worker == worker:
                strand.error = Gone()
                self._wake(strand)

    def run(
        self, workers: Sequence[Callable[[], None]], fates: Sequence[Callable[[], None]]
    ) -> None:
        """Run all workers to their end, and beside them what nobody waits for.

        The first error of a strand ends all of them and is raised.

        Raises:
            Deadlock: when no worker can go on; says who waits for what.
        """
        for rank, body in enumerate(workers):
            self._workers.add(self._begin(f"worker {rank}", rank, body))
        for fate in fates:
            self._begin("fate", -1, fate)
        self._hand_on()
        self._over.acquire()
        self._unwind()
        if self._failure is not None:
            raise self._failure

    # -- the baton ------------------------------------------------------------------------------

    def _begin(self, name: str, worker: int, run: Callable[[], None]) -> Strand:
        strand = Strand(name, worker, run)
        strand.thread = threading.Thread(
            target=self._live, args=(strand,), name=f"simulated {name}", daemon=True
        )
        self._living[strand] = None
        self._wake(strand)
        strand.thread.start()
        return strand

    def _live(self, strand: Strand) -> None:
        strand.baton.acquire()
        try:
            if strand.error is None:
                strand.run()
        except Gone:
            pass
        except BaseException as error:
            self._failure = self._failure or error
        strand.ended = True
        del self._living[strand]
        self._workers.discard(strand)
        if self._closing:
            return
        self.tell(strand.ending)
        if self._failure is not None or not self._workers:
            self._over.release()
        else:
            self._hand_on()

    def _wake(self, strand: Strand) -> None:
        heappush(self._agenda, (self._now, next(self._numbers), strand.turn, strand))

    def _pause(self, until: float, waits: str) -> None:
        """Let the others run until this strand is woken, or until its moment has come."""
        self.living()
        me = self._current
        me.waits = waits
        if until < math.inf:
            heappush(self._agenda, (until, next(self._numbers), me.turn, me))
        if self._hand_on() is not me:
            me.baton.acquire()
        self.living()

    def _hand_on(self) -> Strand | None:
        """Give the baton to the strand whose turn it is."""
        before = self._current
        while self._agenda:
            when, _, turn, strand = heappop(self._agenda)
            if turn != strand.turn or strand.ended:
                continue  # it was woken before
            strand.turn += 1
            self.events += 1
            self._now = max(self._now, when)
            self._current = strand
            if strand is not before:
                strand.baton.release()
            return strand
        self._failure = Deadlock(self._standstill())
        self._over.release()
        return None

    def _standstill(self) -> str:
        lines = [f"{s.name} of worker {s.worker} for {s.waits}" for s in self._living]
        more = f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
        return (
            f"at {self._now:g} s nobody can go on; waiting: {', '.join(lines[:SHOWN])}{more} - "
            "allowed: waits that end - do: see whether every worker takes part in each meeting"
        )

    def _unwind(self) -> None:
        """End what is still there, one after the other."""
        self._closing = True
        for strand in list(self._living):
            strand.error = self._failure if isinstance(self._failure, Deadlock) else Gone()
            self._current = strand
            strand.baton.release()
            strand.thread.join()


class VirtualFlow:
    """A condition in virtual time."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock, self.signal = clock, Signal("another thread of its worker")
        self.owner: Strand | None = None

    def __enter__(self) -> bool:
        self.clock.wait(self.signal, lambda: self.owner is None)
        self.owner = self.clock._current
        return True

    def __exit__(self, *error: Any) -> None:
        if self.owner is self.clock._current:
            self.owner = None
            self.clock.tell(self.signal)

    def wait_for(self, predicate: Callable[[], Any]) -> Any:
        """Wait until something is true."""
        if not predicate():
            self.__exit__()
            self.clock.wait(self.signal, lambda: self.owner is None and predicate())
            self.owner = self.clock._current
        return predicate()

    def notify_all(self) -> None:
        """Have those who wait look again; they see it when the lock is given back."""


class VirtualPool:
    """Runs calls at the same virtual time, as an executor does."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock

    def submit(self, call: Callable[[], Any]) -> VirtualFuture:
        """Start a call."""
        return VirtualFuture(self.clock, call)

    def shutdown(self, wait: bool = True) -> None:
        """Have nothing to give back."""


class VirtualFuture:
    """A call under way."""

    def __init__(self, clock: VirtualClock, call: Callable[[], Any]) -> None:
        self._made: Future[Any] = Future()
        self._call = call
        self._join = clock.start("call", self._run)

    def _run(self) -> None:
        try:
            self._made.set_result(self._call())
        except Exception as error:
            self._made.set_exception(error)

    def result(self) -> Any:
        """Wait for the call's end; return what it returned, or raise what it raised."""
        self._join()
        return self._made.result()
