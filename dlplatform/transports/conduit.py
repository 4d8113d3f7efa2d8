"""Conduit: what carries one lane between a worker and a box, whatever it is made of.

A conduit carries frames and bulk bytes both ways, says when the other side has ended, and can be
hung up from any thread. The handshake, numbered requests, updates applied while they arrive and
views are made of nothing else, so a new way to a box is a new conduit. Bulk bytes move in C on the
conduit's ``address`` (``kernels/native/conduit.c``): a socket, or two rows of slots in memory.
Such memory is shared by both sides, or each has its own and an engine (MPI, RDMA verbs) moves what
is full to the other side.
"""

from __future__ import annotations

import ctypes
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from dlplatform.memorybox import wire
from kernels import cpu

SLICE_MS = 200


class Conduit(Protocol):
    """One side of a lane. ``sendall`` and ``recv`` are those of sockets, for frames."""

    near: bool
    """The other side is on this host, and its end is certain as soon as it is noticed."""
    address: int
    """Of the kernels' record, for bulk bytes; valid until ``close``."""

    def sendall(self, data: bytes, flags: int = 0, /) -> None:
        """Send bytes; with MSG_MORE they may wait for those that follow at once."""

    def recv(self, count: int, /) -> bytes:
        """Receive some bytes, at most ``count``; none: the other side has hung up."""

    def settimeout(self, seconds: float | None, /) -> None:
        """Bound how long ``sendall`` and ``recv`` wait; None: not at all."""

    def ended(self) -> None:
        """Wait until the other side has hung up or died."""

    def hang_up(self) -> None:
        """End it for both sides, also for threads that wait for it."""

    def close(self) -> None:
        """Hang up and give everything back; the last call."""


Dial = Callable[[str, float, str], Conduit]
"""Connect to an address, with a timeout in seconds and the file of an authority for tls."""


class SocketConduit:
    """A connected stream socket.

    Args:
        link: the socket; closed with the conduit.
    """

    def __init__(self, link: socket.socket) -> None:
        self.socket, self.near = link, link.family == socket.AF_UNIX
        self._record = cpu.Conduit(fd=link.fileno())
        self.address = ctypes.addressof(self._record)
        self.sendall, self.recv, self.settimeout = link.sendall, link.recv, link.settimeout

    def ended(self) -> None:
        """Wait until the other side has hung up or died."""
        poll = select.poll()
        poll.register(self.socket, select.POLLRDHUP)
        poll.poll()

    def hang_up(self) -> None:
        """End it for both sides, also for threads that wait for it."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up and give everything back."""
        self._record.fd = -1  # another connection may get its number
        self.socket.close()


def dial_socket(uri: str, timeout_s: float, ca: str) -> SocketConduit:
    """Connect to ``shm://NAME``, ``tcp://HOST:PORT`` or ``tls://HOST:PORT``."""
    return SocketConduit(wire.connect(uri, timeout_s, ca))


class SlotConduit:
    """Two rows of slots in memory.

    Args:
        inward: address of the slots that the other side, or an engine, fills.
        outward: address of the slots that it empties.
        other: address of the bell to ring for it; 0: the one in front of ``outward``.
        life: address of a segment header whose lock 0 the other side's process holds; 0: none.
        near: the other side is on this host.
        freed: called by ``close``, when this side touches the memory no more.
    """

    def __init__(
        self, inward: int, outward: int, other: int = 0, life: int = 0, near: bool = True,
        freed: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.near, self._freed, self._closed = near, freed, False
        bell = other or outward + cpu.Slots.bell.offset
        self._record = cpu.Conduit(-1, -1, inward, outward, bell, life)
        self.address = ctypes.addressof(self._record)

    def sendall(self, data: bytes, flags: int = 0, /) -> None:
        """Send bytes."""
        cpu.check(cpu.send(self.address, data, len(data), bool(flags & socket.MSG_MORE)))

    def recv(self, count: int, /) -> bytes:
        """Receive some bytes, at most ``count``; none: the other side has hung up."""
        room = ctypes.create_string_buffer(count)
        patience = self._record.ms
        end = time.monotonic() + patience / 1000
        while not (taken := cpu.take(self.address, room, count)):
            if patience >= 0 and time.monotonic() > end:
                raise TimeoutError(f"nothing came for {patience / 1000:g} s")
            cpu.ready(self.address, 0, 1, SLICE_MS)
        return b"" if taken == cpu.CLOSED else room.raw[: cpu.check(taken)]

    def settimeout(self, seconds: float | None, /) -> None:
        """Bound how long ``sendall`` and ``recv`` wait."""
        self._record.ms = -1 if seconds is None else int(1000 * seconds)

    def ended(self) -> None:
        """Wait until the other side has hung up or died."""
        slots = cpu.Slots.from_address(self._record.inward)
        while not slots.closed:
            cpu.ready(self.address, 0, 0, SLICE_MS)

    def hang_up(self) -> None:
        """End it for both sides, also for threads that wait for it."""
        if not self._closed:
            cpu.hang_up(self.address)

    def close(self) -> None:
        """Hang up and give the memory back."""
        self.hang_up()
        if not self._closed:
            self._closed = True
            cpu.Slots.from_address(self._record.outward).left = 1
            self._freed()
