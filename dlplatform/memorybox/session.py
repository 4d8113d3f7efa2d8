"""Session and Lane: what a box knows of one worker, across all of its connections.

A worker's incarnation has a random token; its requests carry a number within their lane. The
box remembers the last request of every lane, so that one repeated after a lost answer, a cut
connection or a restart is not done twice: (worker, epoch, sequence) with the token as both
worker and epoch.
"""

from __future__ import annotations

import threading
from collections import Counter as Tally
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dlplatform.errors import BoxError
from dlplatform.memorybox.memory import Memory
from dlplatform.memorybox.namespace import EVERYONE, Entry
from kernels import cpu

if TYPE_CHECKING:
    from dlplatform.memorybox.namespace import Namespace
    from dlplatform.memorybox.updates import Arrival
    from dlplatform.transports.conduit import Conduit

JOINED, FINISHED, LEFT, DIED = 1, 2, 3, 4
COMPANY = "company"
"""A counter that grows whenever somebody comes or goes."""
Fields = dict[str, Any]


@dataclass
class Session:
    """One worker's incarnation in one job: its rank, what it attached, whether it is there."""

    space: Namespace
    token: str
    rank: int = -1
    attached: Tally[str] = field(default_factory=Tally)
    polite: bool = False
    ended: bool = False
    came: int = 0
    """How often a connection began that stands for the worker."""
    leases: int = 0
    """Connections that stand for the worker: 1 while it is there, 0 while it is cut off."""
    links: set[Conduit] = field(default_factory=set)

    def check(self, entry: Entry) -> Entry:
        """Refuse another worker's region (P-PS 26, 86)."""
        if entry.owner in (EVERYONE, self.rank) or entry.creator == self.token:
            return entry
        raise BoxError(
            f"{entry.name} is the region of worker {entry.owner}, asked for by worker {self.rank} "
            "- allowed: the master's regions and one's own - do: read the master's region"
        )

    def entry(self, key: str) -> Entry:
        """Return a segment that this worker may touch."""
        return self.check(self.space.entry(key))

    def span(self, key: str, start: int, count: int) -> Entry:
        """Return a segment after checking that start..start+count lies inside."""
        entry = self.entry(key)
        if start < 0 or count < 0 or start + count > entry.floats:
            raise BoxError(
                f"{entry.name}: elements {start} to {start + count} - allowed: 0 to "
                f"{entry.floats} - do: check offset and length"
            )
        return entry

    @property
    def member(self) -> str:
        """Return the name of the counter that says what this worker does."""
        return f"member/{self.rank}"

    def end(self) -> None:
        """Give back what the worker shared, and tell the others how it went."""
        space = self.space
        with space.lock:
            if self.ended:
                return
            self.ended = True
            for key, count in list(self.attached.items()):
                entry = space.entries.get(key)  # None: deleted meanwhile
                left = [space.release(entry) for _ in range(count)] if entry else []
                if entry and entry.counted and left and not left[-1]:
                    space.delete(entry)
            for name in [name for name, lane in space.lanes.items() if lane.token == self.token]:
                del space.lanes[name]
            space.dead.add(self.token)
            space.sessions.pop(self.token, None)
            space.forget(f"op/{self.token}/")
            space.gate.forget(self.token)
            if space.cut and space.cut.token == self.token:
                space.cut.end()
        if self.rank >= 0:
            with suppress(BoxError):  # no slot left to say so
                cpu.counter_set(space.counter(self.member), LEFT if self.polite else DIED)
                cpu.counter_add(space.counter("departures"), 1)
                cpu.counter_add(space.counter(COMPANY), 1)
        for link in list(self.links):
            link.hang_up()


class Lane:
    """A row of requests, one after the other; the last one is remembered.

    ``sequence`` numbers the last request taken. While ``reply`` is None that request is not
    finished; ``made`` tells how far an update of it has come.
    """

    def __init__(self, token: str, name: str) -> None:
        self.token, self.name = token, name
        self.busy = threading.Lock()
        self.link: Conduit | None = None
        self.sequence = 0
        self.reply: Fields | None = {"ok": {}}
        self.made: Arrival | None = None
        self.payload: Memory | None = None
        self.answers: Memory | None = None

    def take(self, sequence: int) -> bool:
        """Begin a request, and tell whether it is new; a repeated one goes on where it was.

        Numbers may be left out: a box that comes back has not heard of those it refused.
        """
        if self.sequence < sequence < 1 << 63:
            self.sequence, self.reply, self.made = sequence, None, None
            return True
        if sequence == self.sequence:
            return False
        raise BoxError(
            f"request {sequence} in lane {self.name} - allowed: {self.sequence} again, or a later "
            "one - do: use the same version on both sides"
        )

    def room(self, floats: int) -> int:
        """Return the address of memory for payloads of this lane."""
        if self.payload is None or self.payload.floats < floats:
            self.payload = Memory(floats)
        return self.payload.address

    def ring(self) -> int:
        """Return the address of the answers that may have to be sent again."""
        if self.answers is None:
            self.answers = Memory(cpu.ring_floats())
        return self.answers.address

    def connected(self, link: Conduit) -> None:
        """Take over from an older connection of the same lane."""
        if self.link is not None:
            self.link.hang_up()
        self.link = link
