"""Cluster: this process's handle on the ordered memory boxes of a job."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from dlplatform.errors import PeerLost, PlatformError, UsageError
from dlplatform.memorybox.buffer import ALLOCATION, SharedBuffer
from dlplatform.memorybox.counter import SLICE_MS, Counter
from dlplatform.memorybox.event import Event
from dlplatform.memorybox.segment import split
from dlplatform.memorybox.session import DIED, FINISHED, JOINED, LEFT
from dlplatform.memorybox.timing import CLOCK, Clock
from dlplatform.memorybox.view import View
from dlplatform.transports.transport import (
    ACCUMULATE,
    MAPPED,
    Entrance,
    Transport,
    open_transport,
)  # fmt: skip

NOBODY, PAUSE_S = ("", 0), 0.002
NO_EPOCHS: dict[Transport, int] = {}


def mirrored(boxes: list[str], replicas: int) -> dict[str, str]:
    """Return which box keeps a copy of each: the next one."""
    if replicas not in (0, 1) or (replicas and len(boxes) < 2):
        raise UsageError(
            f"cluster.replicas={replicas} of {len(boxes)} boxes - allowed: 0, or 1 with two boxes "
            "or more - do: add a box"
        )
    following = boxes[1:] + boxes[:1]
    return dict(zip(boxes, following, strict=True)) if replicas else {}


class Cluster:
    """Boxes in the same order for every process: create, attach, counters, membership.

    Args:
        boxes: addresses (``inproc://``, ``shm://``, ``tcp://``), the same order everywhere.
        job: namespace inside the boxes; processes of one job share it.
        secret: what the boxes were started with.
        timeout_s: patience with a box that does not answer, and with workers that do not come.
        replicas: 1: every box is mirrored by the next one, and workers go on there if it dies.
        ca: file of the authority that vouches for ``tls://`` boxes; empty: DLP_CA, or the system.
    """

    window_s = 0.0
    """Where a box cannot accumulate, a value read at most so long ago is not read again (B12)."""

    def __init__(
        self, boxes: Sequence[str], job: str = "job", secret: bytes = b"", timeout_s: float = 60.0,
        replicas: int = 0, ca: str = "",
    ) -> None:  # fmt: skip
        if not boxes:
            raise UsageError("cluster.boxes=[]: 0 boxes - allowed: 1 or more - do: name a box")
        self.job, self.timeout_s = job, timeout_s
        self.transports: list[Transport] = []
        mirrors = mirrored(list(boxes), replicas)
        self.entrance = Entrance(job, secret, timeout_s, mirrors=mirrors, ca=ca)
        try:
            for uri in boxes:
                self.transports.append(open_transport(uri, self.entrance))
            for number, transport in enumerate(self.transports):
                transport.lease("place", number=number)
        except BaseException:
            for transport in self.transports:
                transport.close()
            raise
        self.clock: Clock = getattr(self.transports[0], "clock", CLOCK)
        self.mapped = all(MAPPED in transport.can for transport in self.transports)
        self._pool = self.clock.pool(len(boxes)) if len(boxes) > 1 and not self.mapped else None
        self.plain = not all({ACCUMULATE, MAPPED} & t.can for t in self.transports)
        self._own, self._threads = threading.local(), itertools.count()
        self._counters: dict[str, Counter] = {}
        self.attached: set[str] = set()
        self.rank, self.size = -1, 0

    # -- buffers -----------------------------------------------------------------------

    def create(
        self, name: str, length: int, weights: Sequence[float] | None = None,
        owner: int | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Create a buffer of ``length`` fp32 zeros, cut over all boxes by their weights.

        With an ``owner``, only that rank and this process may touch it (P-PS 26, 86); without,
        it is the master's and open to all. Returns the buffer's information (size, creation
        key, segments) for ``attach`` here and elsewhere, by any way (``publish``, MPI). All
        segments exist afterwards, or none.
        """
        fields = {"owner": -1 if owner is None else owner}
        key, made = self._in_all("create", "delete", name, self._cut(length, weights), fields)
        return {"name": name, "length": length, "key": key, "segments": made}

    def allocate(
        self, name: str, length: int, weights: Sequence[float] | None = None
    ) -> SharedBuffer:
        """Find a parameter by its name or allocate it; the boxes count who uses it (P-BOX 71-91).

        The lookup, the allocation and the count are one step in each box. ``SharedBuffer.free``
        is the reverse: the last one frees the memory.
        """
        with self.locked(ALLOCATION):
            key, made = self._in_all("allocate", "free", name, self._cut(length, weights), {})
        info = {"name": name, "length": length, "key": key, "segments": made}
        return SharedBuffer(self, info, counted=True)

    def _cut(self, length: int, weights: Sequence[float] | None) -> list[tuple[int, int]]:
        return split(length, list(weights or [1.0] * len(self.transports)))

    def _in_all(
        self, command: str, undo: str, name: str, pieces: list[tuple[int, int]],
        fields: dict[str, Any],
    ) -> tuple[str, list[list[int]]]:  # fmt: skip
        """Have every box make its segment, or none; the first one chooses the key."""
        key, made = "", []
        try:
            for box, (offset, count) in enumerate(pieces):
                if count:
                    call = self.transports[box].lease
                    key = call(command, name=name, floats=count, key=key, **fields)["key"]
                    made.append([box, offset, count])
        except PlatformError:
            for box, _, _ in made:
                with suppress(PlatformError):
                    self.transports[box].lease(undo, key=key)
            raise
        return key, made

    def attach(self, info: dict[str, Any]) -> SharedBuffer:
        """Share a buffer that someone created, by its information."""
        return SharedBuffer(self, info)

    def buffer(self, name: str, length: int, creator: bool) -> SharedBuffer:
        """Create and announce a buffer, or wait for its creator's announcement; then attach."""
        if creator:
            self.publish(f"buffer/{name}", self.create(name, length))
        return self.attach(self.lookup(f"buffer/{name}"))

    def layers(
        self, name: str, sizes: dict[str, int], owner: int | None = None
    ) -> dict[str, dict[str, Any]]:
        """Create one region for every layer's parameters (P-PS 87); return their information."""
        return {
            layer: self.create(f"{name}/{layer}", size, owner=owner)
            for layer, size in sizes.items()
        }

    def event(self, name: str) -> Event:
        """Return an event of the job, to set up, announce or wait for (P-PS 58)."""
        return Event(self, name)

    @contextmanager
    def locked(self, name: str = "table") -> Iterator[bool]:
        """Hold a named lock of the job, the mapping table's by default (P-BOX 84).

        It is freed when this worker dies. Yields true when its last owner died holding it.
        """
        call, end = self.transports[0].lease, self.clock.now() + self.timeout_s
        while not (answer := call("acquire", name=name))["held"]:
            self.check()
            if self.clock.now() > end:
                raise PeerLost(
                    f"lock {name} is held by worker {answer['by']}, waited {self.timeout_s:g} s - "
                    "allowed: cluster.timeout_s - do: look for a stuck worker"
                )
            self.clock.sleep(PAUSE_S)
        try:
            yield bool(answer["abandoned"])
        finally:
            call("give_back", name=name)

    def parallel(self, calls: Sequence[Callable[[], Any]]) -> None:
        """Run one call per box, at the same time where boxes do the work."""
        if self._pool is None or len(calls) == 1:
            for call in calls:
                call()
            return
        futures = [self._pool.submit(call) for call in calls]
        for future in futures:
            future.result()

    @contextmanager
    def operation(self) -> Iterator[tuple[dict[Transport, int], tuple[str, int]]]:
        """Yield an operation's epoch in each mapped box, and its number in this thread.

        A mapped operation enters the gates of all boxes before it does anything, so that a view
        of several boxes holds it everywhere or nowhere.
        """
        if not self.mapped:
            yield NO_EPOCHS, self._tag()
            return
        epochs = self._enter()
        try:
            yield epochs, NOBODY
        finally:
            for transport in epochs:
                transport.leave()  # type: ignore[attr-defined]

    def _enter(self) -> dict[Transport, int]:
        while True:
            epochs: dict[Transport, int] = {}
            for transport in self.transports:
                epoch = transport.enter()  # type: ignore[attr-defined]
                if epoch < 0:
                    break
                epochs[transport] = epoch
            first = self.transports[0]
            # A view begins in the first box: if one did since that was entered, others are late.
            if len(epochs) == len(self.transports) and first.within(epochs[first]):  # type: ignore[attr-defined]
                return epochs
            for entered in epochs:
                entered.leave()  # type: ignore[attr-defined]
            transport.opened()  # type: ignore[attr-defined]
            self.check()

    def _tag(self) -> tuple[str, int]:
        number: int = getattr(self._own, "number", 0) + 1
        if number == 1:
            self._own.thread = str(next(self._threads))
        self._own.number = number
        return self._own.thread, number

    @property
    def holding(self) -> bool:
        """Tell whether this thread holds locks: then its connections are not shared out."""
        return bool(getattr(self._own, "holding", 0))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Use this thread's connections only."""
        self._own.holding = getattr(self._own, "holding", 0) + 1
        try:
            yield
        finally:
            self._own.holding -= 1

    def snapshot(self, *buffers: SharedBuffer) -> View:
        """Return a consistent view of buffers: ``with cluster.snapshot(g, d) as view: ...``."""
        return View(self, buffers)

    # -- counters and notices ------------------------------------------------------------

    def counter(self, name: str) -> Counter:
        """Return a counter of the job; all of them live in the first box."""
        if name not in self._counters:
            self._counters[name] = self.transports[0].counter(name)
            self._counters[name].guard, self._counters[name].clock = self.check, self.clock
        return self._counters[name]

    def publish(self, name: str, value: Any) -> None:
        """Pin a small value (msgpack types) to the job's notice board."""
        self.transports[0].call("publish", name=name, value=value)

    def glance(self, name: str) -> Any:
        """Return a value from the notice board, or None if it is not there yet."""
        return self.transports[0].call("lookup", name=name)["value"]

    def lookup(self, name: str) -> Any:
        """Wait for a value on the notice board."""
        end = self.clock.now() + self.timeout_s
        notices = self.counter("notices")
        while True:
            # Read first: whoever has died meanwhile may have published before.
            seen, dead = notices.value, [rank for rank in self.dead() if rank < self.size]
            if (value := self.glance(name)) is not None:
                return value
            if dead:
                self.check_peers(dead)
            notices.reached(seen + 1, SLICE_MS)
            self.check()
            if self.clock.now() > end:
                raise PeerLost(
                    f"nobody published {name} within {self.timeout_s:g} s - allowed: "
                    "cluster.timeout_s - do: see the log of rank 0, or raise it"
                )

    # -- members -------------------------------------------------------------------------

    def join(self, rank: int, size: int) -> None:
        """Become a member and wait until all ``size`` have come.

        A rank beyond the size is one of ``enrol``: it comes to a running job and does not wait.
        """
        self.rank, self.size = rank, size
        for transport in self.transports:
            transport.lease("join", rank=rank)
        self.counter("ranks").swap(0, size)
        if rank >= size:
            return
        try:
            self.counter("members").wait(size, self.timeout_s, self.check)
        except PeerLost:
            self.check()
            come = self.counter("members").value
            raise PeerLost(
                f"{come} of {size} workers came within {self.timeout_s:g} s - allowed: all - do: "
                "see the logs of the missing ranks, or raise cluster.timeout_s"
            ) from None

    def enrol(self, count: int) -> int:
        """Take ``count`` new ranks in a row for workers that join a running job; return the first.

        ``size`` stays the number of those who began the job.
        """
        self.counter("ranks").wait(1, self.timeout_s)
        return self.counter("ranks").add(count)

    def ranks(self) -> range:
        """Return every rank that the job has given out so far, also to those who are gone."""
        return range(max(self.size, self.counter("ranks").value))

    def here(self) -> list[int]:
        """Return the ranks of those who have come and neither left nor died."""
        return [rank for rank in self.ranks() if self.state(rank) in (JOINED, FINISHED)]

    def state(self, rank: int) -> int:
        """Return what a member does: JOINED, FINISHED, LEFT, DIED (0: never came)."""
        return self.counter(f"member/{rank}").value

    def gone(self, states: Sequence[int] = (LEFT, DIED)) -> list[int]:
        """Return the ranks that have left or died."""
        if not self.counter("departures").value:
            return []
        return [rank for rank in self.ranks() if self.state(rank) in states]

    def dead(self) -> list[int]:
        """Return the ranks whose process died."""
        return self.gone((DIED,))

    def is_chief(self) -> bool:
        """Tell whether this worker reports for all: the lowest rank still here."""
        if self.rank > 0 and not self.counter("departures").value:
            return False
        return not any(self.state(rank) in (JOINED, FINISHED) for rank in range(self.rank))

    def finished(self) -> None:
        """Tell the others that this worker has pushed its last update."""
        self.counter(f"member/{self.rank}").set(FINISHED)

    def everyone_finished(self) -> bool:
        """Tell whether nobody trains any more."""
        return all(self.state(rank) != JOINED for rank in self.ranks())

    def check(self) -> None:
        """Raise PeerLost when a box is gone."""
        for transport in self.transports:
            if transport.lost:
                raise PeerLost(transport.lost)

    def check_peers(self, needed: Sequence[int] | None = None) -> None:
        """Raise PeerLost when a box is gone, or a worker that the caller waits for.

        Without ``needed`` these are all who began the job: nobody waits for one who joined later.
        """
        self.check()
        if not (gone := self.gone()):
            return
        awaited = range(self.size) if needed is None else needed
        missing = [rank for rank in gone if rank in awaited]
        if missing:
            # Those who left because of the dead are not the reason.
            died = [rank for rank in missing if self.state(rank) == DIED]
            who = ", ".join(str(rank) for rank in died or missing)
            how = "died" if died else "left"
            raise PeerLost(
                f"worker {who} {how} and this rule needs all {self.size} - allowed: rule=asgd or "
                "rule=easgd survive it - do: continue with resume=auto"
            )

    def close(self) -> None:
        """Leave the job and hang up; what this worker still shared is given back."""
        for transport in self.transports:
            if not transport.lost:
                with suppress(PlatformError, OSError):
                    transport.lease("leave")
            transport.close()
        if self._pool is not None:
            self._pool.shutdown(wait=False)
