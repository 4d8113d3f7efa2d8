"""A memory box as a process: listeners, the workers that come and go, an orderly end."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit

from dlplatform.errors import UsageError
from dlplatform.memorybox import connection, wire
from dlplatform.memorybox.box import Limits, MemoryBox
from dlplatform.memorybox.session import Fields, Session

MOST_CONNECTIONS = 4096


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
        self.lasting = False
        self.orders: dict[str, Callable[..., Fields]] = {}

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
            self.count(connected=1)
            connection.spawn(self, link)

    def meet(self, job: str, token: str, mirror: str = "", replica: str = "") -> Session:
        """Welcome a worker's incarnation."""
        return self.box.open(job, token, mirror)

    def end_later(self, session: Session) -> None:
        """Give a worker that is cut off some time to come back."""

        def end() -> None:
            if session.leases == 0:
                self.box.end(session)

        threading.Timer(self.box.limits.grace_s, end).start()

    @contextmanager
    def attending(self) -> Iterator[None]:
        """Count a worker while its connection is served."""
        self.count(workers=1)
        try:
            yield
        finally:
            self.count(workers=-1)

    def count(self, connected: int = 0, workers: int = 0) -> None:
        """Count connections."""
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
    box = MemoryBox(Limits(memory=options.memory))
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
