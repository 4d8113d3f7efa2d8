"""The mapping table of a box: which buffers and counters it holds, for which job.

Names start with the job's namespace (``job:name``); a job that is gone leaves nothing.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from dlplatform.errors import BoxError
from dlplatform.memorybox.memory import Mapping, nameless_file
from kernels import cpu

COUNTERS, NOTICES = 8192, 4096
LINE = 64


@dataclass
class Entry:
    """One segment in this box."""

    name: str
    key: str
    floats: int
    descriptor: int
    mapping: Mapping
    shared_by: int = 0
    busy: int = 0
    """Operations under way: its memory stays until they end, even if it is deleted."""


@dataclass
class Table:
    """Segments by creation key, counters and notices by name; every method is one transaction."""

    memory: str = "/dev/shm"
    entries: dict[str, Entry] = field(default_factory=dict)
    notices: dict[str, bytes] = field(default_factory=dict)
    _slots: dict[str, int] = field(default_factory=dict)
    _free: list[int] = field(default_factory=lambda: list(range(COUNTERS - 1, -1, -1)))
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.counters_file = nameless_file(self.memory, COUNTERS * LINE)
        self._counters = cpu.check(cpu.map_file(0, COUNTERS * LINE, self.counters_file, 0))

    def create(self, name: str, floats: int, key: str = "") -> Entry:
        """Allocate a segment; the same name twice is refused (P-RDMA 72)."""
        with self._lock:
            if any(entry.name == name for entry in self.entries.values()):
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
            key = key or secrets.token_hex(16)
            entry = self.entries[key] = Entry(name, key, floats, *self._allocate(floats))
            return entry

    def _allocate(self, floats: int) -> tuple[int, Mapping]:
        descriptor = nameless_file(self.memory, cpu.header_bytes(floats) + floats * 4)
        try:
            mapping = Mapping.of(descriptor, floats)
            cpu.check(cpu.header_init(mapping.header, floats))
        except OSError:
            os.close(descriptor)
            raise
        return descriptor, mapping

    @contextmanager
    def using(self, *entries: Entry) -> Iterator[None]:
        """Keep the memory of segments while an operation works on them."""
        with self._lock:
            for entry in entries:
                self.entry(entry.key)
            for entry in entries:
                entry.busy += 1
        try:
            yield
        finally:
            with self._lock:
                for entry in entries:
                    entry.busy -= 1
                    self._free_unused(entry)

    def entry(self, key: str) -> Entry:
        """Return the segment of a creation key."""
        try:
            return self.entries[key]
        except KeyError:
            raise BoxError(
                f"creation key {key[:12]!r} opens nothing in this box - allowed: the key of an "
                "existing buffer - do: ask the master for the buffer's information again"
            ) from None

    def attach(self, key: str, floats: int) -> Entry:
        """Count one more user of a segment; a wrong key or size is refused (P-RDMA 97)."""
        with self._lock:
            entry = self.entry(key)
            if floats != entry.floats:
                raise BoxError(
                    f"attach {entry.name}: {floats} elements - allowed: {entry.floats} - do: use "
                    "the buffer's information as the master gave it"
                )
            entry.shared_by += 1
            return entry

    def release(self, key: str) -> int:
        """Count one user less; return how many are left (P-BOX claim 19)."""
        with self._lock:
            entry = self.entry(key)
            entry.shared_by = max(0, entry.shared_by - 1)
            return entry.shared_by

    def delete(self, key: str) -> None:
        """Free a segment that nobody shares any more (P-RDMA 124)."""
        with self._lock:
            entry = self.entry(key)
            if entry.shared_by:
                raise BoxError(
                    f"delete {entry.name}: {entry.shared_by} still share it - allowed: 0 - do: "
                    "release it everywhere first"
                )
            self._drop(entry)

    def _drop(self, entry: Entry) -> None:
        del self.entries[entry.key]
        self._free_unused(entry)

    def _free_unused(self, entry: Entry) -> None:
        if not entry.busy and self.entries.get(entry.key) is not entry and entry.descriptor >= 0:
            entry.mapping.unmap()
            os.close(entry.descriptor)
            entry.descriptor = -1

    def slot(self, name: str) -> int:
        """Return the slot of a counter; a new one starts at 0."""
        with self._lock:
            if name not in self._slots:
                if not self._free:
                    raise BoxError(
                        f"counter {name}: no slot left - allowed: {COUNTERS} counters a box - "
                        "do: use more boxes or fewer jobs"
                    )
                self._slots[name] = self._free.pop()
                cpu.counter_set(self.address(self._slots[name]), 0)
            return self._slots[name]

    def address(self, slot: int) -> int:
        """Return where a counter is in this process."""
        return self._counters + slot * LINE

    def counter(self, name: str) -> int:
        """Return the address of a counter in this process."""
        return self.address(self.slot(name))

    def publish(self, name: str, value: bytes) -> None:
        """Pin a value to the notice board."""
        with self._lock:
            if name not in self.notices and len(self.notices) >= NOTICES:
                raise BoxError(
                    f"publish {name}: the notice board is full - allowed: {NOTICES} notices a box "
                    "- do: use fewer jobs or buffers a box"
                )
            self.notices[name] = value

    def forget(self, job: str) -> None:
        """Free everything of a job."""
        mine = job + ":"
        with self._lock:
            for entry in [e for e in self.entries.values() if e.name.startswith(mine)]:
                self._drop(entry)
            for name in [n for n in self._slots if n.startswith(mine)]:
                self._free.append(self._slots.pop(name))
            for name in [n for n in self.notices if n.startswith(mine)]:
                del self.notices[name]
