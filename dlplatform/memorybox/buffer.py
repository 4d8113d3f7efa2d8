"""SharedBuffer: a virtual contiguous buffer made of one segment per memory box.

Where boxes are mapped (inproc, shm) the segments lie side by side in this process, so the
local region *is* the shared buffer. Elsewhere the local region is private memory of the same
size, kept in step by explicit ``read`` and ``write``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

from dlplatform.errors import UsageError
from dlplatform.memorybox.memory import Memory
from dlplatform.memorybox.segment import Segment, split
from kernels import cpu

if TYPE_CHECKING:
    from dlplatform.memorybox.cluster import Cluster
    from dlplatform.memorybox.counter import Counter
    from dlplatform.transports.transport import Transport

Piece = tuple["Transport", int, int, int]
"""(transport, start in the segment, count, start in the span)."""


BETWEEN = ("axpy", "axpby")


class SharedBuffer:
    """``length`` fp32 numbers held by the boxes of a cluster; made by ``Cluster.attach``."""

    def __init__(self, cluster: Cluster, info: dict[str, Any]) -> None:
        self.cluster, self.info = cluster, info
        self.name, self.key, self.length = info["name"], info["key"], int(info["length"])
        self.segments = [Segment(box, self.key, at, n) for box, at, n in info["segments"]]
        self.mapped = cluster.mapped
        self._cut = [
            (cluster.transports[s.box], s.offset, s.offset + s.length) for s in self.segments
        ]
        self._private: Memory | None = None
        self._range = 0
        self._attached: list[Segment] = []
        if self.key in cluster.attached:
            raise UsageError(
                f"{self.name} is attached already - allowed: once a process - do: keep the first "
                "buffer, or release it"
            )
        self._attach()

    def _attach(self) -> None:
        if self.mapped:
            self._range = cpu.check(cpu.reserve(4 * self.length))
        try:
            for segment in self.segments:
                at = self._range + 4 * segment.offset if self.mapped else 0
                self.cluster.transports[segment.box].attach(self.key, segment.length, at)
                self._attached.append(segment)
            self.cluster.attached.add(self.key)
        except BaseException:
            self.release()
            raise

    @property
    def region(self) -> int:
        """Return the address of the local region: 4 * length bytes, page-aligned."""
        self._check_attached()
        if self._range:
            return self._range
        if self._private is None:
            self._private = Memory(self.length)
        return self._private.address

    @property
    def updated(self) -> Counter:
        """Return the buffer's version: writers add to it, readers wait for it (P-PS 58)."""
        return self.cluster.counter(f"updated/{self.name}")

    def _check_attached(self) -> None:
        if not self._attached:
            raise UsageError(
                f"{self.name} is released - allowed: attached buffers - do: attach it again"
            )

    def _span(self, start: int, count: int | None) -> tuple[int, int]:
        self._check_attached()
        count = self.length - start if count is None else count
        if start < 0 or count < 0 or start + count > self.length:
            raise UsageError(
                f"{self.name}: elements {start} to {start + count} - allowed: 0 to "
                f"{self.length} - do: check start and count"
            )
        return start, count

    def _pieces(self, start: int, count: int) -> list[Piece]:
        if len(self._cut) == 1 and count:
            return [(self._cut[0][0], start, count, 0)]
        pieces = []
        for transport, offset, end in self._cut:
            first, last = max(start, offset), min(start + count, end)
            if first < last:
                pieces.append((transport, first - offset, last - first, first - start))
        return pieces

    def _each(
        self, start: int, count: int, work: Callable[[Transport, int, int, int], Any]
    ) -> None:
        pieces = self._pieces(start, count)
        if self.mapped or len(pieces) == 1:
            for piece in pieces:
                work(*piece)
            return
        self.cluster.parallel([partial(work, *piece) for piece in pieces])

    def read(self, into: int = 0, start: int = 0, count: int | None = None) -> None:
        """Copy shared to local: a span to address ``into`` (default: the local region)."""
        start, count = self._span(start, count)
        if not into and self.mapped:
            return
        into = into or self.region + 4 * start
        self._each(start, count, lambda t, s, n, at: t.read(self.key, s, n, into + 4 * at))

    def write(self, data: int = 0, start: int = 0, count: int | None = None) -> None:
        """Copy local to shared: a span from address ``data`` (default: the local region)."""
        start, count = self._span(start, count)
        if not data and self.mapped:
            return
        data = data or self.region + 4 * start
        self._each(start, count, lambda t, s, n, at: t.write(self.key, s, n, data + 4 * at))

    def apply(
        self, op: str, x: int | SharedBuffer = 0, z: int = 0, *, a: float = 1.0, b: float = 0.0,
        start: int = 0, count: int | None = None,
    ) -> None:  # fmt: skip
        """Run an operation of ``kernels.reference`` on a span, locked stripe by stripe.

        x and z are addresses of local memory for the first element of the span; x may be
        another buffer of the same cut, then the boxes do everything.
        """
        start, count = self._span(start, count)
        if isinstance(x, SharedBuffer):
            key = self._same_cut(x).key
            if op not in BETWEEN:
                raise UsageError(
                    f"{op} between {self.name} and {x.name} - allowed: {', '.join(BETWEEN)} - do: "
                    "give local memory as x"
                )
            self._each(start, count, lambda t, s, n, _: t.apply(op, self.key, s, n, key, 0, a, b))
            return

        def run(t: Transport, s: int, n: int, at: int) -> None:
            t.apply(op, self.key, s, n, x and x + 4 * at, z and z + 4 * at, a, b)

        self._each(start, count, run)

    def _same_cut(self, other: SharedBuffer) -> SharedBuffer:
        if [(s.box, s.offset, s.length) for s in self.segments] != [
            (s.box, s.offset, s.length) for s in other.segments
        ]:
            raise UsageError(
                f"{self.name} ({self.length}) and {other.name} ({other.length}) are cut "
                "differently - allowed: equal length and weights - do: create both alike"
            )
        return other

    def scal(self, a: float) -> None:
        """Scale the buffer: y = a y."""
        self.apply("scal", a=a)

    def axpy(self, a: float, x: int | SharedBuffer) -> None:
        """Accumulate: y = y + a x."""
        self.apply("axpy", x, a=a)

    def axpby(self, a: float, x: int | SharedBuffer, b: float) -> None:
        """Blend: y = a x + b y."""
        self.apply("axpby", x, a=a, b=b)

    def elastic(self, a: float, x: int) -> None:
        """Average elastically with local memory: both move by a (x - y)."""
        self.apply("elastic", x, a=a)

    def difference(self, a: float, x: int, z: int) -> None:
        """Move the buffer elastically and put the step into z, leaving x for later."""
        self.apply("difference", x, z, a=a)

    def merge(self, x: int, base: int) -> None:
        """Add what x gained over base, and bring x and base to the result."""
        self.apply("merge", x, base)

    def sum(self, sources: Sequence[SharedBuffer], scale: float = 1.0) -> None:
        """Write scale * (sum of the sources in order): bitwise repeatable."""
        keys = [self._same_cut(source).key for source in sources]
        if self.mapped:
            addresses = cpu.pointers([source.region for source in sources])
            cpu.sum_into(self.region, addresses, len(keys), self.length, scale)
            return

        def run(t: Transport, s: int, n: int, _: int) -> None:
            t.call("sum", key=self.key, sources=keys, start=s, count=n, scale=scale)

        self._each(*self._span(0, None), run)

    def share(self, index: int, of: int) -> tuple[int, int]:
        """Return (start, count) of one of ``of`` equal, page-aligned shares."""
        return split(self.length, [1.0] * of)[index]

    def locked(self, start: int) -> AbstractContextManager[None]:
        """Hold the lock of the stripe of an element, to read and write it undisturbed."""
        ((transport, at, _, _),) = self._pieces(*self._span(start, 1))
        return transport.locked(self.key, at // cpu.STRIPE)

    def release(self) -> None:
        """Stop sharing: unmap and forget; the boxes keep the data (P-RDMA 77)."""
        try:
            while self._attached:
                self.cluster.transports[self._attached.pop().box].release(self.key)
        finally:
            if self._range:
                cpu.unmap(self._range, 4 * self.length)
            self._range, self._private = 0, None
            self.cluster.attached.discard(self.key)

    def delete(self) -> None:
        """Free the memory in every box, after all have released it (P-RDMA 78)."""
        for segment in self.segments:
            self.cluster.transports[segment.box].call("delete", key=self.key)


def average(regions: Sequence[SharedBuffer], start: int, count: int, scale: float) -> None:
    """Write scale * (sum of the regions in order) into every region, over one span."""
    first = regions[0]
    if first.mapped:
        at = cpu.pointers([region.region + 4 * start for region in regions])
        cpu.average(at, len(regions), count, scale)
        return
    keys = [region.key for region in regions]

    def run(t: Transport, s: int, n: int, _: int) -> None:
        t.call("average", sources=keys, start=s, count=n, scale=scale)

    first._each(start, count, run)
