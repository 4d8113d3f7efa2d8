"""Transport: how this process reaches one memory box; the URI's scheme chooses it.

Addresses are integers (memory of this process); start and count are fp32 elements of a
segment. Calls block and may come from several threads at once.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from dlplatform.errors import UsageError, closest
from kernels import cpu

if TYPE_CHECKING:
    from dlplatform.memorybox.counter import Counter

MAPPED, ACCUMULATE, ONE_SIDED = "mapped", "accumulate", "one_sided"


@dataclass(frozen=True)
class Entrance:
    """How a worker enters its job in every box.

    ``token`` stands for this incarnation of the worker; ``mirrors`` names the box that has a
    copy of each box's segments; ``ca`` is the file of the authority of ``tls://`` boxes.
    """

    job: str = "job"
    secret: bytes = b""
    timeout_s: float = 60.0
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    mirrors: dict[str, str] = field(default_factory=dict)
    ca: str = ""

    def opening(self, lane: int, lease: bool) -> dict[str, Any]:
        """Return the fields of the request that opens a lane."""
        return {"job": self.job, "token": self.token, "lane": str(lane), "lease": lease}


class Span(NamedTuple):
    """The part of an operation that concerns one box."""

    start: int
    """First element in the segment."""
    floats: int
    """Elements."""
    at: int
    """First element in x and z, which hold the whole operation's span."""
    whole: int
    """Elements of the whole operation."""
    z: int
    """Address of z, or 0."""
    epoch: int
    """Of the operation, where all segments are mapped; -1 where they are not."""
    tag: tuple[str, int, list[int]]
    """Who does the operation, its number there, and its boxes: the same for all of them."""


class Transport(Protocol):
    """The one way to a box; every implementation passes tests/conformance/test_transports.py."""

    uri: str
    can: frozenset[str]
    """Capabilities are data. ``mapped``: segments are in this process's address space;
    ``accumulate``: the box computes; ``one_sided``: reads and counters do not ask the box."""

    @property
    def lost(self) -> str:
        """Return why the box is out of reach; empty while it is there."""

    def call(self, command: str, **fields: Any) -> dict[str, Any]:
        """Have the box obey a command; BoxError when it refuses, PeerLost when it is gone."""

    def lease(self, command: str, **fields: Any) -> dict[str, Any]:
        """Call on the connection that stands for this worker: if it breaks, the worker died."""

    def attach(self, key: str, floats: int, at: int = 0, share: bool = True) -> int:
        """Reach a segment, at ``at`` where it is mapped, and count as one who shares it."""

    def release(self, key: str, share: bool = True) -> None:
        """Stop sharing a segment."""

    def read(self, key: str, start: int, count: int, into: int) -> None:
        """Copy elements of a segment to local memory."""

    def read_cut(self, key: str, start: int, count: int, into: int) -> None:
        """Copy elements of a segment as they were at the moment of the worker's view."""

    def changed(self, key: str, since: int) -> tuple[list[int], int]:
        """Return the stripes changed after a version, and the version of now."""

    def apply(self, order: cpu.Operation, keys: tuple[str, ...], span: Span, x: int | str) -> None:
        """Run an operation on y and its states; x: local memory, or a segment of the box."""

    def counter(self, name: str) -> Counter:
        """Return a counter of the job."""

    def locked(self, key: str, start: int, count: int) -> AbstractContextManager[bool]:
        """Hold the locks of a span's stripes; true when an owner before died holding one."""

    def close(self) -> None:
        """Hang up."""


Opener = Callable[[str, Entrance], Transport]


def open_transport(uri: str, entrance: Entrance) -> Transport:
    """Connect to the box at a URI; installed packages may know further schemes.

    Raises:
        UsageError: for an unknown scheme or a wrong secret.
        PeerLost: when nobody answers there.
    """
    from dlplatform.transports.inproc import InprocTransport
    from dlplatform.transports.mpi.transport import open_mpi
    from dlplatform.transports.shm import open_shm
    from dlplatform.transports.simulated import SimulatedTransport
    from dlplatform.transports.stream import open_tcp
    from dlplatform.transports.verbs.transport import open_verbs

    known: dict[str, Opener] = {
        "inproc": InprocTransport,
        "mpi": open_mpi,
        "shm": open_shm,
        "sim": SimulatedTransport,
        "tcp": open_tcp,
        "tls": open_tcp,
        "verbs": open_verbs,
    }
    scheme, given, _ = uri.partition("://")
    others: dict[str, Any] = {}
    if scheme not in known:
        from dlplatform.plugins import plugins  # not loaded for nothing: a box starts fast

        others = {entry.name: entry for entry in plugins("transports")}
        if scheme in others:
            known[scheme] = others[scheme].load()
    if scheme not in known or not given:
        allowed = ", ".join(f"{name}://" for name in sorted({*known, *others}))
        raise UsageError(
            f"box address {uri!r} has no known transport{closest(scheme, known)} - allowed: "
            f"{allowed} - do: write for example tcp://127.0.0.1:7000"
        )
    return known[scheme](uri, entrance)
