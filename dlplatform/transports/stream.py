"""A box that gets bytes: ``tcp://HOST:PORT`` anywhere, or ``shm://NAME`` where it keeps a log.

It runs operations itself while the bytes arrive.
"""

from __future__ import annotations

import ctypes
import threading
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager

from dlplatform.memorybox.counter import Counter, RemoteCounter
from dlplatform.memorybox.memory import Memory
from dlplatform.transports.link import Frame, Link, Linked
from dlplatform.transports.transport import ACCUMULATE, Entrance, Span
from kernels import cpu

TOPK = cpu.FORMATS["topk"]


class StreamTransport(Linked):
    """Every operation is one numbered request with its bytes behind it, and one reply."""

    def __init__(self, uri: str, link: Link) -> None:
        super().__init__(link)
        self.uri = uri
        self.can = link.can & {ACCUMULATE}
        self._local = threading.local()

    def attach(self, key: str, floats: int, at: int = 0, share: bool = True) -> int:
        """Share a segment; nothing is mapped."""
        if share:
            self.lease("attach", key=key, floats=floats)
        return 0

    def release(self, key: str, share: bool = True) -> None:
        """Stop sharing a segment."""
        if share:
            self.lease("release", key=key)

    def read(self, key: str, start: int, count: int, into: int) -> None:
        """Copy elements of a segment to local memory."""
        self.link.pull({"do": "read", "key": key, "start": start, "count": count}, into)

    def read_cut(self, key: str, start: int, count: int, into: int) -> None:
        """Copy elements of a segment as they were at the moment of the worker's view."""
        frame = {"do": "read", "key": key, "start": start, "count": count, "cut": True}
        self.link.pull(frame, into)

    def changed(self, key: str, since: int) -> tuple[list[int], int]:
        """Return the stripes changed after a version, and the version of now."""
        answer = self.link.ask("changed", {"key": key, "since": since})
        return answer["stripes"], answer["version"]

    def apply(self, order: cpu.Operation, keys: tuple[str, ...], span: Span, x: int | str) -> None:
        """Send x for the box to apply; elastic, difference and merge bring results back."""
        op = cpu.OPERATION_NAMES[order.code]
        frame: Frame = {
            "op": op, "keys": list(keys), "start": span.start, "count": span.floats,
            "k": list(order.k[:7]),
        }  # fmt: skip
        frame["tag"] = span.tag
        if op in cpu.ALONE or isinstance(x, str):
            self.link.call("apply", {**frame, "source": x if isinstance(x, str) else ""})
            return
        z = span.z + 4 * span.at
        if order.format:
            frame["format"] = cpu.FORMAT_NAMES[order.format]
            self._push(frame, order, span, x)
            return
        x += 4 * span.at
        if op == "difference":
            self.link.swap(frame, x, z)
        elif op in ("fetch", "delay", "adapt"):
            self.link.swap(frame, x, x)
        elif op == "elastic":
            self.link.swap({**frame, "op": "difference"}, x, self._scratch(), order.code)
        elif op == "merge":
            self.link.swap({**frame, "op": "fetch", "k": [1.0]}, z, x, order.code)
        else:
            self.link.push(frame, [(x, 4 * span.floats)], 4 * cpu.BLOCK8)

    def _push(self, frame: Frame, order: cpu.Operation, span: Span, x: int) -> None:
        """Send the part of a packed payload that concerns this box."""
        if order.format == TOPK:
            frame["at"] = span.at
            first, last = positions(x, order.entries, span)
            frame["entries"] = last - first
            values = x + 4 * order.entries
            parts = [(part + 4 * first, 4 * (last - first)) for part in (x, values)]
            self.link.push(frame, parts, 0)
            return
        skip = cpu.payload_bytes(order.format, span.at, 0)
        size = cpu.payload_bytes(order.format, span.floats, 0)
        unit = cpu.payload_bytes(order.format, cpu.BLOCK8, 0)
        self.link.push(frame, [(x + skip, size)], unit)

    def _scratch(self) -> int:
        memory: Memory | None = getattr(self._local, "memory", None)
        if memory is None:
            memory = self._local.memory = Memory(cpu.CHUNK)
        return memory.address

    def counter(self, name: str) -> Counter:
        """Return a counter of the job, operated by the box."""
        return RemoteCounter(name, self.call)

    @contextmanager
    def locked(self, key: str, start: int, count: int) -> Iterator[bool]:
        """Hold the locks of a span's stripes; they are freed if this connection breaks."""
        with self.link.keeping() as lane:
            asked = {"key": key, "start": start, "count": count}
            answer = self.link.perform(lane, lambda s, _: self.link.request(s, "lock", asked))
            lane.holds_locks = True
            try:
                yield bool(answer["abandoned"])
            finally:
                self.link.perform(lane, lambda s, _: self.link.request(s, "unlock", {}))

    def close(self) -> None:
        """Hang up."""
        self.link.close()


def positions(payload: int, entries: int, span: Span) -> tuple[int, int]:
    """Return which entries of a sparse payload lie in a box's part of the span."""
    positions = (ctypes.c_uint32 * entries).from_address(payload)
    first = bisect_left(positions, span.at)
    return first, bisect_left(positions, span.at + span.floats)


def open_tcp(uri: str, entrance: Entrance) -> StreamTransport:
    """Connect to a box on any host."""
    return StreamTransport(uri, Link(uri, entrance))
