"""What inproc and shm share: segments are mapped, the caller runs operations itself."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dlplatform.errors import PeerLost
from dlplatform.memorybox.counter import Counter, MappedCounter
from dlplatform.memorybox.memory import Mapping
from dlplatform.memorybox.table import COUNTERS, LINE
from dlplatform.transports.transport import MAPPED
from kernels import cpu


class MappedTransport:
    """One-sided by nature: reads, writes, operations and counters are loads and stores."""

    can = frozenset({MAPPED})
    lost = ""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.segments: dict[str, Mapping] = {}
        self._turn = os.getpid()
        self._counters = 0
        self._lock = threading.Lock()

    def call(self, command: str, **fields: Any) -> dict[str, Any]:
        """Have the box obey a command."""
        raise NotImplementedError

    def lease(self, command: str, **fields: Any) -> dict[str, Any]:
        """Call on the connection that stands for this worker."""
        raise NotImplementedError

    def file(self, key: str) -> int:
        """Return a new descriptor of a segment's file, or of the counters' for no key."""
        raise NotImplementedError

    def attach(self, key: str, floats: int, at: int = 0) -> int:
        """Share a segment and map it, at an address of the caller's choice or anywhere."""
        self.lease("attach", key=key, floats=floats)
        descriptor = self.file(key)
        try:
            mapping = Mapping.of(descriptor, floats, at)
            if not cpu.header_check(mapping.header, floats):
                mapping.unmap()
                raise PeerLost(
                    f"{self.uri} handed over memory of another layout - allowed: boxes of this "
                    "version - do: run the same dlplatform on both sides"
                )
            self.segments[key] = mapping
        except BaseException:
            self.lease("release", key=key)
            raise
        finally:
            os.close(descriptor)
        return mapping.data

    def release(self, key: str) -> None:
        """Unmap a segment and stop sharing it."""
        self.segments.pop(key).unmap()
        self.lease("release", key=key)

    def read(self, key: str, start: int, count: int, into: int) -> None:
        """Copy elements of a segment to local memory."""
        if self.lost:
            raise PeerLost(self.lost)
        cpu.copy(into, self.segments[key].data + 4 * start, 4 * count)

    def write(self, key: str, start: int, count: int, data: int) -> None:
        """Copy local memory to elements of a segment."""
        if self.lost:
            raise PeerLost(self.lost)
        cpu.copy(self.segments[key].data + 4 * start, data, 4 * count)

    def apply(
        self, op: str, key: str, start: int, count: int, x: int | str, z: int, a: float, b: float
    ) -> None:
        """Run an operation here, on the mapped memory, under the locks of its stripes."""
        if self.lost:
            raise PeerLost(self.lost)
        if isinstance(x, str):
            x = self.segments[x].data + 4 * start
        y = self.segments[key]
        self._turn += 1
        code = cpu.OPERATIONS[op]
        cpu.check(cpu.locked(code, y.header, y.data, start, count, x, z, a, b, self._turn))

    def counter(self, name: str) -> Counter:
        """Return a counter of the job, mapped."""
        with self._lock:
            if not self._counters:
                descriptor = self.file("")
                size = COUNTERS * LINE
                self._counters = cpu.check(cpu.map_file(0, size, descriptor, 0))
                os.close(descriptor)
        slot = int(self.call("slot", name=name)["slot"])
        return MappedCounter(name, self._counters + slot * LINE)

    @contextmanager
    def locked(self, key: str, stripe: int) -> Iterator[None]:
        """Hold the lock of one stripe; it is freed if this process dies."""
        header = self.segments[key].header
        cpu.check(cpu.lock(header, stripe))
        try:
            yield
        finally:
            cpu.unlock(header, stripe)

    def close(self) -> None:
        """Unmap everything."""
        for mapping in self.segments.values():
            mapping.unmap()
        self.segments.clear()
        if self._counters:
            cpu.unmap(self._counters, COUNTERS * LINE)
            self._counters = 0
