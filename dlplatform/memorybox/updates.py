"""Updates that arrive as a stream of bytes: checked, applied while they arrive, done once.

An update's ``done`` elements are remembered with its lane. When the connection breaks, the
worker sends the same request again on a new one, is told how far the box has come, and both
go on from there.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import msgpack

from dlplatform.errors import BoxError, EnvironmentMissing, PlatformError
from dlplatform.memorybox import wire
from dlplatform.memorybox.box import WRONG_VALUES, MemoryBox
from dlplatform.memorybox.commands import check_states, counted, refuse_where_plain
from dlplatform.memorybox.namespace import Entry, where
from dlplatform.memorybox.oplog import Entry as Record
from dlplatform.memorybox.session import Fields, Lane, Session
from dlplatform.transports.conduit import Conduit
from kernels import cpu

ANSWERING = ("difference", "fetch", "delay", "adapt")
STREAMED = ("axpy", "axpby", "copy", "clip", "sgd", "outer", "adam", "gather", *ANSWERING)
LARGEST = 1 << 40
OURS = (
    *(errno.EINVAL, errno.EBUSY, errno.ENOTRECOVERABLE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    errno.EIO,
)
"""What locks, logs and payloads say; every other error is the connection's."""


@dataclass
class Arrival:
    """One update under way: where it goes, and the kernels' record of it."""

    entries: list[Entry]
    update: cpu.Update
    head: bytes

    @property
    def answers(self) -> bool:
        """Tell whether the worker gets bytes back."""
        return bool(self.update.answers)


def slot_of(lane: Lane) -> str:
    """Return the name of the counter that says which epoch a lane's update belongs to."""
    return f"op/{lane.name}"


def refuse_payload(op: str, format: str, entries: int, count: int, start: int) -> None:
    """Refuse a payload that cannot be what it says."""
    if op not in STREAMED:
        raise BoxError(f"operation {op!r} - allowed: {', '.join(STREAMED)} - do: name one of them")
    plain = format == "fp32" or op not in ANSWERING
    if format not in cpu.FORMATS or not plain:
        raise BoxError(
            f"{op} with a payload of {format!r} - allowed: {', '.join(cpu.FORMATS)}; fp32 only for "
            f"{', '.join(ANSWERING)} - do: pack it otherwise"
        )
    if not 0 <= entries <= count or (format == "int8" and start % cpu.BLOCK8):
        raise BoxError(
            f"payload of {entries} entries for elements {start} to {start + count} - allowed: at "
            f"most one an element, and int8 from a multiple of {cpu.BLOCK8} on - do: check both"
        )


def arrival(session: Session, lane: Lane, frame: Fields) -> Arrival:
    """Check a request to update a span, and prepare its record."""
    op, format = str(frame["op"]), str(frame.get("format", "fp32"))
    start, count, entries = (int(frame.get(n, 0)) for n in ("start", "count", "entries"))
    keys: Sequence[str] = frame["keys"]
    refuse_payload(op, format, entries, count, start)
    check_states(op, keys)
    y = [session.span(key, start, count) for key in keys]
    k = counted(op, frame.get("k", ()), y[0])
    update = cpu.Update(cpu.operation(op, k, format, entries), start=start, n=count)
    update.at = int(frame.get("at", 0)) if format == "topk" else 0
    return Arrival(y, place(lane, update), b"")


def place(lane: Lane, update: cpu.Update) -> cpu.Update:
    """Give an update the memory of its lane."""
    order = update.operation
    sparse = order.format == cpu.FORMATS["topk"]
    size = cpu.payload_bytes(order.format, update.n if sparse else cpu.CHUNK, order.entries)
    update.payload = lane.room(max(-(-size // 4), cpu.CHUNK))
    if cpu.OPERATION_NAMES.get(order.code) in ANSWERING:
        update.answers = lane.ring()
    return update


def head_of(session: Session, lane: Lane, made: Arrival) -> bytes:
    """Return what every record of an update begins with."""
    update = made.update
    packed: bytes = msgpack.packb(
        {
            "op": bytes(update.operation), "keys": [entry.key for entry in made.entries],
            "start": update.start, "count": update.n, "from": update.at, "epoch": update.epoch,
            "token": session.token, "lane": lane.name, "seq": lane.sequence,
        }
    )  # fmt: skip
    return packed


class Stream:
    """The updates of one connection.

    Args:
        box: keeps the tally.
        session: of the worker.
        lane: the row of its requests that this connection carries.
        link: the connection.
    """

    def __init__(self, box: MemoryBox, session: Session, lane: Lane, link: Conduit) -> None:
        self.box, self.session, self.lane, self.link = box, session, lane, link

    def push(self, frame: Fields) -> None:
        """Obey one update: a new one, or one that is sent again."""
        lane = self.lane
        with lane.busy:
            try:
                if lane.take(int(frame.get("seq", 0))):
                    self._begin(frame)
                elif lane.made is None and lane.reply is None:
                    raise BoxError("the update is lost - allowed: none - do: report this")
            except (PlatformError, *WRONG_VALUES) as error:
                lane.reply = self.box.refuse(error, "push", self.session.space.name)
                lane.made = None
                self._pass_by(frame)
                self._throw_away(frame)
            if "received" in frame:
                self._resume(int(frame["received"]))
            if lane.reply is None:
                assert lane.made is not None
                self._run(lane.made, "received" in frame)
            wire.send(self.link, lane.reply or {})

    def _begin(self, frame: Fields) -> None:
        refuse_where_plain(self.box, str(frame["op"]))
        space, lane = self.session.space, self.lane
        made = arrival(self.session, lane, frame)
        thread, number, boxes = tag_of(frame)
        slot = space.counter(slot_of(lane))
        with space.lock:  # a cut finds the update in its lane if it belongs to it
            who = f"{self.session.token}/{thread}"
            made.update.epoch = space.gate.enter(slot, who, number, boxes)
            lane.made = made

    def _pass_by(self, frame: Fields) -> None:
        """Let no view wait for an operation that was refused here."""
        with suppress(*WRONG_VALUES), self.session.space.lock:
            thread, number, boxes = tag_of(frame)
            self.session.space.gate.admit(f"{self.session.token}/{thread}", number, boxes)

    def _log(self, made: Arrival) -> None:
        """Have the update written to the log of the job, if there is one."""
        log, update = self.session.space.log, made.update
        if log is not None:
            made.head = head_of(self.session, self.lane, made)
            update.log = log.address
            update.head = ctypes.cast(ctypes.c_char_p(made.head), ctypes.c_void_p).value
            update.head_bytes = len(made.head)

    def _resume(self, received: int) -> None:
        """Say how far the box has come; send answers again that were lost."""
        made = self.lane.made
        done = made.update.done if made else 0
        wire.send(self.link, {"done": done, "finished": self.lane.reply is not None})
        if made and made.answers and received < done:
            at = ctypes.addressof(made.update)
            cpu.check(cpu.answer_again(self.link.address, at, received))

    def _run(self, made: Arrival, again: bool) -> None:
        if made.answers and not again:
            wire.send(self.link, {"ok": {}})
        space, lane, update = self.session.space, self.lane, made.update
        before = update.done
        self._log(made)
        try:
            with space.using(*made.entries):
                at, to = ctypes.addressof(update), where(made.entries)
                cpu.check(cpu.receive_apply(self.link.address, at, to))
            lane.reply = {"ok": {}}
        except BoxError as error:  # deleted meanwhile
            self._failed(error)
        except OSError as error:
            if error.errno not in OURS:
                raise
            kind = EnvironmentMissing if update.log else BoxError
            self._failed(kind(stopped(update, error)))
        finally:
            moved = 4 * (update.done - before)
            self.box.count(space, "in", moved)
            self.box.count(space, "out", moved if made.answers else 0)
            if lane.reply is not None:
                cpu.leave(space.counter(slot_of(lane)))

    def _failed(self, error: PlatformError) -> None:
        """Refuse what cannot go on; nobody knows which bytes are still to come."""
        self.lane.reply = self.box.refuse(error, "push", self.session.space.name)
        wire.send(self.link, self.lane.reply)
        raise ConnectionAbortedError(str(error))

    def _throw_away(self, frame: Fields) -> None:
        """Read the bytes of a refused update (of an answering one: those sent ahead)."""
        if "received" in frame:
            return  # nothing follows before the answer
        cpu.check(cpu.discard(self.link.address, payload_of(frame)))


def tag_of(frame: Fields) -> tuple[str, int, list[int]]:
    """Return who does an operation, its number there, and which boxes it concerns."""
    thread, number, boxes = frame.get("tag", ("", 0, ()))
    return str(thread), int(number), [int(box) for box in boxes]


def stopped(update: cpu.Update, error: OSError) -> str:
    """Say what kept an update from being finished."""
    if error.errno == errno.EINVAL:
        return (
            "the positions of a sparse payload are not ascending, or outside the span - allowed: "
            "what Payload packs - do: report this"
        )
    return (
        f"update stopped after {update.done} of {update.n} elements: {error.strerror} - allowed: a "
        "log with room on its disk, and stripes whose owner goes on - do: see the disk and the "
        "workers of this box; the update was not acknowledged"
    )


def payload_of(frame: Fields) -> int:
    """Return how many bytes follow a request to update, whatever else is wrong with it.

    Raises:
        ConnectionError: when nobody can tell.
    """
    count, entries = frame.get("count"), frame.get("entries", 0)
    format = frame.get("format", "fp32")
    if not isinstance(count, int) or not isinstance(entries, int):
        raise ConnectionError("unbounded stream")
    if not 0 <= count <= LARGEST or not 0 <= entries <= LARGEST:
        raise ConnectionError("unbounded stream")
    if not isinstance(format, str) or format not in cpu.FORMATS:
        raise ConnectionError("unbounded stream")
    size = int(cpu.payload_bytes(cpu.FORMATS[format], count, entries))
    return min(size, wire.AHEAD) if frame.get("op") in ANSWERING else size


def replay(session: Session, lane: Lane, record: Record) -> None:
    """Do again what one record of an update says, unless it is done already."""
    head, sequence = record.head, int(record.head["seq"])
    if sequence < lane.sequence or (sequence == lane.sequence and lane.reply is not None):
        return
    if lane.take(sequence) or lane.made is None:
        order = cpu.Operation.from_buffer_copy(head["op"])
        epoch = session.space.epoch  # as if it had begun here: another box counts otherwise
        update = cpu.Update(order, start=head["start"], n=head["count"], epoch=epoch)
        update.at = head["from"]
        op = cpu.OPERATION_NAMES.get(order.code, str(order.code))
        form = cpu.FORMAT_NAMES.get(order.format, str(order.format))
        refuse_payload(op, form, order.entries, head["count"], head["start"])
        check_states(op, head["keys"])
        entries = [session.span(key, head["start"], head["count"]) for key in head["keys"]]
        lane.made = Arrival(entries, place(lane, update), b"")
        cpu.counter_set(session.space.counter(slot_of(lane)), epoch + 1)
        if order.code == cpu.OPERATIONS["adam"]:
            cpu.step(entries[0].mapping.header)
    made = lane.made
    if record.at < made.update.done:
        return
    refuse_record(made.update, record)
    body = ctypes.create_string_buffer(record.body, len(record.body))
    where_to = where(made.entries)
    cpu.check(cpu.replay(ctypes.addressof(made.update), where_to, record.at, record.n, body))
    if made.update.done >= made.update.n:
        lane.reply = {"ok": {}}
        cpu.leave(session.space.counter(slot_of(lane)))


def refuse_record(update: cpu.Update, record: Record) -> None:
    """Refuse a record that does not continue its update."""
    order, n = update.operation, record.n
    sparse = order.format == cpu.FORMATS["topk"]
    size = cpu.payload_bytes(order.format, update.n if sparse else n, order.entries)
    fits = sparse or record.at % cpu.CHUNK + n <= cpu.CHUNK
    if record.at != update.done or record.at + n > update.n or len(record.body) != size or not fits:
        raise BoxError(
            f"a record of elements {record.at} to {record.at + n} with {len(record.body)} bytes, "
            f"after {update.done} of {update.n} - allowed: what a box logs - do: use the same "
            "version on both sides"
        )
