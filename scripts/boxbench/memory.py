"""Rows of one host's memory: read, write, axpy, elastic and bf16 over shm, and small operations."""

from __future__ import annotations

import ctypes
import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import c_float, c_size_t, c_void_p
from functools import partial
from pathlib import Path
from typing import Any

from boxbench import ranks
from boxbench.ranks import Plan, Seat
from boxbench.rows import MIB, Call, Missing, Row, Settings, Times, limit, seconds, turns
from dlplatform.memorybox.buffer import SharedBuffer
from dlplatform.memorybox.cluster import Cluster
from dlplatform.memorybox.memory import Memory
from dlplatform.memorybox.process import Boxes

SIZES = (1, 4, 16, 64)
BATCH = 8 * MIB
TINY = 1e-6
"""A factor that keeps sums of many repetitions small."""


LOOPS = Path(__file__).with_name("loops.c")


@functools.cache
def loop(name: str, *scalars: Any) -> Callable[..., None]:
    """Return a loop of ``loops.c``, compiled when its source is newer than the library.

    Raises:
        Missing: without a C compiler.
    """
    library = LOOPS.with_name("_loops.so")
    if not library.exists() or library.stat().st_mtime < LOOPS.stat().st_mtime:
        line = ["cc", "-O3", "-fPIC", "-shared", "-std=gnu11", "-o", str(library), str(LOOPS)]
        try:
            subprocess.run(line, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise Missing(f"the loops of the bounds could not be compiled: {error}") from None
    function = getattr(ctypes.CDLL(str(library)), f"loop_{name}")
    function.restype, function.argtypes = None, (c_void_p, c_void_p, c_size_t, *scalars)
    return function  # type: ignore[no-any-return]


def filled(floats: int) -> Memory:
    """Return private memory that holds 0.747 everywhere: neither zeros nor denormals."""
    memory = Memory(floats)
    ctypes.memset(memory.address, 0x3F, 4 * floats)
    return memory


@contextmanager
def joined(transport: str = "shm") -> Iterator[Cluster]:
    """Start a box and join it."""
    with Boxes(1, transport) as boxes:
        cluster = Cluster(boxes.addresses, "bench", boxes.secret.encode())
        try:
            yield cluster
        finally:
            cluster.close()


@contextmanager
def shared(cluster: Cluster, floats: int) -> Iterator[SharedBuffer]:
    """Create a buffer for one row."""
    buffer, start = cluster.buffer(f"bench/{floats}", floats, True), filled(floats)
    buffer.write(start.address)
    try:
        yield buffer
    finally:
        buffer.release()
        buffer.delete()


Pairs = Callable[[SharedBuffer, int, int, int], Iterator[tuple[str, Call, Call]]]
"""From (buffer, x, y, elements) to (operation, ours, its bound)."""


def beside(group: str, peer: str, pairs: Pairs, settings: Settings) -> Iterator[Row]:
    """Measure operations at every size, each in turns with its bound on private memory."""
    with joined() as cluster:
        for mib in SIZES:
            n = mib * MIB // 4
            x, y = filled(n), filled(n)
            with shared(cluster, n) as box:
                for op, ours, bound in pairs(box, x.address, y.address, n):
                    calls = {"ours": ours, "bound": bound}
                    t = turns(calls, settings.repeat, max(1, BATCH // (4 * n)))
                    yield Row(group, f"shm {op} {mib} MiB", peer, 0.95, t["ours"], t["bound"])


def copies(settings: Settings) -> Iterator[Row]:
    """Measure read and write beside memcpy."""
    copy = ctypes.memmove

    def pairs(box: SharedBuffer, x: int, y: int, n: int) -> Iterator[tuple[str, Call, Call]]:
        yield "read", lambda: box.read(x), lambda: copy(x, y, 4 * n)
        yield "write", lambda: box.write(x), lambda: copy(y, x, 4 * n)

    return beside("copy", "memcpy", pairs, settings)


def axpy(settings: Settings) -> Iterator[Row]:
    """Measure axpy beside one C loop, then two workers on one buffer beside one worker."""
    add = loop("axpy")

    def pairs(box: SharedBuffer, x: int, y: int, n: int) -> Iterator[tuple[str, Call, Call]]:
        yield "axpy", lambda: box.axpy(TINY, x), lambda: add(y, x, n)

    yield from beside("axpy", "one C loop a += b", pairs, settings)
    yield from _two_workers(settings)


def _two_workers(settings: Settings) -> Iterator[Row]:
    with Boxes(1) as boxes:
        plan = Plan(boxes.addresses, boxes.secret, 2, 4 * MIB, settings.repeat)
        t = ranks.play(plan, "boxbench.memory")
    bound = Row("axpy", "2 private C loops at once, 16 MiB", "one of them", None)
    bound.ours, bound.theirs = [s / 2 for s in t["loops"]], t["loop"]
    bound.note = "rate of two threads / rate of one: what this machine's memory allows"
    row = Row("axpy", "shm axpy 16 MiB, 2 workers on one buffer", "one worker", 1.7)
    row.ours, row.theirs = [s / 2 for s in t["two"]], t["one"]
    row.note = f"two private loops at once: {min(bound.theirs) / min(bound.ours):.2f} times one"
    yield from (bound, row)


def two_workers(seat: Seat) -> Times:
    """Run one of two ranks: one and two at once, on the box and on private memory."""
    n, add = seat.plan.floats, loop("axpy")
    box = seat.cluster.buffer("two", n, seat.rank == 0)
    x, y = filled(n), filled(n)

    def ours() -> None:
        for _ in range(4):
            box.axpy(TINY, x.address)

    def private() -> None:
        for _ in range(4):
            add(y.address, x.address, n)

    times = seat.turns({"one": seat.alone(ours), "two": ours})
    return times | seat.turns({"loop": seat.alone(private), "loops": private})


def elastic(settings: Settings) -> Iterator[Row]:
    """Measure elastic beside one fused C loop."""
    fused = loop("elastic", c_float)

    def pairs(box: SharedBuffer, x: int, y: int, n: int) -> Iterator[tuple[str, Call, Call]]:
        yield "elastic", lambda: box.elastic(0.1, x), lambda: fused(y, x, n, 0.1)

    return beside("elastic", "one fused C loop", pairs, settings)


def narrow(settings: Settings) -> Iterator[Row]:
    """Measure axpy of a packed bf16 payload beside axpy of fp32, the same number of elements."""
    from dlplatform.memorybox.payload import Payload

    with joined() as cluster:
        for millions in (4, 16):
            n, x = millions * MIB, filled(millions * MIB)
            payload = Payload("bf16", n, feedback=False).pack(x.address)
            row = Row("bf16", f"shm axpy of {millions} Mi bf16 elements", "the same of fp32", 1.2)
            row.note = "packed before; the bytes that must move allow 12 / 10 = 1.2 outside caches"
            with shared(cluster, n) as box:
                calls = {"ours": partial(box.apply, "axpy", payload, a=TINY),
                         "fp32": partial(box.axpy, TINY, x.address)}  # fmt: skip
                t = turns(calls, settings.repeat, max(1, BATCH // (4 * n)))
            row.ours, row.theirs = t["ours"], t["fp32"]
            yield row


def small(settings: Settings) -> Iterator[Row]:
    """Measure the smallest operations beside fixed limits."""
    with joined() as cluster, shared(cluster, 1024) as box:
        x, counter = filled(1024), cluster.counter("small")
        for _ in range(1000):
            box.axpy(TINY, x.address)
        calls = {"axpy": lambda: box.axpy(TINY, x.address), "add": counter.add}
        t = {name: [] for name in calls}
        for _ in range(settings.repeat):
            for name, call in calls.items():
                t[name].append(seconds(call, 500))
    note = "from Python; every measurement is the mean of 500 calls in a row"
    yield limit(Row("small", "shm axpy 4 KiB", "limit 8 us", note=note), 8e-6, t["axpy"])
    yield limit(Row("small", "shm counter add", "limit 2 us", note=note), 2e-6, t["add"])


if __name__ == "__main__":
    ranks.main(two_workers, sys.argv[1:])
