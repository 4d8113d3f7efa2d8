"""Ranks: an MPI job with boxes among its ranks - who is where, what they share, how it ends.

On one host, ranks share a window: every rank has a part of it. A box's part holds its segments, a
worker's part the slots of its lanes. Nothing in it needs MPI to make progress. Ranks on other hosts
are reached by messages (``engine``) and one-sided access (``window``).
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from dlplatform.errors import EnvironmentMissing, PeerLost, UsageError
from dlplatform.memorybox.memory import File, available, megabytes, nameless_file, pages
from dlplatform.memorybox.namespace import LINE
from dlplatform.transports.conduit import Conduit, SlotConduit
from dlplatform.transports.mpi.engine import DEAD, DONE, LEFT, RUNNING, Engine, Meet
from dlplatform.transports.mpi.pool import Cut, Pool
from dlplatform.transports.mpi.window import Window
from kernels import cpu

if TYPE_CHECKING:
    from dlplatform.transports.link import Link

SLOTS, SLOT, LANES = 4, 1 << 14, 1 << 25
LOOK_S, PAUSE_S, TOGETHER_S, FAREWELL_S = 0.1, 0.01, 120.0, 20.0
SHARED = "/dev/shm"
SLICE_US, FOREVER_US = 1000, (1 << 63) - 1
"""How often who waits for a counter looks at it where MPI changes it without a wake-up."""


def deal(nodes: Sequence[int], boxes: int) -> list[int]:
    """Return which ranks become boxes: spread over the nodes, and never rank 0.

    ``nodes`` holds the node of every rank.

    Raises:
        UsageError: when no rank would be left to work.
    """
    size = len(nodes)
    if not 1 <= boxes < size:
        raise UsageError(
            f"boxes={boxes} of {size} MPI rank(s) leave no worker - allowed: 1 to "
            f"{max(size - 1, 1)} - do: mpirun -n {boxes + 1} or more, or fewer boxes"
        )
    free = {node: [r for r, n in enumerate(nodes) if n == node and r] for node in sorted({*nodes})}
    chosen: list[int] = []

    def busy(node: int) -> tuple[int, int]:
        return sum(nodes[rank] == node for rank in chosen), -len(free[node])

    for _ in range(boxes):
        node = min((node for node, ranks in free.items() if ranks), key=busy)
        chosen.append(free[node].pop())
    return sorted(chosen)


@contextmanager
def at_most(seconds: float, what: str) -> Iterator[None]:
    """End this process with exit code 4 if a step that MPI may hang in takes longer."""

    def give_up() -> None:
        os.write(2, f"dlp: error: {what} within {seconds:g} s: an MPI rank is gone\n".encode())
        os._exit(PeerLost.exit_code)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Part:
    """One rank's part of its host's window: a lock it holds while it lives, its state, its door.

    Args:
        base: its address in this process.
        ranks: of the job.
    """

    def __init__(self, base: int, ranks: int) -> None:
        self.base = self.life = base
        self.state = base + cpu.PAGE
        self.door = self.state + LINE
        self.body = cpu.PAGE + pages(LINE * (2 + ranks))

    def knock(self, rank: int) -> int:
        """Return the address of the counter where a rank says that it wants a lane."""
        return self.door + LINE * (1 + rank)


class Ranks:
    """The ranks of this job; made by all of them together.

    Args:
        mpi: mpi4py's MPI, started.
        boxes: how many of the ranks become boxes.
        pool: bytes of every box; 0: a quarter of what its host has, shared by its boxes.
        apart: treat every rank as if it were on a host of its own.
        one_sided: whether reads from other hosts, and all counters, are one-sided operations of
            MPI; None: where that is quick.
    """

    def __init__(
        self, mpi: Any, boxes: int, pool: int = 0, apart: bool = False,
        one_sided: bool | None = None,
    ) -> None:  # fmt: skip
        self.mpi, self.comm = mpi, mpi.COMM_WORLD.Dup()
        self.rank, self.size = self.comm.rank, self.comm.size
        self.dead: set[int] = set()
        self.on_death: Callable[[int], None] = lambda rank: None
        self.engine: Engine | None = None
        self.window: Window | None = None
        self._shared: Any = None
        self.links: list[Link] = []
        self._retired: list[tuple[Cut, cpu.Slots, int]] = []
        self._threads: list[threading.Thread] = []
        self._knocking, self._over = threading.Lock(), threading.Event()
        with at_most(TOGETHER_S, "the ranks of this job did not come together"):
            near = self._neighbours(apart)
            self.boxes = deal(self.nodes, boxes)
            others = [rank for rank in range(self.size) if rank not in self.boxes]
            # Neighbours are on one host, as rule=hybrid wants its groups; rank 0 is worker 0.
            self.workers = sorted(others, key=lambda rank: (self.nodes[rank], rank))
            self.hosts: list[str] = self.comm.allgather(socket.gethostname())
            self._share(near, pool)
            if self.spread:
                self.engine = Engine(mpi, self.comm, self._died)
                self.window = self._open_window(self.engine, one_sided)
                cpu.counter_slice(SLICE_US if self.window else FOREVER_US)
            self.comm.Barrier()
        self._start(self._watch)

    def _start(self, work: Callable[..., None], *words: Any) -> None:
        thread = threading.Thread(target=work, args=words, name="ranks", daemon=True)
        self._threads.append(thread)
        thread.start()

    @property
    def is_box(self) -> bool:
        """Tell whether this rank is a box."""
        return self.rank in self.boxes

    @property
    def spread(self) -> bool:
        """Tell whether the ranks are on several hosts."""
        return len({*self.nodes}) > 1

    # -- coming together -------------------------------------------------------------------

    def _neighbours(self, apart: bool) -> Any:
        kind = self.mpi.COMM_TYPE_SHARED
        near = self.comm.Split(self.rank) if apart else self.comm.Split_type(kind)
        leader = near.bcast(self.rank, 0)
        self.nodes: list[int] = self.comm.allgather(leader)
        self.neighbours = [rank for rank, node in enumerate(self.nodes) if node == leader]
        level = self.mpi.Query_thread()
        if self.spread and level < self.mpi.THREAD_MULTIPLE:
            library = self.mpi.Get_library_version().split(",")[0].splitlines()[0]
            text = (
                f"transport=mpi over {len({*self.nodes})} hosts with {library} at thread level "
                f"{level} - allowed: MPI_THREAD_MULTIPLE ({self.mpi.THREAD_MULTIPLE}) - do: use an "
                "MPI built with it, or all ranks on one host, or transport=tcp"
            )
            raise EnvironmentMissing("" if self.rank else text)  # one says it for all
        return near

    def _share(self, near: Any, pool: int) -> None:
        """Make the window of this host, of which every rank gets a part."""
        here = sum(rank in self.boxes for rank in self.neighbours)
        # As many addresses again for views, which have memory only while they are read.
        body = 2 * pages(pool or free_here() // 4 // here) if self.is_box else LANES
        size = Part(0, self.size).body + body
        found = self._window_of(near, size)
        self.parts = {
            rank: Part(address, self.size)
            for rank, address in zip(self.neighbours, found, strict=True)
        }
        mine = self.parts[self.rank]
        self._memory = self.mpi.memory.fromaddress(mine.base, size)
        self.pool = Pool(mine.base, mine.body, body, f"the pool of MPI rank {self.rank}")
        cpu.check(cpu.header_init(mine.life, 1))
        ready = threading.Event()
        self._start(self._live, ready)
        ready.wait()

    def _window_of(self, near: Any, size: int) -> list[int]:
        """Return the addresses of everybody's parts."""
        if near.size == 1:  # MPI would take private memory, which cannot be mapped a second time
            self._alone = File(nameless_file("memfd", cpu.PAGE, size - cpu.PAGE))
            return [self._alone.map(0, size, populate=False)]
        wanted, free = near.allreduce(size), near.bcast(free_here(), 0)
        if wanted > free:  # MPI would fail on one rank and let the others wait
            text = (
                f"a shared window of {megabytes(wanted)} on {socket.gethostname()}, {SHARED} has "
                f"{megabytes(free)} - allowed: up to that, twice the pools of its boxes - do: "
                f"a smaller cluster.pool_gib, or mount -o remount,size=... {SHARED}"
            )
            raise EnvironmentMissing("" if near.rank else text)
        self._shared = self.mpi.Win.Allocate_shared(size + cpu.PAGE, 1, comm=near)
        found = [self._shared.Shared_query(place)[0].address for place in range(near.size)]
        return [pages(address) for address in found]  # Open MPI 4 begins anywhere in a page

    def _open_window(self, engine: Engine, wanted: bool | None) -> Window | None:
        """Return a window over all boxes if one-sided access is wanted, or quick everywhere."""
        window, memory = None, self._memory if self.is_box else None
        with suppress(self.mpi.Exception):  # Open MPI 4 has nothing one-sided over tcp
            window = Window(self.mpi, self.comm, memory, engine.nudge)
        far = [] if self.is_box else [box for box in self.boxes if not self.near(box)]
        good = window is not None and wanted is not False
        if window is not None and wanted is None:
            good = all(window.quick(box, cpu.PAGE) for box in far)
        if not self.comm.allreduce(good, self.mpi.LAND) and window is not None:
            window.close()
            window = None
        return window

    def _live(self, ready: threading.Event) -> None:
        """Hold a lock that the kernel gives back when this process dies."""
        life = self.parts[self.rank].life
        cpu.check(cpu.lock(life, 0))
        ready.set()
        self._over.wait()
        cpu.unlock(life, 0)

    # -- lanes -----------------------------------------------------------------------------

    def near(self, rank: int) -> bool:
        """Tell whether a rank shares memory with this one."""
        return rank in self.parts

    def dial(self, uri: str, timeout_s: float, ca: str = "") -> Conduit:
        """Open a lane to the box of an address."""
        box = int(uri.rpartition("/")[2])
        if box in self.dead or (self.near(box) and cpu.gone(self.parts[box].life)):
            raise ConnectionRefusedError(f"MPI rank {box} is gone")
        if self.engine is not None and not self.near(box):
            conduit = self.engine.connect(box)
        else:
            conduit = self._knock(box, timeout_s)
        conduit.settimeout(timeout_s)
        return conduit

    def _knock(self, box: int, timeout_s: float) -> SlotConduit:
        size = cpu.slots_bytes(SLOTS, SLOT)
        end = time.monotonic() + timeout_s
        with self._knocking:
            self._sweep()
            piece = self.pool.cut(2 * size)
            mine, theirs = self.parts[self.rank], self.parts[box]
            inward = mine.base + piece.offset
            for row in (inward, inward + size):
                cpu.slots_init(row, SLOTS, SLOT)
            while cpu.counter_swap(theirs.knock(self.rank), 0, piece.offset):
                if time.monotonic() > end:
                    piece.close()
                    raise TimeoutError(f"MPI rank {box} opens no lane")
                time.sleep(PAUSE_S / 10)
            cpu.counter_add(theirs.door, 1)
        closed = (piece, cpu.Slots.from_address(inward), box)
        return SlotConduit(
            inward, inward + size, life=theirs.life, freed=lambda: self._retired.append(closed)
        )

    def _sweep(self) -> None:
        """Use the memory of lanes again that both sides have closed."""
        for each in list(self._retired):
            piece, slots, box = each
            if slots.left or box in self.dead:
                self._retired.remove(each)
                piece.close()

    def open_doors(self, meet: Meet) -> None:
        """Have a box meet whoever wants a lane, from now on."""
        if self.engine is not None:
            self.engine.open_doors(meet)
        self._start(self._doors, meet)

    def _doors(self, meet: Meet) -> None:
        mine = self.parts[self.rank]
        while not self._over.is_set():
            seen = cpu.counter_get(mine.door)
            for rank, theirs in self.parts.items():
                if offset := cpu.counter_get(mine.knock(rank)):
                    cpu.counter_set(mine.knock(rank), 0)
                    meet(partial(_other, theirs.base + offset, theirs.life))
            cpu.counter_wait(mine.door, seen + 1, 200)

    # -- the end ---------------------------------------------------------------------------

    def state(self, rank: int) -> int:
        """Return what a rank says of itself, or DEAD."""
        if rank in self.dead:
            return DEAD
        if rank in self.parts:
            return int(cpu.counter_get(self.parts[rank].state))
        return self.engine.states.get(rank, RUNNING) if self.engine else RUNNING

    def say(self, state: int) -> None:
        """Tell all ranks what this one does from now on."""
        cpu.counter_set(self.parts[self.rank].state, state)
        if self.engine is not None:
            self.engine.say(state)
            if state == LEFT:
                self.engine.flush()

    def _watch(self) -> None:
        """Notice who dies: at once on this host, by its silence on others."""
        while not self._over.wait(LOOK_S):
            for rank, part in self.parts.items():
                if self.state(rank) == RUNNING and cpu.gone(part.life):
                    self._died(rank)

    def _died(self, rank: int) -> None:
        if rank not in self.dead:
            self.dead.add(rank)
            if self.engine is not None:
                self.engine.say(DEAD, rank)
            self.on_death(rank)

    def describe(self, rank: int) -> str:
        """Say which rank it is, in one phrase."""
        kind = "box" if rank in self.boxes else "worker"
        number = (self.boxes if rank in self.boxes else self.workers).index(rank)
        return f"MPI rank {rank} ({kind} {number} on {self.hosts[rank]})"

    def obituary(self) -> str:
        """Return the one line about those who have died."""
        who = ", ".join(self.describe(rank) for rank in sorted(self.dead))
        return (
            f"{who} died - allowed: none, an MPI job ends with its first rank - do: see its log, "
            "and continue with resume=auto"
        )

    def last_words(self) -> str:
        """Return the obituary at the lowest rank that lives, and nothing at the others."""
        living = (rank for rank in range(self.size) if rank not in self.dead)
        return self.obituary() if self.rank == min(living) else ""

    def wait_for(self, ranks: Sequence[int]) -> set[int]:
        """Wait until none of these ranks runs any more; return what became of them."""
        while RUNNING in (states := {self.state(rank) for rank in ranks}):
            time.sleep(PAUSE_S)
        return states

    def finish(self) -> bool:
        """Wait until all ranks are done, and give the windows back; false if somebody has left.

        Raises:
            PeerLost: when somebody has died.
        """
        self.say(DONE)
        states = self.wait_for(range(self.size))
        if self.dead:
            raise PeerLost(self.last_words())
        if states != {DONE}:
            return False
        with at_most(FAREWELL_S, "MPI did not end"):
            if self.engine is not None:
                self.engine.close()
            if self.window is not None:
                self.window.close()
            self._over.set()
            for thread in self._threads:
                thread.join()
            self.pool.shut()
            if self._shared is not None:
                self._shared.Free()
        return True


def free_here() -> int:
    """Return how many bytes of shared memory this host can still give."""
    if not os.path.isdir(SHARED):
        return available()
    room = os.statvfs(SHARED)
    return min(available(), room.f_bavail * room.f_frsize)


def _other(base: int, life: int) -> SlotConduit:
    """Return the box's side of a lane whose slots lie in a worker's part."""
    return SlotConduit(base + cpu.slots_bytes(SLOTS, SLOT), base, life=life)
