"""Link: a pool of authenticated sockets to one box, shared by the shm and tcp transports."""

from __future__ import annotations

import ctypes
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from dlplatform.errors import PeerLost, PlatformError
from dlplatform.memorybox import wire
from kernels import cpu

SLICE_MS = 200


class _Progress(ctypes.Array[ctypes.c_size_t]):
    """Bytes sent, received, prepared."""

    _length_, _type_ = 3, ctypes.c_size_t


class Link:
    """Sockets to one box: one in use per thread at a time, made when needed and kept."""

    def __init__(self, uri: str, job: str, secret: bytes, timeout_s: float) -> None:
        self.uri, self.job, self.secret, self.timeout_s = uri, job, secret, timeout_s
        self.lost = ""
        self._idle: list[socket.socket] = []
        self._lock, self._lease_lock = threading.Lock(), threading.Lock()
        self._closed = False
        self._lease = self.connect()
        self._watcher = threading.Thread(target=self._watch, name="watch box", daemon=True)
        self._watcher.start()

    def connect(self) -> socket.socket:
        """Open one more authenticated connection."""
        parts = urlsplit(self.uri)
        link = socket.socket(socket.AF_UNIX if parts.scheme == "shm" else socket.AF_INET)
        link.settimeout(self.timeout_s)
        try:
            if parts.scheme == "shm":
                link.connect(f"\0dlp/{parts.netloc}")
            else:
                link.connect((parts.hostname or "", parts.port or 0))
            wire.keep_alive(link)
            wire.introduce(link, self.secret, self.uri)
            self.request(link, "open", {"job": self.job})
        except BaseException as error:
            link.close()
            if isinstance(error, PlatformError) or not isinstance(error, OSError | ValueError):
                raise
            raise PeerLost(
                f"no memory box answers at {self.uri}: {error} - allowed: the address that "
                "dlp box printed - do: start it there (dlp box --bind ...) or correct the address"
            ) from None
        return link

    def take(self) -> socket.socket:
        """Return a connection for this thread alone, until ``give``."""
        if self.lost:
            raise PeerLost(self.lost)
        with self._lock:
            link = self._idle.pop() if self._idle else None
        return link or self.connect()

    def give(self, link: socket.socket) -> None:
        """Take a connection back, after a complete exchange."""
        with self._lock:
            if not self._closed:
                self._idle.append(link)
                return
        link.close()

    @contextmanager
    def losing(self) -> Iterator[None]:
        """Treat a failure of a socket inside as the loss of the box."""
        try:
            yield
        except PlatformError:
            raise
        except OSError as error:
            self.lose(str(error))
            raise PeerLost(self.lost) from None

    @contextmanager
    def borrowed(self) -> Iterator[socket.socket]:
        """Lend a connection; a failure on it means that the box is gone."""
        link = self.take()
        try:
            with self.losing():
                yield link
        except BaseException as error:
            # A refusal ends with its reply; anything else may leave half a frame behind.
            if isinstance(error, PlatformError) and not isinstance(error, PeerLost):
                self.give(link)
            else:
                link.close()
            raise
        self.give(link)

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._lease, select.POLLRDHUP)
        poll.poll()
        if not self._closed:
            self.lose("it closed the connection")

    def lose(self, reason: str) -> None:
        """Remember why the box is out of reach."""
        self.lost = self.lost or (
            f"memory box {self.uri} is gone: {reason} - allowed: boxes that outlive the job - "
            "do: start the boxes again and continue with resume=auto"
        )

    def request(self, link: socket.socket, command: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Send a frame and wait for its reply."""
        wire.send(link, {**fields, "do": command})
        return self.reply(link)

    def reply(self, link: socket.socket) -> dict[str, Any]:
        """Wait for a reply; raise the error of a refusal."""
        frame = wire.receive(link)
        if "ok" not in frame:
            raise wire.refusal(frame)
        result: dict[str, Any] = frame["ok"]
        return result

    def call(self, command: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Have the box obey a command."""
        with self.borrowed() as link:
            return self.request(link, command, fields)

    def lease(self, command: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Have the box obey a command on the connection that stands for this worker."""
        if self.lost:
            raise PeerLost(self.lost)
        with self._lease_lock, self.losing():
            return self.request(self._lease, command, fields)

    def push(self, frame: dict[str, Any], data: int) -> None:
        """Send a frame and the bytes of its elements; wait for the reply."""
        size = 4 * frame["count"]
        with self.borrowed() as link:
            wire.send(link, frame, more=size > 0)
            self._move(link, (data, size, 0, 0), _Progress())
            self.reply(link)

    def pull(self, frame: dict[str, Any], into: int) -> None:
        """Send a frame and receive the bytes of its elements."""
        with self.borrowed() as link:
            wire.send(link, frame)
            self.reply(link)
            self._move(link, (0, 0, into, 4 * frame["count"]), _Progress())

    def swap(self, frame: dict[str, Any], out: int, into: int, kind: int = cpu.NONE) -> None:
        """Send a frame and bytes, and receive as many at the same time.

        ``kind`` says what happens to the bytes on the way (see ``dlp_exchange``). The first
        bytes do not wait for the box's consent; it throws them away when it refuses.
        """
        size, progress = 4 * frame["count"], _Progress()
        with self.borrowed() as link:
            wire.send(link, frame, more=size > 0)
            self._move(link, (out, min(size, wire.AHEAD), into, 0), progress, kind)
            self.reply(link)
            self._move(link, (out, size, into, size), progress, kind)
            self.reply(link)

    def _move(
        self, link: socket.socket, what: tuple[int, int, int, int], done: _Progress,
        kind: int = cpu.NONE,
    ) -> None:  # fmt: skip
        """Move (out, bytes, in, bytes); TimeoutError after timeout_s without progress."""
        last, end = (-1, -1), 0.0
        at, fd = ctypes.addressof(done), link.fileno()
        while not cpu.check(cpu.exchange(fd, kind, *what, SLICE_MS, at)):
            if (now := (done[0], done[1])) != last:
                last, end = now, time.monotonic() + self.timeout_s
            elif time.monotonic() > end:
                raise TimeoutError(f"no byte moved for {self.timeout_s:g} s")

    def close(self) -> None:
        """Say goodbye and hang up everywhere."""
        with self._lock:
            self._closed = True
            links, self._idle = [*self._idle, self._lease], []
        for link in links:
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        self._watcher.join(1.0)
        for link in links:
            link.close()
