"""Commands for the small things of a job: counters, notices, events, named locks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgpack

from dlplatform.errors import BoxError
from dlplatform.memorybox.box import command
from dlplatform.memorybox.session import Fields, Session
from kernels import cpu

if TYPE_CHECKING:
    from dlplatform.memorybox.box import MemoryBox

LARGEST_NOTICE = 1 << 18


# -- counters and notices ----------------------------------------------------------------------


@command(changes=False)
def slot(box: MemoryBox, session: Session, name: str) -> Fields:
    """Return where a counter is in the file of counters."""
    return {"slot": session.space.slot(name)}


@command(changes=False)
def get(box: MemoryBox, session: Session, name: str) -> Fields:
    """Return a counter's value."""
    return {"value": cpu.counter_get(session.space.counter(name))}


@command(changes=True)
def set_(box: MemoryBox, session: Session, name: str, value: int) -> None:
    """Set a counter."""
    cpu.counter_set(session.space.counter(name), value)


@command(changes=True)
def add(box: MemoryBox, session: Session, name: str, n: int) -> Fields:
    """Add to a counter and return what it held before."""
    return {"value": cpu.counter_add(session.space.counter(name), n)}


@command(changes=True)
def swap(box: MemoryBox, session: Session, name: str, expected: int, desired: int) -> Fields:
    """Compare and swap a counter and return what it held before."""
    return {"value": cpu.counter_swap(session.space.counter(name), expected, desired)}


@command(changes=True)
def claim(
    box: MemoryBox, session: Session, numbers: str, slot: str, held: int, count: int, total: int,
    unless: list[str],
) -> Fields:  # fmt: skip
    """Let go what a worker's slot holds and take the next numbers: all of ``Work.next`` at once.

    Nothing is taken where one of the counters ``unless`` is not 0. The slot says first what is
    about to be taken, so that a number is never lost.
    """
    space = session.space
    mine, shared = space.counter(slot), space.counter(numbers)
    kept = not held or cpu.counter_swap(mine, held, 0) == held
    answer: Fields = {"kept": bool(kept), "number": -1, "free": True}
    if any(cpu.counter_get(space.counter(name)) for name in unless):
        return answer | {"free": False}
    seen = int(cpu.counter_get(shared))
    while seen < total:
        cpu.counter_set(mine, seen + 1)
        found = int(cpu.counter_swap(shared, seen, min(seen + count, total)))
        if found == seen:
            return answer | {"number": seen}
        cpu.counter_set(mine, 0)
        seen = found
    return answer


@command(changes=False)
def wait(box: MemoryBox, session: Session, name: str, at_least: int, ms: int) -> Fields:
    """Wait at most ms (up to 1000) for a counter to reach a value."""
    limit = min(max(int(ms), 0), 1000)
    return {"reached": bool(cpu.counter_wait(session.space.counter(name), at_least, limit))}


@command(changes=True)
def publish(box: MemoryBox, session: Session, name: str, value: Any) -> None:
    """Pin a small value to the job's notice board."""
    packed: bytes = msgpack.packb(value)
    if len(packed) > LARGEST_NOTICE:
        raise BoxError(
            f"publish {name}: {len(packed)} bytes - allowed: {LARGEST_NOTICE} - do: put large "
            "data into a buffer"
        )
    session.space.publish(str(name), packed)
    cpu.counter_add(session.space.counter("notices"), 1)


@command(changes=False)
def lookup(box: MemoryBox, session: Session, name: str) -> Fields:
    """Return a value from the notice board, or None."""
    packed = session.space.notices.get(str(name))
    return {"value": None if packed is None else msgpack.unpackb(packed)}


@command(changes=True)
def announce(box: MemoryBox, session: Session, event: str) -> Fields:
    """Count one more report of an event; with the last expected one, tell the named processes."""
    space = session.space
    with space.lock:
        packed = space.notices.get(f"event/{event}")
        if packed is None:
            raise BoxError(
                f"event {event} was not set up - allowed: events of this job - do: set it up first"
            )
        setup = msgpack.unpackb(packed)
        reports = cpu.counter_add(space.counter(f"event/{event}"), 1) + 1
        if reports % setup["expect"] == 0:
            for rank in setup["ranks"]:
                cpu.counter_add(space.counter(f"event/{event}/{rank}"), 1)
        return {"reports": reports}


# -- named locks ---------------------------------------------------------------------------------


@command(changes=True)
def acquire(box: MemoryBox, session: Session, name: str) -> Fields:
    """Take a named lock if it is free; a worker that dies gives back what it holds (P-BOX 84)."""
    space = session.space
    with space.lock:
        owner = space.locks.get(name)
        if owner is not None and owner is not session and not owner.ended:
            return {"held": False, "by": owner.rank, "abandoned": False}
        space.locks[name] = session
        return {"held": True, "by": session.rank, "abandoned": owner is not None and owner.ended}


@command(changes=True)
def give_back(box: MemoryBox, session: Session, name: str) -> None:
    """Free a named lock."""
    with session.space.lock:
        if session.space.locks.get(name) is session:
            del session.space.locks[name]


@command(changes=False)
def status(box: MemoryBox, session: Session) -> Fields:
    """Return what the box holds for the job, and in all."""
    spaces = list(box.spaces.values())
    return {
        "jobs": len(spaces),
        "sessions": sum(len(space.sessions) for space in spaces),
        "segments": sum(len(space.entries) for space in spaces),
        "bytes": sum(space.size for space in spaces),
    }
