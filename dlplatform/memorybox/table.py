"""The mapping table of a box: which buffers and counters it holds, for which job.

Names start with the job's namespace (``job:name``); a job that is gone leaves nothing.
"""

from __future__ import annotations

import os
import secrets
import threading
from dataclasses import dataclass, field
from typing import Any

from dlplatform.errors import BoxError
from dlplatform.memorybox.memory import Mapping, nameless_file
from kernels import cpu

COUNTERS = 8192
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


@dataclass
class Table:
    """Segments by creation key, counters and notices by name; every method is one transaction."""

    memory: str = "/dev/shm"
    entries: dict[str, Entry] = field(default_factory=dict)
    notices: dict[str, Any] = field(default_factory=dict)
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
            head = cpu.header_bytes(floats)
            descriptor = nameless_file(self.memory, head + floats * 4)
            mapping = Mapping.of(descriptor, floats)
            cpu.check(cpu.header_init(mapping.header, floats))
            entry = Entry(name, key or secrets.token_hex(16), floats, descriptor, mapping)
            self.entries[entry.key] = entry
            return entry

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
        entry.mapping.unmap()
        os.close(entry.descriptor)

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
