"""A memory box as a process: listeners, one thread a connection, an orderly end.

Python only decides; bytes move and operations run in C with the GIL released.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from urllib.parse import urlsplit

from dlplatform.errors import BoxError, PlatformError, UsageError
from dlplatform.memorybox import wire
from dlplatform.memorybox.box import Fields, MemoryBox, Session
from dlplatform.memorybox.memory import Mapping
from kernels import cpu

ANSWERING = ("difference", "fetch")
HANDSHAKE_S = 10.0
PUSHED = ("axpy", "axpby", *ANSWERING)


class Connection:
    """One worker's socket: welcomes it, obeys its frames, streams its bytes."""

    def __init__(self, box: MemoryBox, link: socket.socket, secret: bytes) -> None:
        self.box, self.link, self.secret = box, link, secret
        self.session = Session()

    def serve(self) -> None:
        """Obey until the worker hangs up."""
        try:
            self.link.settimeout(HANDSHAKE_S)
            if wire.welcome(self.link, self.secret):
                self.link.settimeout(None)
                while True:
                    self.answer(wire.receive(self.link))
        except (OSError, ConnectionError):
            return
        finally:
            self.box.close(self.session)
            self.link.close()

    def answer(self, frame: Fields) -> None:
        """Obey one frame and reply ``ok`` or ``refused``."""
        command = frame.pop("do", "")
        stream = getattr(self, f"stream_{command}", None)
        try:
            if not self.session.job and command != "open":
                raise BoxError("no job - allowed: open first - do: name the job")
            if stream is not None:
                stream(frame)
            else:
                wire.send(self.link, {"ok": self.box.obey(self.session, command, frame)})
        except (PlatformError, ValueError) as error:
            kind = type(error).__name__ if isinstance(error, PlatformError) else "BoxError"
            wire.send(self.link, {"refused": str(error), "kind": kind})

    def _span(self, frame: Fields) -> tuple[Mapping, int, int]:
        start, count = int(frame.get("start", 0)), int(frame.get("count", 0))
        entry = self.box.span(self.session, frame.get("key", ""), start, count)
        return entry.mapping, start, count

    def _incoming(self, frame: Fields) -> tuple[Mapping, int, int]:
        try:
            return self._span(frame)
        except BoxError:
            count = frame.get("count")
            if not isinstance(count, int) or not 0 <= count <= 1 << 40:
                raise ConnectionError("unbounded stream") from None
            cpu.check(cpu.discard(self.link.fileno(), 4 * count))
            raise

    def stream_read(self, frame: Fields) -> None:
        """Send a span of a segment."""
        mapping, start, count = self._span(frame)
        wire.send(self.link, {"ok": {}})
        cpu.check(cpu.transmit(self.link.fileno(), mapping.data + 4 * start, 4 * count))

    def stream_write(self, frame: Fields) -> None:
        """Receive a span straight into a segment."""
        mapping, start, count = self._incoming(frame)
        cpu.check(cpu.receive(self.link.fileno(), mapping.data + 4 * start, 4 * count))
        wire.send(self.link, {"ok": {}})

    def stream_push(self, frame: Fields) -> None:
        """Receive x and apply it to a segment while it arrives; some operations answer."""
        op, a, b = frame.get("op"), float(frame.get("a", 1)), float(frame.get("b", 0))
        if op not in PUSHED:
            raise ConnectionError(f"cannot stream {op!r}")
        answers = op in ANSWERING
        mapping, start, count = self._span(frame) if answers else self._incoming(frame)
        if answers:
            wire.send(self.link, {"ok": {}})
        code, link = cpu.OPERATIONS[op], self.link.fileno()
        args = (mapping.header, mapping.data, start, count, a, b)
        cpu.check(cpu.receive_apply(link, code, *args))
        wire.send(self.link, {"ok": {}})

    def stream_map(self, frame: Fields) -> None:
        """Hand the file of a segment, or of the counters, to a worker on this host."""
        if self.link.family != socket.AF_UNIX:
            raise BoxError("map over tcp - allowed: shm - do: read and write instead")
        key = frame.get("key", "")
        table = self.box.table
        file = self.box.owned(self.session, key).descriptor if key else table.counters_file
        wire.send(self.link, {"ok": {}})
        socket.send_fds(self.link, [b"F"], [file])

    def stream_lock(self, frame: Fields) -> None:
        """Lock one stripe for this connection until it says unlock (or is cut)."""
        entry = self.box.span(self.session, frame.get("key", ""), 0, 0)
        stripe = int(frame.get("stripe", 0))
        if not 0 <= stripe * cpu.STRIPE < entry.floats:
            raise BoxError(f"stripe {stripe} of {entry.name} - allowed: existing ones - do: check")
        cpu.check(cpu.lock(entry.mapping.header, stripe))
        try:
            wire.send(self.link, {"ok": {}})
            if wire.receive(self.link).get("do") != "unlock":
                raise ConnectionError("a locked stripe was not unlocked")
        finally:
            cpu.unlock(entry.mapping.header, stripe)
        wire.send(self.link, {"ok": {}})


def listen(uri: str) -> tuple[socket.socket, str]:
    """Bind ``shm://NAME`` or ``tcp://HOST:PORT`` (0: any free port); return the real address."""
    parts = urlsplit(uri)
    try:
        if parts.scheme == "shm" and parts.netloc:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(f"\0dlp/{parts.netloc}")
            address = uri
        elif parts.scheme == "tcp" and parts.hostname and parts.port is not None:
            listener = socket.create_server((parts.hostname, parts.port), backlog=128)
            address = f"tcp://{parts.hostname}:{listener.getsockname()[1]}"
        else:
            raise ValueError("not an address of a box")
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--bind {uri}: {error} - allowed: shm://NAME or tcp://HOST:PORT, not in use - do: "
            "choose another name or port"
        ) from None
    listener.listen(128)
    return listener, address


class Server:
    """The listeners of one box and the connections they accepted."""

    def __init__(self, box: MemoryBox, secret: bytes) -> None:
        self.box, self.secret = box, secret
        self.open = 0
        self.changed = threading.Condition()

    def accept(self, listener: socket.socket) -> None:
        """Serve every connection in a thread of its own."""
        while True:
            link, _ = listener.accept()
            wire.keep_alive(link)
            with self.changed:
                self.open += 1
            threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        try:
            Connection(self.box, link, self.secret).serve()
        finally:
            with self.changed:
                self.open -= 1
                self.changed.notify_all()

    def outlive(self, lifeline: threading.Event) -> None:
        """Return once the lifeline is cut and no worker is connected any more."""
        with self.changed:
            while not (lifeline.is_set() and self.open == 0):
                self.changed.wait(0.5)


def _watch_stdin(cut: threading.Event) -> None:
    while os.read(0, 4096):
        continue
    cut.set()


def parser() -> argparse.ArgumentParser:
    """Return the options of ``dlp box``."""
    p = argparse.ArgumentParser(prog="dlp box", description="Run a memory box by hand.")
    p.add_argument("--bind", action="append", required=True, metavar="URI",
                   help="shm://NAME or tcp://HOST:PORT (port 0: any free one); may be repeated")  # fmt: skip
    p.add_argument("--secret-file", default="", metavar="FILE",
                   help="secret shared with the workers; made if missing (~/.dlplatform/secret)")  # fmt: skip
    p.add_argument("--memory", default="/dev/shm", metavar="DIR",
                   help="tmpfs or hugetlbfs folder, or memfd (default: /dev/shm)")  # fmt: skip
    p.add_argument("--lifeline", action="store_true",
                   help="end when standard input is closed and no worker is connected")  # fmt: skip
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run a box until SIGTERM, Ctrl-C or the end of its lifeline; return the exit code."""
    options = parser().parse_args(argv)
    secret = wire.load_secret(options.secret_file, create=True)
    box = MemoryBox(options.memory)
    server = Server(box, secret)
    bound = [listen(uri) for uri in options.bind]
    for listener, _ in bound:
        threading.Thread(target=server.accept, args=(listener,), daemon=True).start()
    ready = {"address": bound[0][1], "addresses": [a for _, a in bound], "pid": os.getpid()}
    print(json.dumps(ready), flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    lifeline = threading.Event()
    if options.lifeline:
        threading.Thread(target=_watch_stdin, args=(lifeline,), daemon=True).start()
    try:
        server.outlive(lifeline)
    except KeyboardInterrupt:
        return 130
    return 0
