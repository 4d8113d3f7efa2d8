"""A relay between workers and a box: it cuts, delays, slows down and swallows what passes."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import Any

from dlplatform.memorybox import wire
from dlplatform.memorybox.server import listen

TO_BOX, TO_WORKER = 0, 1
PART, SLICE_S = 1 << 18, 0.01


class Relay:
    """Listens beside a box and passes on what comes, in two threads a connection.

    Args:
        target: address of the box, tcp or shm.
        bind: where to listen; empty: any free port, or a name beside the box's.
    """

    def __init__(self, target: str, bind: str = "") -> None:
        near = target + "-relay" if target.startswith("shm:") else "tcp://127.0.0.1:0"
        self.target = target
        self.listener, self.address = listen(bind or near)
        self.delay_s, self.rate = 0.0, 0.0
        self.passed, self.cuts = [0, 0], 0
        self.hole = threading.Event()
        self.closed = False
        self._limits: list[int | None] = [None, None]
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    # -- what tests do to the connections --------------------------------------------------

    def cut(self) -> int:
        """Cut every connection now; return how many there were."""
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            self._end(pair)
        self.cuts += len(pairs)
        return len(pairs)

    def cut_after(self, count: int, way: int = TO_BOX) -> None:
        """Cut the connection that carries byte number ``count`` from now on, behind that byte."""
        with self._lock:
            self._limits[way] = self.passed[way] + count

    def swallow(self, on: bool = True) -> None:
        """Keep connections open, but let nothing through."""
        self.hole.set() if on else self.hole.clear()

    def close(self) -> None:
        """Stop listening, and cut what is there."""
        self.closed = True
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.cut()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    # -- passing on ------------------------------------------------------------------------

    def _accept(self) -> None:
        while not self.closed:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._begin, args=(near,), daemon=True).start()

    def _begin(self, near: socket.socket) -> None:
        try:
            far = wire.connect(self.target, 5.0)
        except OSError:
            near.close()
            return
        far.settimeout(None)
        wire.keep_alive(near)
        pair = (near, far)
        with self._lock:
            self._pairs.add(pair)
        for way, (source, sink) in enumerate(((near, far), (far, near))):
            words = (pair, source, sink, way)
            threading.Thread(target=self._pass, args=words, daemon=True).start()

    def _end(self, pair: tuple[socket.socket, socket.socket]) -> None:
        with self._lock:
            self._pairs.discard(pair)
        for link in pair:
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)

    def _allowed(self, way: int, count: int) -> tuple[int, bool]:
        """Count bytes about to pass; return how many may, and whether to cut behind them."""
        with self._lock:
            limit = self._limits[way]
            cut = limit is not None and self.passed[way] + count >= limit
            if limit is not None and cut:
                count, self._limits[way] = max(limit - self.passed[way], 0), None
                self.cuts += 1
            self.passed[way] += count
            return count, cut

    def _pass(
        self, pair: tuple[socket.socket, socket.socket], source: socket.socket,
        sink: socket.socket, way: int,
    ) -> None:  # fmt: skip
        """Pass bytes on in one direction until either side ends."""
        buffer = memoryview(bytearray(PART))
        cut = False
        with suppress(OSError):
            while not cut:
                most = max(1, min(PART, int(self.rate * SLICE_S))) if self.rate else PART
                got = source.recv_into(buffer[:most])
                if not got:
                    break
                while self.hole.is_set() and not self.closed:
                    time.sleep(SLICE_S)
                time.sleep(self.delay_s)
                count, cut = self._allowed(way, got)
                sink.sendall(buffer[:count])
                if self.rate:
                    time.sleep(count / self.rate)
        self._end(pair)
        for link in (source, sink) if way == TO_WORKER else ():
            link.close()
