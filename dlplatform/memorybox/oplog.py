"""OpLog: what was done to a namespace, in order: in a file, at a mirror box, or both.

A record is written before its change becomes visible and before anybody is told of it. So a box
that restarts from a snapshot and its log holds every acknowledged update, once.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from dlplatform.errors import EnvironmentMissing
from kernels import cpu

RECORD = ctypes.sizeof(cpu.Record)
MOVED = 3
MAGIC = b"dlrd"


@dataclass(frozen=True)
class Entry:
    """One record read back: its head, and its payload for elements [at, at + n)."""

    head: dict[str, Any]
    at: int
    n: int
    body: bytes


class OpLog:
    """The log of one namespace; a record that cannot be written prevents its change."""

    def __init__(self) -> None:
        self._memory = ctypes.create_string_buffer(cpu.log_bytes())
        self.address = ctypes.addressof(self._memory)
        cpu.check(cpu.log_init(self.address))
        self.path: Path | None = None
        self._file = -1
        self._mirror: socket.socket | None = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep all other changes out for a moment."""
        cpu.log_alone(self.address)
        try:
            yield
        finally:
            cpu.log_free(self.address)

    def write_to(self, path: Path) -> None:
        """Continue in this file, behind what it holds; call it alone."""
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        end = os.lseek(descriptor, 0, os.SEEK_END)
        cpu.log_file(self.address, descriptor, end)
        self._close_file()
        self._file, self.path = descriptor, path

    def send_to(self, mirror: socket.socket) -> None:
        """Send every further record to a mirror; each is answered before the change."""
        self._mirror = mirror
        cpu.log_mirror(self.address, mirror.fileno())

    def append(self, head: dict[str, Any]) -> None:
        """Write a record without payload; call it alone."""
        packed = msgpack.packb(head)
        self.write(cpu.Record(head=len(packed)), packed, None)

    def write(self, record: cpu.Record, head: bytes, body: bytes | None) -> None:
        """Write a record whose parts are known; call it alone."""
        self.check(cpu.append(self.address, ctypes.addressof(record), head, body))

    def check(self, result: int) -> None:
        """Turn a failure to write into the refusal of the change."""
        if result == -errno.ESTALE:
            raise ConnectionAbortedError("the workers have gone over to the mirror")
        if result < 0:
            raise EnvironmentMissing(
                f"the log {self.path or 'of the mirror'} cannot be written: "
                f"{os.strerror(-result)} - allowed: a disk with room - do: make room; the update "
                "was not done"
            )

    @property
    def position(self) -> int:
        """Return how many bytes the file holds."""
        return int(cpu.log_position(self.address))

    @property
    def moved(self) -> bool:
        """Tell whether the workers have gone over to the mirror."""
        return self.degraded == MOVED

    @property
    def degraded(self) -> int:
        """Return 1 when the mirror is lost, 2 when the file is, 3 when the mirror took over."""
        return int(cpu.log_degraded(self.address))

    def _close_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def close(self) -> None:
        """Stop writing."""
        with self.alone():
            cpu.log_file(self.address, -1, 0)
            cpu.log_mirror(self.address, -1)
            self._close_file()
            if self._mirror is not None:
                self._mirror.close()


def check_record(raw: bytes) -> cpu.Record | None:
    """Return the front of a record, or None for bytes that are none."""
    if len(raw) < RECORD:
        return None
    record = cpu.Record.from_buffer_copy(raw)
    return record if cpu.record_check(ctypes.addressof(record)) else None


def entry_of(record: cpu.Record, head: bytes, body: bytes) -> Entry | None:
    """Return a record read back; None when a part of it is torn or damaged."""
    if len(head) < record.head or len(body) < record.body:
        return None
    if cpu.record_sum(ctypes.addressof(record), head, body) != record.sum:
        return None
    return Entry(msgpack.unpackb(head), record.at, record.n, body)


def read(path: Path) -> Iterator[Entry]:
    """Yield the records of a file, and cut off what a killed box left half-written.

    Raises:
        EnvironmentMissing: when good records follow a damaged one: nobody tore that.
    """
    with open(path, "r+b") as file:
        good = 0
        while record := check_record(file.read(RECORD)):
            entry = entry_of(record, file.read(record.head), file.read(record.body))
            if entry is None:
                break
            good = file.tell()
            yield entry
        file.seek(good)
        if goes_on(file.read()):
            raise EnvironmentMissing(
                f"journal {path} is damaged at byte {good}, with good records after it - allowed: "
                f"journals as a box wrote them - do: put a copy of it there, or truncate -s {good} "
                "it to lose what follows"
            )
        file.truncate(good)


def goes_on(rest: bytes) -> bool:
    """Tell whether there is a whole record somewhere behind a damaged one."""
    at = rest.find(MAGIC, 1)
    while at >= 0:
        record = check_record(rest[at : at + RECORD])
        if record is not None:
            head = at + RECORD
            body = head + record.head
            if entry_of(record, rest[head:body], rest[body : body + record.body]):
                return True
        at = rest.find(MAGIC, at + 1)
    return False
