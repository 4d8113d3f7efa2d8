"""Rows beside MPI: one-sided operations of Open MPI, and every MPI's best Allreduce.

The ranks are mpirun's; they do ours and MPI's in turns.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from typing import Any

from boxbench import peers, ranks
from boxbench.exchange import FLOATS, Exchange, check
from boxbench.memory import TINY, filled, loop
from boxbench.peers import Mpi
from boxbench.ranks import Plan, Seat
from boxbench.rows import MIB, Call, Missing, Row, Settings, Times, fastest, missing
from dlplatform.memorybox.memory import Memory
from dlplatform.memorybox.process import Boxes

RMA_FLOATS = 4 * MIB
LIMIT_S = 240


def array(memory: Memory) -> Any:
    """Return private memory as a numpy array of fp32."""
    import numpy as np

    block = (ctypes.c_float * memory.floats).from_address(memory.address)
    return np.ctypeslib.as_array(block)


def one_sided(seat: Seat, world: Any) -> Times:
    """Run one of two ranks: rank 0's memory, here a window and there a box, is pushed to."""
    from mpi4py import MPI

    n, rank = seat.plan.floats, seat.rank
    box = seat.cluster.buffer("rma", n, rank == 0)
    window = MPI.Win.Allocate(4 * n if rank == 0 else 0, 4, comm=world)
    x, g = filled(n), filled(n)
    ax, ag, pull = array(x), array(g), loop("pull", ctypes.c_float)

    def accumulate() -> None:
        window.Lock(0, MPI.LOCK_SHARED)
        window.Accumulate(ax, 0, op=MPI.SUM)
        window.Unlock(0)

    def exchange() -> None:
        window.Lock(0, MPI.LOCK_SHARED)
        window.Get(ag, 0)
        window.Flush(0)
        pull(g.address, x.address, n, 0.1)
        window.Accumulate(ag, 0, op=MPI.SUM)
        window.Unlock(0)

    def other(call: Call) -> Call:
        return call if rank == 1 else lambda: None

    axpy, elastic = lambda: box.axpy(TINY, x.address), lambda: box.elastic(0.1, x.address)
    times = seat.turns({"axpy": other(axpy), "accumulate": other(accumulate)})
    times |= seat.turns({"elastic": other(elastic), "exchange": other(exchange)})
    world.Barrier()
    window.Free()
    return times


def allreduce(seat: Seat, world: Any) -> Times:
    """Run one rank: ours in turns with Allreduce in place, then with one between two buffers."""
    from mpi4py import MPI

    plan = seat.plan
    exchange = Exchange(seat.cluster, seat.rank, plan.size, plan.floats)
    first, second = filled(plan.floats), filled(plan.floats)
    x, y = array(first), array(second)
    x.fill(seat.rank + 1)
    check(exchange, first.address, plan)
    world.Allreduce(x, y)
    assert y[-1] == plan.size * (plan.size + 1) / 2, "MPI's sum is wrong"
    y.fill(0.0)
    forms: dict[str, Call] = {
        "in place": lambda: world.Allreduce(MPI.IN_PLACE, y),
        "two buffers": lambda: world.Allreduce(x, y),
    }  # fmt: skip
    pairs = [seat.turns({f"ours, {form}": exchange, form: call}) for form, call in forms.items()]
    return pairs[0] | pairs[1]


def main(folder: str) -> None:
    """Run one rank under mpirun."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    seat = Seat(Plan.load(f"{folder}/plan.json"), world.Get_rank())
    work = {"rma": one_sided, "allreduce": allreduce}[seat.plan.more["work"]]
    ranks.write_times(folder, seat.rank, work(seat, world))
    seat.cluster.close()


def play(work: str, mpi: Mpi, floats: int, settings: Settings, env: dict[str, str]) -> Times:
    """Run two ranks under an MPI; return the slowest rank's times.

    Raises:
        Missing: when that MPI is not installed, fails or hangs.
    """
    line, around = peers.mpirun(settings.peers, mpi, 2, LIMIT_S)
    with Boxes(1) as boxes:
        more = {"work": work}
        plan = Plan(boxes.addresses, boxes.secret, 2, floats, settings.repeat, more)
        return ranks.run(
            plan, lambda folder: [[*line, "-m", "boxbench.mpi", folder]], around | env, LIMIT_S + 20
        )


def rma(settings: Settings) -> Iterator[Row]:
    """Measure axpy and elastic beside Open MPI's one-sided operations."""
    get = "Open MPI Get + compute + Accumulate"
    elastic = Row("rma", "shm elastic 16 MiB", get, 2.5)
    elastic.note = "compute: one fused pass of C"
    axpy = Row("rma", "shm axpy 16 MiB", "Open MPI Accumulate", 1.0)
    try:
        t = play("rma", peers.MPIS[0], RMA_FLOATS, settings, {})
    except Missing as error:
        yield from missing(error, [elastic, axpy])
        return
    elastic.ours, elastic.theirs = t["elastic"], t["exchange"]
    axpy.ours, axpy.theirs = t["axpy"], t["accumulate"]
    yield from (elastic, axpy)


def sums(settings: Settings) -> Iterator[Row]:
    """Measure the exchange of 64 MiB beside the best Allreduce of every MPI."""
    for mpi in peers.MPIS:
        row = Row("mpi", "sum of 64 MiB in the mapped region, 2 workers", "", 4.0)
        row.peer = f"{mpi.title} Allreduce"
        try:
            yield best(mpi, row, settings)
        except Missing as error:
            yield from missing(error, [row])


def best(mpi: Mpi, row: Row, settings: Settings) -> Row:
    """Fill a row with the fastest of an MPI's settings, in place or between two buffers."""
    variants = {"": {}} | ({} if settings.quick else mpi.variants)
    found: dict[str, tuple[Times, str]] = {}
    failed = []
    for name, env in variants.items():
        try:
            t = play("allreduce", mpi, FLOATS, settings, env)
        except Missing as error:
            if not name:
                raise
            failed.append(f"{name}: {error}")
            continue
        for form in ("in place", "two buffers"):
            found[f"{name or 'default'}, {form}"] = t, form
    winner = fastest({name: t[form] for name, (t, form) in found.items()})
    t, form = found[winner]
    row.ours, row.theirs = t[f"ours, {form}"], t[form]
    row.note = "; ".join([f"best of {len(found)}: {winner}", *failed])
    return row


if __name__ == "__main__":
    main(sys.argv[1])
