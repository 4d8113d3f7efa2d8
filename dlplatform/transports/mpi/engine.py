"""Engine: lanes between hosts as MPI messages, moved by one thread of each rank.

A lane is a conduit with slots of its own on each side. What is full here is sent from where it
lies, and received into a free slot there: a sender whose messages are not received runs out of
slots. The thread sleeps between its looks, the longer the less has come; what is filled here wakes
it at once. A rank that is silent for ``SILENCE_S`` is dead: MPI says nothing of those who die.
"""

from __future__ import annotations

import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from dlplatform.memorybox.memory import Memory
from dlplatform.transports.conduit import Conduit, SlotConduit
from kernels import cpu

RUNNING, DONE, LEFT, DEAD = 0, 1, 2, 3
"""States of a rank: DONE comes to the end of MPI with the others, LEFT does not."""
SAY, PULSE, KNOCK, LANE = 1, 2, 3, 16
"""Tags of messages: states of ranks, signs of life, new lanes; a lane has a tag of its own."""
EVERYBODY = -1
SLOTS, SLOT = 4, 1 << 18
PULSE_S, SILENCE_S, FLUSH_S = 1.0, 15.0, 1.0
NAP_US, LONGEST_US, CALM = 20, 2000, 32
"""The shortest and the longest nap; in between it is a 32nd of the time for which nothing has come,
so that it makes a wait 3 % longer at most."""
BELL = cpu.Slots.bell.offset
STATE = struct.Struct("<ii")


Meet = Callable[[Callable[[], Conduit]], None]
"""What a rank does with a lane that another opens, given the function that makes its side."""


class Lane:
    """One side of a lane: its conduit, and what is on its way.

    Args:
        peer: the rank at the other side.
        tag: of its messages, both ways.
        bell: of the engine.
    """

    def __init__(self, peer: int, tag: int, bell: int) -> None:
        self.peer, self.tag, self._memory = peer, tag, []
        for _ in range(2):
            row = Memory(cpu.slots_bytes(SLOTS, SLOT) // 4)
            cpu.slots_init(row.address, SLOTS, SLOT)
            self._memory.append(row)
        self.inward, self.outward = (row.address for row in self._memory)
        self.into, self.out = (cpu.Slots.from_address(row.address) for row in self._memory)
        self.conduit = SlotConduit(self.inward, self.outward, bell, near=False)
        self.conduit.lane = self  # type: ignore[attr-defined]  # the memory goes with the last user
        self.sent: deque[Any] = deque()
        self.came: deque[Any] = deque()
        self.coming: deque[tuple[Any, int]] = deque()
        self.said, self.heard = False, False

    def ring(self) -> None:
        """Wake whoever waits at this side."""
        cpu.counter_wake(self.inward + BELL)


def conduit_of(lane: Lane) -> Conduit:
    """Return a lane's conduit."""
    return lane.conduit


class Engine:
    """Moves the lanes of this rank.

    Args:
        mpi: mpi4py's MPI.
        comm: of all ranks; messages go over a copy of it.
        died: called with a rank that is noticed to be dead.
    """

    def __init__(self, mpi: Any, comm: Any, died: Callable[[int], None]) -> None:
        self.mpi, self.comm, self._died = mpi, comm.Dup(), died
        self._early: list[Lane] = []
        self._meet: Meet | None = None
        self.states: dict[int, int] = {}
        self.silence_s, self.failed = SILENCE_S, ""
        self._lanes: dict[tuple[int, int], Lane] = {}
        self._heard: dict[int, float] = {}
        self._said: list[tuple[int, int, bytes]] = []
        self._notes: deque[tuple[Any, bytes]] = deque()
        self._lock, self._over = threading.Lock(), False
        self._bell = Memory(16)
        self._turn = cpu.Counter.from_address(self._bell.address)
        self._numbers, self._pulse = 0, 0.0
        self._any = (mpi.ANY_SOURCE, mpi.ANY_TAG)
        self._status, self._sink = mpi.Status(), bytearray(SLOT)
        self._thread = threading.Thread(target=self._run, name="mpi engine", daemon=True)
        self._thread.start()

    # -- what other threads ask for --------------------------------------------------------

    def connect(self, rank: int) -> SlotConduit:
        """Open a lane to a box."""
        with self._lock:
            self._numbers += 1
            lane = self._add(rank, LANE + self._numbers)
            self._said.append((KNOCK, rank, STATE.pack(lane.tag, 0)))
        cpu.counter_wake(self._bell.address)
        return lane.conduit

    def open_doors(self, meet: Meet) -> None:
        """Have lanes that others open met from now on, and those they have opened already."""
        with self._lock:
            early, self._early, self._meet = self._early, [], meet
        for lane in early:
            meet(partial(conduit_of, lane))

    def nudge(self, rank: int) -> None:
        """Have another rank look more often for a while: MPI needs it to move bytes."""
        with self._lock:
            self._said.append((PULSE, rank, bytes(STATE.size)))
        cpu.counter_wake(self._bell.address)

    def say(self, state: int, rank: int = -1) -> None:
        """Tell all other ranks the state of this one, or of another."""
        with self._lock:
            note = STATE.pack(state, self.comm.rank if rank < 0 else rank)
            self._said.append((SAY, EVERYBODY, note))
        cpu.counter_wake(self._bell.address)

    def flush(self) -> None:
        """Give what was said a moment to reach the others: this process is about to end."""
        end = time.monotonic() + FLUSH_S
        while (self._said or self._notes) and time.monotonic() < end:
            time.sleep(0.002)

    def close(self) -> None:
        """Stop; all ranks do so together."""
        self._over = True
        cpu.counter_wake(self._bell.address)
        self._thread.join()
        self.comm.Barrier()
        self.comm.Free()

    def _add(self, peer: int, tag: int) -> Lane:
        lane = self._lanes[peer, tag] = Lane(peer, tag, self._bell.address)
        self._heard[peer] = time.monotonic()
        return lane

    # -- the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._move()
        except self.mpi.Exception as error:  # as when a connection of MPI's own breaks
            self.failed = str(error)
            for peer in {lane.peer for lane in self._lanes.values()}:
                self.lose(peer)

    def _move(self) -> None:
        busy = time.monotonic()
        while not (self._over and not self._pending()):
            turn = self._turn.turn
            moved = self._listen()
            with self._lock:
                lanes = list(self._lanes.values())
            now = time.monotonic()
            self._talk(now)
            for lane in lanes:
                moved |= self._send(lane) | self._receive(lane)
            if moved:
                busy = now
            else:
                nap = int(1e6 * (now - busy)) // CALM
                cpu.bell_wait(self._bell.address, turn, min(max(nap, NAP_US), LONGEST_US))

    def _pending(self) -> bool:
        return any(lane.sent for lane in self._lanes.values()) or bool(self._said or self._notes)

    def _listen(self) -> bool:
        """Take note of every message that has come."""
        found = False
        while (message := self.comm.Improbe(*self._any, self._status)) is not None:
            found = True
            peer, tag = self._status.Get_source(), self._status.Get_tag()
            self._heard[peer] = time.monotonic()
            if lane := self._lanes.get((peer, tag)):
                lane.came.append((message, self._status.Get_count(self.mpi.BYTE)))
                continue
            message.Recv([self._sink, self.mpi.BYTE])  # also what was sent to a lost lane
            first, second = STATE.unpack_from(self._sink)
            if tag == KNOCK:
                self._welcome(peer, first)
            elif tag == SAY:
                self.states[second] = first
                if first == DEAD:
                    self._died(second)
        return found

    def _welcome(self, peer: int, tag: int) -> None:
        with self._lock:
            lane = self._add(peer, tag)
            if self._meet is None:
                self._early.append(lane)
                return
        self._meet(partial(conduit_of, lane))

    def _send(self, lane: Lane) -> bool:
        moved, mpi = False, self.mpi
        while lane.sent and lane.sent[0].Test():
            lane.sent.popleft()
            if not lane.said:
                cpu.slot_emptied(lane.outward)
                lane.ring()
            moved = True
        over = lane.out.closed
        while not lane.said and cpu.slots_full(lane.outward) > len(lane.sent):
            number = lane.out.emptied + len(lane.sent)
            size = lane.out.bytes[number % SLOTS]
            data = mpi.memory.fromaddress(cpu.slot(lane.outward, number), size)
            lane.sent.append(self.comm.Isend([data, mpi.BYTE], lane.peer, lane.tag))
            moved = True
        if over and not lane.said and not lane.sent:
            lane.said = True  # nothing comes after an empty message
            lane.sent.append(self.comm.Isend([b"", mpi.BYTE], lane.peer, lane.tag))
        if lane.said and lane.heard and not lane.sent:
            with self._lock:
                self._lanes.pop((lane.peer, lane.tag), None)
        return moved

    def _receive(self, lane: Lane) -> bool:
        moved, mpi = False, self.mpi
        if lane.out.left and not lane.coming:  # nobody reads here any more
            while lane.came:
                message, size = lane.came.popleft()
                message.Recv([self._sink, mpi.BYTE])
                lane.heard |= not size
        while lane.came and cpu.slots_full(lane.inward) + len(lane.coming) < SLOTS:
            message, size = lane.came.popleft()
            number = lane.into.filled + len(lane.coming)
            room = mpi.memory.fromaddress(cpu.slot(lane.inward, number), min(size, SLOT))
            lane.coming.append((message.Irecv([room, mpi.BYTE]), size))
            moved = True
        while lane.coming and lane.coming[0][0].Test():
            _, size = lane.coming.popleft()
            if size:
                cpu.slot_filled(lane.inward, size)
                lane.ring()
            else:
                lane.heard = True
                lane.conduit.hang_up()
            moved = True
        return moved

    # -- who is there ----------------------------------------------------------------------

    def _talk(self, now: float) -> None:
        """Send states and signs of life; give those up who are silent."""
        while self._notes and self._notes[0][0].Test():
            self._notes.popleft()
        with self._lock:
            said, self._said = self._said, []
            peers = {lane.peer for lane in self._lanes.values()}
        there = [r for r in range(self.comm.size) if self.states.get(r) not in (LEFT, DEAD)]
        others = [rank for rank in there if rank != self.comm.rank]
        for tag, rank, note in said:
            self._note(note, tag, others if rank == EVERYBODY else [rank])
        if now < self._pulse:
            return
        self._pulse = now + PULSE_S
        self._note(bytes(STATE.size), PULSE, list(peers))
        for peer in peers:
            if now - self._heard.get(peer, now) > self.silence_s:
                self.lose(peer)

    def _note(self, note: bytes, tag: int, ranks: list[int]) -> None:
        for rank in ranks:
            self._notes.append((self.comm.Isend([note, self.mpi.BYTE], rank, tag), note))

    def lose(self, rank: int) -> None:
        """Give a rank up, and its lanes."""
        with self._lock:
            lost = [self._lanes.pop(key) for key in list(self._lanes) if key[0] == rank]
        for lane in lost:
            lane.conduit.hang_up()
        self._died(rank)
