"""Conduits of memory: frames, updates and the end of the other side, without any socket."""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
from places import at, content, random

from dlplatform.errors import PeerLost
from dlplatform.memorybox import connection, wire
from dlplatform.memorybox.box import MemoryBox
from dlplatform.memorybox.cluster import Cluster
from dlplatform.memorybox.memory import Memory, nameless_file
from dlplatform.memorybox.server import Server
from dlplatform.transports import transport
from dlplatform.transports.conduit import Conduit, SlotConduit, SocketConduit
from dlplatform.transports.link import Link
from dlplatform.transports.stream import StreamTransport
from kernels import cpu, reference

COUNT, SIZE = 4, 1 << 16
LENGTH = 3 * cpu.CHUNK + 4321
BELL = cpu.Slots.bell.offset


def row(count: int = COUNT, size: int = SIZE) -> Memory:
    memory = Memory(cpu.slots_bytes(count, size) // 4)
    cpu.slots_init(memory.address, count, size)
    return memory


def shared(count: int = COUNT, size: int = SIZE) -> tuple[SlotConduit, SlotConduit]:
    """Return both sides of a conduit in memory that they share."""
    one, two = row(count, size), row(count, size)
    sides = [SlotConduit(a.address, b.address) for a, b in ((one, two), (two, one))]
    for side in sides:
        side.memory = (one, two)  # type: ignore[attr-defined]
    return sides[0], sides[1]


class Engine:
    """Moves full slots between two sides that share nothing: what MPI or RDMA do."""

    def __init__(self) -> None:
        self.bell, self.ended = Memory(16), False
        self.ways: list[tuple[Memory, Memory, int]] = []
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def pair(self) -> tuple[SlotConduit, SlotConduit]:
        rows = [row() for _ in range(4)]  # in and out of one side, in and out of the other
        sides = [
            SlotConduit(a.address, b.address, self.bell.address, near=False)
            for a, b in (rows[:2], rows[2:])
        ]
        for side in sides:
            side.memory = rows  # type: ignore[attr-defined]
        self.ways += [(rows[1], rows[2], rows[0].address), (rows[3], rows[0], rows[2].address)]
        return sides[0], sides[1]

    def move(self, source: Memory, sink: Memory, waiting: int) -> bool:
        out, into = (cpu.Slots.from_address(m.address) for m in (source, sink))
        if out.closed and not into.closed and not cpu.slots_full(source.address):
            into.closed = 1
            cpu.counter_wake(sink.address + BELL)
        if not cpu.slots_full(source.address) or cpu.slots_full(sink.address) == into.count:
            return False
        size = out.bytes[out.emptied % out.count]
        cpu.copy(cpu.slot(sink.address, into.filled), cpu.slot(source.address, out.emptied), size)
        cpu.slot_filled(sink.address, size)
        cpu.slot_emptied(source.address)
        for address in (sink.address, waiting):
            cpu.counter_wake(address + BELL)
        return True

    def run(self) -> None:
        turn = ctypes.c_uint32.from_address(self.bell.address + 8)
        while not self.ended:
            seen = turn.value
            if not any([self.move(*way) for way in list(self.ways)]):
                cpu.bell_wait(self.bell.address, seen, 10_000)


@dataclass
class Place:
    """A box in this process, reached over conduits of memory."""

    make: Callable[[], tuple[SlotConduit, SlotConduit]]
    server: Server = field(default_factory=lambda: Server(MemoryBox(), b"secret"))
    made: list[Conduit] = field(default_factory=list)

    def dial(self, uri: str, timeout_s: float, ca: str) -> Conduit:
        near, far = self.make()
        self.server.count(connected=1)
        connection.spawn(self.server, lambda: far)
        near.settimeout(timeout_s)
        self.made.append(near)
        return near

    def open(self, uri: str, entrance: transport.Entrance) -> StreamTransport:
        return StreamTransport(uri, Link(uri, entrance, self.dial))


@pytest.fixture(params=["shared", "moved"])
def box(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    engine = Engine() if request.param == "moved" else None
    place = Place(engine.pair if engine else shared)
    monkeypatch.setattr("dlplatform.memorybox.cluster.open_transport", place.open)
    yield place
    if engine:
        engine.ended = True
        engine.thread.join(5)


def connect(timeout_s: float = 20.0) -> Cluster:
    return Cluster(["memory://box"], "job", b"secret", timeout_s)


@pytest.mark.parametrize("op", ["copy", "axpy", "elastic", "difference", "merge", "fetch"])
def test_operations_over_memory_mean_what_the_reference_says(box: Place, op: str) -> None:
    y, x, z = random(1, LENGTH), random(2, LENGTH), random(3, LENGTH)
    cluster = connect()
    buffer = cluster.buffer("w", LENGTH, True)
    buffer.write(at(y))
    expected = reference.apply(op, y, y, y, x.copy(), z.copy(), (0.3, 1.7))
    buffer.apply(op, at(x), at(z), k=(0.3, 1.7))
    np.testing.assert_allclose(content(buffer), expected[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(x, expected[3], rtol=1e-6, atol=1e-6)
    cluster.close()


def test_a_cut_conduit_is_made_again_and_nothing_is_done_twice(box: Place) -> None:
    cluster = connect()
    buffer, ones = cluster.buffer("w", LENGTH, True), np.ones(LENGTH, np.float32)
    done = threading.Event()

    def cut() -> None:
        while not done.wait(0.03):
            box.made[-1].hang_up()

    thread = threading.Thread(target=cut)
    thread.start()
    begin, count = len(box.made), 0
    while len(box.made) < begin + 8:
        buffer.axpy(1.0, at(ones))
        count += 1
    done.set()
    thread.join()
    assert count > 8
    assert (content(buffer) == count).all()
    cluster.close()


def test_a_refused_secret_is_one_line(box: Place) -> None:
    with pytest.raises(Exception, match="refused this job's secret"):
        Cluster(["memory://box"], "job", b"wrong", 5.0)


def test_what_was_sent_before_the_end_arrives() -> None:
    near, far = shared()
    wire.send(near, {"last": b"x" * 100_000})
    near.close()
    assert wire.receive(far) == {"last": b"x" * 100_000}
    with pytest.raises(ConnectionResetError, match="closed the connection"):
        wire.receive(far)
    with pytest.raises(BrokenPipeError):
        far.sendall(b"too late")


def test_a_frame_and_its_bytes_share_a_slot() -> None:
    near, far = shared()
    near.sendall(b"frame", socket.MSG_MORE)
    near.sendall(b"bytes")
    assert cpu.Slots.from_address(near.memory[1].address).filled == 1  # type: ignore[attr-defined]
    assert far.recv(100) == b"framebytes"


def test_who_waits_too_long_is_told() -> None:
    near, far = shared(2, 4096)
    for side in (near, far):
        side.settimeout(0.3)
    with pytest.raises(TimeoutError, match=r"nothing came for 0.3 s"):
        near.recv(1)
    with pytest.raises(TimeoutError):
        near.sendall(b"x" * 10_000)
    assert far.recv(1 << 20) == b"x" * 4096


def test_a_slot_with_a_false_length_ends_the_connection() -> None:
    near, far = shared()
    cpu.slot_filled(near.memory[1].address, SIZE + 1)  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="Protocol error"):
        far.recv(10)


@contextmanager
def file_of(size: int) -> Iterator[int]:
    descriptor = nameless_file("memfd", size)
    try:
        yield cpu.check(cpu.map_file(0, size, descriptor, 0, True))
    finally:
        os.close(descriptor)


def test_the_death_of_the_other_process_is_noticed_at_once() -> None:
    part = cpu.slots_bytes(COUNT, SIZE)
    with file_of(2 * part + cpu.PAGE) as memory:
        rows = [memory, memory + part]
        life = memory + 2 * part
        for address in rows:
            cpu.slots_init(address, COUNT, SIZE)
        cpu.check(cpu.header_init(life, 1))
        child = os.fork()
        if not child:
            cpu.lock(life, 0)
            SlotConduit(*rows).sendall(b"here")
            time.sleep(60)
            os._exit(1)
        far = SlotConduit(*reversed(rows), life=life)
        assert far.recv(10) == b"here"
        killer = threading.Timer(0.3, partial(os.kill, child, signal.SIGKILL))
        killer.start()
        begin = time.monotonic()
        far.ended()
        assert [cpu.gone(life) for _ in range(3)] == [1, 1, 1]
        assert 0.2 < time.monotonic() - begin < 2
        assert far.recv(10) == b""
        os.waitpid(child, 0)


def test_a_closed_socket_conduit_does_not_touch_the_next_one_with_its_number() -> None:
    near, far = socket.socketpair()
    conduit = SocketConduit(near)
    conduit.close()
    again = [os.dup(far.fileno()) for _ in range(4)]  # one of them gets the closed number
    with pytest.raises(OSError, match="Bad file descriptor"):
        cpu.check(cpu.send(conduit.address, b"x", 1, False))
    for descriptor in again:
        os.close(descriptor)
    far.close()


def test_a_box_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = itertools.repeat(shared())
    monkeypatch.setattr(
        "dlplatform.memorybox.cluster.open_transport",
        lambda uri, entrance: Link(uri, entrance, lambda *_: _patient(next(silent)[0])),
    )
    with pytest.raises(PeerLost, match="no memory box answers at memory://box"):
        connect(0.3)


def _patient(side: SlotConduit) -> SlotConduit:
    side.settimeout(0.3)
    return side
