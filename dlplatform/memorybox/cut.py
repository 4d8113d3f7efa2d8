"""Cut: a moment of one namespace that can be read while operations go on.

Operations carry the epoch in which they began. A cut ends an epoch: later operations save a
stripe to its shadow before they first change it; earlier ones still under way change the
shadow, too. So a cut holds each operation wholly or not at all, and nobody waits for a copy.

Over several boxes the reader asks all of them to hold new operations back (``prepare``),
takes the newest operation of each worker that any box has seen, and tells it to the boxes that
it concerns (``commit``): what is not newer belongs to the cut everywhere.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dlplatform.errors import BoxError, NotNow
from dlplatform.memorybox.memory import give_room
from dlplatform.memorybox.timing import later
from kernels import cpu

if TYPE_CHECKING:
    from dlplatform.memorybox.namespace import Entry, Namespace

GATE = "box/gate"
HOLD_S = 5.0
"""Longest time new operations are held back for a reader that does not go on."""
Tags = dict[str, int]
Newest = dict[str, tuple[int, list[int]]]
"""The newest operation of everybody: its number, and which boxes it concerns."""


class Gate:
    """Lets streamed operations in, and knows which epoch each belongs to."""

    def __init__(self, space: Namespace) -> None:
        self.space = weakref.proxy(space)  # a circle would keep its memory until it is collected
        self.closed_until = 0.0
        self._mapped = space.counter(GATE)
        self.admitted: Newest = {}
        self.newest: Tags = {}
        self._open = threading.Condition(space.lock)

    def enter(self, slot: int, who: str, number: int, boxes: Sequence[int] = ()) -> int:
        """Wait while the gate is closed, mark the slot, and return the operation's epoch."""
        with self._open:
            while (left := self.closed_until - time.monotonic()) > 0:
                self._open.wait(left)
            epoch: int = self.space.epoch
            if number and number <= self.newest.get(who, 0):
                epoch -= 1  # another box had let it in before the cut
            self.admit(who, number, boxes)
            cpu.counter_set(slot, epoch + 1)
            return epoch

    def admit(self, who: str, number: int, boxes: Sequence[int]) -> None:
        """Note that an operation has come, even if it is refused."""
        if number > self.admitted.get(who, (0, []))[0]:
            self.admitted[who] = (number, list(boxes))

    def forget(self, token: str) -> None:
        """Forget the operations of a worker that has gone."""
        for who in [who for who in self.admitted if who.partition("/")[0] == token]:
            del self.admitted[who]

    def close(self) -> Newest:
        """Hold new operations back; return the newest one of everybody."""
        with self._open:
            self.closed_until = time.monotonic() + HOLD_S
            cpu.counter_set(self._mapped, -1)
            later(HOLD_S, self._give_up, self.closed_until)
            return dict(self.admitted)

    def open(self, newest: Tags | None = None) -> None:
        """Let operations in again; those up to ``newest`` belong to the epoch before."""
        with self._open:
            self.newest = newest or {}
            self.closed_until = 0.0
            cpu.counter_set(self._mapped, 0)
            self._open.notify_all()

    def _give_up(self, until: float) -> None:
        """Open again for a reader that closed the gate and does not go on."""
        with self._open:
            if self.closed_until == until:
                self.open(self.newest)

    def arrived(self) -> bool:
        """Tell whether every operation that belongs to the cut has come, or never will."""
        living = self.space.sessions
        return all(
            self.admitted.get(who, (0, []))[0] >= number or who.partition("/")[0] not in living
            for who, number in self.newest.items()
        )


class Cut:
    """One consistent view of some segments, from ``commit`` until ``end``.

    Its memory is given and taken back while operations go on: that takes time.

    Args:
        space: the namespace.
        entries: the segments in the view.
        token: the worker that asked; the view ends with it.
        ticket: what that worker calls it.
    """

    def __init__(
        self, space: Namespace, entries: Sequence[Entry], token: str, ticket: str = ""
    ) -> None:
        self.space, self.token, self.ticket = space, token, ticket
        self.committed = self.ended = False
        self._room = threading.Lock()
        with space.lock:
            if space.cut is not None:
                raise NotNow(
                    f"a snapshot of job {space.name} is being read - allowed: one at a time - do: "
                    "try again in a moment"
                )
            for entry in entries:
                space.entry(entry.key)
                entry.busy += 1
            self.entries = list(entries)
            self.epoch = space.epoch + 1
            space.cut = self
        try:
            self._begin()
        except BaseException:
            self.end()
            raise

    def _begin(self) -> None:
        with self._room:
            for entry in self.entries:
                if self.ended:
                    raise BoxError("the worker has left - allowed: a view of one's own - do: none")
                assert entry.ground is not None  # it is busy
                give_room(entry.ground, entry.shadow, 4 * entry.floats)
            for entry in self.entries:
                cpu.cut(entry.mapping.header, self.epoch)

    @staticmethod
    def prepare(space: Namespace, entries: Sequence[Entry], token: str, ticket: str = "") -> Newest:
        """Begin a cut and hold new operations back until it is committed."""
        with space.lock:
            cut = space.cut
        if cut is None or not ticket or (cut.token, cut.ticket) != (token, ticket):
            cut = Cut(space, entries, token, ticket)
        with cut._room:  # asked again: it may not be there yet
            return space.gate.close()

    def commit(self, newest: Tags | None = None) -> None:
        """Begin the next epoch: what starts from now on is not in the view."""
        with self.space.lock:
            if self.committed:
                return  # asked again: the answer was lost
            if newest is not None and not self.space.gate.closed_until:
                raise NotNow(
                    f"this view was begun more than {HOLD_S:g} s ago, and operations go on - "
                    "allowed: to go on sooner - do: take it again"
                )
            self.committed = True
            cpu.counter_set(self.space.epoch_at, self.epoch)
            self.space.gate.open(newest)

    def wait(self, ms: int) -> bool:
        """Wait until every operation of the epochs before has ended."""
        end = time.monotonic() + ms / 1000
        while True:
            with self.space.lock:
                slots = [n for n in self.space.slots if n.startswith("op/")]
                addresses = [self.space.counter(name) for name in slots]
                if self.space.gate.arrived() and all(
                    cpu.left(address, self.epoch, 0) for address in addresses
                ):
                    return True
            if time.monotonic() > end:
                return False
            time.sleep(0.0005)

    def end(self) -> None:
        """Forget the view and give its memory back."""
        with self.space.lock:
            if self.ended:
                return
            self.ended = True
            self.space.gate.open()
        with self._room:
            for entry in self.entries:
                cpu.cut(entry.mapping.header, 0)
                if entry.ground is not None:
                    entry.ground.take_room(entry.shadow, 4 * entry.floats)
        with self.space.lock:
            for entry in self.entries:
                entry.busy -= 1
                self.space.free_unused(entry)
            self.space.cut = None
