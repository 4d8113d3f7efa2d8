"""Rows of boxes behind shaped links: each in a network namespace of its own, as slow hosts are.

A token bucket lets each box send and receive 200 Mbit/s; the worker's own link is not shaped. So
the links are the bound, and the vector's bytes should go twice as fast over twice as many boxes.
"""

from __future__ import annotations

import ctypes
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from hostparts.spaces import BURST, Hosts

from boxbench import ranks
from boxbench.memory import filled
from boxbench.ranks import Plan
from boxbench.rows import MIB, Call, Missing, Row, Settings, Times, environment, missing, turns
from dlplatform.memorybox.cluster import Cluster
from dlplatform.transports.rawsocket import fill

RATE_MBIT = 200
COUNTS = (1, 2, 4)
SINK_PORT = 7000
MBYTES = 32, 8
LIMIT_S = 900


@contextmanager
def started(line: Sequence[str]) -> Iterator[str]:
    """Run a process that prints a line when it is ready, until its standard input is closed."""
    process = subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    try:
        yield process.stdout.readline()
    finally:
        process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()


def sink(address: str) -> None:
    """Accept one connection and acknowledge what it sends, until it closes."""
    with socket.create_server((address, SINK_PORT)) as listener:
        print("ready", flush=True)
        link, _ = listener.accept()
    with link, suppress(ConnectionError):
        view = memoryview(bytearray(1 << 20))
        count = memoryview(bytearray(8))
        while True:
            fill(link, count)
            left = int.from_bytes(count, "little")
            while left:
                left -= link.recv_into(view[: min(left, len(view))])
            link.sendall(b"k")


def work(folder: str) -> None:
    """Run the worker: write and read over 1, 2 and 4 boxes, and a plain socket, in turns."""
    plan = Plan.load(f"{folder}/plan.json")
    size = 4 * plan.floats
    x = filled(plan.floats)
    view = memoryview((ctypes.c_char * size).from_address(x.address)).cast("B")
    calls: dict[str, Call] = {}
    with ExitStack() as stack:
        link = stack.enter_context(socket.create_connection((plan.more["sink"], SINK_PORT)))
        done = memoryview(bytearray(1))

        def send() -> None:
            link.sendall(size.to_bytes(8, "little"))
            link.sendall(view)
            fill(link, done)

        for count in COUNTS:
            cluster = Cluster(plan.addresses[:count], f"bench{count}", plan.secret.encode())
            stack.callback(cluster.close)
            box = cluster.buffer("links", plan.floats, True)
            calls[f"write {count}"] = lambda box=box: box.write(x.address)
            calls[f"read {count}"] = lambda box=box: box.read(x.address)
        times = turns({**calls, "socket": send}, plan.repeat)
    ranks.write_times(folder, 0, times)


def measure(settings: Settings) -> Times:
    """Build the network, run the boxes and the worker; return its times.

    Raises:
        Missing: where namespaces or the token bucket are not to be had.
    """
    boxes = max(COUNTS)
    with ExitStack() as stack:
        hosts = Hosts(boxes + 1)
        stack.callback(hosts.close)
        for number in range(1, boxes + 1):
            hosts.shape(number, RATE_MBIT)
        secret = Path(stack.enter_context(tempfile.TemporaryDirectory()), "secret")
        addresses = []
        for number in range(1, boxes + 1):
            bind = f"tcp://{hosts.ip(number)}:0"
            line = hosts.line(
                number, sys.executable, "-m", "dlplatform.memorybox", "--bind", bind,
                "--secret-file", str(secret), "--lifeline",
            )  # fmt: skip
            ready = stack.enter_context(started(line))
            addresses.append(json.loads(ready)["address"])
        here = [sys.executable, "-m", "boxbench.links"]
        stack.enter_context(started(hosts.line(1, *here, "sink", hosts.ip(1))))
        floats = MBYTES[settings.quick] * MIB // 4
        more = {"sink": hosts.ip(1)}
        plan = Plan(addresses, secret.read_text().strip(), 1, floats, settings.repeat, more)
        worker = hosts.line(0, *here, "work")
        return ranks.run(plan, lambda folder: [[*worker, folder]], environment(), LIMIT_S)


def rows(settings: Settings) -> Iterator[Row]:
    """Measure writing and reading a vector over 1, 2 and 4 boxes behind 200 Mbit/s each."""
    mib = MBYTES[settings.quick]
    text = f"write + read {mib} MiB, %s boxes of {RATE_MBIT} Mbit/s"
    two, four = Row("links", text % 2, "1 box", 1.95), Row("links", text % 4, "1 box", 3.9)
    plain = Row("links", f"write {mib} MiB, 1 box of {RATE_MBIT} Mbit/s", "raw socket", 0.9)
    try:
        t = measure(settings)
    except Missing as error:
        yield from missing(error, [plain, two, four])
        return
    both = {
        n: [a + b for a, b in zip(t[f"write {n}"], t[f"read {n}"], strict=True)] for n in COUNTS
    }
    plain.ours, plain.theirs = t["write 1"], t["socket"]
    reached = mib * MIB * 8 / min(t["socket"]) / 1e6
    plain.note = f"the raw socket reaches {reached:.0f} Mbit/s of its payload"
    for row, n in ((two, 2), (four, 4)):
        row.ours, row.theirs = both[n], both[1]
        share = BURST / (mib * MIB / n)
        row.note = f"a full token bucket ({BURST >> 10} KiB) is {share:.1%} of a box's bytes"
    yield from (plain, two, four)


if __name__ == "__main__":
    {"sink": sink, "work": work}[sys.argv[1]](sys.argv[2])
