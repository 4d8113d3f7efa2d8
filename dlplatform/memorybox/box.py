"""MemoryBox: the commands a box obeys, one small method each.

The same object serves a process of its own (``server``) and lives inside a lone worker
(``transports/inproc``). It imports neither torch nor numpy nor MPI.
"""

from __future__ import annotations

import ctypes
import threading
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import msgpack

from dlplatform.errors import BoxError, closest
from dlplatform.memorybox.memory import Mapping
from dlplatform.memorybox.table import Entry, Table
from kernels import cpu

JOINED, FINISHED, LEFT, DIED = 1, 2, 3, 4
LARGEST_SUM, LARGEST_NOTICE = 4096, 1 << 18
Fields = dict[str, Any]


@dataclass
class Session:
    """What the box knows of one connection: its job, its rank, what it attached."""

    job: str = ""
    rank: int = -1
    attached: Tally[str] = field(default_factory=Tally)
    polite: bool = False

    def scoped(self, name: str) -> str:
        """Put a name into the job's namespace."""
        return f"{self.job}:{name}"


class MemoryBox:
    """RAM cut into segments, and the few commands allowed on them."""

    def __init__(self, memory: str = "/dev/shm") -> None:
        self.table = Table(memory)
        self._jobs: Tally[str] = Tally()
        self._lock = threading.Lock()

    def obey(self, session: Session, command: str, fields: Fields) -> Fields:
        """Run one command; a BoxError refuses it and changes nothing."""
        method: Callable[..., Fields | None] | None = getattr(self, f"do_{command}", None)
        if method is None:
            known = [n[3:] for n in dir(self) if n.startswith("do_")]
            raise BoxError(
                f"command {command!r} is unknown{closest(str(command), known)} - allowed: "
                f"{', '.join(known)} - do: use the same version on both sides"
            )
        try:
            return method(session, **fields) or {}
        except (TypeError, ctypes.ArgumentError) as error:
            raise BoxError(
                f"command {command} got wrong fields: {error} - allowed: those of its docstring "
                "- do: use the same version on both sides"
            ) from None

    # -- who is there ------------------------------------------------------------------

    def do_open(self, session: Session, job: str) -> None:
        """Bind a connection to its job's namespace."""
        if session.job or not isinstance(job, str) or not 0 < len(job) <= 200 or ":" in job:
            raise BoxError(
                f"open job {job!r} - allowed: once a connection, 1 to 200 characters without ':' - "
                "do: choose another job name"
            )
        session.job = job
        with self._lock:
            self._jobs[session.job] += 1

    def do_join(self, session: Session, rank: int) -> None:
        """Make the connection the lease of a worker: if it breaks, the worker has died."""
        session.rank = int(rank)
        cpu.counter_set(self._member(session), JOINED)
        cpu.counter_add(self._counter(session, "members"), 1)

    def do_leave(self, session: Session) -> None:
        """Say goodbye: the end of this connection is no death."""
        session.polite = True

    def _counter(self, session: Session, name: str) -> int:
        return self.table.counter(session.scoped(name))

    def _member(self, session: Session) -> int:
        return self._counter(session, f"member/{session.rank}")

    def close(self, session: Session) -> None:
        """End a connection: give back what it shared, tell the others, forget an empty job."""
        if not session.job:
            return
        for key in session.attached.elements():
            with suppress(BoxError):  # deleted meanwhile
                self.table.release(key)
        if session.rank >= 0:
            with suppress(BoxError):  # no slot left to say so
                cpu.counter_set(self._member(session), LEFT if session.polite else DIED)
                cpu.counter_add(self._counter(session, "departures"), 1)
        with self._lock:
            self._jobs[session.job] -= 1
            gone = self._jobs[session.job] == 0
        if gone:
            self.table.forget(session.job)

    # -- segments ----------------------------------------------------------------------

    def do_create(self, session: Session, name: str, floats: int, key: str = "") -> Fields:
        """Allocate a segment of a new buffer and return its creation key."""
        return {"key": self.table.create(session.scoped(name), int(floats), str(key)).key}

    def do_attach(self, session: Session, key: str, floats: int) -> None:
        """Share a segment."""
        self.table.attach(self.owned(session, key).key, int(floats))
        session.attached[key] += 1

    def do_release(self, session: Session, key: str) -> Fields:
        """Stop sharing a segment."""
        if not session.attached[key]:
            return {"shared_by": self.owned(session, key).shared_by}
        session.attached[key] -= 1
        return {"shared_by": self.table.release(key)}

    def do_delete(self, session: Session, key: str) -> None:
        """Free a segment that nobody shares."""
        self.table.delete(self.owned(session, key).key)

    def owned(self, session: Session, key: str) -> Entry:
        """Return a segment of the session's own job; others' are not to be seen."""
        entry = self.table.entry(str(key))
        if not entry.name.startswith(session.job + ":"):
            return self.table.entry("")
        return entry

    def span(self, session: Session, key: str, start: int, count: int) -> Entry:
        """Return a segment after checking that start..start+count lies inside."""
        entry = self.owned(session, key)
        if start < 0 or count < 0 or start + count > entry.floats:
            raise BoxError(
                f"{entry.name}: elements {start} to {start + count} - allowed: 0 to "
                f"{entry.floats} - do: check offset and length"
            )
        return entry

    @contextmanager
    def using(
        self, session: Session, keys: Sequence[str], start: int, count: int
    ) -> Iterator[list[Mapping]]:
        """Lend the memory of segments, each with the same span checked, for one operation."""
        entries = [self.span(session, key, start, count) for key in keys]
        with self.table.using(*entries):
            yield [entry.mapping for entry in entries]

    # -- operations between segments of this box -----------------------------------------

    def do_apply(
        self, session: Session, op: str, key: str, start: int, count: int,
        a: float, b: float = 0.0, source: str = "",
    ) -> None:  # fmt: skip
        """Apply an operation with another segment as x; the target is locked by stripes."""
        if op not in ("scal", "axpy", "axpby") or (op == "scal") == bool(source):
            raise BoxError(
                f"operation {op!r} between segments - allowed: scal, and axpy or axpby with a "
                "source - do: send x with the operation instead"
            )
        keys = [key, source] if source else [key]
        with self.using(session, keys, start, count) as (y, *sources):
            x = sources[0].data + 4 * start if sources else None
            code = cpu.OPERATIONS[op]
            cpu.check(cpu.locked(code, y.header, y.data, start, count, x, None, a, b, 0))

    def do_sum(
        self, session: Session, key: str, sources: list[str], start: int, count: int, scale: float
    ) -> None:
        """Write scale * (sum of the sources, in order) into a segment."""
        _check_sources(sources)
        with self.using(session, [key, *sources], start, count) as (y, *regions):
            x = cpu.pointers([region.data + 4 * start for region in regions])
            cpu.sum_into(y.data + 4 * start, x, len(regions), count, scale)

    def do_average(
        self, session: Session, sources: list[str], start: int, count: int, scale: float
    ) -> None:
        """Write scale * (sum of the sources, in order) into every one of them."""
        _check_sources(sources)
        with self.using(session, sources, start, count) as regions:
            x = cpu.pointers([region.data + 4 * start for region in regions])
            cpu.average(x, len(regions), count, scale)

    # -- counters and notices --------------------------------------------------------------

    def do_slot(self, session: Session, name: str) -> Fields:
        """Return where a counter is in the file of counters."""
        return {"slot": self.table.slot(session.scoped(name))}

    def do_get(self, session: Session, name: str) -> Fields:
        """Return a counter's value."""
        return {"value": cpu.counter_get(self._counter(session, name))}

    def do_set(self, session: Session, name: str, value: int) -> None:
        """Set a counter."""
        cpu.counter_set(self._counter(session, name), value)

    def do_add(self, session: Session, name: str, n: int) -> Fields:
        """Add to a counter and return what it held before."""
        return {"value": cpu.counter_add(self._counter(session, name), n)}

    def do_swap(self, session: Session, name: str, expected: int, desired: int) -> Fields:
        """Compare and swap a counter and return what it held before."""
        return {"value": cpu.counter_swap(self._counter(session, name), expected, desired)}

    def do_wait(self, session: Session, name: str, at_least: int, ms: int) -> Fields:
        """Wait at most ms (up to 1000) for a counter to reach a value."""
        limit = min(max(int(ms), 0), 1000)
        return {"reached": bool(cpu.counter_wait(self._counter(session, name), at_least, limit))}

    def do_publish(self, session: Session, name: str, value: Any) -> None:
        """Pin a small value to the job's notice board."""
        packed: bytes = msgpack.packb(value)
        if len(packed) > LARGEST_NOTICE:
            raise BoxError(
                f"publish {name}: {len(packed)} bytes - allowed: {LARGEST_NOTICE} - do: put large "
                "data into a buffer"
            )
        self.table.publish(session.scoped(name), packed)
        cpu.counter_add(self._counter(session, "notices"), 1)

    def do_lookup(self, session: Session, name: str) -> Fields:
        """Return a value from the notice board, or None."""
        packed = self.table.notices.get(session.scoped(name))
        return {"value": None if packed is None else msgpack.unpackb(packed)}

    def do_status(self, session: Session) -> Fields:
        """Return what the box holds."""
        entries = list(self.table.entries.values())
        return {
            "jobs": sum(count > 0 for count in self._jobs.values()),
            "sessions": sum(self._jobs.values()),
            "segments": len(entries),
            "bytes": sum(entry.floats * 4 for entry in entries),
        }


def _check_sources(keys: list[str]) -> None:
    if not 1 <= len(keys) <= LARGEST_SUM:
        raise BoxError(
            f"{len(keys)} sources - allowed: 1 to {LARGEST_SUM} - do: name the regions to add"
        )
