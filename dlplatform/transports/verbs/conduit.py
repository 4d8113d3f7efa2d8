"""VerbsConduit: slots that a queue pair moves, and how both ends of a connection make one.

A full slot is written into the other side's by RDMA WRITE with immediate data, whose 32 bits say
how many bytes it holds and how many slots were emptied meanwhile. So neither side waits for a
receive of the other, and the box applies a chunk while the next ones arrive.
"""

from __future__ import annotations

import os
import queue
import select
import threading
import time
from contextlib import ExitStack, closing, suppress

from dlplatform.memorybox import wire
from dlplatform.memorybox.memory import Memory
from dlplatform.transports.conduit import SlotConduit, SocketConduit
from dlplatform.transports.link import Frame
from dlplatform.transports.verbs.fabric import choose
from dlplatform.transports.verbs.queuepair import (
    READ,
    READS,
    WRITE_NOTE,
    Adapter,
    QueuePair,
    adapter,
    holding,
)
from kernels import cpu

SLOTS, SIZE = 4, 4 * cpu.CHUNK
"""Slots a way, and bytes of each: so much on its way keeps a link busy."""
LENGTH_BITS = 20
"""Of a note: how many bytes a slot holds. The bits above count slots that were emptied."""
DEPTH = 4 * SLOTS + READS
"""Slots and notes of emptied slots each way, and reads, are all that can be on its way."""
PIECE = 1 << 20
SENT, FETCHED = 1, 2
GOODBYE_S = 1.0
WORD = 0xFFFFFFFF
BELL = cpu.Slots.bell.offset


class Bell:
    """A file that wakes the thread of a conduit; closed when nobody can ring it any more."""

    def __init__(self) -> None:
        self.file = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def hush(self) -> None:
        """Forget that it was rung."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.file)

    def __del__(self) -> None:
        os.close(self.file)


def row() -> Memory:
    """Return memory laid out as a row of slots."""
    memory = Memory(cpu.slots_bytes(SLOTS, SIZE) // 4)
    cpu.slots_init(memory.address, SLOTS, SIZE)
    return memory


class VerbsConduit(SlotConduit):
    """Slots on both sides, and a thread that moves the full ones over a queue pair.

    Args:
        end: the adapter of this side.
        line: the TCP connection, which tells when the other side has ended; closed with this.
    """

    def __init__(self, end: Adapter, line: SocketConduit) -> None:
        self.end, self.line = end, line
        self.places: dict[tuple[str, str], Frame] = {}
        """What the other side said of where its segments and counters are."""
        self._rows, self._bell, self._stage = (row(), row()), Bell(), Memory(0)
        inward, outward = (one.address for one in self._rows)
        super().__init__(inward, outward, near=False)
        self._record.fd = self._bell.file
        self._in, self._out = (cpu.Slots.from_address(at) for at in (inward, outward))
        self._there = (0, 0)
        self._sent = self._told = self._on_way = 0
        self._moving, self._closing = threading.Lock(), threading.Lock()
        self._fetched: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="verbs", daemon=True)
        with ExitStack() as stack:
            self._regions = [
                stack.enter_context(closing(end.register(at + cpu.PAGE, SLOTS * SIZE, remote)))
                for at, remote in ((inward, "write"), (outward, ""))
            ]
            self._pair = stack.enter_context(closing(QueuePair(end, DEPTH)))
            self._owned = stack.pop_all()

    @property
    def card(self) -> Frame:
        """Return what the other side has to know: the queue pair, and the slots to write into."""
        at = self._record.inward + cpu.PAGE
        return {**self._pair.card, "at": at, "rkey": self._regions[0].rkey}

    def connect(self, card: Frame) -> None:
        """Connect with the other side, and begin to move slots."""
        self._pair.connect(card)
        at, rkey = int(card["at"]), int(card["rkey"])
        if not (0 <= at < 1 << 63 and 0 <= rkey <= WORD):
            raise ConnectionError(f"slots at {at} with key {rkey}")
        self._there = (at, rkey)
        self._thread.start()

    # -- slots -----------------------------------------------------------------------------

    def sendall(self, data: bytes, flags: int = 0, /) -> None:
        """Send bytes, a full slot at once from this thread."""
        super().sendall(data, flags)
        self._send()

    def _send(self) -> None:
        """Post full slots; say how many were emptied, with them or when it is half of them."""
        with self._moving:
            while self._sent != self._out.filled:
                number = self._sent % SLOTS
                self._write(number * SIZE, self._out.bytes[number])
                self._sent = (self._sent + 1) & WORD
            if (self._in.emptied - self._told) & WORD >= SLOTS // 2:
                self._write(0, 0)

    def _write(self, offset: int, size: int) -> None:
        emptied = (self._in.emptied - self._told) & WORD
        local = (self._record.outward + cpu.PAGE + offset, size, self._regions[1].lkey)
        at, rkey = self._there
        note = emptied << LENGTH_BITS | size
        self._pair.post(WRITE_NOTE, SENT, local, (at + offset, rkey), note)
        self._told = (self._told + emptied) & WORD
        self._on_way += 1

    def _collect(self) -> None:
        for done in self._pair.collect():
            if done.failed:
                raise ConnectionError(done.failed)
            if done.id == SENT:
                with self._moving:
                    self._on_way -= 1
            elif done.id == FETCHED:
                self._fetched.put(True)
            else:
                self._noted(done.note & (1 << LENGTH_BITS) - 1, done.note >> LENGTH_BITS)

    def _noted(self, size: int, emptied: int) -> None:
        """Take a slot that was filled from afar, and ours that were emptied there."""
        full, free = (cpu.slots_full(one.address) for one in reversed(self._rows))
        if emptied > full or (size and free == SLOTS):
            raise ConnectionError("the other side does not count its slots")
        for _ in range(emptied):
            cpu.slot_emptied(self._record.outward)
        if size:
            cpu.slot_filled(self._record.inward, size)
        cpu.counter_wake(self._record.inward + BELL)

    def _run(self) -> None:
        """Move slots until one side hangs up or the connection breaks."""
        poll, line = select.poll(), self.line.socket.fileno()
        poll.register(line, select.POLLRDHUP)
        for file in (self._pair.events, self._bell.file):
            poll.register(file, select.POLLIN)
        try:
            ready: set[int] = set()
            while not self._in.closed and line not in ready:
                ready = {file for file, _ in poll.poll()}
                if self._bell.file in ready:
                    self._bell.hush()
                if ready != {self._bell.file}:
                    self._collect()
                self._send()
            if line not in ready:
                self._take_leave()
        except OSError:
            pass  # broken: whoever uses it finds it closed
        finally:
            self.hang_up()
            self._fetched.put(False)
            self.line.hang_up()

    def _take_leave(self) -> None:
        """Let what was sent before the end arrive before the other side hears of the end."""
        end, poll = time.monotonic() + GOODBYE_S, select.poll()
        poll.register(self._pair.events, select.POLLIN)
        self._send()
        while self._on_way and time.monotonic() < end:
            poll.poll(1000 * GOODBYE_S)
            self._collect()

    # -- reading without the other side ------------------------------------------------------

    def fetch(self, place: Frame, offset: int, size: int, into: int) -> None:
        """Read bytes at a place of the other side: directly into memory that stays where it is.

        Other memory gets them by way of a stage that is registered once.
        """
        owner = holding(into, size)
        if owner is None and not self._stage.floats:
            self._stage = Memory(SLOTS * cpu.CHUNK)
        piece, window = (PIECE, READS) if owner else (SIZE, SLOTS)
        lkey = self.end.pin(owner or self._stage).lkey
        at, rkey = int(place["at"]) + offset, int(place["rkey"])
        spans = [(start, min(piece, size - start)) for start in range(0, size, piece)]
        staged = [self._stage.address + number % SLOTS * SIZE for number in range(len(spans))]
        posted = 0
        try:
            for done, (first, length) in enumerate(spans):
                while posted < min(len(spans), done + window):
                    start, n = spans[posted]
                    local = into + start if owner else staged[posted]
                    self._pair.post(READ, FETCHED, (local, n, lkey), (at + start, rkey))
                    posted += 1
                self._await()
                if owner is None:
                    cpu.copy(into + first, staged[done], length)
        except BaseException:
            self.hang_up()  # nothing may arrive later
            raise

    def _await(self) -> None:
        """Wait for the next read; they complete in order."""
        patience = self._record.ms / 1000
        try:
            going_on = self._fetched.get(timeout=patience if patience >= 0 else None)
        except queue.Empty:
            raise TimeoutError(f"no byte was read for {patience:g} s") from None
        if not going_on:
            raise ConnectionResetError("the connection broke while bytes were read")

    def close(self) -> None:
        """Hang up and give everything back."""
        self.hang_up()
        if self._thread.ident:
            self._thread.join()
        with self._closing:
            super().close()
            self._owned.close()
            self.line.close()


# -- both ends of a connection ---------------------------------------------------------------


def local_adapter(line: SocketConduit) -> Adapter:
    """Return the adapter for a TCP connection: the one with its local address, if there is one."""
    host = str(line.socket.getsockname()[0]).partition("%")[0]
    return adapter(choose(host))


def dial(secret: bytes, uri: str, timeout_s: float, ca: str) -> VerbsConduit:
    """Connect to a box: prove the secret over TCP, then go over to RDMA."""
    line = SocketConduit(wire.connect(uri, timeout_s, ca))
    try:
        wire.introduce(line, secret, uri)
        made = VerbsConduit(local_adapter(line), line)
    except BaseException:
        line.close()
        raise
    try:
        wire.send(line, {"do": "pair", "card": made.card})
        reply = wire.receive(line)
        if "ok" not in reply:
            raise wire.refusal(reply)
        made.connect(reply["ok"])
        wire.send(line, {"paired": True})
        made.settimeout(timeout_s)
    except BaseException:
        made.close()
        raise
    return made
