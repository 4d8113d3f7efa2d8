"""Namespace: what one box holds for one job: segments, counters, notices, and who shares them.

The mapping table of the sources (P-BOX 71-91): it lives in the box, and every method of it is
one transaction. Other jobs' namespaces cannot be reached from here.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dlplatform.errors import BoxError
from dlplatform.memorybox.cut import GATE as GATE
from dlplatform.memorybox.cut import Gate
from dlplatform.memorybox.memory import Ground, Mapping, Pinned, megabytes, pages
from kernels import cpu

if TYPE_CHECKING:
    from dlplatform.memorybox.cut import Cut
    from dlplatform.memorybox.oplog import OpLog
    from dlplatform.memorybox.session import Lane, Session

COUNTERS, NOTICES = 4096, 4096
LINE, LONGEST_NAME = 64, 1000
EVERYONE = -1
EPOCH = "box/epoch"
Source = Callable[[int, int], Ground]
"""Gives so many bytes of zeros, and addresses for some more."""


class Entry:
    """One segment in this box."""

    def __init__(self, name: str, key: str, floats: int, memory: Source) -> None:
        self.name, self.key, self.floats = name, key, floats
        self.shared_by = self.busy = 0
        self.owner, self.creator = EVERYONE, ""
        self.counted = False  # allocated by name: freed with its last user
        used = cpu.header_bytes(floats) + 4 * floats
        self.shadow = pages(used)
        room = self.shadow + 4 * floats - used
        self.ground: Ground | None = memory(used, room)
        try:
            self.mapping = Mapping(self.ground, floats)
            cpu.check(cpu.header_init(self.mapping.header, floats))
        except OSError:
            self.ground.close()
            raise

    def free(self) -> None:
        """Give the memory back."""
        self.mapping.unmap()
        if self.ground is not None:
            self.ground.close()
        self.ground = None


class Namespace:
    """The buffers, counters and members of one job in one box.

    Args:
        name: the job's; a mirror's also names the box it mirrors.
        memory: gives its segments and counters their memory.
        quota: most bytes its segments may take; 0: no limit.
    """

    def __init__(self, name: str, memory: Source, quota: int = 0) -> None:
        self.name, self.memory, self.quota = name, memory, quota
        self.entries: dict[str, Entry] = {}
        self.notices: dict[str, bytes] = {}
        self.sessions: dict[str, Session] = {}
        self.lanes: dict[str, Lane] = {}
        self.dead: set[str] = set()
        self.locks: dict[str, Session] = {}
        self.log: OpLog | None = None
        self.cut: Cut | None = None
        self.mirrored = self.taken_over = False
        self.number: int | None = None
        self.born = time.monotonic()
        self.tally = {"requests": 0, "in": 0, "out": 0}
        self.lock = threading.RLock()
        self.slots: dict[str, int] = {}
        self._free = list(range(COUNTERS - 1, -1, -1))
        size = COUNTERS * LINE
        self.ground = memory(size, 0)
        self.counters = Pinned(self.ground.map(0, size), size)
        self.epoch_at = self.counter(EPOCH)
        self.gate = Gate(self)

    # -- segments ----------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Return how many bytes its segments take."""
        return sum(4 * entry.floats for entry in self.entries.values())

    def named(self, name: str) -> Entry | None:
        """Return the segment of a name."""
        return next((entry for entry in self.entries.values() if entry.name == name), None)

    def create(self, name: str, floats: int, key: str = "") -> Entry:
        """Allocate a segment; the same name twice is refused (P-RDMA 72)."""
        with self.lock:
            if self.named(name):
                raise BoxError(
                    f"create {name}: exists already - allowed: one creation - do: attach to it "
                    "with its creation key, or delete it first"
                )
            if not 1 <= floats <= 1 << 40:
                raise BoxError(
                    f"create {name}: {floats} elements - allowed: 1 to 2^40 - do: check the size"
                )
            if key in self.entries:
                raise BoxError(
                    f"create {name}: its creation key is taken - allowed: a key of its own - do: "
                    "let the first box choose it"
                )
            if self.quota and self.size + 4 * floats > self.quota:
                raise BoxError(
                    f"create {name}: {megabytes(4 * floats)} more than the {megabytes(self.size)} "
                    f"that job {self.name} has - allowed: its quota of {megabytes(self.quota)} - "
                    "do: delete a buffer, or start the box with a larger --quota"
                )
            key = key or secrets.token_hex(16)
            entry = self.entries[key] = Entry(name, key, floats, self.memory)
            return entry

    def entry(self, key: str) -> Entry:
        """Return the segment of a creation key."""
        try:
            return self.entries[key]
        except (KeyError, TypeError):
            raise BoxError(
                f"creation key {str(key)[:12]!r} opens nothing in this box - allowed: the key of "
                "an existing buffer - do: ask the master for the buffer's information again"
            ) from None

    @contextmanager
    def using(self, *entries: Entry) -> Iterator[None]:
        """Keep the memory of segments while an operation works on them."""
        with self.lock:
            for entry in entries:
                self.entry(entry.key)
            for entry in entries:
                entry.busy += 1
        try:
            yield
        finally:
            with self.lock:
                for entry in entries:
                    entry.busy -= 1
                    self.free_unused(entry)

    def attach(self, entry: Entry, floats: int) -> None:
        """Count one more user of a segment; a wrong size is refused (P-RDMA 97)."""
        with self.lock:
            if floats != entry.floats:
                raise BoxError(
                    f"attach {entry.name}: {floats} elements - allowed: {entry.floats} - do: use "
                    "the buffer's information as the master gave it"
                )
            entry.shared_by += 1

    def release(self, entry: Entry) -> int:
        """Count one user less; return how many are left (P-BOX claim 19)."""
        with self.lock:
            entry.shared_by = max(0, entry.shared_by - 1)
            return entry.shared_by

    def delete(self, entry: Entry) -> None:
        """Free a segment that nobody shares any more (P-RDMA 124)."""
        with self.lock:
            if entry.shared_by:
                raise BoxError(
                    f"delete {entry.name}: {entry.shared_by} still share it - allowed: 0 - do: "
                    "release it everywhere first"
                )
            del self.entries[entry.key]
            self.free_unused(entry)

    def free_unused(self, entry: Entry) -> None:
        """Free a deleted segment with its last operation."""
        gone = self.entries.get(entry.key) is not entry
        if gone and not entry.busy and entry.ground is not None:
            entry.free()

    # -- counters and notices --------------------------------------------------------------

    def slot(self, name: str) -> int:
        """Return the slot of a counter; a new one starts at 0."""
        with self.lock:
            if name not in self.slots:
                if not isinstance(name, str) or len(name) > LONGEST_NAME:
                    raise BoxError(
                        f"counter {str(name)[:40]!r} - allowed: a name of up to {LONGEST_NAME} "
                        "characters - do: choose another"
                    )
                if not self._free:
                    raise BoxError(
                        f"counter {name}: no slot left - allowed: {COUNTERS} counters a job - "
                        "do: use fewer counters"
                    )
                self.slots[name] = self._free.pop()
                cpu.counter_set(self.counters.address + LINE * self.slots[name], 0)
            return self.slots[name]

    def counter(self, name: str) -> int:
        """Return the address of a counter in this process."""
        return self.counters.address + LINE * self.slot(name)

    def forget(self, beginning: str) -> None:
        """Drop the counters whose names begin so."""
        with self.lock:
            for name in [name for name in self.slots if name.startswith(beginning)]:
                cpu.counter_set(self.counter(name), 0)
                self._free.append(self.slots.pop(name))

    @property
    def epoch(self) -> int:
        """Return the epoch that operations of now belong to."""
        return int(cpu.counter_get(self.epoch_at))

    def publish(self, name: str, value: bytes) -> None:
        """Pin a value to the notice board."""
        with self.lock:
            if name not in self.notices and len(self.notices) >= NOTICES:
                raise BoxError(
                    f"publish {name}: the notice board is full - allowed: {NOTICES} notices a job "
                    "- do: use fewer buffers"
                )
            self.notices[name] = value

    def free(self) -> None:
        """Give everything back; operations still under way keep their memory to their end."""
        with self.lock:
            for entry in list(self.entries.values()):
                del self.entries[entry.key]
                self.free_unused(entry)

    def __del__(self) -> None:
        if hasattr(self, "counters"):  # the last thread that used it has ended
            self.counters.unpin()
            cpu.unmap(self.counters.address, self.counters.size)
            self.ground.close()


def where(entries: Sequence[Entry]) -> Any:
    """Return y and its states as the kernels take them."""
    return cpu.Where(*(entry.mapping.pointer for entry in entries))
