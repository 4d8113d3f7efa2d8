"""Memory of a box: files without a name, mapped by the box and by workers on its host.

A file without a name cannot outlive its users: after a ``kill -9`` nothing is left behind.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Any, ClassVar, Protocol
from weakref import WeakValueDictionary

from dlplatform.errors import BoxError, EnvironmentMissing
from kernels import cpu

PUNCH_HOLE, KEEP_SIZE = 2, 1
_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)


def megabytes(count: int) -> str:
    """Return a number of bytes as text in MiB."""
    return f"{count / 2**20:.1f} MiB"


def available() -> int:
    """Return how many bytes this machine can still give without killing somebody."""
    with open("/proc/meminfo") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 1 << 62


def nameless_file(folder: str, size: int, room: int = 0) -> int:
    """Return a descriptor of ``size`` zeroed bytes in a folder, or of a memfd.

    ``room`` more bytes have addresses behind them, but no memory yet (see ``give_room``).

    Raises:
        EnvironmentMissing: when the folder has not that much memory left, or is none.
    """
    try:
        if folder == "memfd":
            descriptor = os.memfd_create("dlp", os.MFD_CLOEXEC)
        else:
            descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise EnvironmentMissing(
            f"cluster.memory={folder} cannot hold shared memory: {error.strerror} - allowed: a "
            "tmpfs folder, or memfd - do: use /dev/shm or memfd"
        ) from None
    try:
        if size > available():
            raise OSError(errno.ENOMEM, "")
        os.posix_fallocate(descriptor, 0, size)
        os.ftruncate(descriptor, size + room)
    except OSError as error:
        os.close(descriptor)
        if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG):
            raise
        raise EnvironmentMissing(_too_small(folder, size)) from None
    return descriptor


def _too_small(folder: str, size: int) -> str:
    free = available()
    if folder != "memfd":
        stats = os.statvfs(folder)
        free = min(free, stats.f_bavail * stats.f_frsize)
    return (
        f"{folder} is too small: a memory box needs {megabytes(size)} more, {megabytes(free)} is "
        f"free - allowed: up to the free size - do: mount -o remount,size=... {folder}, or set "
        "cluster.memory=memfd"
    )


class Ground(Protocol):
    """What a segment, or the counters of a job, lie in: zeros that processes may share."""

    descriptor: int
    """Of the file, which is handed to workers; -1: it lies at ``offset`` where they can map it."""
    offset: int

    def map(self, at: int, size: int, offset: int = 0, populate: bool = True) -> int:
        """Return addresses for a range, at an address of the caller's choice or anywhere (0)."""

    def give_room(self, start: int, size: int) -> None:
        """Give a range its memory now, where a lack of it can still be refused (OSError)."""

    def take_room(self, start: int, size: int) -> None:
        """Give the memory of a range back; its addresses stay."""

    def close(self) -> None:
        """Give everything back that is not mapped."""


class File:
    """A file without a name, by its descriptor."""

    offset = 0

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def map(self, at: int, size: int, offset: int = 0, populate: bool = True) -> int:
        """Return addresses for a range, at an address of the caller's choice or anywhere (0)."""
        return int(cpu.check(cpu.map_file(at, size, self.descriptor, offset, populate)))

    def give_room(self, start: int, size: int) -> None:
        """Give a range its memory now, where a lack of it can still be refused (OSError)."""
        os.posix_fallocate(self.descriptor, start, size)

    def take_room(self, start: int, size: int) -> None:
        """Give the memory of a range back; its addresses stay."""
        _fallocate(self.descriptor, PUNCH_HOLE | KEEP_SIZE, start, size)

    def close(self) -> None:
        """Give everything back that is not mapped."""
        os.close(self.descriptor)


def give_room(ground: Ground, start: int, size: int) -> None:
    """Give a view its memory, or refuse it.

    Raises:
        BoxError: when there is not that much memory left.
    """
    try:
        if size > available():
            raise OSError(errno.ENOMEM, "")
        ground.give_room(start, size)
    except OSError:
        raise BoxError(
            f"a snapshot needs {megabytes(size)} more, {megabytes(available())} is free - allowed: "
            "as much again as the buffers have - do: take fewer buffers at once"
        ) from None


def pages(size: int) -> int:
    """Round a number of bytes up to whole pages."""
    return -(-size // cpu.PAGE) * cpu.PAGE


class Pinned:
    """Memory that devices may know: they forget it before it goes (RDMA registers memory)."""

    def __init__(self, address: int, size: int) -> None:
        self.address, self.size = address, size
        self.pins: dict[object, Any] = {}

    def unpin(self) -> None:
        """Have all devices forget it."""
        while self.pins:
            self.pins.popitem()[1].close()


class Mapping(Pinned):
    """A segment mapped into this process: locks in front, fp32 data, room for its shadow.

    Args:
        ground: what the segment lies in.
        floats: its length.
        at: a reserved address for the data; 0: anywhere.
    """

    def __init__(self, ground: Ground, floats: int, at: int = 0) -> None:
        self.floats, head, size = floats, cpu.header_bytes(floats), floats * 4
        super().__init__(0, size)
        self._parts: list[tuple[int, int]] = []
        try:
            self.header = self._map(0, head, ground, 0, True)
            self.data = self.address = self._map(at, size, ground, head, True)
            self.shadow = self._map(0, size, ground, head + pages(size), False)
        except OSError:
            self.unmap()
            raise
        self.record = cpu.SegmentMap(self.header, self.data, self.shadow)
        self.pointer = ctypes.addressof(self.record)

    def _map(self, at: int, size: int, ground: Ground, offset: int, populate: bool) -> int:
        address = ground.map(at, size, offset, populate)
        assert at in (0, address), "segments lie side by side"
        if not at:  # data inside a reserved range stays with its owner
            self._parts.append((address, size))
        return address

    def unmap(self) -> None:
        """Give the addresses back."""
        self.unpin()
        while self._parts:
            cpu.unmap(*self._parts.pop())


class Memory(Pinned):
    """Private, page-aligned, touched memory of ``floats`` zeros, freed with this object."""

    living: ClassVar[WeakValueDictionary[int, Memory]] = WeakValueDictionary()
    """By address."""

    def __init__(self, floats: int) -> None:
        self.floats = floats
        size = max(floats, 1) * 4
        super().__init__(cpu.check(cpu.allocate(size)), size)
        self.living[self.address] = self

    def __del__(self) -> None:
        if getattr(self, "address", 0):
            self.unpin()
            cpu.unmap(self.address, self.size)
