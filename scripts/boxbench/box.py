"""Rows of a box process: its tcp beside a raw socket, the bytes it moves, its start, its memory."""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from boxbench.memory import TINY, filled, shared
from boxbench.rows import MIB, Call, Row, Settings, fastest, limit, turns
from dlplatform.memorybox.cluster import Cluster
from dlplatform.memorybox.process import Boxes
from dlplatform.transports.rawsocket import RawSocket

FLOATS = 4 * MIB
STARTS, QUICK_STARTS = 10, 3
SETTLE_S = 0.3
SENT, RETRANSMITTED, RECEIVED = 200, 208, 128
"""Offsets of 64-bit counters in Linux's struct tcp_info."""


def raw(settings: Settings) -> Iterator[Row]:
    """Measure write, read and axpy beside a plain socket to another process."""
    x, z = filled(FLOATS), filled(FLOATS)
    view = memoryview((ctypes.c_char * (4 * FLOATS)).from_address(z.address)).cast("B")
    with Boxes(1, "tcp") as boxes, RawSocket() as plain:
        cluster = Cluster(boxes.addresses, "bench", boxes.secret.encode())
        with shared(cluster, FLOATS) as box:
            send, drop = (lambda: plain.send(view)), (lambda: plain.drop(view))
            groups: dict[str, tuple[Call, dict[str, Call]]] = {
                "write": (lambda: box.write(x.address), {"bytes kept": send}),
                "read": (lambda: box.read(x.address), {"": lambda: plain.receive(view)}),
                "axpy": (lambda: box.axpy(TINY, x.address),
                         {"bytes kept": send, "bytes thrown away": drop}),
            }  # fmt: skip
            for op, (ours, bounds) in groups.items():
                t = turns({"ours": ours, **bounds}, settings.repeat)
                best = fastest({name: t[name] for name in bounds})
                name = ", ".join(["raw socket", best] if best else ["raw socket"])
                yield Row("tcp", f"tcp {op} 16 MiB", name, 0.9, t["ours"], t[best])
        cluster.close()


def moved() -> int:
    """Return the bytes that this process's TCP connections have sent and received."""
    total = 0
    for link in _sockets(socket.AF_INET):
        info = link.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        sent, again, received = (
            struct.unpack_from("<Q", info, at)[0] for at in (SENT, RETRANSMITTED, RECEIVED)
        )
        total += sent - again + received
        link.close()
    return total


def queued() -> int:
    """Return the bytes that unix sockets of this process hold and nobody has read."""
    total = 0
    for link in _sockets(socket.AF_UNIX):
        for request in (termios.TIOCOUTQ, termios.FIONREAD):
            count = array.array("i", [0])
            with suppress(OSError):
                fcntl.ioctl(link, request, count)
            total += count[0]
        link.close()
    return total


def _sockets(family: int) -> Iterator[socket.socket]:
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                link = socket.socket(fileno=os.dup(int(name)))
                if link.family == family and link.type & socket.SOCK_STREAM:
                    yield link
                else:
                    link.close()


def traffic(settings: Settings) -> Iterator[Row]:
    """Count what an exchange moves through sockets, beside what the operation needs."""
    x, n = filled(FLOATS), 4 * FLOATS
    with Boxes(1, "tcp") as boxes:
        cluster = Cluster(boxes.addresses, "bench", boxes.secret.encode())
        with shared(cluster, FLOATS) as box:
            for op, call, times in (
                ("write", lambda: box.write(x.address), 1),
                ("read", lambda: box.read(x.address), 1),
                ("axpy", lambda: box.axpy(TINY, x.address), 1),
                ("elastic", lambda: box.elastic(0.1, x.address), 2),
            ):
                ours = [_count(call) for _ in range(max(3, settings.repeat // 5))]
                row = Row("bytes", f"tcp {op} 16 MiB, bytes moved", f"{4 * times}n bytes", 1.0)
                row.ours, row.theirs = ours, [float(times * n)] * len(ours)
                row.unit, row.within = "B", 0.01
                row.note = "sent and received, as TCP_INFO counts them; n: elements"
                yield row
        cluster.close()
    yield from _without_box()


def _count(call: Call) -> float:
    before = moved()
    call()
    return float(moved() - before)


def _without_box() -> Iterator[Row]:
    x, n = filled(FLOATS), 4 * FLOATS
    with Boxes(1) as boxes:
        cluster = Cluster(boxes.addresses, "bench", boxes.secret.encode())
        pid = boxes.processes[0].pid
        with shared(cluster, FLOATS) as box:
            worked = _cpu_ticks(pid)
            os.kill(pid, signal.SIGSTOP)
            try:
                before = queued()
                for call in (lambda: box.read(x.address), lambda: box.write(x.address),
                             lambda: box.axpy(TINY, x.address),
                             lambda: box.elastic(0.1, x.address)):  # fmt: skip
                    call()
                found = float(queued() - before)
            finally:
                os.kill(pid, signal.SIGCONT)
            worked = _cpu_ticks(pid) - worked
        cluster.close()
    row = Row("bytes", "shm read, write, axpy, elastic 16 MiB", "1 % of 4n bytes", unit="B")
    row.note = (
        "bytes that lie in sockets while the box process is stopped (SIGSTOP): nobody could have "
        f"read them; the box used {worked} ticks of CPU"
    )
    yield limit(row, 0.01 * n, [found])


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def start(settings: Settings) -> Iterator[Row]:
    """Measure start and idle memory beside fixed limits."""
    times, pss, rss = [], [], []
    for _ in range(QUICK_STARTS if settings.quick else max(STARTS, settings.repeat // 3)):
        begin = time.perf_counter()
        with Boxes(1) as boxes:
            cluster = Cluster(boxes.addresses, "bench", boxes.secret.encode())
            cluster.counter("first").add(1)
            times.append(time.perf_counter() - begin)
            time.sleep(SETTLE_S)
            found = resident(boxes.processes[0])
            pss.append(found["Pss"])
            rss.append(found["Rss"])
            cluster.close()
    note = "Popen, interpreter, bind, connection, proof of the secret, first counter added to"
    yield limit(Row("start", "box start to first answer", "limit 0.3 s", note=note), 0.3, times)
    note = "one worker connected; rss counts pages of libraries that all Pythons share"
    for name, found_bytes in (("Pss", pss), ("Rss", rss)):
        row = Row("start", f"idle box, {name} of smaps_rollup", "limit 40 MiB", unit="B", note=note)
        yield limit(row, 40.0 * MIB, found_bytes)


def resident(process: subprocess.Popen[str]) -> dict[str, float]:
    """Return the memory of a process in bytes, as the kernel counts it."""
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.partition(":")[0]: float(line.split()[1]) * 1024 for line in lines}
