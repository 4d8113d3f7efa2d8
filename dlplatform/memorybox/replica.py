"""Replica: another box does every operation of a job again, before it is acknowledged.

The box that workers talk to sends the records of its log to the mirror. When it dies, workers
open the mirror's copy, with the same tokens and lanes, and go on with the request they were at.
From then on the mirror refuses further records, so a box that was only cut off cannot
acknowledge anything any more (assumption: a box that loses its mirror and its workers at the
same moment is dead, not cut off from both).
"""

from __future__ import annotations

import ctypes
import socket
import struct
from typing import TYPE_CHECKING

from dlplatform.errors import BoxError, PlatformError
from dlplatform.memorybox import wire
from dlplatform.memorybox.oplog import OpLog, check_record, entry_of
from dlplatform.memorybox.replay import expect, replay
from kernels import cpu

if TYPE_CHECKING:
    from dlplatform.memorybox.namespace import Namespace
    from dlplatform.memorybox.server import Server

PATIENCE_S, CONNECT_S, RETURN_S = 2.0, 10.0, 30.0
KEPT, MOVED, PART = b"k", b"m", 1 << 20


def mirror_to(server: Server, space: Namespace, origin: str, mirror: str) -> None:
    """Send every change of a new namespace to a mirror from now on.

    Raises:
        BoxError: when the mirror cannot be reached, or refuses.
    """
    try:
        link = wire.connect(mirror, CONNECT_S)
        wire.introduce(link, server.secret, mirror)
        wire.send(link, {"do": "mirror", "job": space.name, "origin": origin})
        answer = wire.receive(link)
        if "ok" not in answer:
            raise wire.refusal(answer)
    except (OSError, PlatformError) as error:
        raise BoxError(
            f"job {space.name}: its mirror {mirror} cannot be used: {error} - allowed: a running "
            "box with the same secret - do: start it, or set cluster.replicas=0"
        ) from None
    limit = struct.pack("ll", int(PATIENCE_S), 0)
    link.settimeout(None)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        link.setsockopt(socket.SOL_SOCKET, option, limit)
    space.log = space.log or OpLog()
    space.log.send_to(link)


def receive(server: Server, link: wire.Wire, job: str, origin: str) -> None:
    """Be the mirror of a namespace until its box closes the connection, or dies."""
    box, name = server.box, f"{job}:{origin}"
    with box.lock:
        if name in box.spaces:
            raise BoxError(f"job {job} of {origin} is mirrored here already - allowed: once - do: "
                           "choose another job name")  # fmt: skip
        space = box.space(name)
    wire.send(link, {"ok": {}})
    try:
        while raw := exactly(link, ctypes.sizeof(cpu.Record)):
            record = check_record(raw)
            if record is None:
                raise ConnectionError("not a record")
            head, body = exactly(link, record.head), exactly(link, record.body)
            found = entry_of(record, head, body)
            if found is None:
                raise ConnectionError("a damaged record")
            with space.lock:
                if space.taken_over:
                    link.sendall(MOVED)
                    return
            if space.log is None:
                replay(box, space, found)
            else:  # this box keeps a journal, too
                with space.log.alone():
                    replay(box, space, found)  # first: what is refused must not be logged
                    space.log.write(record, head, body)
            link.sendall(KEPT)
    except OSError:
        pass  # the box is gone: its workers will come here, or have left
    finally:
        expect(box, space, RETURN_S if space.sessions else 0.0)


def exactly(link: wire.Wire, count: int) -> bytes:
    """Receive so many bytes."""
    data = bytearray()
    while len(data) < count:  # memory grows with what has come, not with what was announced
        part = link.recv(min(count - len(data), PART))
        if not part:
            raise ConnectionResetError("the box hung up")
        data += part
    return bytes(data)
