"""Window: one-sided access to the parts of boxes on other hosts (passive target).

Reads of segments, and counters of the job, need no request then. Nothing else of a box may be
changed from outside: it would pass by locks of stripes, versions and views.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any

from dlplatform.memorybox.counter import Counter

MOST = 1 << 30
"""Bytes of one Get: counts of MPI are ints."""
LONG, PROBE, PROBES, HOPELESS = 1 << 16, 1 << 20, 5, 10
SLOWEST_GET_S, SLOWEST_FETCH_S = 0.010, 0.0005
"""Where 1 MiB or one counter take longer, messages do better (as with Open MPI 5 over tcp)."""


class Window:
    """A window over the parts of all boxes; every rank makes it at the same time.

    Args:
        mpi: mpi4py's MPI.
        comm: of all ranks.
        memory: this rank's part, if it is a box.
        nudge: has a rank progress MPI, without which some libraries move nothing there.
    """

    def __init__(self, mpi: Any, comm: Any, memory: Any, nudge: Callable[[int], None]) -> None:
        self.mpi, self._nudge = mpi, nudge
        self._window = mpi.Win.Create(memory, 1, comm=comm)
        self._window.Lock_all(mpi.MODE_NOCHECK)

    def get(self, rank: int, offset: int, size: int, into: int) -> None:
        """Copy bytes of a box's part to local memory."""
        if size >= LONG:
            self._nudge(rank)
        for at in range(0, size, MOST):
            part = min(MOST, size - at)
            local = self.mpi.memory.fromaddress(into + at, part)
            self._window.Get([local, self.mpi.BYTE], rank, [offset + at, part, self.mpi.BYTE])
        self._window.Flush(rank)

    def fetch(self, rank: int, offset: int, n: int, op: Any) -> int:
        """Combine a number with a counter; return what it was before."""
        given, old = ctypes.c_int64(n), ctypes.c_int64()
        kind = self.mpi.INT64_T
        self._window.Fetch_and_op([given, kind], [old, kind], rank, offset, op)
        self._window.Flush(rank)
        return old.value

    def swap(self, rank: int, offset: int, expected: int, desired: int) -> int:
        """Replace a counter if it equals expected; return what it was before."""
        new, seen, old = (ctypes.c_int64(n) for n in (desired, expected, 0))
        kind = self.mpi.INT64_T
        self._window.Compare_and_swap([new, kind], [seen, kind], [old, kind], rank, offset)
        self._window.Flush(rank)
        return old.value

    def store(self, rank: int, offset: int, value: int) -> None:
        """Replace a counter."""
        kind = self.mpi.INT64_T
        local = ctypes.c_int64(value)
        target = [offset, 1, kind]
        self._window.Accumulate([local, kind], rank, target, self.mpi.REPLACE)
        self._window.Flush(rank)

    def quick(self, rank: int, offset: int) -> bool:
        """Tell whether one-sided access to a box is worth it: measure a Get and a counter."""
        room = ctypes.create_string_buffer(PROBE)
        address = ctypes.addressof(room)
        return within(SLOWEST_GET_S, lambda: self.get(rank, offset, PROBE, address)) and within(
            SLOWEST_FETCH_S, lambda: self.fetch(rank, offset, 0, self.mpi.NO_OP)
        )

    def close(self) -> None:
        """Free the window, together with all ranks."""
        self._window.Unlock_all()
        self._window.Free()


def within(limit_s: float, work: Callable[[], object]) -> bool:
    """Tell whether one of some runs takes no longer; a very long one is the last."""
    for _ in range(PROBES):
        begin = time.perf_counter()
        work()
        taken = time.perf_counter() - begin
        if taken <= limit_s or taken > HOPELESS * limit_s:
            return taken <= limit_s
    return False


class WindowCounter(Counter):
    """A counter that all workers change by atomic operations of MPI.

    A box changes such counters only at its workers' request, never by itself: the atomic operations
    of MPI and those of a processor do not know of each other.

    Args:
        name: of the counter.
        window: holds it.
        rank, offset: where.
        reached: waits for it without MPI.
    """

    def __init__(
        self, name: str, window: Window, rank: int, offset: int,
        reached: Callable[[int, int], bool],
    ) -> None:  # fmt: skip
        self.name, self._window, self._where, self._reached = name, window, (rank, offset), reached

    @property
    def value(self) -> int:
        """Return the number."""
        return self._window.fetch(*self._where, 0, self._window.mpi.NO_OP)

    def set(self, value: int) -> None:
        """Replace the number."""
        self._window.store(*self._where, value)

    def add(self, n: int = 1) -> int:
        """Add n and return what it was before."""
        return self._window.fetch(*self._where, n, self._window.mpi.SUM)

    def swap(self, expected: int, desired: int) -> int:
        """Replace it if it equals expected; return what it was before."""
        return self._window.swap(*self._where, expected, desired)

    def reached(self, at_least: int, ms: int) -> bool:
        """Wait at most ms for the number to reach at_least."""
        return self._reached(at_least, ms)
