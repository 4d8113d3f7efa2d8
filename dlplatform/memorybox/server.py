"""A memory box as a process: listeners, one thread a connection, an orderly end.

Python only decides; bytes move and operations run in C with the GIL released.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit

from dlplatform.errors import BoxError, PlatformError, UsageError
from dlplatform.memorybox import wire
from dlplatform.memorybox.box import Fields, MemoryBox, Session
from dlplatform.memorybox.memory import Mapping, Memory
from kernels import cpu

ANSWERING = ("difference", "fetch")
HANDSHAKE_S = 10.0
MOST_CONNECTIONS = 4096
WRONG_VALUES = (TypeError, ValueError, OverflowError, ctypes.ArgumentError)
PUSHED = ("axpy", "axpby", *ANSWERING)


class Connection:
    """One worker's socket: welcomes it, obeys its frames, streams its bytes."""

    def __init__(self, box: MemoryBox, link: socket.socket, secret: bytes) -> None:
        self.box, self.link, self.secret = box, link, secret
        self.session = Session()
        self.scratch: Memory | None = None

    def welcome(self) -> bool:
        """Find out in time whether the other side knows the secret."""
        self.link.settimeout(HANDSHAKE_S)
        if not wire.welcome(self.link, self.secret):
            return False
        self.link.settimeout(None)
        return True

    def serve(self) -> None:
        """Obey until the worker hangs up."""
        try:
            while True:
                self.answer(wire.receive(self.link))
        finally:
            self.box.close(self.session)

    def answer(self, frame: Fields) -> None:
        """Obey one frame and reply ``ok`` or ``refused``."""
        command = frame.pop("do", "")
        stream = STREAMS.get(command) if isinstance(command, str) else None
        try:
            if not self.session.job and command != "open":
                raise BoxError("no job - allowed: open first - do: name the job")
            if stream is not None:
                stream(self, frame)
            else:
                wire.send(self.link, {"ok": self.box.obey(self.session, command, frame)})
        except (PlatformError, *WRONG_VALUES) as error:
            kind = type(error).__name__ if isinstance(error, PlatformError) else "BoxError"
            wire.send(self.link, {"refused": str(error), "kind": kind})

    @contextmanager
    def span(self, frame: Fields) -> Iterator[tuple[Mapping, int, int]]:
        """Lend the memory of the span that a frame names: (mapping, start, count)."""
        start, count = int(frame.get("start", 0)), int(frame.get("count", 0))
        with self.box.using(self.session, [frame.get("key", "")], start, count) as (mapping,):
            yield mapping, start, count

    def stream_read(self, frame: Fields) -> None:
        """Send a span of a segment."""
        with self.span(frame) as (mapping, start, count):
            wire.send(self.link, {"ok": {}}, more=count > 0)
            cpu.check(cpu.transmit(self.link.fileno(), mapping.data + 4 * start, 4 * count))

    def stream_write(self, frame: Fields) -> None:
        """Receive a span straight into a segment."""
        with self._incoming(frame), self.span(frame) as (mapping, start, count):
            cpu.check(cpu.receive(self.link.fileno(), mapping.data + 4 * start, 4 * count))
        wire.send(self.link, {"ok": {}})

    def stream_push(self, frame: Fields) -> None:
        """Receive x and apply it to a segment while it arrives; some operations answer."""
        op = frame.get("op")
        if op not in PUSHED:
            raise ConnectionError(f"cannot stream {op!r}")
        answers = op in ANSWERING
        with self._incoming(frame, wire.AHEAD if answers else 0):
            a, b = float(frame.get("a", 1)), float(frame.get("b", 0))
            with self.span(frame) as (y, start, count):
                if answers:
                    wire.send(self.link, {"ok": {}})
                self.scratch = self.scratch or Memory(2 * cpu.CHUNK)
                arguments = (y.header, y.data, start, count, a, b, self.scratch.address)
                code, link = cpu.OPERATIONS[op], self.link.fileno()
                cpu.check(cpu.receive_apply(link, code, *arguments))
        wire.send(self.link, {"ok": {}})

    @contextmanager
    def _incoming(self, frame: Fields, ahead: int = 0) -> Iterator[None]:
        """Throw away the bytes (of an answering operation: those sent ahead) when refusing."""
        try:
            yield
        except (PlatformError, *WRONG_VALUES):
            count = frame.get("count")
            if not isinstance(count, int) or not 0 <= count <= 1 << 40:
                raise ConnectionError("unbounded stream") from None
            size = min(4 * count, ahead or 4 * count)
            cpu.check(cpu.discard(self.link.fileno(), size))
            raise

    def stream_map(self, frame: Fields) -> None:
        """Hand the file of a segment, or of the counters, to a worker on this host."""
        if self.link.family != socket.AF_UNIX:
            raise BoxError("map over tcp - allowed: shm - do: read and write instead")
        table, keys = self.box.table, [frame["key"]] if frame.get("key") else []
        entries = [self.box.owned(self.session, key) for key in keys]
        with table.using(*entries):
            file = entries[0].descriptor if entries else table.counters_file
            wire.send(self.link, {"ok": {}})
            socket.send_fds(self.link, [b"F"], [file])

    def stream_lock(self, frame: Fields) -> None:
        """Lock one stripe for this connection until it says unlock (or is cut)."""
        entry = self.box.owned(self.session, frame.get("key", ""))
        stripe = int(frame.get("stripe", 0))
        if not 0 <= stripe * cpu.STRIPE < entry.floats:
            raise BoxError(
                f"{entry.name}: stripe {stripe} - allowed: 0 to {(entry.floats - 1) // cpu.STRIPE} "
                "- do: check the element"
            )
        with self.box.table.using(entry):
            self._hold(entry.mapping.header, stripe)
        wire.send(self.link, {"ok": {}})

    def _hold(self, header: int, stripe: int) -> None:
        cpu.check(cpu.lock(header, stripe))
        try:
            wire.send(self.link, {"ok": {}})
            if wire.receive(self.link).get("do") != "unlock":
                raise ConnectionError("a locked stripe was not unlocked")
        finally:
            cpu.unlock(header, stripe)


STREAMS = {
    "read": Connection.stream_read, "write": Connection.stream_write,
    "push": Connection.stream_push, "map": Connection.stream_map, "lock": Connection.stream_lock,
}  # fmt: skip


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
        self.changed = threading.Condition()
        self.connected = self.workers = 0
        self.lifeline = True

    def accept(self, listener: socket.socket) -> None:
        """Serve every connection in a thread of its own."""
        while True:
            try:
                link, _ = listener.accept()
            except OSError:  # out of descriptors, or the other side was gone already
                time.sleep(0.05)
                continue
            if self.connected >= MOST_CONNECTIONS:
                link.close()
                continue
            self._count(connected=1)
            threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        connection = Connection(self.box, link, self.secret)
        try:
            with link:
                wire.keep_alive(link)
                if connection.welcome():
                    self._attend(connection)
        except OSError:
            return  # it hung up, or talked nonsense: nobody is left to be told
        finally:
            self._count(connected=-1)

    def _attend(self, connection: Connection) -> None:
        self._count(workers=1)
        try:
            connection.serve()
        finally:
            self._count(workers=-1)

    def _count(self, connected: int = 0, workers: int = 0) -> None:
        with self.changed:
            self.connected += connected
            self.workers += workers
            self.changed.notify_all()

    def watch_stdin(self) -> None:
        """Cut the lifeline when standard input is closed."""
        while os.read(0, 4096):
            continue
        with self.changed:
            self.lifeline = False
            self.changed.notify_all()

    def outlive(self) -> None:
        """Return once the lifeline is cut and no worker is connected any more."""
        with self.changed:
            self.changed.wait_for(lambda: not self.lifeline and not self.workers)


def parser() -> argparse.ArgumentParser:
    """Return the options of ``dlp box``."""
    p = argparse.ArgumentParser(prog="dlp box", description="Run a memory box by hand.")
    add = p.add_argument
    bind = "shm://NAME or tcp://HOST:PORT (port 0: any free one); may be repeated"
    secret = "secret shared with the workers; made if missing (~/.dlplatform/secret)"
    lifeline = "end when standard input is closed and no worker is connected"
    add("--bind", action="append", required=True, metavar="URI", help=bind)
    add("--secret-file", default="", metavar="FILE", help=secret)
    add("--memory", default="/dev/shm", metavar="DIR",
        help="tmpfs folder, or memfd (default: /dev/shm)")  # fmt: skip
    add("--lifeline", action="store_true", help=lifeline)
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
    if options.lifeline:
        threading.Thread(target=server.watch_stdin, daemon=True).start()
    try:
        server.outlive()
    except KeyboardInterrupt:
        return 130
    return 0
