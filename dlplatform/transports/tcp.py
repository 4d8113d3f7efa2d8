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
        self.call("attach", key=key, floats=floats)
        return 0

    def release(self, key: str) -> None:
        """Stop sharing a segment."""
        self.call("release", key=key)

    def read(self, key: str, start: int, count: int, into: int) -> None:
        """Copy elements of a segment to local memory."""
        with self.link.borrowed() as link:
            self.link.request(link, "read", {"key": key, "start": start, "count": count})
            self.link.stream(link, 0, 0, into, 4 * count)

    def write(self, key: str, start: int, count: int, data: int) -> None:
        """Copy local memory to elements of a segment."""
        self._send({"do": "write", "key": key, "start": start, "count": count}, data)

    def _send(self, frame: dict[str, Any], data: int) -> None:
        from dlplatform.memorybox import wire

        with self.link.borrowed() as link:
            wire.send(link, frame)
            self.link.stream(link, data, 4 * frame["count"], 0, 0)
            self.link.reply(link)

    def apply(
        self, op: str, key: str, start: int, count: int, x: int | str, z: int, a: float, b: float
    ) -> None:
        """Send x for the box to apply; elastic, difference and merge bring results back."""
        span = {"key": key, "start": start, "count": count}
        if op == "scal" or isinstance(x, str):
            source = x if isinstance(x, str) else ""
            self.call("apply", op=op, **span, a=a, b=b, source=source)
        elif op in ("axpy", "axpby"):
            self._send({"do": "push", "op": op, **span, "a": a, "b": b}, x)
        elif op == "difference":
            self._exchange("difference", span, x, z, a)
        elif op == "fetch":
            self._exchange("fetch", span, x, x, a)
        elif op == "elastic":
            z = self._scratch(count)
            self._exchange("difference", span, x, z, a)
            cpu.apply(cpu.OPERATIONS["axpy"], x, z, None, count, -1.0, 0.0)
        elif op == "merge":
            cpu.apply(cpu.OPERATIONS["axpby"], z, x, None, count, 1.0, -1.0)
            self._exchange("fetch", span, z, z, 1.0)
            cpu.copy(x, z, 4 * count)

    def _exchange(self, op: str, span: dict[str, Any], out: int, into: int, a: float) -> None:
        with self.link.borrowed() as link:
            self.link.request(link, "push", {"op": op, **span, "a": a})
            self.link.stream(link, out, 4 * span["count"], into, 4 * span["count"])
            self.link.reply(link)

    def _scratch(self, count: int) -> int:
        memory: Memory | None = getattr(self._local, "memory", None)
        if memory is None or memory.floats < count:
            memory = self._local.memory = Memory(count)
        return memory.address

    def counter(self, name: str) -> Counter:
        """Return a counter of the job, operated by the box."""
        return RemoteCounter(name, self.call)

    @contextmanager
    def locked(self, key: str, stripe: int) -> Iterator[None]:
        """Hold the lock of one stripe; it is freed if this connection breaks."""
        with self.link.borrowed() as link:
            self.link.request(link, "lock", {"key": key, "stripe": stripe})
            try:
                yield
            finally:
                self.link.request(link, "unlock", {})

    def close(self) -> None:
        """Hang up."""
        self.link.close()
