"""Replay: do again what the records of a log say: after a restart, and in a mirror."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlplatform.memorybox import updates
from dlplatform.memorybox.session import Lane, Session
from dlplatform.memorybox.timing import later

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


def expect(box: MemoryBox, space: Namespace, patience_s: float) -> None:
    """Give the workers of a replayed namespace some time to come; then they have died."""

    def end() -> None:
        for session in list(space.sessions.values()):
            if session.leases == 0 and session.came == 0:
                box.end(session)
        box.forget(space)

    later(patience_s, end)
