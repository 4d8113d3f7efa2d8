"""Print the frequency of this machine's time-stamp counter in kHz: the guest counts with it.

A guest that has to find out for itself, on a busy machine, may be wrong by a factor of ten.
"""

from __future__ import annotations

import ctypes
import mmap
import time

RDTSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")
"""rdtsc; shl rdx, 32; or rax, rdx; ret."""
APART_S, TRIES = 0.25, 50


def main() -> None:
    """Read the counter and the clock twice, each time as close together as happens."""
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(RDTSC)
    ticks = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))

    def both() -> tuple[int, int]:
        tries = [(time.monotonic_ns(), ticks(), time.monotonic_ns()) for _ in range(TRIES)]
        before, seen, after = min(tries, key=lambda one: one[2] - one[0])
        return (before + after) // 2, seen

    clock, count = both()
    time.sleep(APART_S)
    later, more = both()
    print((more - count) * 1_000_000 // (later - clock))


if __name__ == "__main__":
    main()
