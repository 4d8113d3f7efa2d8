"""Queue pairs on a real device: every kind of work, several at a time, and what fails."""

from __future__ import annotations

import ctypes
import re
import select
import time
from collections.abc import Iterator

import pytest

from dlplatform.memorybox.memory import Memory
from dlplatform.transports.verbs.fabric import choose, outlets
from dlplatform.transports.verbs.queuepair import (
    ADD,
    READ,
    SWAP,
    WRITE,
    WRITE_NOTE,
    Done,
    QueuePair,
    adapter,
)  # fmt: skip

pytestmark = pytest.mark.rdma
SIZE = 1 << 20


class Side:
    """A queue pair and registered memory."""

    def __init__(self) -> None:
        self.end = adapter(choose())
        self.pair = QueuePair(self.end, 16)
        self.memory = Memory(SIZE // 4)
        self.at = self.memory.address
        self.regions = {
            way: self.end.register(self.at, SIZE, way) for way in ("read", "write", "add")
        }

    def local(self, offset: int, size: int) -> tuple[int, int, int]:
        return self.at + offset, size, self.regions["read"].lkey

    def remote(self, offset: int, way: str) -> tuple[int, int]:
        return self.at + offset, self.regions[way].rkey

    def wait(self, count: int = 1) -> list[Done]:
        """Sleep until so much has completed."""
        poll, done = select.poll(), self.pair.collect()
        poll.register(self.pair.events, select.POLLIN)
        while len(done) < count:
            assert poll.poll(20_000), "nothing completed within 20 s"
            done += self.pair.collect()
        return done

    def failure(self) -> str:
        """Wait for something that fails; return why."""
        return next(done.failed for done in self.wait() if done.failed)

    def put(self, offset: int, data: bytes) -> None:
        ctypes.memmove(self.at + offset, data, len(data))

    def get(self, offset: int, size: int) -> bytes:
        return ctypes.string_at(self.at + offset, size)

    def number(self, offset: int) -> int:
        return int.from_bytes(self.get(offset, 8), "little")

    def close(self) -> None:
        self.pair.close()
        for region in self.regions.values():
            region.close()


@pytest.fixture
def sides() -> Iterator[tuple[Side, Side]]:
    one, two = Side(), Side()
    one.pair.connect(two.pair.card)
    two.pair.connect(one.pair.card)
    yield one, two
    one.close()
    two.close()


def test_bytes_are_read_and_written_without_the_other_side(sides: tuple[Side, Side]) -> None:
    one, two = sides
    two.put(4096, b"theirs" * 100)
    one.pair.post(READ, 7, one.local(0, 600), two.remote(4096, "read"))
    assert one.wait() == [Done(7, 0)]
    assert one.get(0, 600) == b"theirs" * 100
    one.put(0, b"ours")
    one.pair.post(WRITE, 8, one.local(0, 4), two.remote(100, "write"))
    assert one.wait() == [Done(8, 0)]
    assert two.get(100, 4) == b"ours"
    assert two.pair.collect() == []


def test_a_note_comes_with_its_bytes_and_in_order(sides: tuple[Side, Side]) -> None:
    one, two = sides
    for n in range(8):
        one.put(n, bytes([65 + n]))
        one.pair.post(
            WRITE_NOTE, 1 + n, one.local(n, 1), two.remote(n, "write"), note=(n << 20) | 5
        )
    one.pair.post(WRITE_NOTE, 9, (0, 0, 0), two.remote(0, "write"), note=0xFFFFFFFF)
    assert [done.id for done in one.wait(9)] == list(range(1, 10))
    notes = [(n << 20) | 5 for n in range(8)] + [0xFFFFFFFF]
    assert two.wait(9) == [Done(0, note) for note in notes]
    assert two.get(0, 8) == b"ABCDEFGH"


def test_atomics(sides: tuple[Side, Side]) -> None:
    one, two = sides
    two.put(0, (100).to_bytes(8, "little"))
    for id, (what, operands) in enumerate([(ADD, (5, 0)), (ADD, (5, 0)), (SWAP, (110, 777))], 1):
        one.pair.post(what, id, one.local(8 * id, 8), two.remote(0, "add"), operands=operands)
    one.wait(3)
    assert [one.number(8 * id) for id in (1, 2, 3)] == [100, 105, 110]
    assert two.number(0) == 777


def test_many_notes_need_no_more_room_than_the_depth(sides: tuple[Side, Side]) -> None:
    one, two = sides
    for n in range(100):
        one.pair.post(WRITE_NOTE, 1, (0, 0, 0), two.remote(0, "write"), note=n)
        assert one.wait() == [Done(1, 0)]
        assert two.wait() == [Done(0, n)]


def test_waiting_is_sleeping(sides: tuple[Side, Side]) -> None:
    one, _ = sides
    poll = select.poll()
    poll.register(one.pair.events, select.POLLIN)
    one.pair.collect()
    begin = time.process_time()
    assert not poll.poll(200)
    assert time.process_time() - begin < 0.05


@pytest.mark.parametrize("way", ["read", "write", "add", "outside"])
def test_what_is_not_allowed_breaks_the_connection(sides: tuple[Side, Side], way: str) -> None:
    one, two = sides
    what, offset = {
        "read": (WRITE, 0),
        "write": (READ, 0),
        "add": (WRITE, 0),
        "outside": (READ, SIZE - 4),
    }[way]
    one.pair.post(what, 1, one.local(0, 8), two.remote(offset, "read" if way == "outside" else way))
    assert re.fullmatch(r"queue pair \d+: .*[Rr]emote.*access.*", one.failure())


def test_a_torn_pair_is_seen_at_once_where_it_was_torn(sides: tuple[Side, Side]) -> None:
    one, two = sides
    one.pair.tear()
    assert re.fullmatch(r"queue pair \d+: WR flush error", one.failure())
    one.pair.close()
    with pytest.raises(ConnectionError, match="queue pair: closed here"):
        one.pair.post(WRITE, 1, one.local(0, 4), two.remote(0, "write"))


def test_the_outlet_of_an_address_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest has two devices, at 10.99.0.1 and at 10.99.1.1."""
    assert {one.device for one in outlets()} == {"rxe0", "rxe1"}
    assert choose().device == "rxe0"
    assert [choose(f"10.99.{n}.1").device for n in (0, 1)] == ["rxe0", "rxe1"]
    assert choose("10.99.1.1").gid == "::ffff:a63:101"
    monkeypatch.setenv("DLP_RDMA_DEVICE", "rxe1:1")
    assert choose("10.99.0.1").device == "rxe1"
    monkeypatch.setenv("DLP_RDMA_GID", "0")
    assert choose("10.99.0.1").index == 0
