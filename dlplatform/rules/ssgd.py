"""``ssgd``: synchronous SGD (specs S1; P-PS 119-136).

Every worker's gradients live in its own region of the boxes. When all are in, each worker has
its share of the average computed, in rank order and in place in all regions; when all shares
are done, everybody holds the mean gradient. Every worker applies the same optimizer to the
same numbers, so the weights stay equal bit by bit and the run is repeatable.

Where boxes are mapped nothing is copied: 2 memory streams a worker, whatever the number of
workers. Over tcp a region is written once and read once, the boxes do the sums.

``optimizer`` says who steps instead: the master as in the patent, or the boxes themselves
(``dlplatform/rules/steps.py``). ``bucket_mb`` lets gradients leave while backward still computes
(``dlplatform/rules/buckets.py``); ``inner`` brings the exchange into the workers' own host
(``dlplatform/rules/inside.py``) or leaves it to torch.distributed
(``dlplatform/rules/collective.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlplatform.errors import PeerLost, UsageError
from dlplatform.memorybox.counter import SLICE_MS
from dlplatform.rules.inside import Inside
from dlplatform.rules.rule import Rule, rule

if TYPE_CHECKING:
    from dlplatform.flat import FlatGroup
    from dlplatform.job import Job
    from dlplatform.memorybox.buffer import SharedBuffer
    from dlplatform.memorybox.counter import Counter
    from dlplatform.world import World

STALL_S = 1800.0
"""A worker may evaluate or load for so long before the others give it up."""
UNIT = 1 << 20
"""Numbers are added up in such parts of one: sums of integers are the same in any order."""
OPTIMIZERS, ORDERS = ("worker", "master", "box"), ("rank", "arrival")
INNERS = "boxes", "host", "auto", "torch"


@rule("ssgd")
@dataclass
class SSGD(Rule):
    """Average all workers' gradients, every step, in rank order."""

    optimizer: str = "worker"
    """Who steps: every worker; the master (rank 0, S1); or the boxes (SGD, Adam, AdamW)."""
    order: str = "rank"
    """How a master's or the boxes' gradient is summed: by rank (repeatable), or on arrival."""
    bucket_mb: float = 0.0
    """Send gradients in buckets of so many MiB while backward computes; 0: after it."""
    inner: str = "boxes"
    """What averages gradients: boxes, host (a box there), auto, or torch (gloo)."""

    def start(self, job: Job, group: FlatGroup) -> None:
        """Share rank 0's weights and give every worker a gradient region."""
        self.meet(job, group, job.world, group.name, Inside(job, job.world, group.name, self.inner))
        self.weight = shared_weights(job, group)
        self.way.begin()

    def meet(self, job: Job, group: FlatGroup, world: World, label: str, inside: Inside) -> None:
        """Create this worker's gradient region and attach to those of its group."""
        from dlplatform.rules.buckets import Buckets
        from dlplatform.rules.collective import Collective
        from dlplatform.rules.steps import ByBoxes, ByMaster, ByWorkers

        self._check_settings()
        self.job, self.group, self.world, self.label = job, group, world, label
        self.inside, self.cluster = inside, inside.cluster
        self.ranks = world.ranks
        self.met, self.steps, self.needed = 0, 0, self.ranks
        self.counted, self.told = self.cluster.counter(f"{label}/counted"), 0
        self.sums: dict[str, int] = {}
        self.buckets: Buckets | None = None
        self.way: ByWorkers
        if self.inner == "torch":
            self.way = Collective(self)
            return
        self.regions = [
            self.cluster.buffer(f"{label}/gradient/{rank}", group.length, rank == world.rank)
            for rank in range(world.size)
        ]
        self.mine = self.regions[world.rank]
        group.place_grad(self.mine.region, self.mine)
        self.arrived = self.cluster.counter(f"{label}/accumulated")
        self.averaged = self.cluster.counter(f"{label}/averaged")
        self.way = {"worker": ByWorkers, "master": ByMaster, "box": ByBoxes}[self.optimizer](self)
        if self.bucket_mb:
            self.buckets = Buckets(self)

    def _check_settings(self) -> None:
        choices = {"optimizer": OPTIMIZERS, "order": ORDERS, "inner": INNERS}
        for name, allowed in choices.items():
            if (value := getattr(self, name)) not in allowed:
                raise UsageError(
                    f"rule.{name}={value} - allowed: {', '.join(allowed)} - do: rule.{name}="
                    f"{allowed[0]}"
                )
        if self.bucket_mb < 0:
            raise UsageError(
                f"rule.bucket_mb={self.bucket_mb} - allowed: 0 or more - do: 0 to send after "
                "backward, or 4"
            )
        buckets = self.inner == "torch" and self.bucket_mb
        if self.inner != "boxes" and (self.optimizer != "worker" or buckets):
            raise UsageError(
                f"rule.inner={self.inner} with rule.optimizer={self.optimizer}, rule.bucket_mb="
                f"{self.bucket_mb:g} - allowed: worker, 0 - do: rule.inner=boxes"
            )
        if self.bucket_mb and (self.optimizer == "master" or self.order == "arrival"):
            raise UsageError(
                f"rule.bucket_mb={self.bucket_mb:g} with rule.optimizer={self.optimizer}, "
                f"rule.order={self.order} - allowed: worker or box, by rank - do: rule.bucket_mb=0"
            )

    def claim(self, job: Job) -> int | None:
        """Take the number dealt to this rank; the last round may leave some without."""
        return job.work.deal(self.world)

    @property
    def present(self) -> int:
        """Return how many work on this step: the first ranks."""
        return self.job.work.present or self.world.size

    @property
    def companies(self) -> set[int]:
        """Return how many may ever be present: all, or those whom the last round leaves."""
        last = (self.job.work.total - self.job.work.first) % self.world.size
        return {self.world.size, last or self.world.size}

    def numbers(self, own: dict[str, float]) -> dict[str, float]:
        """Return the means over all who work on this step.

        Nobody adds to the next step's sums before all have left this one, by its gradients.
        """
        present = self.present
        if present == 1:
            return own
        counters = {name: self.cluster.counter(f"{self.label}/number/{name}") for name in own}
        for name, counter in counters.items():
            counter.add(round(own[name] * UNIT))
        self.told += present
        self.needed = self.ranks[:present]
        self.counted.add(1)
        self.counted.wait(self.told, STALL_S, self.check)
        before, self.sums = self.sums, {name: one.value for name, one in counters.items()}
        return {
            name: (value - before.get(name, 0)) / (UNIT * present)
            for name, value in self.sums.items()
        }

    def gradients(self) -> None:
        """Replace this worker's gradients by the mean over all who work on this step."""
        self.cluster.check()
        if self.buckets:
            self.buckets.exchange()
        else:
            self.way.exchange(self.present)
        self.steps += 1

    def weights(self) -> None:
        """Bring the new weights, where somebody else has stepped."""
        self.way.weights()

    def share(self, present: int) -> None:
        """Do this worker's part of one exchange of the whole vector."""
        self.group.export_grad()
        self.mine.write()
        self.way.written(present)
        self.expect(present)
        self.rendezvous(self.arrived)
        start, count = self.mine.share(self.world.rank, present)
        if count:
            self.way.combine(start, count, present)
        self.rendezvous(self.averaged)

    def expect(self, present: int) -> None:
        """Begin an exchange among the first ranks."""
        self.met += present
        self.needed = self.ranks[:present]

    def rendezvous(self, counter: Counter) -> None:
        """Wait until all who are expected have come here."""
        counter.add(1)
        counter.wait(self.met, STALL_S, self.check)

    def check(self) -> None:
        """Raise PeerLost when someone this step waits for is gone."""
        self.job.cluster.check_peers(self.needed)

    def master(self, into: int) -> None:
        """Copy this worker's weights: all hold the same."""
        self.group.copy_weight(into)

    def moments(self) -> None:
        """Bring the optimizer's state back from the boxes, for a checkpoint."""
        self.way.moments()

    def restore(self) -> None:
        """Hand a saved state of the optimizer to the boxes."""
        self.way.restore()

    def finish(self) -> None:
        """Leave the final weights in the boxes (S10)."""
        self.end()
        if self.world.rank == 0:
            self.weight.write(self.group.weight_address)

    def end(self) -> None:
        """End the threads of the buckets."""
        if self.buckets:
            self.buckets.close()

    def close(self) -> None:
        """End the threads of the buckets, and leave the box inside the host."""
        self.end()
        self.inside.close()

    def report(self) -> dict[str, float]:
        """Return which share of the exchange was hidden behind backward."""
        return {"sync/hidden": self.buckets.hidden()} if self.buckets else {}


def shared_weights(job: Job, group: FlatGroup) -> SharedBuffer:
    """Return the group's weight buffer, holding rank 0's weights, which all now have (S5)."""
    first = job.world.rank == 0
    buffer = job.cluster.buffer(f"{group.name}/weight", group.length, first)
    ready = job.cluster.counter(f"{group.name}/initialised")
    if first:
        buffer.write(group.weight_address)
        ready.add(1)
    else:
        ready.wait(1, job.cluster.timeout_s, job.cluster.check_peers)
        buffer.read(group.weight_address)
        if job.world.late:  # nobody waits for it, and those who began have their weights
            return buffer
    _all_have_read(job, job.cluster.counter(f"{group.name}/started"))
    return buffer


def _all_have_read(job: Job, started: Counter) -> None:
    """Wait until nobody can read weights that somebody else has trained already."""
    started.add(1)
    end = job.cluster.clock.now() + job.cluster.timeout_s
    while not started.reached(job.size - len(_gone(job)), SLICE_MS):
        job.cluster.check()
        if job.cluster.clock.now() > end:
            raise PeerLost(
                f"{started.value} of {job.size} workers are ready to train, waited "
                f"{job.cluster.timeout_s:g} s - allowed: all who live - do: look for a stuck worker"
            )


def _gone(job: Job) -> list[int]:
    return [rank for rank in job.cluster.gone() if rank in job.world.ranks]
