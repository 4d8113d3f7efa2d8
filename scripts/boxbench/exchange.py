"""Rows of the synchronous exchange: everybody's gradients summed, the result visible to all.

Beside gloo's all_reduce, between the same processes, which take turns with both.
"""

from __future__ import annotations

import ctypes
import sys
import tempfile
from collections.abc import Iterator
from functools import partial

from boxbench import ranks
from boxbench.memory import filled
from boxbench.ranks import Plan, Seat
from boxbench.rows import MIB, Missing, Row, Settings, Times, missing
from dlplatform.memorybox.buffer import average
from dlplatform.memorybox.cluster import Cluster
from dlplatform.memorybox.process import Boxes

FLOATS = 16 * MIB
NOTES = {"region": "", "private": "one copy in, of what others sum; result in the region"}


class Exchange:
    """Ours, as ``rule=ssgd`` does it: each rank sums its share in place, in all regions."""

    def __init__(self, cluster: Cluster, rank: int, size: int, floats: int) -> None:
        names = [f"sum/{other}" for other in range(size)]
        self.regions = [
            cluster.buffer(name, floats, other == rank) for other, name in enumerate(names)
        ]
        self.mine, self.rank, self.size = self.regions[rank], rank, size
        self.start, self.count = self.mine.share(rank, size)
        self._counters = cluster.counter("arrived"), cluster.counter("summed")
        self._met = 0

    def __call__(self, private: int = 0) -> None:
        """Sum all regions into all regions; return when every share is done."""
        arrived, summed = self._counters
        self._met += self.size
        arrived.add(1)
        arrived.wait(self._met)
        mine = (self.rank, private + 4 * self.start) if private else None
        average(self.regions, self.start, self.count, 1.0, mine)
        summed.add(1)
        summed.wait(self._met)

    def from_private(self, address: int) -> None:
        """Copy what the others sum into this rank's region, then sum; the own share stays."""
        end = self.start + self.count
        self.mine.write(address, 0, self.start)
        self.mine.write(address + 4 * end, end)
        self(address)


def beside_gloo(seat: Seat) -> Times:
    """Run one rank: ours from the region, ours from private memory, gloo's all_reduce."""
    import torch
    import torch.distributed as dist

    plan, rank = seat.plan, seat.rank
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{plan.more['store']}", rank=rank, world_size=plan.size
    )
    tensor = torch.full((plan.floats,), float(rank + 1))
    exchange, x = Exchange(seat.cluster, rank, plan.size, plan.floats), filled(plan.floats)
    check(exchange, tensor.data_ptr(), plan)
    dist.all_reduce(tensor)
    assert float(tensor[-1]) == plan.size * (plan.size + 1) / 2, "gloo's sum is wrong"
    tensor.zero_()
    gloo = partial(dist.all_reduce, tensor)
    times = seat.turns({"region": exchange, "gloo, region": gloo})
    copied = partial(exchange.from_private, x.address)
    times |= seat.turns({"private": copied, "gloo, private": gloo})
    dist.destroy_process_group()
    return times


def check(exchange: Exchange, ones: int, plan: Plan) -> None:
    """Let every rank bring rank + 1 and see that every element becomes their sum.

    Raises:
        AssertionError: when it does not.
    """
    expected = plan.size * (plan.size + 1) / 2
    exchange.from_private(ones)
    found = (ctypes.c_float * plan.floats).from_address(exchange.mine.region)
    assert found[0] == found[plan.floats // 2 - 1] == found[plan.floats - 1] == expected


def _play(size: int, settings: Settings) -> Times:
    with Boxes(1) as boxes, tempfile.TemporaryDirectory() as folder:
        more = {"store": f"{folder}/store"}
        plan = Plan(boxes.addresses, boxes.secret, size, FLOATS, settings.repeat, more)
        return ranks.play(plan, "boxbench.exchange")


def rows(settings: Settings) -> Iterator[Row]:
    """Measure 64 MiB between 2 and between 4 workers."""
    gloo = "gloo all_reduce"
    region = Row("gloo", "sum of 64 MiB in the mapped region, 2 workers", gloo, 6.0)
    private = Row("gloo", "sum of 64 MiB from private memory, 2 workers", gloo, 2.0)
    four = Row("gloo", "sum of 64 MiB in the mapped region, 4 workers", f"{gloo} of 4", 4.0)
    four_private = Row("gloo", "sum of 64 MiB from private memory, 4 workers", f"{gloo} of 4", 4.0)
    for size, pair in ((2, (region, private)), (4, (four, four_private))):
        try:
            t = _play(size, settings)
        except Missing as error:
            yield from missing(error, pair)
            continue
        for row, name in zip(pair, ("region", "private"), strict=True):
            row.ours, row.theirs = t[name], t[f"gloo, {name}"]
            row.note = NOTES[name]
            yield row


if __name__ == "__main__":
    ranks.main(beside_gloo, sys.argv[1:])
