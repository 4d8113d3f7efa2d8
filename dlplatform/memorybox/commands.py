"""The commands of a box: what a worker may ask for, one small function each.

Each gets the box, the session of whoever asks, and its fields. Requests with bytes behind them
are in ``updates`` and ``server``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dlplatform.errors import BoxError, NotNow
from dlplatform.memorybox import notes as notes
from dlplatform.memorybox.box import command
from dlplatform.memorybox.cut import Cut
from dlplatform.memorybox.namespace import EVERYONE, Entry, where
from dlplatform.memorybox.session import COMPANY, JOINED, Fields, Session
from kernels import cpu

if TYPE_CHECKING:
    from dlplatform.memorybox.box import MemoryBox

LARGEST_SUM = 4096
BETWEEN = ("axpy", "axpby", "copy", "clip", "sgd", "outer", "adam", "gather")


def small(number: int) -> int:
    """Return the number of a worker or a box; refuse what no snapshot could hold."""
    value = int(number)
    if not -1 <= value < 1 << 31:
        raise BoxError(f"number {number} - allowed: -1 to 2^31 - do: number from 0 on")
    return value


# -- who is there --------------------------------------------------------------------------


@command(changes=True)
def join(box: MemoryBox, session: Session, rank: int) -> None:
    """Become worker ``rank`` of the job; two living workers cannot have the same rank."""
    space = session.space
    with space.lock:
        others = [s for s in space.sessions.values() if s is not session and s.rank == rank >= 0]
        if others:
            raise BoxError(
                f"join as worker {rank}: that worker is alive - allowed: a rank of one's own - do: "
                "choose another job name, or end the other job"
            )
        session.rank = small(rank)
    cpu.counter_set(space.counter(session.member), JOINED)
    cpu.counter_add(space.counter("members"), 1)
    cpu.counter_add(space.counter(COMPANY), 1)
    box.tell("worker joined", job=space.name, rank=session.rank)


@command(changes=True)
def place(box: MemoryBox, session: Session, number: int) -> None:
    """Be box ``number`` of the job: every process registers the boxes in one order (B1)."""
    space = session.space
    with space.lock:
        space.number = small(number) if space.number is None else space.number
        if space.number != number:
            raise BoxError(
                f"job {space.name}: this is box {number} for this worker and box {space.number} "
                "for the others - allowed: the same order everywhere - do: give all of them the "
                "same cluster.boxes"
            )


@command(changes=True)
def leave(box: MemoryBox, session: Session) -> None:
    """Say goodbye: the end of this worker's connections is no death."""
    session.polite = True


# -- segments ------------------------------------------------------------------------------


@command(changes=True)
def create(
    box: MemoryBox, session: Session, name: str, floats: int, key: str = "", owner: int = EVERYONE
) -> Fields:
    """Allocate a segment of a new buffer and return its creation key."""
    entry = session.space.create(str(name), int(floats), str(key))
    entry.owner, entry.creator = small(owner), session.token
    return {"key": entry.key}


@command(changes=True)
def allocate(box: MemoryBox, session: Session, name: str, floats: int, key: str = "") -> Fields:
    """Find a segment by name or create it, and count one more user (P-BOX 71-91)."""
    space = session.space
    with space.lock:
        entry = space.named(str(name)) or space.create(str(name), int(floats), str(key))
        attach(box, session, entry.key, int(floats))
        entry.counted = True
        return {"key": entry.key, "shared_by": entry.shared_by}


@command(changes=True)
def free(box: MemoryBox, session: Session, key: str) -> Fields:
    """Count one user less; the last one frees the segment (P-BOX 104-172)."""
    with session.space.lock:
        left: Fields = release(box, session, key)
        if left["shared_by"] == 0:
            session.space.delete(session.entry(key))
        return left


@command(changes=True)
def attach(box: MemoryBox, session: Session, key: str, floats: int) -> None:
    """Share a segment."""
    session.space.attach(session.entry(key), int(floats))
    session.attached[key] += 1


@command(changes=True)
def release(box: MemoryBox, session: Session, key: str) -> Fields:
    """Stop sharing a segment."""
    entry = session.entry(key)
    if not session.attached[key]:
        return {"shared_by": entry.shared_by}
    session.attached[key] -= 1
    return {"shared_by": session.space.release(entry)}


@command(changes=True)
def delete(box: MemoryBox, session: Session, key: str) -> None:
    """Free a segment that nobody shares."""
    session.space.delete(session.entry(key))


# -- operations between segments of this box -------------------------------------------------


@contextmanager
def operating(
    session: Session, entries: Sequence[Entry], tag: Sequence[Any] = ("", 0, ())
) -> Iterator[int]:
    """Keep the memory of segments for one operation of this box; yield its epoch."""
    name = f"op/{session.token}/box{tag[0]}"
    slot = session.space.counter(name)
    with session.space.using(*entries):
        who = f"{session.token}/{tag[0]}"
        epoch = session.space.gate.enter(slot, who, int(tag[1]), [int(box) for box in tag[2]])
        try:
            yield epoch
        finally:
            cpu.leave(slot)


@command(changes=True)
def apply(
    box: MemoryBox, session: Session, op: str, keys: list[str], start: int, count: int,
    k: list[float], source: str = "", tag: Sequence[Any] = ("", 0, ()),
) -> None:  # fmt: skip
    """Apply an operation with another segment as x; y, then its states; y is locked by stripes."""
    refuse_where_plain(box, op)
    takes_x = op not in cpu.ALONE
    if op not in (*cpu.ALONE, *BETWEEN) or takes_x != bool(source):
        raise BoxError(
            f"operation {op!r} between segments - allowed: {', '.join(cpu.ALONE)}, and with a "
            f"source {', '.join(BETWEEN)} - do: send x with the operation instead"
        )
    check_states(op, keys)
    y = [session.span(key, start, count) for key in keys]
    x = session.span(source, start, count) if takes_x else None
    with operating(session, [*y, x] if x else y, tag) as epoch:
        scalars = counted(op, k, y[0])
        address = x.mapping.data + 4 * start if x else None
        order = cpu.operation(op, scalars)
        try:
            cpu.check(cpu.locked(order, where(y), start, count, address, None, 0, 0, epoch))
        except OSError as error:
            raise BoxError(
                f"{op} on {y[0].name} stopped half-way: {error.strerror} - allowed: owners of "
                "locks that go on - do: see what that worker does"
            ) from None


def refuse_where_plain(box: MemoryBox, op: str) -> None:
    """Refuse to compute in a box without accumulate function (P-BOX 133)."""
    if "accumulate" not in box.limits.can and op != "copy":
        raise BoxError(
            f"{op} in a box without accumulate function - allowed: read, write and lock - do: let "
            "the worker compute, or start the box without --plain"
        )


def counted(op: str, k: Sequence[float], y: Entry) -> tuple[float, ...]:
    """Add the number of the step to the scalars of an optimizer that counts, if none is given."""
    scalars = tuple(float(value) for value in k)
    if op != "adam" or any(scalars[6:]):
        return scalars
    scalars = scalars[:6]
    return (*scalars, *[0.0] * (6 - len(scalars)), float(cpu.step(y.mapping.header)))


def check_states(op: str, keys: Sequence[str]) -> None:
    """Refuse an optimizer without its states, and any operation with states it has not."""
    needed = 1 + cpu.STATES.get(op, 0)
    if len(keys) != needed or len(set(keys)) != needed:
        raise BoxError(
            f"{op} on {len(keys)} segments - allowed: {needed} different ones, the target and its "
            "states - do: name the buffers of the states"
        )


@command(changes=True)
def total(
    box: MemoryBox, session: Session, key: str, sources: list[str], start: int, count: int,
    scale: float,
) -> None:  # fmt: skip
    """Write scale * (sum of the sources, in order) into a segment: bitwise repeatable."""
    check_sources(sources)
    y, *regions = [session.span(each, start, count) for each in [key, *sources]]
    with operating(session, [y, *regions]):
        x = cpu.pointers([region.mapping.data + 4 * start for region in regions])
        cpu.sum_into(y.mapping.data + 4 * start, x, len(regions), count, scale)


@command(changes=True)
def average(
    box: MemoryBox, session: Session, sources: list[str], start: int, count: int, scale: float
) -> None:
    """Write scale * (sum of the sources, in order) into every one of them."""
    check_sources(sources)
    regions = [session.span(each, start, count) for each in sources]
    with operating(session, regions):
        x = cpu.pointers([region.mapping.data + 4 * start for region in regions])
        cpu.average(x, len(regions), count, scale)


@command(changes=True)
def matrix(
    box: MemoryBox, session: Session, keys: list[str], shape: list[int], a: float, b: float
) -> None:
    """C = a A B + b C for segments C, A, B of this box; shape: rows, inner, columns (P-PS 56)."""
    rows, inner, columns = (int(n) for n in shape)
    if min(rows, inner, columns) < 1:
        raise BoxError(f"matrix of shape {shape} - allowed: 1 or more each - do: check it")
    sizes = (rows * columns, rows * inner, inner * columns)
    entries = [session.span(key, 0, size) for key, size in zip(keys, sizes, strict=True)]
    if len({entry.key for entry in entries}) != 3:
        raise BoxError("matrix needs three different segments - allowed: C, A, B - do: copy one")
    with operating(session, entries):
        c, left, right = (entry.mapping.data for entry in entries)
        cpu.matrix(c, left, right, rows, inner, columns, a, b)


def check_sources(keys: list[str]) -> None:
    """Bound the number of regions to add."""
    if not 1 <= len(keys) <= LARGEST_SUM:
        raise BoxError(
            f"{len(keys)} sources - allowed: 1 to {LARGEST_SUM} - do: name the regions to add"
        )


@command(changes=False)
def changed(box: MemoryBox, session: Session, key: str, since: int) -> Fields:
    """Return which stripes changed after a version, and the version of now (P-RDMA 75)."""
    entry = session.entry(key)
    with session.space.using(entry):
        return changed_stripes(entry.mapping.header, entry.floats, int(since))


def changed_stripes(header: int, floats: int, since: int) -> Fields:
    """Ask the header of a segment which of its stripes changed after a version."""
    most = -(-floats // cpu.STRIPE)
    stripes, now = (ctypes.c_uint32 * most)(), ctypes.c_uint64()
    count = cpu.changed(header, since, stripes, most, ctypes.addressof(now))
    return {"stripes": list(stripes[:count]), "version": now.value}


# -- consistent views -------------------------------------------------------------------------


@command(changes=False)
def prepare(box: MemoryBox, session: Session, keys: list[str], ticket: str = "") -> Fields:
    """Begin a consistent view of segments; new streamed operations wait for ``commit``.

    The same ticket again is the same view: its answer was lost.
    """
    entries = [session.entry(key) for key in keys]
    return {"newest": Cut.prepare(session.space, entries, session.token, str(ticket))}


@command(changes=False)
def commit(box: MemoryBox, session: Session, newest: dict[str, int]) -> None:
    """Let operations go on: only those up to ``newest`` belong to the view."""
    own_cut(session).commit({str(who): int(number) for who, number in newest.items()})


@command(changes=False)
def settled(box: MemoryBox, session: Session, ms: int) -> Fields:
    """Wait at most ms (up to 1000) until the view holds all that belongs to it."""
    return {"settled": own_cut(session).wait(min(max(int(ms), 0), 1000))}


@command(changes=False)
def finish(box: MemoryBox, session: Session) -> None:
    """End the view."""
    own_cut(session).end()


def own_cut(session: Session) -> Cut:
    """Return the view that this worker began."""
    cut = session.space.cut
    if cut is None or cut.token != session.token:
        raise NotNow("no view was begun - allowed: prepare first - do: use cluster.snapshot()")
    return cut
