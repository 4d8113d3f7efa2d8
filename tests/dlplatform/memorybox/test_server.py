"""A box process among bad clients, and among many."""

from __future__ import annotations

import itertools
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import msgpack
import numpy as np
import pytest

from dlplatform.errors import BoxError, UsageError
from dlplatform.memorybox import wire
from dlplatform.memorybox.box import COMMANDS
from dlplatform.memorybox.cluster import Cluster
from dlplatform.memorybox.process import Boxes
from dlplatform.transports.transport import Span
from kernels import cpu

NUMBERED = {name for name, known in COMMANDS.items() if known.changes} | {"push"}
numbers = itertools.count()
sequence: dict[socket.socket, int] = {}


@pytest.fixture(scope="module")
def boxes() -> Iterator[Boxes]:
    with Boxes(1, "tcp") as started:
        yield started


@pytest.fixture
def alive(boxes: Boxes) -> Iterator[Callable[[], None]]:
    """Check that the box still serves a worker, at once; also at the end of the test."""

    def check() -> None:
        begin = time.monotonic()
        job = f"witness-{next(numbers)}"  # a job may live for a moment after its last worker
        cluster = Cluster(boxes.addresses, job, boxes.secret.encode(), 5)
        assert cluster.counter("n").add() == 0
        cluster.close()
        assert time.monotonic() - begin < 2
        assert boxes.processes[0].poll() is None

    check()
    yield check
    check()


@pytest.fixture
def stranger(boxes: Boxes) -> Iterator[Callable[[], socket.socket]]:
    """Connect without a word."""
    with ExitStack() as stack:

        def connect() -> socket.socket:
            host, port = boxes.addresses[0].removeprefix("tcp://").split(":")
            return stack.enter_context(socket.create_connection((host, int(port)), timeout=5))

        yield connect


@pytest.fixture
def known(boxes: Boxes, stranger: Callable[[], socket.socket]) -> Callable[..., socket.socket]:
    """Connect, show the secret, and open a job."""

    def connect(job: str = "known") -> socket.socket:
        link = stranger()
        wire.introduce(link, boxes.secret.encode(), "tcp://box")
        if job:
            assert opened(link, job)["taken"] == 0
        return link

    return connect


def ask(link: socket.socket, **frame: Any) -> dict[str, Any]:
    """Send a request, with the next number in the lane of this connection."""
    if str(frame.get("do")) in NUMBERED:
        frame["seq"] = sequence[link] = sequence.get(link, 0) + 1
    wire.send(link, frame)
    return wire.receive(link)


def opened(link: socket.socket, job: str) -> dict[str, Any]:
    """Open a job as a worker of its own."""
    return dict(ask(link, do="open", job=job, token=f"t{next(numbers)}", lane="0")["ok"])


def closed(link: socket.socket) -> bool:
    try:
        while link.recv(1 << 16):
            continue
    except ConnectionError:
        pass
    return True


# -- bad clients -----------------------------------------------------------------------------


def test_a_wrong_secret_is_refused_on_one_line(boxes: Boxes, alive: object) -> None:
    with pytest.raises(UsageError, match="refused this job's secret") as error:
        Cluster(boxes.addresses, "job", b"wrong", 5)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 4096,
        os.urandom(100_000),
        struct.pack("<I", 513) + b"x" * 513,  # no greeting is that long
        struct.pack("<I", 1) + msgpack.packb(7),
        struct.pack("<I", 0),
    ],
)
def test_garbage_from_strangers_ends_their_connection(
    stranger: Callable[[], socket.socket], alive: object, data: bytes
) -> None:
    link = stranger()
    with suppress(ConnectionError):
        link.sendall(data)
    assert closed(link)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 4096,
        struct.pack("<I", wire.LONGEST + 1) + b"x" * 1000,
        struct.pack("<I", 3) + b"\xc1\xc1\xc1",
        struct.pack("<I", 1) + msgpack.packb(None),
    ],
)
def test_garbage_from_workers_ends_their_connection(
    known: Callable[[], socket.socket], alive: object, data: bytes
) -> None:
    link = known()
    with suppress(ConnectionError):
        link.sendall(data)
    assert closed(link)


@pytest.mark.parametrize(
    "frame",
    [
        {"do": "push", "op": "axpy", "format": "fp7", "count": 5},
        {"do": "push", "op": "copy", "keys": ["no"], "start": 0, "count": 1 << 50},
        {"do": "push", "op": "copy", "keys": ["no"], "start": 0, "count": "all"},
        {"do": "push", "op": "axpy", "keys": ["no"], "count": -5},
        {"do": "push", "op": "axpy", "keys": ["no"], "count": 5, "entries": "few"},
    ],
)
def test_a_stream_without_bounds_ends_its_connection(
    known: Callable[[], socket.socket], alive: object, frame: dict[str, Any]
) -> None:
    link = known()
    wire.send(link, {**frame, "seq": 1})
    assert closed(link)


def test_half_open_connections_hinder_nobody(
    stranger: Callable[[], socket.socket], alive: Callable[[], None]
) -> None:
    for _ in range(50):
        stranger()
    stranger().sendall(b"\x05")  # half a length
    alive()


def test_the_job_comes_first(known: Callable[..., socket.socket], alive: object) -> None:
    link = known(job="")
    for command in ("create", "read", "push", "lock", "status"):
        assert "no job" in ask(link, do=command)["refused"]
    assert "missing" in ask(link, do="open", job="late")["refused"]
    assert opened(link, "late")
    assert "once a connection" in ask(link, do="open", job="a", token="t", lane="0")["refused"]


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        ({"do": "statsu"}, "unknown; closest: status"),
        ({"do": ["x"]}, "unknown"),
        ({}, "unknown"),
        ({"do": "add", "name": "n", "n": {}}, "wrong fields"),
        ({"do": "join", "rank": "first"}, "invalid literal"),
        ({"do": "read", "key": "no", "start": 0, "count": 1}, "opens nothing"),
        ({"do": "read", "key": {}, "start": None}, "int"),
        ({"do": "lock", "key": "no"}, "opens nothing"),
        ({"do": "map"}, "map over tcp"),
        ({"do": "stream_read"}, "unknown"),
        ({"do": "wait", "name": "n", "at_least": 1.5, "ms": 0}, "wrong fields"),
    ],
)
def test_wrong_requests_are_refused_and_the_connection_goes_on(
    known: Callable[[], socket.socket], alive: object, frame: dict[str, Any], text: str
) -> None:
    link = known()
    assert text in ask(link, **frame)["refused"]
    assert "value" in ask(link, do="get", name="n")["ok"]


@pytest.mark.parametrize("size", [4, 1 << 20])
@pytest.mark.parametrize(
    "frame",
    [
        {"do": "push", "op": "copy", "keys": ["no"], "start": 0},
        {"do": "push", "op": "copy", "keys": ["no"], "start": "zero"},
        {"do": "push", "op": "axpy", "keys": ["no"], "start": 0, "k": [1.0]},
        {"do": "push", "op": "axpby", "keys": "no", "start": 0, "k": "x"},
        {"do": "push", "op": "nothing", "keys": ["no"]},
        {"do": "push", "keys": ["no"]},
    ],
)
def test_the_bytes_of_a_refused_request_are_thrown_away(
    known: Callable[[], socket.socket], alive: object, frame: dict[str, Any], size: int
) -> None:
    link = known()
    wire.send(link, {**frame, "count": size // 4, "seq": 1})
    link.sendall(b"\xff" * size)
    assert wire.receive(link)["refused"]
    assert "value" in ask(link, do="get", name="n")["ok"]


@pytest.mark.parametrize("op", ["elastic", "merge", "difference", "fetch", "axpy"])
@pytest.mark.parametrize("size", [10, 1 << 20])
def test_a_refused_operation_leaves_the_worker_connected(
    boxes: Boxes, alive: object, op: str, size: int
) -> None:
    cluster = Cluster(boxes.addresses, "refused", boxes.secret.encode(), 5)
    x = np.ones(size, np.float32)
    transport = cluster.transports[0]
    for _ in range(2):
        with pytest.raises(BoxError, match="opens nothing"):
            span = Span(0, size, 0, size, x.ctypes.data, 0, ("0", 0))
            transport.apply(cpu.operation(op, (0.5, 0.0)), ("no",), span, x.ctypes.data)
    assert cluster.counter("n").add() == 0
    cluster.close()


def test_memory_deleted_while_it_is_sent_stays_until_it_is_sent(
    known: Callable[..., socket.socket], alive: object
) -> None:
    floats = 8 << 20
    reader, master = known("deleter"), known("deleter")
    key = ask(master, do="create", name="w", floats=floats)["ok"]["key"]
    before = ask(master, do="status")["ok"]["bytes"]
    wire.send(reader, {"do": "read", "key": key, "start": 0, "count": floats})
    time.sleep(0.1)  # the box now waits for the reader
    assert ask(master, do="delete", key=key) == {"ok": {}}
    assert ask(master, do="status")["ok"]["bytes"] == before - 4 * floats
    assert wire.receive(reader) == {"ok": {}}
    left = 4 * floats
    while left:
        left -= len(reader.recv(min(left, 1 << 20)))
    assert "opens nothing" in ask(reader, do="read", key=key, start=0, count=1)["refused"]


def test_a_worker_cut_in_the_middle_of_its_bytes_leaves_the_box_well(
    known: Callable[..., socket.socket], alive: object
) -> None:
    master = known("cut")
    key = ask(master, do="create", name="w", floats=1 << 20)["ok"]["key"]
    link = known("cut")
    span = {"start": 0, "count": 1 << 20}
    wire.send(link, {"do": "push", "op": "axpy", "k": [1.0], "keys": [key], "seq": 1, **span})
    link.sendall(np.ones(100_000, np.float32).tobytes())
    link.close()
    time.sleep(0.1)
    wire.send(master, {"do": "read", "key": key, **span})
    assert wire.receive(master) == {"ok": {}}
    data = b""
    while len(data) < 4 << 20:
        data += master.recv(1 << 20)
    found = np.frombuffer(data, np.float32)
    assert set(found.tolist()) <= {0.0, 1.0}
    assert found[100_000:].sum() == 0


def test_many_workers_connect_at_once(boxes: Boxes, alive: object) -> None:
    outcomes: list[int] = []

    def work() -> None:
        cluster = Cluster(boxes.addresses, "crowd", boxes.secret.encode(), 20)
        outcomes.append(cluster.counter("n").add())
        ended.wait(20)
        cluster.close()

    ended = threading.Barrier(24)
    threads = [threading.Thread(target=work) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(outcomes) == list(range(24))
