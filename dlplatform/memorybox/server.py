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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dlplatform.errors import BoxError, UsageError
from dlplatform.memorybox import connection, numa, replica, watching, wire
from dlplatform.memorybox.box import MemoryBox
from dlplatform.memorybox.options import check, limits_of, parser
from dlplatform.memorybox.session import Fields, Session
from dlplatform.memorybox.timing import later

if TYPE_CHECKING:
    from dlplatform.memorybox.lasting import Lasting

MOST_CONNECTIONS = 4096
GOODBYE_S, EVERY_S = 2.0, 30.0


def listen(uri: str) -> tuple[socket.socket, str]:
    """Bind shm://NAME, or tcp://, tls:// or verbs://HOST:PORT (0: any free); return its address."""
    parts = urlsplit(uri)
    try:
        if parts.scheme == "shm" and parts.netloc:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(f"\0dlp/{parts.netloc}")
            address = uri
        elif parts.scheme in wire.FAR and parts.hostname and parts.port is not None:
            listener = socket.create_server((parts.hostname, parts.port), backlog=128)
            address = f"{parts.scheme}://{parts.hostname}:{listener.getsockname()[1]}"
        else:
            raise ValueError("not an address of a box")
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--bind {uri}: {error} - allowed: shm://NAME, or tcp://, tls:// or verbs://HOST:PORT, "
            "not in use - do: choose another name or port"
        ) from None
    listener.listen(128)
    return listener, address


def refuse_to_pair(link: connection.Connection, card: Fields) -> None:
    """Refuse a worker that looks for RDMA where there is none."""
    raise BoxError(
        "pair over tcp - allowed: a box with --bind verbs://HOST:PORT - do: start it so, or write "
        "tcp:// in the address"
    )


class Server:
    """The listeners of one box and the connections they accepted."""

    def __init__(self, box: MemoryBox, secret: bytes) -> None:
        self.box, self.secret = box, secret
        self.changed = threading.Condition()
        self.connected = self.workers = 0
        self.lifeline = True
        self.lasting: Lasting | None = None
        self.orders: dict[str, Callable[..., Fields]] = {}
        self.pair: Callable[[connection.Connection, Fields], None] = refuse_to_pair
        """Goes over to RDMA on a connection that was made over TCP."""

    def accept(self, listener: socket.socket, shield: connection.Shield | None = None) -> None:
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
            connection.spawn(self, partial(connection.accepted, link, shield))

    def meet(
        self, job: str, token: str, mirror: str = "", replicated: Sequence[str] = ()
    ) -> Session:
        """Welcome a worker's incarnation; the first one of a job says where it is mirrored."""
        with self.box.lock:
            session = self.box.open(job, token, mirror)
            if replicated and not session.space.mirrored:
                session.space.mirrored = True
                try:
                    replica.mirror_to(self, session.space, *replicated)
                except BaseException:
                    self.box.end(session)
                    raise
            return session

    def end_later(self, session: Session) -> None:
        """Give a worker that is cut off some time to come back."""

        came = session.came

        def end() -> None:
            if session.leases == 0 and session.came == came:  # not cut off anew since
                self.box.end(session)

        later(self.box.limits.grace_s, end)

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
        self.cut_lifeline()

    def cut_lifeline(self) -> None:
        """End once no worker is connected any more."""
        with self.changed:
            self.lifeline = False
            self.changed.notify_all()

    def drain(self) -> int:
        """Take no new job any more; the box ends with its last one. Return how many are left."""
        with self.box.lock, self.changed:
            self.box.draining = True
            self.changed.notify_all()
            return len(self.box.spaces)

    def wake(self, _: object = None) -> None:
        """Look again whether the box may end."""
        with self.changed:
            self.changed.notify_all()

    def outlive(self) -> None:
        """Return once the lifeline is cut and no worker is connected, or the box is drained."""

        def drained() -> bool:
            return self.box.draining and not self.box.spaces

        with self.changed:
            self.changed.wait_for(lambda: drained() or not (self.lifeline or self.workers))
            self.changed.wait_for(lambda: not self.workers, GOODBYE_S)  # whoever drained it


def open_doors(server: Server, options: argparse.Namespace) -> list[str]:
    """Listen at every address, each with a thread of its own; return the real addresses."""
    shield = None
    if options.tls_cert:
        from dlplatform.memorybox import tls

        context = tls.server_context(options.tls_cert, options.tls_key)
        shield = partial(tls.receive, context=context, timeout_s=connection.HANDSHAKE_S)
    hosts = [urlsplit(uri).hostname or "" for uri in options.bind if uri.startswith("verbs:")]
    if hosts:
        from dlplatform.transports.verbs import box

        server.pair = box.prepare(hosts)
    bound = [listen(uri) for uri in options.bind]
    if options.snapshot:
        from dlplatform.memorybox.lasting import Lasting

        every_s = options.every or EVERY_S
        Lasting(server, Path(options.snapshot), journal=options.journal, every_s=every_s).start()
    server.box.on_gone.append(server.wake)  # when nothing of a job is left, on the disk neither
    for listener, address in bound:
        guarded = shield if address.startswith("tls:") else None
        threading.Thread(target=server.accept, args=(listener, guarded), daemon=True).start()
    return [address for _, address in bound]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a box until SIGTERM, Ctrl-C, the end of its lifeline or its drain; return the code."""
    options = parser().parse_args(argv)
    check(options)
    if options.numa[1] > 1:
        numa.stay(*options.numa)
    secret = wire.load_secret(options.secret_file, create=True)
    server = Server(MemoryBox(limits_of(options)), secret)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if options.lifeline:
        # A scheduler tells all processes of a job to end; its workers save first, in their boxes.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: later(0.0, server.cut_lifeline))
    with watching.watched(server, options.log):
        page = watching.serve_metrics(server, options.metrics) if options.metrics else ""
        addresses = open_doors(server, options)
        ready = {"address": addresses[0], "addresses": addresses, "pid": os.getpid()}
        ready |= {"metrics": page} if page else {}
        print(json.dumps(ready), flush=True)
        server.box.tell("start", **ready, jobs=list(server.box.spaces))
        if options.lifeline:
            threading.Thread(target=server.watch_stdin, daemon=True).start()
        try:
            server.outlive()
        except KeyboardInterrupt:
            return 130
    return 0
