"""``shm://NAME``: a box on this host; a socket for control, mapped memory for data."""

from __future__ import annotations

import socket

from dlplatform.memorybox.memory import File, Ground
from dlplatform.transports.conduit import Conduit, SocketConduit
from dlplatform.transports.link import Frame, Link, Linked
from dlplatform.transports.mapped import MappedTransport
from dlplatform.transports.stream import StreamTransport
from dlplatform.transports.transport import Entrance, Transport


class ShmTransport(Linked, MappedTransport):  # type: ignore[override]
    """The box hands over the files of its segments; bytes then move without it."""

    def __init__(self, uri: str, entrance: Entrance, link: Link) -> None:
        Linked.__init__(self, link)
        MappedTransport.__init__(self, uri, entrance)

    def ground(self, key: str) -> Ground:
        """Receive what a segment lies in, or the counters for no key; the caller closes it."""
        found: list[int] = []

        def work(link: Conduit, _: bool) -> Frame:
            assert isinstance(link, SocketConduit)
            reply = self.link.request(link, "map", {"key": key})
            found.extend(socket.recv_fds(link.socket, 1, 1)[1])
            return reply

        with self.link.borrowed() as lane:
            self.link.perform(lane, work)
        return File(found[0])

    def close(self) -> None:
        """Unmap everything and hang up."""
        MappedTransport.close(self)
        self.link.close()


def open_shm(uri: str, entrance: Entrance) -> Transport:
    """Map the box's memory; where the box logs every update, send it the bytes instead."""
    link = Link(uri, entrance)
    if "map" in link.can:
        return ShmTransport(uri, entrance, link)
    return StreamTransport(uri, link)
