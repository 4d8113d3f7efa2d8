"""Rows of the transport mpi: beside MPI's own one-sided operations, and beside shm and tcp.

Two ranks of an mpirun: one is a box and at the same time the target of a plain window, the other
works on both in turns, and on a box process of the same machine. "2 hosts" are two ranks that share
no memory: their bytes travel by whatever MPI takes between such ranks of one machine.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from boxbench import ranks
from boxbench.memory import TINY, filled, shared
from boxbench.mpi import array
from boxbench.ranks import Plan
from boxbench.rows import (
    MIB,
    ROOT,
    Call,
    Missing,
    Row,
    Settings,
    Times,
    environment,
    missing,
    turns,
)
from dlplatform.memorybox.buffer import SharedBuffer
from dlplatform.memorybox.cluster import Cluster
from dlplatform.memorybox.process import Boxes
from dlplatform.transports.mpi import job
from dlplatform.transports.mpi.transport import enter
from dlplatform.world import mpi

FLOATS, LIMIT_S, COUNTS = 4 * MIB, 240, 20
HERE = Path(sys.executable).parent
MPIS = {"Open MPI": HERE, "MPICH": ROOT / ".venv-mpich" / "bin"}
OPTIONS = {"Open MPI": ["--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"], "MPICH": []}
PEERS = {"write": "Put", "read": "Get", "axpy": "Accumulate", "counter add": "Fetch_and_op"}


def progress(lent: Any, over: threading.Event) -> None:
    """Keep MPI going at the target of the plain window: some libraries move nothing without it."""
    comm = lent.COMM_WORLD
    while not over.wait(0):
        comm.Iprobe()


def raw(lent: Any, window: Any, target: int) -> dict[str, Call]:
    """Return MPI's own operations on the plain window."""
    x, one, old = filled(FLOATS), ctypes.c_int64(1), ctypes.c_int64()
    ax, kind = array(x), lent.INT64_T

    def flushed(call: Call) -> Call:
        return lambda held=x: (call(), window.Flush(target))  # type: ignore[misc]

    return {
        "write": flushed(lambda: window.Put(ax, target)),
        "read": flushed(lambda: window.Get(ax, target)),
        "axpy": flushed(lambda: window.Accumulate(ax, target, op=lent.SUM)),
        "counter add": flushed(
            lambda: window.Fetch_and_op([one, kind], [old, kind], target, 0, lent.SUM)
        ),
    }


def ours(cluster: Cluster, buffer: SharedBuffer) -> dict[str, Call]:
    """Return the same operations on a box."""
    x, counter = filled(FLOATS), cluster.counter("bench")
    return {
        "write": lambda: buffer.write(x.address),
        "read": lambda: buffer.read(x.address),
        "axpy": lambda: buffer.axpy(TINY, x.address),
        "counter add": counter.add,
    }


def measure(plan: Plan, box: int, plain: dict[str, Call]) -> Times:
    """Measure every operation in turns on the rank, on the plain window and on the box process."""
    near = Cluster([f"mpi://{box}"], "bench", b"bench")
    other = Cluster(plan.addresses, "bench", plan.secret.encode())
    times: Times = {}
    with shared(near, FLOATS) as mine, shared(other, FLOATS) as theirs:
        own, beside = ours(near, mine), ours(other, theirs)
        for name, call in own.items():
            loops = COUNTS if name == "counter add" else 1
            calls = {"mpi": call, "raw": plain[name], "box": beside[name]}
            found = turns(calls, plan.repeat, loops)
            times |= {f"{name}/{who}": values for who, values in found.items()}
    for cluster in (near, other):
        cluster.close()
    return times


def main(folder: str) -> None:
    """Run one of two ranks under mpirun."""
    plan = Plan.load(f"{folder}/plan.json")
    with mpi() as lent:
        met = job.meet(lent, 1, 0.25)
        window = lent.Win.Allocate(4 * FLOATS if met.is_box else 0, 4, comm=lent.COMM_WORLD)
        window.Lock_all()
        if met.is_box:
            over = threading.Event()
            thread = threading.Thread(target=progress, args=(lent, over))
            thread.start()
            job.serve(met, b"bench")
            over.set()
            thread.join()
        else:
            enter(met)
            plain = raw(lent, window, met.boxes[0])
            ranks.write_times(folder, 0, measure(plan, met.boxes[0], plain))
            met.finish()
        window.Unlock_all()
        window.Free()


def play(name: str, transport: str, env: dict[str, str], settings: Settings) -> Times:
    """Run the two ranks under an MPI, with a box process beside them.

    Raises:
        Missing: when that MPI is not installed, fails or hangs.
    """
    folder = MPIS[name]
    if not (folder / "mpirun").exists():
        raise Missing(f"no mpirun in {folder} (bash scripts/mpich.sh)")
    line = ["timeout", str(LIMIT_S), str(folder / "mpirun"), "-n", "2", *OPTIONS[name]]
    line += [str(folder / "python"), "-m", "boxbench.window"]
    if not os.geteuid():
        env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    with Boxes(1, transport) as boxes:
        plan = Plan(boxes.addresses, boxes.secret, 1, FLOATS, settings.repeat)
        return ranks.run(plan, lambda place: [[*line, place]], environment(**env), LIMIT_S + 20)


def rows(settings: Settings) -> Iterator[Row]:
    """Measure the transport on one host and as if on two, with both MPIs."""
    for name in MPIS:
        for where, transport, env in (
            ("1 host", "shm", {}), ("2 hosts", "tcp", {"DLP_MPI_APART": "1"}),
        ):  # fmt: skip
            found = []
            for op, peer in PEERS.items():
                what = f"mpi {op}, {name}, {where}"
                what += "" if op == "counter add" else ", 16 MiB"
                found += [Row("window", what, f"{name} {peer}"), Row("window", what, transport)]
            try:
                t = play(name, transport, env, settings)
            except Missing as error:
                yield from missing(error, found)
                continue
            for place, row in enumerate(found):
                op = list(PEERS)[place // 2]
                row.ours, row.theirs = t[f"{op}/mpi"], t[f"{op}/{('raw', 'box')[place % 2]}"]
            yield from found


if __name__ == "__main__":
    main(sys.argv[1])
