"""Ranges of elements that changed, and how to accumulate where the box cannot.

A box without an accumulate function still works (P-BOX 134, 200-239): the worker re-reads the
value, adds its delta and writes it back, all under the lock; the re-read is skipped when the
delta was computed within a given time of the first read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlplatform.memorybox.memory import Memory
from kernels import cpu

if TYPE_CHECKING:
    from dlplatform.memorybox.buffer import SharedBuffer


class Ranges:
    """Spans of elements, joined where they touch."""

    def __init__(self) -> None:
        self._spans: list[tuple[int, int]] = []

    def add(self, start: int, count: int) -> None:
        """Add one span."""
        end, apart = start + count, []
        if not count:
            return
        for first, last in self._spans:
            if last < start or end < first:
                apart.append((first, last))
            else:
                start, end = min(first, start), max(last, end)
        self._spans = sorted([*apart, (start, end)])

    def take(self) -> list[tuple[int, int]]:
        """Return all spans as (start, count) in order, and forget them."""
        spans, self._spans = self._spans, []
        return [(first, last - first) for first, last in spans]


def read_work_write(
    buffer: SharedBuffer, order: cpu.Operation, x: int | SharedBuffer, z: int, start: int,
    count: int,
) -> None:  # fmt: skip
    """Do an operation here, for boxes that cannot, a stripe's worth at a time.

    The value is not read again when the local region was read within the cluster's window; the
    region then takes part, and holds the result, too.
    """
    fresh = buffer.cluster.clock.now() - buffer.read_at <= buffer.cluster.window_s
    room = min(count, cpu.STRIPE)
    scratch = None if fresh else Memory(room)
    other = None if isinstance(x, int) else Memory(room)
    for at in range(0, count, cpu.STRIPE):
        n = min(cpu.STRIPE, count - at)
        y = scratch.address if scratch else buffer.region + 4 * (start + at)
        with buffer.locked(start + at, n):
            if scratch:
                buffer.read(y, start + at, n)
            if isinstance(x, int):
                cpu.apply(order, y, None, None, x, z, at, n)
            elif other:
                x.read(other.address, start + at, n)
                cpu.apply(order, y, None, None, other.address, z, 0, n)
            buffer.write(y, start + at, n)
