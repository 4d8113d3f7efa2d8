"""Ranges of elements that changed, and how to accumulate where the box cannot.

A box without an accumulate function still works (P-BOX 134, 200-239): the worker re-reads the
value, adds its delta and writes it back, all under the lock; the re-read is skipped when the
delta was computed within a given time of the first read.
"""

from __future__ import annotations

import time
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


def read_add_write(
    buffer: SharedBuffer, order: cpu.Operation, x: int, start: int, count: int
) -> None:
    """Do y = y + a x here, for boxes that cannot, a stripe's worth at a time."""
    fresh = time.monotonic() - buffer.read_at <= buffer.cluster.window_s
    scratch = Memory(min(count, cpu.STRIPE))
    for at in range(0, count, cpu.STRIPE):
        n = min(cpu.STRIPE, count - at)
        with buffer.locked(start + at, n):
            if fresh:
                cpu.copy(scratch.address, buffer.region + 4 * (start + at), 4 * n)
            else:
                buffer.read(scratch.address, start + at, n)
            cpu.apply(order, scratch.address, None, None, x, None, at, n)
            buffer.write(scratch.address, start + at, n)
