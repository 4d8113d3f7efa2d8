"""A job whose boxes are ranks: who becomes what, and how all of them end together."""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Callable
from typing import Any

from dlplatform.errors import PeerLost, Preempted
from dlplatform.memorybox import connection, watching, wire
from dlplatform.memorybox.box import Limits, MemoryBox
from dlplatform.memorybox.server import GOODBYE_S, Server
from dlplatform.transports.conduit import Conduit
from dlplatform.transports.mpi.engine import LEFT
from dlplatform.transports.mpi.ranks import LOOK_S, Ranks
from dlplatform.transports.mpi.transport import enter
from dlplatform.world import World, become

APART, ONE_SIDED = "DLP_MPI_APART", "DLP_MPI_ONE_SIDED"
"""For tests and measurements: ``DLP_MPI_APART=1``: ranks share no memory, as if each were on a host
of its own; ``DLP_MPI_ONE_SIDED=0`` or ``1``: decides what is otherwise measured."""
GIB = 1 << 30


def meet(mpi: Any, boxes: int, pool_gib: float = 0.0) -> Ranks:
    """Come together with all ranks of this job, and be one of its boxes or workers."""
    told = os.environ.get(ONE_SIDED)
    wanted = None if told is None else told != "0"
    return Ranks(mpi, boxes, int(pool_gib * GIB), APART in os.environ, wanted)


def serve(ranks: Ranks, secret: bytes) -> None:
    """Be a box until no worker is left."""
    server = Server(MemoryBox(Limits(pool=ranks.pool.cut)), secret)

    def welcome(accept: Callable[[], Conduit]) -> None:
        server.count(connected=1)
        connection.spawn(server, accept)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # they are for the workers, whom it outlives
    with watching.watched(server, ""):
        ranks.open_doors(welcome)
        ranks.wait_for(ranks.workers)
        with server.changed:
            server.changed.wait_for(lambda: not server.connected, GOODBYE_S)
    if not ranks.finish():
        os._exit(0)  # a worker has left with an error of its own, and MPI cannot end without it


def work(ranks: Ranks, train: Callable[[], float]) -> float:
    """Be a worker: train, then wait for all others."""
    place = ranks.workers.index(ranks.rank)
    here = [rank for rank in ranks.neighbours if rank in ranks.workers]
    become(World(place, len(ranks.workers), here.index(ranks.rank), len(here)))
    enter(ranks)

    def died(rank: int) -> None:
        for link in ranks.links:
            link.lost = link.lost or ranks.obituary()

    ranks.on_death = died
    try:
        score = train()
    except BaseException as error:
        # MPICH tells of a death by the signal that asks for a checkpoint, too.
        by_death = isinstance(error, PeerLost | Preempted)
        if by_death:
            time.sleep(2 * LOOK_S)  # whoever died is known by then
        ranks.say(LEFT)
        if by_death and ranks.dead:
            raise PeerLost(ranks.last_words()) from None
        raise
    ranks.finish()
    return score


def take_part(mpi: Any, config: dict[str, Any], train: Callable[[dict[str, Any]], float]) -> float:
    """Do this rank's share of a configured job, as a box or as a worker; return the score."""
    ranks = meet(mpi, int(config["boxes"]), float(config["cluster"]["pool_gib"]))
    secret = ranks.comm.bcast(secrets.token_hex(32), 0)
    if ranks.is_box:
        serve(ranks, secret.encode())
        return 0.0
    os.environ[wire.SECRET] = secret
    addresses = [f"mpi://{rank}" for rank in ranks.boxes]
    cluster = {**config["cluster"], "boxes": addresses, "secret_file": ""}
    ready = {**config, "workers": len(ranks.workers), "cluster": cluster}
    return work(ranks, lambda: train(ready))
