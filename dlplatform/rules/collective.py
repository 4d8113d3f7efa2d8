"""Collective: the mean gradient by torch.distributed instead of the boxes (gloo, NCCL).

The process group is an object of its own beside torch's default one: several jobs, or workers
that are threads, may live in one process. Its members find each other through the job's notice
board. Gloo's sums have the same bits on all members, so weights stay equal.

Torch cannot take back a collective that somebody has not joined, and an object that waits cannot
be freed. So members first meet at a counter of the boxes, where the death of one is seen; only
then they enter the collective, all of them, with little patience.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dlplatform.errors import PeerLost, UsageError
from dlplatform.memorybox.timing import CLOCK
from dlplatform.rules.steps import ByWorkers

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

    from dlplatform.rules.ssgd import SSGD

SLICE, PATIENCE = timedelta(milliseconds=200), timedelta(seconds=10)
GRACE_S = 3.0
"""How long a box may take to see that a worker died whose connection to this one broke."""


class Collective(ByWorkers):
    """An all-reduce among the members of a group, on the gradients where they are.

    Args:
        sync: the rule, whose world are the members.
    """

    def __init__(self, sync: SSGD) -> None:
        super().__init__(sync)
        if sync.job.cluster.clock is not CLOCK:
            raise UsageError(
                "rule.inner=torch in simulated time - allowed: boxes - do: rule.inner=boxes"
            )
        self.store = self._meet()
        self.arrived = sync.cluster.counter(f"{sync.label}/accumulated")
        self.groups: dict[int, Any] = {}

    def _meet(self) -> TCPStore:
        """Open a store at the group's first member, and tell the others where it is."""
        from torch._C._distributed_c10d import TCPStore

        cluster, world = self.sync.job.cluster, self.sync.world
        notice, patience = f"{self.sync.label}/store", timedelta(seconds=cluster.timeout_s)
        if world.rank == 0:
            store = TCPStore("0.0.0.0", 0, None, True, patience, wait_for_workers=False)
            cluster.publish(notice, [world.node, store.port])
            return store
        host, port = cluster.lookup(notice)
        near = "127.0.0.1" if host == world.node else host
        return TCPStore(near, port, None, False, patience, wait_for_workers=False)

    def exchange(self, present: int) -> None:
        """Replace the gradients by their mean."""
        from torch._C._distributed_c10d import AllreduceOptions

        if not self.needed(present):
            return
        self.sync.expect(present)
        self.sync.rendezvous(self.arrived)
        options = AllreduceOptions()
        options.timeout = PATIENCE
        try:
            self._wait(self._members(present).allreduce([self.group.grad], options))
        except RuntimeError as error:
            self._explain(error)
        self.group.grad.mul_(1.0 / present)

    def _members(self, present: int) -> Any:
        """Return the process group of the first members, made when all of them are here."""
        from torch._C import _distributed_c10d as c10d

        if present not in self.groups:
            place = c10d.PrefixStore(f"{present}", self.store), self.sync.world.rank, present
            if self._apart(present):
                options = c10d.ProcessGroupNCCL.Options()
                options._timeout = PATIENCE
                self.groups[present] = c10d.ProcessGroupNCCL(*place, options)
            else:
                self.groups[present] = c10d.ProcessGroupGloo(*place, PATIENCE)
        return self.groups[present]

    def _apart(self, present: int) -> bool:
        """Tell whether every member has a GPU of its own, as NCCL wants it."""
        import torch

        device, mine = self.group.device, ""
        if device.type == "cuda" and torch.distributed.is_nccl_available():
            mine = str(torch.cuda.get_device_properties(device).uuid)
        cluster, notice = self.sync.job.cluster, f"{self.sync.label}/gpu/{present}"
        cluster.publish(f"{notice}/{self.sync.world.rank}", mine)
        gpus = {cluster.lookup(f"{notice}/{rank}") for rank in range(present)}
        return len(gpus) == present and "" not in gpus

    def _wait(self, work: Any) -> None:
        """Wait, and look now and then whether somebody has died."""
        while True:
            try:
                work.wait(SLICE)
                return
            except RuntimeError:
                if work.is_completed():
                    raise
                self.sync.check()

    def _explain(self, error: RuntimeError) -> None:
        """Say who is gone, once the boxes know, or what torch said."""
        clock = self.sync.job.cluster.clock
        end = clock.now() + GRACE_S
        while clock.now() < end:
            self.sync.check()
            clock.sleep(0.05)
        reason = str(error).splitlines()[0]
        raise PeerLost(
            f"torch.distributed stopped: {reason} - allowed: members that answer - do: see the "
            "other workers' logs, or rule.inner=boxes"
        ) from None
