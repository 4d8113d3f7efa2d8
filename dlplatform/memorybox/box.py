"""MemoryBox: the jobs it serves, who is there, and how a request is obeyed once.

The same object serves a process of its own (``server``) and lives inside a lone worker
(``transports/inproc``). It imports neither torch nor numpy nor MPI.
"""

from __future__ import annotations

import ctypes
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dlplatform.errors import BoxError, PlatformError, closest
from dlplatform.memorybox.memory import File, Ground, nameless_file
from dlplatform.memorybox.namespace import Namespace
from dlplatform.memorybox.oplog import OpLog
from dlplatform.memorybox.session import Fields, Lane, Session
from dlplatform.memorybox.timing import later

WRONG_VALUES = (
    *(TypeError, ValueError, ArithmeticError, LookupError, AttributeError, ctypes.ArgumentError),
)
CAN = ("accumulate", "map")
TALLY = ("requests", "in", "out", "refused")


@dataclass
class Limits:
    """What a box allows."""

    memory: str = "/dev/shm"
    """Folder of its memory (a tmpfs), or memfd."""
    quota: int = 0
    """Bytes a job; 0: no limit."""
    jobs: int = 0
    """Jobs at a time; 0: no limit."""
    grace_s: float = 0.8
    """A worker that is cut off may come back within this time."""
    keep_s: float = 0.0
    """What a job leaves is kept so long after its last worker has gone."""
    can: tuple[str, ...] = CAN
    """What the box does itself: accumulate (else workers read, add and write), map."""
    pool: Callable[[int, int], Ground] | None = None
    """Where its memory comes from instead of the folder."""

    def ground(self, size: int, room: int = 0) -> Ground:
        """Return ``size`` bytes of zeros, and addresses for ``room`` more (see ``give_room``)."""
        if self.pool is not None:
            return self.pool(size, room)
        return File(nameless_file(self.memory, size, room))


Answer = Callable[..., Any]


@dataclass(frozen=True)
class Command:
    """A request a box obeys; one that changes something is numbered, logged and done once."""

    run: Answer
    changes: bool


COMMANDS: dict[str, Command] = {}


def command(changes: bool) -> Callable[[Answer], Answer]:
    """Make a function a command under its own name."""

    def add(function: Answer) -> Answer:
        COMMANDS[function.__name__.rstrip("_")] = Command(function, changes)
        return function

    return add


@dataclass
class MemoryBox:
    """RAM cut into segments for several jobs, and the few commands allowed on them."""

    limits: Limits = field(default_factory=Limits)
    instance: str = field(default_factory=lambda: secrets.token_hex(8))
    spaces: dict[str, Namespace] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    draining: bool = False
    born: float = field(default_factory=time.monotonic)
    tally: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TALLY, 0))
    tell: Callable[..., None] = lambda event, **fields: None
    """Called with every event and its fields; see ``watching``."""
    on_new: list[Callable[[Namespace], None]] = field(default_factory=list)
    on_gone: list[Callable[[Namespace], None]] = field(default_factory=list)

    # -- who is there ------------------------------------------------------------------

    def space(self, name: str) -> Namespace:
        """Return a job's namespace, a new one if there is room."""
        with self.lock:
            if name not in self.spaces:
                self._admit(name)
                space = Namespace(name, self.limits.ground, self.limits.quota)
                for prepare in self.on_new:
                    prepare(space)
                self.spaces[name] = space
            return self.spaces[name]

    def _admit(self, name: str) -> None:
        if self.draining:
            raise BoxError(
                f"job {name}: this box is draining - allowed: jobs it serves already - do: use "
                "another box"
            )
        if self.limits.jobs and len(self.spaces) >= self.limits.jobs:
            raise BoxError(
                f"job {name}: this box serves {len(self.spaces)} jobs - allowed: {self.limits.jobs}"
                " - do: wait for one to end, or start the box with more --jobs"
            )

    def open(self, job: str, token: str, mirror: str = "") -> Session:
        """Welcome a worker's incarnation, or meet it again."""
        if not isinstance(job, str) or not 0 < len(job) <= 200 or ":" in job:
            raise BoxError(
                f"open job {job!r} - allowed: 1 to 200 characters without ':' - do: choose another "
                "job name"
            )
        if not isinstance(token, str) or not 0 < len(token) <= 64 or "/" in token:
            raise BoxError("open with no token - allowed: 1 to 64 characters without '/' - do: "
                           "use the same version on both sides")  # fmt: skip
        name = f"{job}:{mirror}" if mirror else job
        with self.lock:
            if mirror and name not in self.spaces:
                raise BoxError(
                    f"job {job}: this box mirrors nothing of {mirror} - allowed: the box named as "
                    "its mirror - do: give all workers the same cluster.boxes"
                )
            space = self.space(name)
            if token in space.dead:
                raise BoxError(
                    f"job {job}: this worker was given up after {self.limits.grace_s:g} s without "
                    "a connection - allowed: to come back sooner - do: start it again"
                )
            if token not in space.sessions:
                space.sessions[token] = Session(space, token)
            return space.sessions[token]

    def end(self, session: Session) -> None:
        """End a worker's incarnation; forget an empty job."""
        space, first = session.space, not session.ended
        if space.log is not None and first:
            with space.log.alone():
                space.log.append({"do": "end", "token": session.token, "polite": session.polite})
                session.end()
        else:
            session.end()
        if first and session.rank >= 0:
            how = "worker left" if session.polite else "worker died"
            self.tell(how, job=space.name, rank=session.rank)
        if self.limits.keep_s and not space.sessions:
            later(self.limits.keep_s, self._expire, space, len(space.dead))
        else:
            self.forget(space)

    def _expire(self, space: Namespace, dead: int) -> None:
        """Forget a job unless somebody has come, and perhaps left, since."""
        if len(space.dead) == dead:
            self.forget(space)

    def forget(self, space: Namespace) -> None:
        """Free everything of a job that nobody uses any more."""
        with self.lock:
            if space.sessions or self.spaces.get(space.name) is not space:
                return
            del self.spaces[space.name]
            for tidy in self.on_gone:
                tidy(space)
        space.free()

    # -- requests ------------------------------------------------------------------------

    def obey(self, session: Session, name: str, fields: Fields) -> Fields:
        """Run one command; a BoxError refuses it and changes nothing."""
        known = COMMANDS.get(name) if isinstance(name, str) else None
        if known is None:
            raise BoxError(
                f"command {name!r} is unknown{closest(str(name), COMMANDS)} - allowed: "
                f"{', '.join(COMMANDS)} - do: use the same version on both sides"
            )
        try:
            return known.run(self, session, **fields) or {}
        except (TypeError, ctypes.ArgumentError) as error:
            raise BoxError(
                f"command {name} got wrong fields: {error} - allowed: those of its docstring "
                "- do: use the same version on both sides"
            ) from None

    def request(self, session: Session, lane: Lane, name: str, fields: Fields) -> Fields:
        """Answer a request; one that changes something and was answered before, as before."""
        sequence = fields.pop("seq", 0)
        known = COMMANDS.get(name) if isinstance(name, str) else None
        if known is None or not known.changes:
            return self.reply(session, name, fields)
        with lane.busy:
            if lane.take(int(sequence)) or lane.reply is None:
                if name in ("create", "allocate"):  # done again, it must find the same key
                    fields["key"] = fields.get("key") or secrets.token_hex(16)
                with self.logged(session, lane, name, fields):
                    lane.reply = self.reply(session, name, fields)
            assert lane.reply is not None
            return lane.reply

    @contextmanager
    def logged(self, session: Session, lane: Lane, name: str, fields: Fields) -> Iterator[None]:
        """Write a command to the log, if there is one, before it is done."""
        log: OpLog | None = session.space.log
        if log is None:
            yield
            return
        with log.alone():
            head = {"do": name, "fields": fields, "token": session.token, "lane": lane.name}
            log.append({**head, "seq": lane.sequence})
            yield

    def reply(self, session: Session, name: str, fields: Fields) -> Fields:
        """Obey, and put the answer or the refusal into words."""
        try:
            return {"ok": self.obey(session, name, fields)}
        except (PlatformError, *WRONG_VALUES) as error:
            return self.refuse(error, str(name), session.space.name)

    def refuse(self, error: Exception, command: str, job: str) -> Fields:
        """Count a refusal, and return the reply that says so."""
        self.tally["refused"] += 1
        self.tell("refused", level="warning", command=command, job=job, reason=str(error))
        return refused(error)

    def count(self, space: Namespace, what: str, n: int = 1) -> None:
        """Add to the figures of the box and of a job."""
        self.tally[what] += n
        space.tally[what] += n


def refused(error: Exception) -> Fields:
    """Return the reply that refuses a request."""
    kind = type(error).__name__ if isinstance(error, PlatformError) else "BoxError"
    return {"refused": str(error), "kind": kind}


from dlplatform.memorybox import commands as commands  # noqa: E402 - they register themselves
