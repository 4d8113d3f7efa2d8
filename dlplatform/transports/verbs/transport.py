"""``verbs://HOST:PORT``: a box over RDMA, on InfiniBand or RoCE.

A connection begins on TCP. Both sides prove the secret, exchange what a queue pair has to know, and
keep the TCP connection to learn of each other's end. From then on

- requests, answers and updates go through slots: a full slot is written into the other side's by
  an RDMA WRITE with immediate data. The box applies a chunk while the next ones arrive.
- a segment is read by RDMA READ, and so is a counter: the box's processor has no part in it.

A counter is *changed* by request. RDMA atomics are atomic among each other only (devices say
IBV_ATOMIC_HCA), not with the processor's, and the box and workers on its host change counters, too.
Besides, nobody can tell whether an atomic was done whose connection broke before it completed, but
a request has a number: it is done once. And who waits for a counter has to be woken.
"""

from __future__ import annotations

import ctypes
from functools import partial

from dlplatform.memorybox.counter import Counter, RemoteCounter
from dlplatform.transports.conduit import Conduit
from dlplatform.transports.link import Frame, Link
from dlplatform.transports.stream import StreamTransport
from dlplatform.transports.transport import ONE_SIDED, Entrance
from dlplatform.transports.verbs.conduit import VerbsConduit, dial


class VerbsCounter(RemoteCounter):
    """A counter of a box that is changed by request, and read without the box."""

    def __init__(self, name: str, transport: VerbsTransport) -> None:
        super().__init__(name, transport.call)
        self._transport = transport

    @property
    def value(self) -> int:
        """Return the number: eight aligned bytes are read at once."""
        found = ctypes.c_int64()
        self._transport.fetch({"counter": self.name}, 0, 8, ctypes.addressof(found))
        return found.value


class VerbsTransport(StreamTransport):
    """Bytes go to the box through slots, and come from it by RDMA READ."""

    def __init__(self, uri: str, link: Link) -> None:
        super().__init__(uri, link)
        self.can |= {ONE_SIDED}

    def read(self, key: str, start: int, count: int, into: int) -> None:
        """Copy elements of a segment to local memory."""
        if count:
            self.fetch({"key": key}, 4 * start, 4 * count, into)

    def fetch(self, what: Frame, offset: int, size: int, into: int) -> None:
        """Read bytes of a segment or a counter of the box, again if the connection breaks."""
        name = next(iter(what.items()))

        def work(link: Conduit, _: bool) -> Frame:
            assert isinstance(link, VerbsConduit)
            if name not in link.places:
                link.places[name] = self.link.request(link, "expose", what)
            link.fetch(link.places[name], offset, size, into)
            return {}

        with self.link.borrowed() as lane:
            self.link.perform(lane, work)

    def counter(self, name: str) -> Counter:
        """Return a counter of the job."""
        return VerbsCounter(name, self)


def open_verbs(uri: str, entrance: Entrance) -> VerbsTransport:
    """Connect to a box on any host of the fabric."""
    return VerbsTransport(uri, Link(uri, entrance, partial(dial, entrance.secret)))
