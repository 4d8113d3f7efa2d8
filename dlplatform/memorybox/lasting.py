"""Lasting: a box that survives its own end: snapshots in a folder, and a journal if asked.

A snapshot is written beside the data plane from a ``Cut``; a folder gets its final name only
when all of it is on the disk, so a half-written one is never read. The journal holds what came
after a snapshot, each update before its acknowledgement.

    FOLDER/<job>/snapshot-000003/{state.msgpack, 0.f32, 1.f32, ...}
    FOLDER/<job>/journal-000003.log
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import secrets
import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import msgpack

from dlplatform.errors import BoxError, EnvironmentMissing, PlatformError, UsageError
from dlplatform.memorybox import oplog
from dlplatform.memorybox.box import WRONG_VALUES
from dlplatform.memorybox.cut import Cut
from dlplatform.memorybox.memory import Memory
from dlplatform.memorybox.namespace import Entry, Namespace
from dlplatform.memorybox.oplog import OpLog
from dlplatform.memorybox.replay import expect, replay
from dlplatform.memorybox.session import Lane, Session
from kernels import cpu

if TYPE_CHECKING:
    from dlplatform.memorybox.server import Server

PATIENCE_S, RETURN_S, ATTEMPTS = 60.0, 15.0, 5
GONE = "!"
"""How the name of a folder begins that is only to be deleted; no job's does."""
KEPT = ("shared_by", "owner", "creator", "counted")  # of a segment, beside its data
STEPS = 40  # where a segment's header counts the steps of its optimizer
Fields = dict[str, Any]


class Lasting:
    """The snapshots and journals of one box.

    Args:
        server: the box's.
        folder: of all its jobs; used by one box at a time.
        journal: write down every update before it is acknowledged; then nothing is mapped.
        every_s: seconds between snapshots.
    """

    def __init__(
        self, server: Server, folder: Path, journal: bool = False, every_s: float = 30.0
    ) -> None:
        self.server, self.box = server, server.box
        self.folder, self.journal, self.every_s = folder, journal, every_s
        self.numbers: dict[str, int] = {}
        self.taken: dict[str, float] = {}
        self.failed = ""
        self._one = threading.Lock()
        self._lock_file = self._own_folder()

    def _own_folder(self) -> int:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UsageError(
                f"--snapshot {self.folder}: {error.strerror} - allowed: a folder that can be "
                "written - do: choose another"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"--snapshot {self.folder} belongs to a running box - allowed: one box a folder - "
                "do: choose another, or end that box"
            ) from None
        return descriptor

    def start(self) -> None:
        """Bring back what the folder holds, then keep it up to date."""
        self.server.lasting = self
        for path in sorted(p for p in self.folder.iterdir() if p.is_dir()):
            if path.name.startswith(GONE):
                shutil.rmtree(path, ignore_errors=True)
            else:
                self._restore(unquote(path.name))
        self.box.on_new.append(self._begin)
        self.box.on_gone.append(self._end)
        threading.Thread(target=self._keep, name="snapshots", daemon=True).start()

    def place(self, job: str) -> Path:
        """Return the folder of a job."""
        return self.folder / quote(job, safe="")

    def _begin(self, space: Namespace) -> None:
        self.numbers[space.name] = 0
        if self.journal:
            space.log = OpLog()
            try:
                space.log.write_to(self.place(space.name) / "journal-000000.log")
            except OSError as error:
                raise EnvironmentMissing(
                    f"job {space.name} cannot have a journal in {self.folder}: {error.strerror} - "
                    "allowed: a disk with room - do: make room"
                ) from None

    def _end(self, space: Namespace) -> None:
        if space.log is not None:
            space.log.close()
        self.numbers.pop(space.name, None)
        self.taken.pop(space.name, None)
        gone = self.folder / f"{GONE}{secrets.token_hex(8)}"
        with contextlib.suppress(OSError):  # another job of this name may come at once
            self.place(space.name).rename(gone)
        threading.Thread(target=shutil.rmtree, args=(gone, True), daemon=True).start()

    # -- snapshots -------------------------------------------------------------------------

    def _keep(self) -> None:
        while True:
            time.sleep(self.every_s)
            with contextlib.suppress(PlatformError):  # status says what failed
                self.snapshot_now()

    def snapshot_now(self) -> Fields:
        """Write a snapshot of every job; return where, and how long it took."""
        begun, written, failed = time.monotonic(), [], ""
        with self._one:
            for space in list(self.box.spaces.values()):
                if self.box.spaces.get(space.name) is not space:
                    continue  # it has ended while others were written
                try:
                    written.append(str(self._snapshot(space)))
                except (OSError, PlatformError, *WRONG_VALUES) as error:
                    if self.box.spaces.get(space.name) is space:
                        reason = getattr(error, "strerror", "") or error
                        failed = f"{self.place(space.name)}: {reason}"
                        self.box.tell("snapshot failed", level="error", reason=failed)
            self.failed = failed
        if failed:
            raise EnvironmentMissing(
                f"snapshot {failed} - allowed: a disk with room - do: make room; the last complete "
                "snapshot is kept"
            )
        seconds = time.monotonic() - begun
        if written:
            self.box.tell("snapshot", written=written, seconds=round(seconds, 3))
        return {"written": written, "seconds": seconds}

    def figures(self) -> Fields:
        """Return the age of each job's snapshot, and what failed last."""
        now = time.monotonic()
        return {
            "folder": str(self.folder), "journal": self.journal, "failed": self.failed,
            "age_s": {job: now - at for job, at in self.taken.items()},
        }  # fmt: skip

    def _snapshot(self, space: Namespace) -> Path:
        number = self.numbers[space.name] + 1
        place = self.place(space.name)
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        for _ in range(ATTEMPTS):
            with space.lock:
                entries = list(space.entries.values())
            cut = Cut(space, entries, "box")
            try:
                found = self._cut(space, cut, place / f"journal-{number:06d}.log")
                if found is not None:
                    self.numbers[space.name] = number
                    return self._write(space, cut, place / f"snapshot-{number:06d}", *found)
            finally:
                cut.end()
        raise BoxError(f"job {space.name}: segments come and go - allowed: a while without - do: "
                       "try again")  # fmt: skip

    def _cut(self, space: Namespace, cut: Cut, journal: Path) -> tuple[Fields, list[Lane]] | None:
        """Make the cut and begin a new journal there; None if a segment came or went meanwhile."""
        with space.log.alone() if space.log else contextlib.nullcontext(), space.lock:
            if list(space.entries.values()) != cut.entries:
                return None
            cut.commit()
            found = self._state(space, cut.entries)
            if space.log is not None:  # a snapshot that fails leaves both journals to read
                space.log.write_to(journal)
            return found

    def _write(
        self, space: Namespace, cut: Cut, final: Path, state: Fields, pending: list[Lane]
    ) -> Path:
        """Write what was cut, while operations go on."""
        partial = final.parent / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            if not cut.wait(int(PATIENCE_S * 1000)):
                raise OSError(0, f"an operation did not end within {PATIENCE_S:g} s")
            settle(space, state, pending)
            partial.mkdir()
            for index, entry in enumerate(cut.entries):
                write_segment(partial / f"{index}.f32", entry)
            write_synced(partial / "state.msgpack", msgpack.packb(state))
            if self.box.spaces.get(space.name) is not space:
                raise FileNotFoundError("the job has ended")
            partial.rename(final)
            sync_folder(final.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        self._tidy(final.parent, int(final.name[-6:]))
        self.taken[space.name] = time.monotonic()
        return final

    def _state(self, space: Namespace, entries: list[Entry]) -> tuple[Fields, list[Lane]]:
        """Describe a namespace at the cut; lanes with an update under way are settled later."""
        pending = [lane for lane in space.lanes.values() if lane.reply is None and lane.made]
        skip = ("op/", "box/gate")
        state = {
            "number": space.number,
            "entries": [
                [e.name, e.key, e.floats, steps(e).value, *(getattr(e, name) for name in KEPT)]
                for e in entries
            ],
            "counters": {
                name: cpu.counter_get(space.counter(name))
                for name in space.slots if not name.startswith(skip)
            },
            "notices": space.notices, "dead": list(space.dead),
            "locks": {name: session.token for name, session in space.locks.items()},
            "sessions": [[s.token, s.rank, dict(s.attached), s.polite]
                         for s in space.sessions.values()],
            "lanes": {lane.name: remembered(lane) for lane in space.lanes.values()},
        }  # fmt: skip
        return state, pending

    def _tidy(self, place: Path, number: int) -> None:
        for path in place.iterdir():
            kind, _, rest = path.name.partition("-")
            if kind in ("snapshot", "journal") and int(rest.partition(".")[0]) < number:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    # -- coming back -----------------------------------------------------------------------

    def _restore(self, job: str) -> None:
        place = self.place(job)
        shutil.rmtree(place / "partial", ignore_errors=True)
        snapshots = sorted(place.glob("snapshot-*"))
        journals = sorted(place.glob("journal-*.log"))
        if not snapshots and not journals:
            place.rmdir()
            return
        space = Namespace(job, self.box.limits.ground, self.box.limits.quota)
        if snapshots:
            read_snapshot(space, snapshots[-1])
        number = int(snapshots[-1].name[-6:]) if snapshots else 0
        for path in journals:
            if int(path.stem[-6:]) >= number:
                for record in oplog.read(path):
                    replay(self.box, space, record)
                number = max(number, int(path.stem[-6:]))
        self.numbers[job] = number
        if self.journal:
            space.log = OpLog()
            space.log.write_to(place / f"journal-{number:06d}.log")
        self.box.spaces[job] = space
        expect(self.box, space, max(RETURN_S, self.box.limits.keep_s))


def steps(entry: Entry) -> ctypes.c_uint64:
    """Return the number of optimizer steps in a segment's header."""
    return ctypes.c_uint64.from_address(entry.mapping.header + STEPS)


def remembered(lane: Lane) -> list[Any]:
    """Return what is known of a lane; a request that has not begun yet was not heard."""
    if lane.reply is None and lane.made is None:
        return [lane.token, lane.sequence - 1, {"ok": {}}, b""]
    return [lane.token, lane.sequence, lane.reply, answers(lane)]


def answers(lane: Lane) -> bytes:
    """Return the answers that may have to be sent again, with the update they belong to."""
    made = lane.made
    if made is None or not made.answers or lane.answers is None:
        return b""
    update = bytes(made.update)
    ring = ctypes.string_at(lane.answers.address, 4 * lane.answers.floats)
    return bytes(msgpack.packb([update, [entry.key for entry in made.entries], ring]))


def settle(space: Namespace, state: Fields, pending: list[Lane]) -> None:
    """Write down how the updates that were under way at the cut have ended."""
    for lane in pending:
        kept = state["lanes"][lane.name]
        if lane.sequence == kept[1]:
            kept[2], kept[3] = lane.reply or {"ok": {}}, answers(lane)
        else:
            kept[2], kept[3] = {"ok": {}}, b""  # answered, and the worker went on


def write_segment(path: Path, entry: Entry) -> None:
    """Write a segment as it was at the cut."""
    scratch = Memory(cpu.STRIPE)
    with open(path, "wb", buffering=0) as out:
        for start in range(0, entry.floats, cpu.STRIPE):
            count = min(cpu.STRIPE, entry.floats - start)
            cpu.check(cpu.read_cut(entry.mapping.pointer, start, count, scratch.address))
            view = memoryview((ctypes.c_char * (4 * count)).from_address(scratch.address))
            while view:
                view = view[out.write(view) :]
        os.fsync(out.fileno())


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait for the disk."""
    with open(path, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(descriptor)
    os.close(descriptor)


def read_snapshot(space: Namespace, folder: Path) -> None:
    """Fill a new namespace with a snapshot.

    Raises:
        EnvironmentMissing: when a part of it is missing or damaged.
    """
    try:
        fill(space, folder)
    except (OSError, *WRONG_VALUES, msgpack.UnpackException) as error:
        raise EnvironmentMissing(
            f"snapshot {folder} is damaged: {error} - allowed: snapshots as a box wrote them - do: "
            "put a copy of it there, or remove the folder of this job to begin with nothing"
        ) from None


def fill(space: Namespace, folder: Path) -> None:
    """Read what a snapshot holds."""
    state = msgpack.unpackb((folder / "state.msgpack").read_bytes(), strict_map_key=False)
    space.number = state["number"]
    for index, (name, key, floats, count, *rest) in enumerate(state["entries"]):
        entry = space.create(name, floats, key)
        for what, value in zip(KEPT, rest, strict=True):
            setattr(entry, what, value)
        steps(entry).value = count
        target = memoryview((ctypes.c_char * (4 * floats)).from_address(entry.mapping.data))
        with open(folder / f"{index}.f32", "rb", buffering=0) as file:
            while target:
                got = file.readinto(target.cast("B"))
                if not got:
                    raise ValueError(f"{index}.f32 is too short")
                target = target[got:]
    for name, value in state["counters"].items():
        cpu.counter_set(space.counter(name), value)
    space.notices, space.dead = state["notices"], set(state["dead"])
    for token, rank, attached, polite in state["sessions"]:
        session = space.sessions[token] = Session(space, token, rank, polite=polite)
        session.attached.update(attached)
    locks = {name: space.sessions.get(token) for name, token in state["locks"].items()}
    space.locks = {name: session for name, session in locks.items() if session}
    for name, (token, sequence, reply, kept) in state["lanes"].items():
        lane = space.lanes[name] = Lane(token, name)
        lane.sequence, lane.reply = sequence, reply
        if kept:
            bring_back(space, lane, kept)


def bring_back(space: Namespace, lane: Lane, kept: bytes) -> None:
    """Give a lane the answers back that its worker may not have received."""
    from dlplatform.memorybox.updates import Arrival, place

    raw, keys, ring = msgpack.unpackb(kept)
    update = cpu.Update.from_buffer_copy(raw)
    update.log = update.head = None
    place(lane, update)
    ctypes.memmove(lane.ring(), ring, len(ring))
    entries = [space.entries[key] for key in keys if key in space.entries]
    lane.made = Arrival(entries, update, b"")
