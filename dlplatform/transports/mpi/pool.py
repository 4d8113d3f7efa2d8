"""Pool: a box's part of a shared window, from which it cuts segments."""

from __future__ import annotations

import errno
import threading

from dlplatform.errors import EnvironmentMissing
from dlplatform.memorybox.memory import available, megabytes, pages
from kernels import cpu


class Piece:
    """A range of a part of a shared window, as this process sees it.

    Args:
        base: address of the part.
        offset: where in it.
    """

    descriptor = -1

    def __init__(self, base: int, offset: int) -> None:
        self.offset, self._address = offset, base + offset

    def map(self, at: int, size: int, offset: int = 0, populate: bool = True) -> int:
        """Return addresses for a range, at an address of the caller's choice or anywhere (0)."""
        return int(cpu.check(cpu.map_again(at, pages(size), self._address + offset)))

    def give_room(self, start: int, size: int) -> None:
        """Give a range its memory now, where a lack of it can still be refused (OSError)."""
        if size > available():
            raise OSError(errno.ENOMEM, "no memory left")
        code = cpu.populate(self._address + start, pages(size))
        if code != -errno.EINVAL:  # an older kernel gives pages when they are touched
            cpu.check(code)

    def take_room(self, start: int, size: int) -> None:
        """Give the memory of a range back; its addresses stay."""
        cpu.check(cpu.punch(self._address + start, pages(size)))

    def close(self) -> None:
        """Give nothing back: whoever cut the piece does."""


class Cut(Piece):
    """A piece that goes back to its pool."""

    def __init__(self, pool: Pool, offset: int, size: int) -> None:
        super().__init__(pool.base, offset)
        self._pool, self._size = pool, size

    def close(self) -> None:
        """Give the range back, with its memory."""
        if not self._pool.over:
            self.take_room(0, self._size)
            self._pool.put(self.offset, self._size)


class Pool:
    """Ranges of a part that are free.

    Args:
        base: address of the part in this process.
        start, size: the range of it that may be cut, in bytes, whole pages.
        what: what it is, for people.
    """

    def __init__(self, base: int, start: int, size: int, what: str) -> None:
        self.base, self.size, self.what, self.over = base, size, what, False
        self._free = [(start, size)]
        self._lock = threading.Lock()

    def cut(self, size: int, room: int = 0) -> Cut:
        """Return a range of zeros, with memory for ``size`` bytes and addresses for the room too.

        Raises:
            EnvironmentMissing: when there is no range of that length, or not that much memory.
        """
        length = pages(size + room)
        with self._lock:
            fits = [place for place, (_, free) in enumerate(self._free) if free >= length]
            if not fits:
                raise EnvironmentMissing(self._too_small(length))
            start, free = self._free.pop(fits[0])
            if free > length:
                self._free.insert(fits[0], (start + length, free - length))
        piece = Cut(self, start, length)
        try:
            piece.give_room(0, size)
        except OSError:
            self.put(start, length)
            raise EnvironmentMissing(
                f"this machine is too small: {megabytes(size)} more, {megabytes(available())} is "
                "free - allowed: up to that - do: use fewer boxes here, or mount -o "
                "remount,size=... /dev/shm"
            ) from None
        return piece

    def _too_small(self, length: int) -> str:
        longest = max((free for _, free in self._free), default=0)
        return (
            f"{self.what} is too small: {megabytes(length)} more, half of it for views, "
            f"{megabytes(longest)} of {megabytes(self.size)} in one piece is free - allowed: up to "
            "that - do: set cluster.pool_gib, or use more boxes"
        )

    def put(self, start: int, size: int) -> None:
        """Take a range back, and join it with its free neighbours."""
        with self._lock:
            ranges = sorted([*self._free, (start, size)])
            self._free = ranges[:1]
            for start, size in ranges[1:]:
                last, length = self._free[-1]
                if last + length == start:
                    self._free[-1] = (last, length + size)
                else:
                    self._free.append((start, size))

    def shut(self) -> None:
        """Forget it: its window is about to be freed."""
        self.over = True
