"""Connection: one worker's conduit at the box: welcomed, obeyed, and what happens when it ends.

Python only decides; bytes move and operations run in C with the GIL released.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from dlplatform.errors import BoxError, PlatformError
from dlplatform.memorybox import replica, wire
from dlplatform.memorybox.box import WRONG_VALUES, MemoryBox
from dlplatform.memorybox.commands import own_cut
from dlplatform.memorybox.namespace import Entry
from dlplatform.memorybox.session import Fields, Lane, Session
from dlplatform.memorybox.updates import Stream
from dlplatform.transports.conduit import Conduit, SocketConduit
from kernels import cpu

if TYPE_CHECKING:
    from dlplatform.memorybox.server import Server

HANDSHAKE_S = 10.0
Shield = Callable[[socket.socket], socket.socket]


class Connection:
    """One conduit: a lane of requests, and perhaps the lease of a worker."""

    def __init__(self, server: Server, link: Conduit) -> None:
        self.server, self.link = server, link
        self.box: MemoryBox = server.box
        self.session: Session | None = None
        self.lane: Lane | None = None
        self.lease = False
        self.held: list[tuple[int, int]] = []
        self.keeping = ExitStack()

    def welcome(self) -> bool:
        """Find out in time whether the other side knows the secret."""
        self.link.settimeout(HANDSHAKE_S)
        if not wire.welcome(self.link, self.server.secret):
            return False
        self.link.settimeout(None)
        return True

    def serve(self) -> None:
        """Obey until the worker hangs up."""
        try:
            while True:
                self.answer(wire.receive(self.link))
        finally:
            self.close()

    def answer(self, frame: Fields) -> None:
        """Obey one frame and reply ``ok`` or ``refused``."""
        command = frame.pop("do", "")
        try:
            if command == "open":
                wire.send(self.link, {"ok": self.open(**frame)})
            elif command == "mirror" and self.session is None:
                replica.receive(self.server, self.link, str(frame["job"]), str(frame["origin"]))
                raise ConnectionAbortedError("the mirrored box is gone")
            elif command == "pair" and self.session is None:
                self.server.pair(self, frame["card"])
            elif isinstance(command, str) and command in self.server.orders:
                wire.send(self.link, {"ok": self.server.orders[command](self.box, **frame)})
            else:
                self._obey(command, frame)
        except (PlatformError, *WRONG_VALUES) as error:
            job = self.session.space.name if self.session else ""
            wire.send(self.link, self.box.refuse(error, str(command), job))

    def _obey(self, command: str, frame: Fields) -> None:
        session, lane = self.session, self.lane
        if session is None or lane is None:
            raise BoxError("no job - allowed: open first - do: name the job")
        self.box.count(session.space, "requests")
        if command == "push":
            Stream(self.box, session, lane, self.link).push(frame)
        elif isinstance(command, str) and command in STREAMS:
            STREAMS[command](self, session, frame)
        else:
            wire.send(self.link, self.box.request(session, lane, command, frame))

    def open(
        self, job: str, token: str, lane: str, lease: bool = False, mirror: str = "",
        replicated: Sequence[str] = (),
    ) -> Fields:  # fmt: skip
        """Bind this connection to a job, a worker's incarnation and a lane of its requests."""
        if self.session is not None:
            raise BoxError("open twice - allowed: once a connection - do: connect again")
        session = self.server.meet(job, token, mirror, replicated)
        space = session.space
        if space.log is not None and space.log.moved:
            return {"moved": True}
        with space.lock:
            space.taken_over = space.taken_over or bool(mirror)
            name = f"{token}/{lane}"
            if name not in space.lanes:
                space.lanes[name] = Lane(token, name)
            self.lane, self.session, self.lease = space.lanes[name], session, bool(lease)
            session.links.add(self.link)
            session.leases += self.lease
            session.came += self.lease
        self.lane.connected(self.link)
        can = [able for able in self.box.limits.can if able != "map" or space.log is None]
        return {
            "can": can, "instance": self.box.instance, "lasting": bool(self.server.lasting),
            "taken": self.lane.sequence,
        }  # fmt: skip

    # -- bytes ---------------------------------------------------------------------------

    def read(self, session: Session, frame: Fields) -> None:
        """Send a span of a segment, as it is or as it was at the cut."""
        start, count = int(frame.get("start", 0)), int(frame.get("count", 0))
        entry = session.span(frame.get("key", ""), start, count)
        if frame.get("cut"):
            own_cut(session)  # one that ended with a box is not taken for what is there now
        mapping = entry.mapping
        with session.space.using(entry):
            wire.send(self.link, {"ok": {}}, more=count > 0)
            if not frame.get("cut"):
                at = mapping.data + 4 * start
                cpu.check(cpu.send(self.link.address, at, 4 * count, False))
            else:
                self._read_cut(entry, start, count)
        self.box.count(session.space, "out", 4 * count)

    def _read_cut(self, entry: Entry, start: int, count: int) -> None:
        assert self.lane is not None
        scratch = self.lane.room(cpu.CHUNK)
        for at in range(start, start + count, cpu.CHUNK):
            part = min(cpu.CHUNK, start + count - at)
            cpu.check(cpu.read_cut(entry.mapping.pointer, at, part, scratch))
            cpu.check(cpu.send(self.link.address, scratch, 4 * part, False))

    def map(self, session: Session, frame: Fields) -> None:
        """Hand the memory of a segment, or of the counters, to a worker that can map it."""
        link, space = self.link, session.space
        unreachable = not link.near or not isinstance(link, SocketConduit)
        if space.log is not None or (space.ground.descriptor >= 0 and unreachable):
            raise BoxError(
                "map over tcp, or in a logged job - allowed: shm - do: read and write instead"
            )
        entries = [session.entry(frame["key"])] if frame.get("key") else []
        with space.using(*entries):
            ground = entries[0].ground if entries else space.ground
            assert ground is not None  # it is in use
            wire.send(link, {"ok": {"at": ground.offset}})
            if isinstance(link, SocketConduit):
                socket.send_fds(link.socket, [b"F"], [ground.descriptor])

    # -- locks ---------------------------------------------------------------------------

    def lock(self, session: Session, frame: Fields) -> None:
        """Lock the stripes of a span until ``unlock``, or until this connection breaks."""
        start, count = int(frame.get("start", 0)), int(frame.get("count", 1))
        entry = session.span(frame.get("key", ""), start, max(count, 1))
        self.keeping.enter_context(session.space.using(entry))
        told = 0
        try:
            for stripe in range(start // cpu.STRIPE, (start + count - 1) // cpu.STRIPE + 1):
                told |= cpu.check(cpu.lock(entry.mapping.header, stripe))
                self.held.append((entry.mapping.header, stripe))
        except OSError as error:
            self.give_back(cpu.unlock)
            raise BoxError(
                f"{entry.name}: lock not obtained: {error.strerror} - allowed: a lock whose owner "
                "gives it back - do: see what that worker does"
            ) from None
        wire.send(self.link, {"ok": {"abandoned": bool(told)}})

    def unlock(self, session: Session, frame: Fields) -> None:
        """Give all locks of this connection back."""
        self.give_back(cpu.unlock)
        wire.send(self.link, {"ok": {}})

    def give_back(self, how: Callable[[int, int], None]) -> None:
        """Unlock, or abandon, what this connection holds."""
        while self.held:
            how(*self.held.pop())
        self.keeping.close()

    def close(self) -> None:
        """Free what this connection held; without a goodbye its worker has died."""
        self.give_back(cpu.abandon)
        session = self.session
        if session is None:
            return
        with session.space.lock:
            session.links.discard(self.link)
            session.leases -= self.lease
            gone = session.leases == 0 and (self.lease or not session.links)
        if not gone or session.ended:
            return
        certain = session.polite or self.link.near
        if certain and not self.server.lasting:
            self.box.end(session)
        else:
            self.server.end_later(session)


STREAMS: dict[str, Callable[[Connection, Session, Fields], None]] = {
    "read": Connection.read, "map": Connection.map, "lock": Connection.lock,
    "unlock": Connection.unlock,
}  # fmt: skip


def accepted(link: socket.socket, shield: Shield | None = None) -> SocketConduit:
    """Make a socket that was accepted a conduit; ``shield`` puts TLS around it."""
    wire.keep_alive(link)
    return SocketConduit(link if shield is None else shield(link))


def start(server: Server, accept: Callable[[], Conduit]) -> None:
    """Serve what ``accept`` returns to its end."""
    link = connection = None
    try:
        link = accept()
        connection = Connection(server, link)
        if connection.welcome():
            with server.attending():
                connection.serve()
        else:
            server.box.tell("stranger", level="warning", reason="it does not know the secret")
    except OSError:
        return  # it hung up, or talked nonsense: nobody is left to be told
    finally:
        if link is not None:
            (connection.link if connection else link).close()
        server.count(connected=-1)


def spawn(server: Server, accept: Callable[[], Conduit]) -> None:
    """Serve a connection in a thread of its own, where ``accept`` makes it."""
    with suppress(RuntimeError):  # no thread left: the worker sees a closed connection
        threading.Thread(target=start, args=(server, accept), daemon=True).start()
