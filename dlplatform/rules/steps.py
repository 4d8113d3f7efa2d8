"""Who steps in synchronous SGD: every worker, the master, or the boxes (specs S1; P-PS 119-136).

Regions of S1: W_master is the group's shared weights, G_worker_x are the workers' gradient
regions, G_master is one more buffer. The rule sees no optimizer: where a worker must not step,
its gradients are dropped before ``optimizer.step``, which then skips every parameter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlplatform.errors import UsageError
from dlplatform.memorybox.buffer import average
from dlplatform.memorybox.event import ACCUMULATED, UPDATED
from dlplatform.rules import ssgd

if TYPE_CHECKING:
    from dlplatform.memorybox.buffer import SharedBuffer
    from dlplatform.rules.ssgd import SSGD


class ByWorkers:
    """Every worker gets the mean gradient and applies the same optimizer to it.

    Args:
        sync: the rule, with its regions.
    """

    def __init__(self, sync: SSGD) -> None:
        self.sync, self.group = sync, sync.group

    def begin(self) -> None:
        """Create what else is needed, once the weights are shared."""

    def needed(self, present: int) -> bool:
        """Tell whether there is anything to do for so many workers."""
        return present > 1

    def exchange(self, present: int) -> None:
        """Exchange the whole vector at once, after backward."""
        if self.needed(present):
            self.sync.share(present)
            self.bring(0, self.group.length)

    def written(self, present: int) -> None:
        """Wait for the others, with the gradients in the boxes."""

    def combine(self, start: int, count: int, present: int) -> None:
        """Average one span in rank order, in all regions."""
        average(self.sync.regions[:present], start, count, 1.0 / present)

    def bring(self, start: int, count: int) -> None:
        """Bring a span of the mean here; nothing moves where boxes are mapped."""
        self.sync.mine.read(0, start, count)
        self.group.import_grad(start, count)

    def settle(self) -> None:
        """Get ready for ``optimizer.step``, with all gradients exchanged."""

    def weights(self) -> None:
        """Have the new weights already."""

    def moments(self) -> None:
        """Have the optimizer's state already."""

    def restore(self) -> None:
        """Keep the optimizer's state."""


class ByMaster(ByWorkers):
    """The master gathers the gradients, steps, and everybody takes its weights over (S1).

    By rank, the boxes sum up the regions when all are in, so a run repeats bit by bit; on arrival,
    each worker asks for G_master += G_worker_x as soon as it has written its gradients.
    """

    def begin(self) -> None:
        """Create G_master and set up the events *accumulated* and *updated*."""
        sync = self.sync
        cluster, label = sync.job.cluster, sync.label
        self.leads, self.by_rank = sync.world.rank == 0, sync.order == "rank"
        self.sum = cluster.buffer(f"{label}/{ACCUMULATED}", self.group.length, self.leads)
        self.updated = cluster.event(f"{label}/{UPDATED}")
        self.accumulated = {n: cluster.event(f"{label}/{ACCUMULATED}/{n}") for n in sync.companies}
        if self.leads:
            self.updated.set_up(sync.ranks)
            for n, event in self.accumulated.items():
                event.set_up(sync.ranks[:1], n)

    def needed(self, present: int) -> bool:
        """Tell that the master steps also for itself alone."""
        return True

    def exchange(self, present: int) -> None:
        """Hand this worker's gradients in; the master waits for all and takes the mean."""
        sync, event = self.sync, self.accumulated[present]
        sync.expect(present)
        self.group.export_grad()
        sync.mine.write()
        if not self.by_rank:
            self.sum.axpy(1.0, sync.mine)
        event.announce()
        if not self.leads:
            self.group.drop_grad()
            return
        event.wait(ssgd.STALL_S, sync.check)
        if self.by_rank:
            self.sum.sum(sync.regions[:present], 1.0 / present)
        else:
            self.sum.scal(1.0 / present)
        self.sum.read(self.group.grad_address)
        self.group.import_grad()

    def weights(self) -> None:
        """Write W_master and announce it, or wait for that and read it."""
        sync = self.sync
        if not self.leads:
            self.updated.wait(ssgd.STALL_S, sync.check)
            sync.weight.read(self.group.weight_address)
            return
        sync.weight.write(self.group.weight_address)
        if not self.by_rank:
            self.sum.scal(0.0)
        self.updated.announce()


class ByBoxes(ByWorkers):
    """The boxes apply the optimizer to the mean gradient, each worker directing its share.

    Gradients are never read back over tcp: a worker writes its gradients and reads weights. The
    optimizer's state is in the boxes, once for all workers.
    """

    def begin(self) -> None:
        """Create G_master and the optimizer's state, all zero."""
        sync = self.sync
        cluster, label, first = sync.job.cluster, sync.label, sync.world.rank == 0
        self.descent, length = self.group.descent, self.group.length
        self.by_rank = sync.order == "rank"
        self.sum = cluster.buffer(f"{label}/{ACCUMULATED}", length, first)
        self.states: list[SharedBuffer] = [
            cluster.buffer(f"{label}/state/{name}", length, first) for name in self.descent.kept
        ]

    def needed(self, present: int) -> bool:
        """Tell that the boxes step also for one worker alone."""
        return True

    def exchange(self, present: int) -> None:
        """Exchange the whole vector at once, after backward."""
        self.sync.share(present)
        self.settle()

    def written(self, present: int) -> None:
        """Ask for G_master += G_worker_x at once, where the order is that of arrival."""
        if not self.by_rank:
            self.sum.axpy(1.0 / present, self.sync.mine)

    def combine(self, start: int, count: int, present: int) -> None:
        """Have the boxes average one span, in rank order, and step there."""
        if self.by_rank:
            self.sum.sum(self.sync.regions[:present], 1.0 / present, start, count)
        number = self.sync.steps + 1
        self.descent.step(self.sync.weight, self.sum, self.states, start, count, number)
        if not self.by_rank:
            self.sum.apply("scal", a=0.0, start=start, count=count)

    def bring(self, start: int, count: int) -> None:
        """Leave the mean in the boxes."""

    def settle(self) -> None:
        """Keep the worker's own optimizer from stepping."""
        self.group.drop_grad()

    def weights(self) -> None:
        """Read W_master."""
        self.sync.weight.read(self.group.weight_address)

    def moments(self) -> None:
        """Bring the states to the worker's optimizer, from where checkpoints take them."""
        self.descent.bring(self.states, self.sync.steps)

    def restore(self) -> None:
        """Take the states over from the worker's optimizer, and the number of the last step."""
        if self.sync.steps:
            raise UsageError(
                f"state of group {self.group.name} restored after {self.sync.steps} steps - "
                "allowed: before the first one - do: resume before training"
            )
        self.sync.steps = self.descent.hand_over(self.states, self.sync.world.rank == 0)
