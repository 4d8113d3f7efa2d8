"""Memory of a box: files without a name, mapped by the box and by workers on its host.

A file without a name cannot outlive its users: after a ``kill -9`` nothing is left behind.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from dlplatform.errors import EnvironmentMissing
from kernels import cpu


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


def nameless_file(folder: str, size: int) -> int:
    """Return a descriptor of ``size`` zeroed bytes in a folder, or of a memfd.

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


@dataclass
class Mapping:
    """A segment mapped into this process: locks in front, fp32 data behind."""

    header: int
    data: int
    floats: int
    private_at: bool

    @staticmethod
    def of(descriptor: int, floats: int, at: int = 0) -> Mapping:
        """Map a segment's file; with ``at``, put its data at that reserved address."""
        head = cpu.header_bytes(floats)
        header = cpu.check(cpu.map_file(0, head, descriptor, 0))
        try:
            data = cpu.check(cpu.map_file(at, floats * 4, descriptor, head))
        except OSError:
            cpu.unmap(header, head)
            raise
        return Mapping(header, data, floats, not at)

    def unmap(self) -> None:
        """Give the addresses back (data inside a reserved range stays with its owner)."""
        cpu.unmap(self.header, cpu.header_bytes(self.floats))
        if self.private_at:
            cpu.unmap(self.data, self.floats * 4)


class Memory:
    """Private, page-aligned, touched memory of ``floats`` zeros, freed with this object."""

    def __init__(self, floats: int) -> None:
        self.floats = floats
        self._bytes = max(floats, 1) * 4
        self.address = cpu.check(cpu.allocate(self._bytes))

    def __del__(self) -> None:
        if getattr(self, "address", 0):
            cpu.unmap(self.address, self._bytes)
