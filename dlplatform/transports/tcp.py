"""``tcp://HOST:PORT``: a box anywhere; it runs operations itself while the bytes arrive."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dlplatform.memorybox.counter import Counter, RemoteCounter
from dlplatform.memorybox.memory import Memory
from dlplatform.transports.link import Link
from kernels import cpu


class TcpTransport:
    """Every operation is one request with its bytes behind it, and one reply."""

    can: frozenset[str] = frozenset()

    def __init__(self, uri: str, job: str, secret: bytes, timeout_s: float) -> None:
        self.uri = uri
        self.link = Link(uri, job, secret, timeout_s)
        self._local = threading.local()

    @property
    def lost(self) -> str:
        """Return why the box is out of reach; empty while it is there."""
        return self.link.lost

    def call(self, command: str, **fields: Any) -> dict[str, Any]:
        """Have the box obey a command."""
        return self.link.call(command, fields)

    def lease(self, command: str, **fields: Any) -> dict[str, Any]:
        """Call on the connection that stands for this worker."""
        return self.link.lease(command, fields)

    def attach(self, key: str, floats: int, at: int = 0) -> int:
        """Share a segment; nothing is mapped."""
        self.lease("attach", key=key, floats=floats)
        return 0

    def release(self, key: str) -> None:
        """Stop sharing a segment."""
        self.lease("release", key=key)

    def read(self, key: str, start: int, count: int, into: int) -> None:
        """Copy elements of a segment to local memory."""
        self.link.pull({"do": "read", "key": key, "start": start, "count": count}, into)

    def write(self, key: str, start: int, count: int, data: int) -> None:
        """Copy local memory to elements of a segment."""
        self.link.push({"do": "write", "key": key, "start": start, "count": count}, data)

    def apply(
        self, op: str, key: str, start: int, count: int, x: int | str, z: int, a: float, b: float
    ) -> None:
        """Send x for the box to apply; elastic, difference and merge bring results back."""
        frame = {"do": "push", "op": op, "key": key, "start": start, "count": count, "a": a, "b": b}
        if op == "scal" or isinstance(x, str):
            self.link.call("apply", {**frame, "source": x if isinstance(x, str) else ""})
        elif op == "difference":
            self.link.swap(frame, x, z)
        elif op == "fetch":
            self.link.swap(frame, x, x)
        elif op == "elastic":
            self.link.swap({**frame, "op": "difference"}, x, self._scratch(), cpu.OPERATIONS[op])
        elif op == "merge":
            self.link.swap({**frame, "op": "fetch", "a": 1.0}, z, x, cpu.OPERATIONS[op])
        else:
            self.link.push(frame, x)

    def _scratch(self) -> int:
        memory: Memory | None = getattr(self._local, "memory", None)
        if memory is None:
            memory = self._local.memory = Memory(cpu.CHUNK)
        return memory.address

    def counter(self, name: str) -> Counter:
        """Return a counter of the job, operated by the box."""
        return RemoteCounter(name, self.call)

    @contextmanager
    def locked(self, key: str, stripe: int) -> Iterator[None]:
        """Hold the lock of one stripe; it is freed if this connection breaks."""
        link, whole = self.link.take(), False
        try:
            with self.link.losing():
                self.link.request(link, "lock", {"key": key, "stripe": stripe})
            try:
                yield
            finally:
                with self.link.losing():
                    self.link.request(link, "unlock", {})
            whole = True
        finally:
            self.link.give(link) if whole else link.close()

    def close(self) -> None:
        """Hang up."""
        self.link.close()
