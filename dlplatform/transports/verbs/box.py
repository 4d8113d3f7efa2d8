"""What a box does for workers over RDMA: it goes over to it, and says where its memory is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from dlplatform.errors import BoxError
from dlplatform.memorybox import wire
from dlplatform.memorybox.box import WRONG_VALUES, refused
from dlplatform.memorybox.connection import HANDSHAKE_S, STREAMS, Connection
from dlplatform.memorybox.session import Fields, Session
from dlplatform.transports.conduit import SocketConduit
from dlplatform.transports.verbs.conduit import VerbsConduit, local_adapter, row
from dlplatform.transports.verbs.fabric import choose
from dlplatform.transports.verbs.queuepair import adapter


def prepare(hosts: Sequence[str]) -> Callable[[Connection, Fields], None]:
    """Open the adapters for addresses where a box listens; return how it goes over to RDMA.

    Raises:
        EnvironmentMissing: when there is no RDMA here, or too little memory may be locked.
    """
    for host in hosts:
        trial = row()  # a limit on locked memory is told now, not to the first worker
        adapter(choose(host)).register(trial.address, trial.size).close()
    STREAMS["expose"] = expose
    return pair


def pair(connection: Connection, card: Fields) -> None:
    """Go over from TCP to RDMA: a worker has sent its card; it proves the secret there, too."""
    line = connection.link
    assert isinstance(line, SocketConduit), "went over already"
    line.settimeout(HANDSHAKE_S)
    made = VerbsConduit(local_adapter(line), line)
    try:
        made.connect(card)
        wire.send(line, {"ok": made.card})
        wire.receive(line, wire.GREETING)  # it is connected, too: now it may be sent something
    except (OSError, *WRONG_VALUES) as error:
        refusal = BoxError(
            f"{error} - allowed: ports of one fabric that reach each other - do: choose them with "
            "DLP_RDMA_DEVICE and DLP_RDMA_GID, at the worker and at the box"
        )
        with suppress(OSError):
            wire.send(line, refused(refusal))
        made.close()
        raise ConnectionAbortedError(str(error)) from None
    connection.link = made
    if not connection.welcome():
        raise ConnectionAbortedError("the secret was not proved again")


def expose(connection: Connection, session: Session, frame: Fields) -> None:
    """Tell a worker where a segment or a counter is, to read it without this box."""
    link, space = connection.link, session.space
    if not isinstance(link, VerbsConduit):
        raise BoxError("expose over tcp or shm - allowed: verbs - do: ask for the bytes")
    if frame.get("counter"):
        memory, at = space.counters, space.counter(frame["counter"])
        rkey = link.end.pin(memory, "read").rkey
    else:
        entry = session.entry(frame.get("key", ""))
        with space.using(entry):
            at, rkey = entry.mapping.data, link.end.pin(entry.mapping, "read").rkey
    wire.send(link, {"ok": {"at": at, "rkey": rkey}})
