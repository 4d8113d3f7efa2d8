"""``sim://NAME/N``: a box of a simulation; every request takes virtual time on the way.

The box is a real one, in this process, and does what boxes do. Its segments do not count as
mapped, so rules take the way they take over a network. Latency passes in each direction; bytes
queue in the lines of the worker and of the box, first come, first served.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from dlplatform.errors import PeerLost, UsageError
from dlplatform.memorybox.box import COMMANDS, Limits, MemoryBox
from dlplatform.memorybox.commands import changed_stripes, check_states, operating
from dlplatform.memorybox.counter import SLICE_MS, Counter
from dlplatform.memorybox.namespace import where
from dlplatform.memorybox.updates import ANSWERING
from dlplatform.transports.stream import TOPK, positions
from dlplatform.transports.transport import ACCUMULATE, Entrance, Span
from dlplatform.transports.virtual import Signal, VirtualClock
from kernels import cpu

R = TypeVar("R")
ADAM = cpu.OPERATIONS["adam"]
RETURNING = {"elastic", "merge", *ANSWERING}
_NETWORKS: dict[str, Network] = {}


class Line:
    """One direction of a machine's link: bytes leave one after the other."""

    def __init__(self, rate: float) -> None:
        self.rate, self.free = rate, 0.0

    def take(self, size: int, begin: float) -> tuple[float, float]:
        """Reserve the line from a moment on; return when the bytes begin and end."""
        first = max(self.free, begin)
        self.free = first + size / self.rate
        return first, self.free


class Port:
    """A machine's link to the network.

    Args:
        rate: bytes a second, each way.
        latency_s: of a message between this worker and a box.
    """

    def __init__(self, rate: float = math.inf, latency_s: float = 0.0) -> None:
        self.out, self.into, self.latency_s = Line(rate), Line(rate), latency_s
        self.sent = self.received = 0


def through(first: Line, second: Line, size: int, begin: float) -> tuple[float, float]:
    """Move bytes through two lines at once; return when they begin and end."""
    start, end = first.take(size, begin)
    _, later = second.take(size, start)
    return start, max(end, later)


@dataclass
class Site:
    """A simulated box: the real one, its link, and who waits for what there."""

    port: Port
    box: MemoryBox = field(default_factory=lambda: MemoryBox(Limits(memory="memfd")))
    lost: str = ""
    signals: dict[str, Signal] = field(default_factory=dict)
    calm: Signal = field(default_factory=lambda: Signal("a locked or held segment"))
    held: dict[str, SimulatedTransport] = field(default_factory=dict)
    abandoned: set[str] = field(default_factory=set)

    def signal(self, counter: str) -> Signal:
        """Return who waits for a counter."""
        return self.signals.setdefault(counter, Signal(f"counter {counter}"))


class Network:
    """Workers and boxes of one simulation, found by the name in their addresses.

    Args:
        name: of the simulation.
        clock: its time.
        workers: their links.
        boxes: their links, in order.
    """

    def __init__(
        self, name: str, clock: VirtualClock, workers: Sequence[Port], boxes: Sequence[Port]
    ) -> None:
        self.name, self.clock, self.workers = name, clock, list(workers)
        self.sites = {f"sim://{name}/{n}": Site(port) for n, port in enumerate(boxes)}
        self.upheavals = 0
        """How often a worker or a box has gone."""
        self.transports: list[SimulatedTransport] = []

    def __enter__(self) -> Self:
        _NETWORKS[self.name] = self
        return self

    def __exit__(self, *_: object) -> None:
        for transport in list(self.transports):
            transport.end()
        del _NETWORKS[self.name]

    def kill(self, machine: int) -> None:
        """Have a worker die: its connections break, its threads end where they are."""
        for transport in [each for each in self.transports if each.machine == machine]:
            transport.end()
        self.clock.kill(machine)

    def lose(self, box: int) -> None:
        """Have a box die."""
        uri, site = list(self.sites.items())[box]
        site.lost = f"{uri} is gone - allowed: boxes that live - do: continue with resume=auto"
        self.changed()

    def changed(self) -> None:
        """Have everybody who waits look up: somebody has gone."""
        self.upheavals += 1
        for site in self.sites.values():
            self.told(site)

    def told(self, site: Site) -> None:
        """Have everybody who waits at a box look again."""
        for signal in (*site.signals.values(), site.calm):
            if signal.waiting:
                self.clock.tell(signal)


class SimulatedTransport:
    """One worker's way to one box of its simulation."""

    can = frozenset({ACCUMULATE})

    def __init__(self, uri: str, entrance: Entrance) -> None:
        network = _NETWORKS.get(uri.removeprefix("sim://").rpartition("/")[0])
        if network is None or uri not in network.sites:
            raise UsageError(
                f"box address {uri!r} belongs to no simulation under way - allowed: those that "
                "simulate gives to its workers - do: see docs/simulation.md"
            )
        self.uri, self.network, self.clock = uri, network, network.clock
        self.site, self.machine = network.sites[uri], network.clock.worker
        self.port = network.workers[self.machine]
        self.session = self.site.box.open(entrance.job, entrance.token)
        network.transports.append(self)

    @property
    def lost(self) -> str:
        """Return why the box is out of reach; empty while it is there."""
        return self.site.lost

    # -- the way ------------------------------------------------------------------------------

    def visit(self, act: Callable[[], R], size: int = 0, back: int = 0) -> R:
        """Send a request with its bytes, act at the box, and come home with the answer.

        The bytes of the answer flow while those of the request still come.
        """
        answered = self._go(size, back)
        if self.site.lost:
            raise PeerLost(self.site.lost)
        result = act()
        self.clock.until(max(answered, self.clock.now()) + self.port.latency_s)
        return result

    def _go(self, size: int, back: int) -> float:
        """Travel to the box; return when the last byte of the answer can have left it."""
        self.clock.living()
        first = last = self.clock.now()
        port, there = self.port, self.site.port
        if size:
            first, last = through(port.out, there.into, size, first)
        lag = port.latency_s
        answered = last + lag
        if back:
            answered = max(answered, through(there.out, port.into, back, first + lag)[1])
        port.sent, port.received = port.sent + size, port.received + back
        self.clock.until(last + lag)
        return answered

    def call(self, command: str, **fields: Any) -> dict[str, Any]:
        """Have the box obey a command."""
        return self.visit(lambda: self._obey(command, fields))

    def _obey(self, command: str, fields: dict[str, Any]) -> dict[str, Any]:
        if command == "settled":
            fields["ms"] = 0  # it waits in the machine's time
        answer = self.site.box.obey(self.session, command, fields)
        if command == "settled" and not answer["settled"]:
            self.clock.sleep(SLICE_MS / 1000)
        if command not in COMMANDS or COMMANDS[command].changes or command in ("commit", "finish"):
            self.network.told(self.site)
        return answer

    def lease(self, command: str, **fields: Any) -> dict[str, Any]:
        """Have the box obey a command: a simulated worker has one connection."""
        return self.call(command, **fields)

    # -- segments -------------------------------------------------------------------------------

    def attach(self, key: str, floats: int, at: int = 0, share: bool = True) -> int:
        """Share a segment; nothing is mapped."""
        if share:
            self.lease("attach", key=key, floats=floats)
        return 0

    def release(self, key: str, share: bool = True) -> None:
        """Stop sharing a segment."""
        if share:
            self.lease("release", key=key)

    def _read(self, key: str, count: int, copy: Callable[[int], None]) -> None:
        def act() -> None:
            first, last = through(self.site.port.out, self.port.into, size, self.clock.now())
            self.clock.until(first)  # others are served before
            copy(self.session.entry(key).mapping.data)
            self.port.received += size
            self.clock.until(last)

        size = 4 * count
        self.visit(act)

    def read(self, key: str, start: int, count: int, into: int) -> None:
        """Copy elements of a segment to local memory."""
        self.session.span(key, start, count)
        self._read(key, count, lambda data: cpu.copy_floats(into, data + 4 * start, count))

    def read_cut(self, key: str, start: int, count: int, into: int) -> None:
        """Copy elements of a segment as they were at the moment of the worker's view."""
        mapping = self.session.span(key, start, count).mapping

        def copy(_: int) -> None:
            cpu.check(cpu.read_cut(mapping.pointer, start, count, into))

        self._read(key, count, copy)

    def changed(self, key: str, since: int) -> tuple[list[int], int]:
        """Return the stripes changed after a version, and the version of now."""
        entry = self.session.entry(key)
        answer = self.visit(lambda: changed_stripes(entry.mapping.header, entry.floats, since))
        return answer["stripes"], answer["version"]

    def apply(self, order: cpu.Operation, keys: tuple[str, ...], span: Span, x: int | str) -> None:
        """Send x for the box to apply; elastic, difference and merge bring results back."""
        op = cpu.OPERATION_NAMES[order.code]
        check_states(op, list(keys))
        local = not isinstance(x, str) and op not in cpu.ALONE
        size = payload_size(order, span, int(x)) if local else 0
        back = 4 * span.floats if op in RETURNING else 0
        self.visit(lambda: self._operate(order, keys, span, x), size, back)

    def _operate(
        self, order: cpu.Operation, keys: tuple[str, ...], span: Span, x: int | str
    ) -> None:
        session, start, at = self.session, span.start, span.at
        entries = [session.span(key, start, span.floats) for key in keys]
        self.clock.wait(self.site.calm, lambda: self._may_change(keys))
        y = where(entries)
        if isinstance(x, str):
            entries.append(session.span(x, start, span.floats))
            x, at = entries[-1].mapping.data + 4 * start, 0
        if order.code == ADAM and not order.k[6]:
            order = cpu.Operation.from_buffer_copy(order)
            order.k[6] = cpu.step(entries[0].mapping.header)
        with operating(session, entries, span.tag) as epoch:
            cpu.check(cpu.locked(order, y, start, span.floats, x, span.z, at, 0, epoch))

    def _may_change(self, keys: tuple[str, ...]) -> bool:
        free = all(self.site.held.get(key, self) is self for key in keys)
        return free and not self.session.space.gate.closed_until

    @contextmanager
    def locked(self, key: str, start: int, count: int) -> Iterator[bool]:
        """Hold a segment's locks; they are freed if this worker dies."""
        held = self.site.held
        self.visit(lambda: self.clock.wait(self.site.calm, lambda: self._may_change((key,))))
        held[key] = self
        try:
            yield key in self.site.abandoned
        finally:
            self.site.abandoned.discard(key)
            held.pop(key, None)
            self.clock.tell(self.site.calm)

    def counter(self, name: str) -> Counter:
        """Return a counter of the job, operated by the box."""
        return SimulatedCounter(name, self)

    # -- the end --------------------------------------------------------------------------------

    def end(self) -> None:
        """End this worker's session, as a broken connection does."""
        if self in self.network.transports:
            self.network.transports.remove(self)
            mine = [key for key, holder in self.site.held.items() if holder is self]
            self.site.abandoned.update(mine)
            for key in mine:
                del self.site.held[key]
            self.site.box.end(self.session)
            self.network.changed()

    def close(self) -> None:
        """Hang up."""
        self.end()


class SimulatedCounter(Counter):
    """A counter that a simulated box operates on request.

    Args:
        name: of the counter.
        way: to the box.
    """

    def __init__(self, name: str, way: SimulatedTransport) -> None:
        self.name, self.way = name, way
        self.address = way.session.space.counter(name)
        self.signal = way.site.signal(name)

    def _change(self, change: Callable[..., int | None], *values: int) -> int:
        def act() -> int:
            before = change(self.address, *values)
            self.way.clock.tell(self.signal)
            return before or 0

        return self.way.visit(act)

    @property
    def value(self) -> int:
        """Return the number."""
        return self.way.visit(lambda: int(cpu.counter_get(self.address)))

    def set(self, value: int) -> None:
        """Replace the number."""
        self._change(cpu.counter_set, value)

    def add(self, n: int = 1) -> int:
        """Add n and return what it was before."""
        return self._change(cpu.counter_add, n)

    def swap(self, expected: int, desired: int) -> int:
        """Replace it if it equals expected; return what it was before."""
        return self._change(cpu.counter_swap, expected, desired)

    def reached(self, at_least: int, ms: int) -> bool:
        """Wait at most ms for the number to reach at_least."""
        return self._stay(at_least, ms / 1000, lambda: bool(self.way.lost))

    def stay(self, at_least: int, since: float, end: float) -> bool:
        """Wait as long again as until now, or until somebody has gone: then look around."""
        network, now, slice_s = self.way.network, self.clock.now(), SLICE_MS / 1000
        seen = network.upheavals
        longest = min(max(now - since, slice_s), max(end - now, slice_s))
        return self._stay(at_least, longest, lambda: network.upheavals != seen)

    def _stay(self, at_least: int, seconds: float, disturbed: Callable[[], bool]) -> bool:
        def reached() -> bool:
            return bool(cpu.counter_get(self.address) >= at_least)

        def act() -> bool:
            end = clock.now() + seconds
            clock.wait(self.signal, lambda: reached() or disturbed(), end)
            return reached()

        clock = self.way.clock
        return self.way.visit(act)


def payload_size(order: cpu.Operation, span: Span, x: int) -> int:
    """Return how many bytes of an operation's payload concern one box."""
    entries = 0
    if order.format == TOPK:
        first, last = positions(x, order.entries, span)
        entries = last - first
    return int(cpu.payload_bytes(order.format, span.floats, entries))
