"""What inproc and shm share: segments are mapped, the caller runs operations itself."""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dlplatform.errors import BoxError, PeerLost
from dlplatform.memorybox.commands import changed_stripes
from dlplatform.memorybox.counter import Counter, MappedCounter
from dlplatform.memorybox.memory import Ground, Mapping
from dlplatform.memorybox.namespace import COUNTERS, EPOCH, GATE, LINE
from dlplatform.transports.transport import ACCUMULATE, MAPPED, Entrance, Span
from kernels import cpu

ADAM = cpu.OPERATIONS["adam"]


class MappedTransport:
    """One-sided by nature: reads, writes, operations and counters are loads and stores."""

    can = frozenset({MAPPED, ACCUMULATE})
    lost = ""

    def __init__(self, uri: str, entrance: Entrance) -> None:
        self.uri, self.entrance = uri, entrance
        self.segments: dict[str, Mapping] = {}
        self._turn = os.getpid()
        self._counters = 0
        self._lock = threading.Lock()
        self._where: dict[str | tuple[str, ...], Any] = {}
        self._threads, self._own = itertools.count(), threading.local()

    def call(self, command: str, **fields: Any) -> dict[str, Any]:
        """Have the box obey a command."""
        raise NotImplementedError

    def lease(self, command: str, **fields: Any) -> dict[str, Any]:
        """Call on the connection that stands for this worker."""
        raise NotImplementedError

    def ground(self, key: str) -> Ground:
        """Return what a segment lies in, or the counters for no key; the caller closes it."""
        raise NotImplementedError

    def attach(self, key: str, floats: int, at: int = 0, share: bool = True) -> int:
        """Share a segment and map it, at an address of the caller's choice or anywhere."""
        if share:
            self.lease("attach", key=key, floats=floats)
        try:
            ground = self.ground(key)
            try:
                mapping = Mapping(ground, floats, at)
            finally:
                ground.close()
            if not cpu.header_check(mapping.header, floats):
                mapping.unmap()
                raise PeerLost(
                    f"{self.uri} handed over memory of another layout - allowed: boxes of this "
                    "version - do: run the same dlplatform on both sides"
                )
        except BaseException:
            if share:
                self.lease("release", key=key)
            raise
        self.segments[key] = mapping
        return mapping.data

    def release(self, key: str, share: bool = True) -> None:
        """Unmap a segment and stop sharing it."""
        with self._lock:
            self._where = {keys: known for keys, known in self._where.items() if key not in keys}
        self.segments.pop(key).unmap()
        if share:
            self.lease("release", key=key)

    def read(self, key: str, start: int, count: int, into: int) -> None:
        """Copy elements of a segment to local memory."""
        if self.lost:
            raise PeerLost(self.lost)
        cpu.copy_floats(into, self.segments[key].data + 4 * start, count)

    def read_cut(self, key: str, start: int, count: int, into: int) -> None:
        """Copy elements of a segment as they were at the moment of the worker's view."""
        if self.lost:
            raise PeerLost(self.lost)
        cpu.check(cpu.read_cut(self.segments[key].pointer, start, count, into))

    def changed(self, key: str, since: int) -> tuple[list[int], int]:
        """Return the stripes changed after a version, and the version of now."""
        mapping = self.segments[key]
        answer = changed_stripes(mapping.header, mapping.floats, since)
        return answer["stripes"], answer["version"]

    def apply(self, order: cpu.Operation, keys: tuple[str, ...], span: Span, x: int | str) -> None:
        """Run an operation here, on the mapped memory, under the locks of its stripes."""
        if self.lost:
            raise PeerLost(self.lost)
        if span.epoch < 0:  # other boxes of the cluster are not mapped: only this gate is entered
            with self._entered() as epoch:
                self._locked(order, keys, span._replace(epoch=epoch), x)
        else:
            self._locked(order, keys, span, x)

    def _locked(
        self, order: cpu.Operation, keys: tuple[str, ...], span: Span, x: int | str
    ) -> None:
        start, count, at, _, z, epoch, _ = span
        if isinstance(x, str):
            x, at = self.segments[x].data + 4 * start, 0
        where = self._where.get(keys[0] if len(keys) == 1 else keys) or self._known(keys)
        self._turn += 1
        if order.code == ADAM and not order.k[6]:
            order = cpu.Operation.from_buffer_copy(order)
            order.k[6] = cpu.step(self.segments[keys[0]].header)
        code = cpu.locked(order, where, start, count, x, z, at, self._turn, epoch)
        if code:
            self._stuck(code, keys[0])

    def _known(self, keys: tuple[str, ...]) -> Any:
        found = cpu.Where(*(self.segments[key].pointer for key in keys))
        with self._lock:
            self._where[keys[0] if len(keys) == 1 else keys] = found
        return found

    def _stuck(self, code: int, key: str) -> None:
        """Say which process holds a stripe and does not go on."""
        header = self.segments[key].header
        stripes = range(-(-self.segments[key].floats // cpu.STRIPE))
        owners = {stripe: cpu.owner(header, stripe) for stripe in stripes}
        held = [f"stripe {stripe} by process {pid}" for stripe, pid in owners.items() if pid]
        raise BoxError(
            f"a stripe lock was not obtained: {os.strerror(-code)}; held: "
            f"{', '.join(held[:4]) or 'none'} - allowed: owners that go on - do: continue or end "
            "that process"
        )

    def _gate(self) -> Any:
        """Return this thread's sight of the job's gate: it says when an operation is under way."""
        slot = f"op/{self.entrance.token}/{next(self._threads)}"
        self._own.gate = cpu.Gate(*(self._address(name) for name in (EPOCH, GATE, slot)))
        return self._own.gate

    def run(self, order: cpu.Operation, key: str, x: int, z: int) -> bool:
        """Run an operation on a whole segment; false when the gate is shut."""
        if self.lost:
            raise PeerLost(self.lost)
        own = self._own.__dict__
        gate = own.get("gate") or self._gate()
        where = self._where.get(key) or self._known((key,))
        self._turn += 1
        code = cpu.gated(order, where, gate, x, z, self._turn)
        if code and code != -errno.EAGAIN:
            self._stuck(code, key)
        return not code

    @contextmanager
    def _entered(self) -> Iterator[int]:
        while (epoch := self.enter()) < 0:
            self.opened()
        try:
            yield epoch
        finally:
            self.leave()

    def enter(self) -> int:
        """Enter the box's gate for one operation of this thread; return its epoch."""
        return int(cpu.enter(self._own.__dict__.get("gate") or self._gate()))

    def within(self, epoch: int) -> bool:
        """Tell whether the epoch is still the one in which this thread entered."""
        return bool(cpu.counter_get(self._own.gate.epoch) == epoch)

    def leave(self) -> None:
        """Leave the gate."""
        cpu.leave(self._own.gate.slot)

    def opened(self) -> None:
        """Wait a moment for a closed gate."""
        cpu.counter_wait(self._own.gate.shut, 0, 100)

    def counter(self, name: str) -> Counter:
        """Return a counter of the job, mapped."""
        return MappedCounter(name, self._address(name))

    def _address(self, name: str) -> int:
        with self._lock:
            if not self._counters:
                ground = self.ground("")
                self._counters = ground.map(0, COUNTERS * LINE)
                ground.close()
        return self._counters + LINE * int(self.call("slot", name=name)["slot"])

    @contextmanager
    def locked(self, key: str, start: int, count: int) -> Iterator[bool]:
        """Hold the locks of a span's stripes; they are freed if this process dies."""
        header, held, told = self.segments[key].header, [], 0
        try:
            for stripe in range(start // cpu.STRIPE, (start + count - 1) // cpu.STRIPE + 1):
                code = cpu.lock(header, stripe)
                if code < 0:
                    self._stuck(code, key)
                held.append(stripe)
                told |= code
            yield bool(told)
        finally:
            for stripe in held:
                cpu.unlock(header, stripe)

    def close(self) -> None:
        """Unmap everything."""
        for mapping in self.segments.values():
            mapping.unmap()
        self.segments.clear()
        if self._counters:
            cpu.unmap(self._counters, COUNTERS * LINE)
            self._counters = 0
