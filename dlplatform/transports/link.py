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

from dlplatform.errors import PeerLost, UsageError
from dlplatform.memorybox import wire
from kernels import cpu

SLICE_MS = 200


class Link:
    """Sockets to one box: one in use per thread at a time, made when needed and kept."""

    def __init__(self, uri: str, job: str, secret: bytes, timeout_s: float) -> None:
        self.uri, self.job, self.secret, self.timeout_s = uri, job, secret, timeout_s
        self.lost = ""
        self._idle: list[socket.socket] = []
        self._lock = threading.Lock()
        self._closed = False
        self._lease = self.connect()
        threading.Thread(target=self._watch, daemon=True).start()

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
        except (OSError, ValueError) as error:
            link.close()
            if isinstance(error, PeerLost | UsageError):
                raise
            raise PeerLost(
                f"no memory box answers at {self.uri}: {error} - allowed: the address that "
                "dlp box printed - do: start it there (dlp box --bind ...) or correct the address"
            ) from None
        return link

    @contextmanager
    def borrowed(self) -> Iterator[socket.socket]:
        """Lend a connection; a failure on it means that the box is gone."""
        if self.lost:
            raise PeerLost(self.lost)
        with self._lock:
            link = self._idle.pop() if self._idle else None
        link = link or self.connect()
        try:
            yield link
        except (ConnectionError, TimeoutError, OSError) as error:
            link.close()
            if isinstance(error, PeerLost | UsageError):
                raise
            self.lose(str(error))
            raise PeerLost(self.lost) from None
        except BaseException:
            # A refusal ends with its reply, so only an interrupt leaves half a frame behind.
            link.close()
            raise
        with self._lock:
            self._idle.append(link)

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
        return self.request(self._lease, command, fields)

    def stream(self, link: socket.socket, out: int, out_n: int, into: int, in_n: int) -> None:
        """Move bytes both ways at once; PeerLost after timeout_s without progress."""
        done = (ctypes.c_size_t * 2)()
        last, end = (0, 0), time.monotonic() + self.timeout_s
        while not cpu.check(
            cpu.duplex(link.fileno(), out, out_n, into, in_n, SLICE_MS, ctypes.addressof(done))
        ):
            if (now := (done[0], done[1])) != last:
                last, end = now, time.monotonic() + self.timeout_s
            elif time.monotonic() > end:
                raise TimeoutError(f"no byte moved for {self.timeout_s:g} s")

    def close(self) -> None:
        """Say goodbye and hang up everywhere."""
        self._closed = True
        with self._lock:
            links, self._idle = [*self._idle, self._lease], []
        for link in links:
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
            link.close()
