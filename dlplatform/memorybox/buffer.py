"""SharedBuffer: a virtual contiguous buffer made of one segment per memory box.

Where boxes are mapped (inproc, shm) the segments lie side by side in this process, so the
local region *is* the shared buffer. Elsewhere the local region is private memory of the same
size, kept in step by explicit ``read`` and ``write``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from dlplatform.errors import UsageError
from dlplatform.memorybox.memory import Memory
from dlplatform.memorybox.operations import Operations, check, order, order_of
from dlplatform.memorybox.payload import Payload
from dlplatform.memorybox.ranges import Ranges, read_work_write
from dlplatform.memorybox.segment import Segment, split
from dlplatform.transports.transport import MAPPED, Span
from kernels import cpu

if TYPE_CHECKING:
    from dlplatform.memorybox.cluster import Cluster
    from dlplatform.memorybox.counter import Counter
    from dlplatform.transports.transport import Transport

COPY = order_of("copy", (1.0, 0.0))
SIMPLE = frozenset(set(cpu.OPERATIONS) - set(cpu.STATES))
ALLOCATION = "box/allocation"
"""The lock that makes an allocation, and its reverse, one step in all boxes."""
WORKED = SIMPLE - {"copy"}
"""What a worker does itself where the boxes cannot (P-BOX 134)."""
Piece = tuple["Transport", int, int, int]
"""(transport, start in the segment, count, start in the span)."""


class SharedBuffer(Operations):
    """``length`` fp32 numbers held by the boxes of a cluster; made by ``Cluster.attach``."""

    def __init__(self, cluster: Cluster, info: dict[str, Any], counted: bool = False) -> None:
        self.cluster, self.info, self.counted = cluster, info, counted
        self.name, self.key, self.length = info["name"], info["key"], int(info["length"])
        self.segments = [Segment(box, self.key, at, n) for box, at, n in info["segments"]]
        self.mapped = cluster.mapped
        self._cut = [
            (cluster.transports[s.box], s.offset, s.offset + s.length) for s in self.segments
        ]
        self._only: Any = self._cut[0][0] if self.mapped and len(self._cut) == 1 else None
        self._private: Memory | None = None
        self.marked = Ranges()
        self._versions = [0] * len(self.segments)
        self.read_at = 0.0
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
                transport = self.cluster.transports[segment.box]
                transport.attach(self.key, segment.length, at, not self.counted)
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

    def _boxes(self, start: int, count: int) -> list[int]:
        """Return which boxes do an operation on a span: those that are not mapped."""
        pieces = zip(self.segments, self._cut, strict=True)
        return [
            segment.box
            for segment, (t, first, last) in pieces
            if first < start + count and start < last and MAPPED not in t.can
        ]

    def _each(
        self, start: int, count: int, work: Callable[[Transport, int, int, int], Any]
    ) -> None:
        pieces = self._pieces(start, count)
        if self.mapped or len(pieces) == 1 or self.cluster.holding:
            for piece in pieces:
                work(*piece)
            return
        self.cluster.parallel([partial(work, *piece) for piece in pieces])

    def read(self, into: int = 0, start: int = 0, count: int | None = None) -> None:
        """Copy shared to local: a span to address ``into`` (default: the local region)."""
        if not into and not start and count is None:
            self.read_at = self.cluster.clock.now()
        if self._only is not None and into and not start and count is None:
            self._only.read(self.key, 0, self.length, into)
            return
        start, count = self._span(start, count)
        if not into and self.mapped:
            return
        into = into or self.region + 4 * start
        self._each(start, count, lambda t, s, n, at: t.read(self.key, s, n, into + 4 * at))

    def read_view(self, into: int, start: int = 0, count: int | None = None) -> None:
        """Copy a span as it is in this worker's view (``Cluster.snapshot``)."""
        start, count = self._span(start, count)
        self._each(start, count, lambda t, s, n, at: t.read_cut(self.key, s, n, into + 4 * at))

    def write(self, data: int = 0, start: int = 0, count: int | None = None) -> None:
        """Copy local to shared: a span from address ``data`` (default: the local region)."""
        only = self._only if data and not start and count is None else None
        if only is not None and only.run(COPY, self.key, data, 0):
            return
        start, count = self._span(start, count)
        if not data and self.mapped:
            return
        self.apply("copy", data or self.region + 4 * start, start=start, count=count)

    def mark(self, start: int, count: int) -> None:
        """Remember that a span of the local region was changed, for ``write_changes``."""
        self.marked.add(*self._span(start, count))

    def write_changes(self) -> int:
        """Copy marked spans of the local region to shared; return how many elements (B7)."""
        spans = self.marked.take()
        for start, count in spans:
            self.write(0, start, count)
        return sum(count for _, count in spans)

    def read_changes(self, into: int = 0) -> int:
        """Copy what others changed since the last call to local; return how many elements.

        Changes are known by stripes of 1 MiB. The first call copies everything that was ever
        changed. ``into`` is as long as the buffer (default: the local region).
        """
        into, copied = into or self.region, 0
        for number, (segment, (t, _, _)) in enumerate(zip(self.segments, self._cut, strict=True)):
            stripes, now = t.changed(self.key, self._versions[number])
            for stripe in stripes:
                at = stripe * cpu.STRIPE
                n = min(cpu.STRIPE, segment.length - at)
                if into != self._range:
                    t.read(self.key, at, n, into + 4 * (segment.offset + at))
                copied += n
            self._versions[number] = now
        return copied

    def apply(
        self, op: str, x: int | Payload | SharedBuffer = 0, z: int = 0, *, a: float = 1.0,
        b: float = 0.0, k: Sequence[float] = (), states: Sequence[SharedBuffer] = (),
        start: int = 0, count: int | None = None,
    ) -> None:  # fmt: skip
        """Run an operation on a span, locked stripe by stripe (see ``Operations.apply``)."""
        simple = count is None and op in SIMPLE and not (start or k) and x.__class__ is int
        only = self._only if simple else None  # one mapped segment: in few steps
        if only is not None and only.run(order_of(op, (a, b)), self.key, x, z):
            return
        start, count = self._span(start, count)
        check(op, x, states, self.name, count)
        what = order(op, x, a, b, k)
        keys = (self.key, *[self._same_cut(state).key for state in states])
        source: int | str
        if isinstance(x, SharedBuffer):
            source = self._same_cut(x).key
        else:
            source = x.address if isinstance(x, Payload) else x
        if self.cluster.plain and op in WORKED:
            other = x if isinstance(x, SharedBuffer) else int(source)
            read_work_write(self, what, other, z, start, count)
            return
        with self.cluster.operation() as (epochs, tag):
            full = (*tag, [] if self.mapped else self._boxes(start, count))

            def run(t: Transport, s: int, n: int, at: int) -> None:
                t.apply(what, keys, Span(s, n, at, count, z, epochs.get(t, -1), full), source)

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

    def sum(
        self, sources: Sequence[SharedBuffer], scale: float = 1.0, start: int = 0,
        count: int | None = None,
    ) -> None:  # fmt: skip
        """Write scale * (sum of the sources in order) over a span: bitwise repeatable."""
        keys = [self._same_cut(source).key for source in sources]
        start, count = self._span(start, count)
        if self.mapped:
            addresses = cpu.pointers([source.region + 4 * start for source in sources])
            cpu.sum_into(self.region + 4 * start, addresses, len(keys), count, scale)
            return

        def run(t: Transport, s: int, n: int, _: int) -> None:
            t.call("total", key=self.key, sources=keys, start=s, count=n, scale=scale)

        self._each(start, count, run)

    def matrix(
        self, a: float, left: SharedBuffer, right: SharedBuffer, shape: tuple[int, int, int],
        b: float = 0.0,
    ) -> None:  # fmt: skip
        """Multiply matrices in the box: C = a A B + b C (P-PS 56); all three in one box.

        Args:
            a: scales the product.
            left: A, ``shape[0]`` x ``shape[1]``, row by row.
            right: B, ``shape[1]`` x ``shape[2]``.
            shape: rows, inner, columns.
            b: scales what C holds; 0: C is replaced.
        """
        boxes = [[segment.box for segment in each.segments] for each in (self, left, right)]
        if len(boxes[0]) != 1 or boxes != [boxes[0]] * 3:
            raise UsageError(
                f"matrix of {self.name}, {left.name}, {right.name} in boxes {boxes} - allowed: "
                "three buffers whole in the same box - do: cluster.create(..., weights=[1, 0])"
            )
        keys = [self.key, left.key, right.key]
        transport = self.cluster.transports[boxes[0][0]]
        transport.call("matrix", keys=keys, shape=list(shape), a=a, b=b)

    def share(self, index: int, of: int) -> tuple[int, int]:
        """Return (start, count) of one of ``of`` equal, page-aligned shares."""
        return split(self.length, [1.0] * of)[index]

    @contextmanager
    def locked(self, start: int = 0, count: int | None = None) -> Iterator[bool]:
        """Hold the locks of a span (default: all), to read and write it undisturbed (B10).

        Yields true when an owner before died while it held one of them.
        """
        with ExitStack() as stack:
            told = False
            for t, s, n, _ in self._pieces(*self._span(start, count)):
                told |= stack.enter_context(t.locked(self.key, s, n))
            stack.enter_context(self.cluster.alone())
            yield told

    def release(self) -> None:
        """Stop sharing: unmap and forget; the boxes keep the data (P-RDMA 77)."""
        try:
            while self._attached:
                transport = self.cluster.transports[self._attached.pop().box]
                transport.release(self.key, not self.counted)
        finally:
            if self._range:
                cpu.unmap(self._range, 4 * self.length)
            self._range, self._private, self._only = 0, None, None
            self.cluster.attached.discard(self.key)

    def free(self) -> int:
        """Give back what ``Cluster.allocate`` found; return how many still use it (P-BOX 104)."""
        if not self.counted:
            raise UsageError(
                f"free {self.name} - allowed: buffers of cluster.allocate - do: release and delete"
            )
        boxes = [self.cluster.transports[segment.box] for segment in self.segments]
        self.release()
        with self.cluster.locked(ALLOCATION):
            left = [box.lease("free", key=self.key)["shared_by"] for box in boxes]
        return int(left[0])

    def delete(self) -> None:
        """Free the memory in every box, after all have released it (P-RDMA 78)."""
        for segment in self.segments:
            self.cluster.transports[segment.box].call("delete", key=self.key)


def average(
    regions: Sequence[SharedBuffer], start: int, count: int, scale: float,
    mine: tuple[int, int] | None = None,
) -> None:  # fmt: skip
    """Write scale * (sum of the regions in order) into every region, over one span.

    Args:
        regions: one of each worker, all cut alike.
        start: first element of the span.
        count: its elements.
        scale: 1 / workers for the mean.
        mine: (index, address): one worker's part is taken from private memory, where its span
            begins, instead of its region; mapped boxes only. So it need not be copied first.
    """
    first = regions[0]
    if first.mapped:
        addresses = [region.region + 4 * start for region in regions]
        x = cpu.pointers([*addresses])
        if mine is not None:
            x[mine[0]] = mine[1]
        cpu.combine(x, len(regions), cpu.pointers(addresses), len(regions), count, scale)
        return
    if mine is not None:
        regions[mine[0]].write(mine[1], start, count)
    keys = [region.key for region in regions]

    def run(t: Transport, s: int, n: int, _: int) -> None:
        t.call("average", sources=keys, start=s, count=n, scale=scale)

    first._each(start, count, run)
