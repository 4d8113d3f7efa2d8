"""Transport: how this process reaches one memory box; the URI's scheme chooses it.

Addresses are integers (memory of this process); start and count are fp32 elements of a
segment. Calls block and may come from several threads at once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol

from dlplatform.errors import UsageError, closest

if TYPE_CHECKING:
    from dlplatform.memorybox.counter import Counter

MAPPED = "mapped"


class Transport(Protocol):
    """The one way to a box; every implementation passes tests/conformance/test_transports.py."""

    uri: str
    can: frozenset[str]
    """Capabilities are data; ``mapped``: segments are in this process's address space."""

    @property
    def lost(self) -> str:
        """Return why the box is out of reach; empty while it is there."""

    def call(self, command: str, **fields: Any) -> dict[str, Any]:
        """Have the box obey a command; BoxError when it refuses, PeerLost when it is gone."""

    def lease(self, command: str, **fields: Any) -> dict[str, Any]:
        """Call on the connection that stands for this worker: if it breaks, the worker died."""

    def attach(self, key: str, floats: int, at: int = 0) -> int:
        """Share a segment; a mapping transport puts it at ``at`` and returns its address."""

    def release(self, key: str) -> None:
        """Stop sharing a segment."""

    def read(self, key: str, start: int, count: int, into: int) -> None:
        """Copy elements of a segment to local memory."""

    def write(self, key: str, start: int, count: int, data: int) -> None:
        """Copy local memory to elements of a segment."""

    def apply(
        self, op: str, key: str, start: int, count: int, x: int | str, z: int, a: float, b: float
    ) -> None:
        """Run an operation: x is local memory, or the key of another segment of the box."""

    def counter(self, name: str) -> Counter:
        """Return a counter of the job."""

    def locked(self, key: str, stripe: int) -> AbstractContextManager[None]:
        """Hold the lock of one stripe."""

    def close(self) -> None:
        """Hang up."""


Opener = Callable[[str, str, bytes, float], Transport]


def open_transport(uri: str, job: str, secret: bytes, timeout_s: float) -> Transport:
    """Connect to the box at a URI; installed packages may know further schemes.

    Raises:
        UsageError: for an unknown scheme or a wrong secret.
        PeerLost: when nobody answers there.
    """
    from dlplatform.transports.inproc import InprocTransport
    from dlplatform.transports.shm import ShmTransport
    from dlplatform.transports.tcp import TcpTransport

    known: dict[str, Opener] = {
        "inproc": InprocTransport,
        "shm": ShmTransport,
        "tcp": TcpTransport,
    }
    scheme = uri.partition("://")[0]
    for entry in entry_points(group="dlplatform.transports", name=scheme):
        known[scheme] = entry.load()
    if scheme not in known or "://" not in uri:
        others = entry_points(group="dlplatform.transports").names
        allowed = ", ".join(f"{name}://" for name in sorted({*known, *others}))
        raise UsageError(
            f"box address {uri!r} has no known transport{closest(scheme, known)} - allowed: "
            f"{allowed} - do: write for example tcp://127.0.0.1:7000"
        )
    return known[scheme](uri, job, secret, timeout_s)
