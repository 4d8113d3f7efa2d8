"""``mpi://RANK``: a box that is a rank of this job, on this host (mapped) or on another."""

from __future__ import annotations

from dlplatform.errors import PeerLost, UsageError
from dlplatform.memorybox.counter import Counter
from dlplatform.memorybox.memory import Ground
from dlplatform.memorybox.namespace import LINE
from dlplatform.transports.link import Link, Linked
from dlplatform.transports.mapped import MappedTransport
from dlplatform.transports.mpi.pool import Piece
from dlplatform.transports.mpi.ranks import Ranks
from dlplatform.transports.mpi.window import Window, WindowCounter
from dlplatform.transports.stream import StreamTransport
from dlplatform.transports.transport import ONE_SIDED, Entrance, Transport
from kernels import cpu

_ranks: list[Ranks] = []


def enter(ranks: Ranks) -> None:
    """Let this process reach boxes among these ranks."""
    _ranks[:] = [ranks]


class NearTransport(Linked, MappedTransport):  # type: ignore[override]
    """A box on this host: its part of the shared window is in this process's address space."""

    def __init__(self, uri: str, entrance: Entrance, link: Link, ranks: Ranks) -> None:
        Linked.__init__(self, link)
        MappedTransport.__init__(self, uri, entrance)
        self._ranks, self._box = ranks, rank_of(uri)

    def ground(self, key: str) -> Ground:
        """Return what a segment lies in, or the counters for no key."""
        return Piece(self._ranks.parts[self._box].base, where(self.link, key))

    def counter(self, name: str) -> Counter:
        """Return a counter of the job, mapped; where others change it by MPI, changed by MPI."""
        mapped = super().counter(name)
        if self._ranks.window is None:
            return mapped
        return counter_of(self._ranks.window, self._box, self.link, mapped)

    def close(self) -> None:
        """Unmap everything and hang up."""
        MappedTransport.close(self)
        self.link.close()


class FarTransport(StreamTransport):
    """A box on another host whose memory MPI reads without it."""

    def __init__(self, uri: str, link: Link, window: Window) -> None:
        super().__init__(uri, link)
        self.can = self.can | {ONE_SIDED}
        self._window, self._box = window, rank_of(uri)
        self._data: dict[str, int] = {}

    def attach(self, key: str, floats: int, at: int = 0, share: bool = True) -> int:
        """Share a segment, and learn where it lies."""
        super().attach(key, floats, at, share)
        self._data[key] = where(self.link, key) + cpu.header_bytes(floats)
        return 0

    def release(self, key: str, share: bool = True) -> None:
        """Stop sharing a segment."""
        self._data.pop(key, None)
        super().release(key, share)

    def read(self, key: str, start: int, count: int, into: int) -> None:
        """Copy elements of a segment to local memory; the box does nothing for it."""
        if self.lost:
            raise PeerLost(self.lost)
        self._window.get(self._box, self._data[key] + 4 * start, 4 * count, into)

    def counter(self, name: str) -> Counter:
        """Return a counter of the job, changed by MPI; the box waits for it."""
        return counter_of(self._window, self._box, self.link, super().counter(name))


def rank_of(uri: str) -> int:
    """Return the rank in an address."""
    return int(uri.rpartition("/")[2])


def where(link: Link, key: str) -> int:
    """Ask the box where in its part a segment lies, or the counters for no key."""
    with link.borrowed() as lane:
        reply = link.perform(lane, lambda c, _: link.request(c, "map", {"key": key}))
    return int(reply["at"])


def counter_of(window: Window, box: int, link: Link, waits: Counter) -> WindowCounter:
    """Return a counter of a box in a window, next to one that can wait for it."""
    slot = int(link.call("slot", {"name": waits.name})["slot"])
    offset = where(link, "") + LINE * slot
    return WindowCounter(waits.name, window, box, offset, waits.reached)


def open_mpi(uri: str, entrance: Entrance) -> Transport:
    """Reach a box among the ranks of this job.

    Raises:
        UsageError: when this process is no rank of a job with boxes, or the address none of theirs.
    """
    ranks = _ranks[0] if _ranks else None
    text = uri.rpartition("/")[2]
    if ranks is None or not text.isdecimal() or int(text) not in ranks.boxes:
        known = ", ".join(f"mpi://{box}" for box in ranks.boxes) if ranks else "none here"
        raise UsageError(
            f"box address {uri}: no rank of this MPI job is that box - allowed: {known} - do: "
            "mpirun -n 6 dlp train ... boxes=2 transport=mpi"
        )
    link = Link(uri, entrance, ranks.dial)
    ranks.links.append(link)
    if ranks.near(int(text)) and "map" in link.can:
        return NearTransport(uri, entrance, link, ranks)
    if ranks.window is not None:
        return FarTransport(uri, link, ranks.window)
    return StreamTransport(uri, link)
