"""Replay: do again, in a namespace, what the records of a log say: after a restart, and in a mirror."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from dlplatform.memorybox import updates
from dlplatform.memorybox.session import Lane, Session
from kernels import cpu

if TYPE_CHECKING:
    from dlplatform.memorybox.box import MemoryBox
    from dlplatform.memorybox.namespace import Namespace
    from dlplatform.memorybox.oplog import Entry


def replay(box: MemoryBox, space: Namespace, record: Entry) -> None:
    """Do one record again; one that is done already changes nothing."""
    head = record.head
    token = head["token"]
    with space.lock:
        if head.get("do") == "end":
            session = space.sessions.get(token)
            if session is not None:
                session.polite = bool(head["polite"])
                session.end()
            return
        session = space.sessions.setdefault(token, Session(space, token))
        lane = space.lanes.setdefault(head["lane"], Lane(token, head["lane"]))
    if "do" not in head:
        updates.replay(session, lane, record)
    elif int(head["seq"]) > lane.sequence and lane.take(int(head["seq"])):
        lane.reply = box.reply(session, head["do"], head["fields"])


def under_way(space: Namespace) -> None:
    """Mark the updates that a replay left unfinished, so that cuts wait for them."""
    for lane in space.lanes.values():
        if lane.reply is None and lane.made is not None:
            slot = space.counter(updates.slot_of(lane))
            cpu.counter_set(slot, lane.made.update.epoch + 1)


def expect(box: MemoryBox, space: Namespace, patience_s: float) -> None:
    """Give the workers of a replayed namespace some time to come; then they have died."""

    under_way(space)

    def end() -> None:
        for session in list(space.sessions.values()):
            if session.leases == 0:
                box.end(session)
        box.forget(space)

    timer = threading.Timer(patience_s, end)
    timer.daemon = True
    timer.start()
