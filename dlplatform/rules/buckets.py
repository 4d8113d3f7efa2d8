"""Buckets: gradients leave while backward still computes, the most urgent layer first.

Backward completes gradients from the output to the input; the next forward pass needs the
weights of the input first (priority propagation, arXiv:1905.03960). A bucket is a contiguous,
page-aligned span of the flat gradient vector. It is posted by the sender thread as soon as all
its parameters are complete, of several the one closest to the input; when all workers have
posted it, each computes its share of it. Posting waits for nobody, so workers may complete their
buckets in any order, and what a worker has no gradient for is posted before its step. Sums are
those of the whole vector, so the result is the same bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dlplatform.errors import UsageError
from dlplatform.memorybox.segment import FLOATS_PER_PAGE, split
from dlplatform.rules import ssgd

if TYPE_CHECKING:
    from dlplatform.memorybox.counter import Counter
    from dlplatform.rules.ssgd import SSGD

MIB = 1 << 18
"""fp32 elements of a MiB."""


class Buckets:
    """The buckets of one worker, their sender thread and the thread that computes its shares.

    Three threads meet under one flow lock: training, which completes gradients; the sender;
    and the collector, which waits for the other workers.

    Args:
        sync: the rule, with its regions and its way to step.
    """

    def __init__(self, sync: SSGD) -> None:
        self.sync, self.group = sync, sync.group
        cluster = sync.cluster
        self.clock, self.flow = cluster.clock, cluster.clock.flow()
        size = max(1, round(sync.bucket_mb * MIB / FLOATS_PER_PAGE)) * FLOATS_PER_PAGE
        length = self.group.length
        self.spans = [(at, min(size, length - at)) for at in range(0, length, size)]
        self.posted = [cluster.counter(f"{sync.label}/posted/{b}") for b in range(len(self.spans))]
        self.summed = [cluster.counter(f"{sync.label}/summed/{b}") for b in range(len(self.spans))]
        self.moved = cluster.counter(f"{sync.label}/moved")
        ends = [*self.group.offsets[1:], length]
        self.homes = [
            range(first // size, (end - 1) // size + 1)
            for first, end in zip(self.group.offsets, ends, strict=True)
        ]
        self.error: Exception | None = None
        self.ended = self.open = False
        self.busy_s = self.waited_s = self.began = 0.0
        self.version = 0
        self._forget()
        self.group.watch(self.done, self.cleared)
        start = self.clock.start
        self.joined = [start("sender", self._run(self._send))]
        self.joined.append(start("collector", self._run(self._collect)))

    def _forget(self) -> None:
        """Begin a step: nothing is complete, nobody waits."""
        self.missing = [0] * len(self.spans)
        for homes in self.homes:
            for bucket in homes:
                self.missing[bucket] += 1
        self.fired: set[int] = set()
        self.ready: set[int] = set()  # complete and not posted
        self.out: set[int] = set()  # posted, waiting for the other workers
        self.back: set[int] = set()  # this worker's share is computed, others' perhaps not
        self.left = len(self.spans)
        self.present = 0  # how many exchange; 0: nothing has left yet

    # -- the training thread ---------------------------------------------------------------

    def cleared(self) -> None:
        """Expect the gradients of a new step."""
        if self.present:
            raise self._refusal("gradients zeroed after they were sent")
        self._forget()
        self.open = True

    def done(self, index: int) -> None:
        """Take note that a parameter's gradient is complete."""
        if not self.open or not self.sync.way.needed(self.sync.present):
            return  # where nothing was zeroed, nobody knows where this step began
        if index in self.fired:
            raise self._refusal("a second backward pass before the step")
        self.fired.add(index)
        self.version = self.group.grad._version
        for bucket in self.homes[index]:
            self.missing[bucket] -= 1
        if complete := [bucket for bucket in self.homes[index] if not self.missing[bucket]]:
            self._offer(complete)

    def _offer(self, buckets: list[int]) -> None:
        """Let buckets leave; the first of a step say for how many workers."""
        if not self.present:
            self.present, self.began = self.sync.present, self.clock.now()
            self.sync.expect(self.present)
        with self.flow:
            self.ready.update(buckets)
            self.flow.notify_all()

    def exchange(self) -> None:
        """Post what is left and wait until the whole vector is exchanged."""
        if self.present and self.version != self.group.grad._version:
            raise self._refusal("gradients changed after they were sent")
        if self.sync.way.needed(self.sync.present):
            waits = self.clock.now()
            self._offer([b for b, missing in enumerate(self.missing) if missing])
            with self.flow:
                self.flow.wait_for(lambda: not self.left or self.error)
            if self.error is not None:
                raise self.error
            now = self.clock.now()
            self.busy_s += now - self.began
            self.waited_s += now - waits
            self.sync.way.settle()
        self._forget()
        self.open = False

    def _refusal(self, what: str) -> UsageError:
        return UsageError(
            f"{what}, group {self.group.name} with rule.bucket_mb={self.sync.bucket_mb:g} - "
            "allowed: zero_grad, one backward, step - do: rule.bucket_mb=0, or run.accumulate for "
            "several minibatches a step"
        )

    # -- the other two ---------------------------------------------------------------------

    def _run(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return a thread's work that hands what goes wrong to the training thread."""

        def run() -> None:
            try:
                work()
            except Exception as error:
                with self.flow:
                    self.error = self.error or error
                    self.flow.notify_all()

        return run

    def _send(self) -> None:
        """Post complete buckets, the one closest to the input first."""
        while True:
            with self.flow:
                self.flow.wait_for(lambda: self.ready or self.ended)
                if self.ended:
                    return
                bucket = min(self.ready)
            self.group.export_grad(*self.spans[bucket])
            self.sync.mine.write(0, *self.spans[bucket])
            self.posted[bucket].add(1)
            with self.flow:
                self.ready.discard(bucket)
                self.out.add(bucket)
                self.flow.notify_all()
            self.moved.add(1)

    def _collect(self) -> None:
        """Compute this worker's shares and bring results back, as the others get on."""
        while True:
            seen = self.moved.value  # before looking at what there is: no move is missed
            with self.flow:
                self.flow.wait_for(lambda: self.out or self.back or self.ended)
                if self.ended:
                    return
                out, back = sorted(self.out), sorted(self.back)
            if (bucket := self._first(back, self.summed)) is not None:
                self._bring(bucket)
            elif (bucket := self._first(out, self.posted)) is not None:
                self._combine(bucket)
            else:
                self.moved.wait(seen + 1, ssgd.STALL_S, self._check)

    def _first(self, buckets: list[int], counters: list[Counter]) -> int | None:
        """Return the first of some buckets at which all have arrived."""
        met = self.sync.met
        return next((b for b in buckets if counters[b].reached(met, 0)), None)

    def _combine(self, bucket: int) -> None:
        begin, length = self.spans[bucket]
        start, count = split(length, [1.0] * self.present)[self.sync.world.rank]
        if count:
            self.sync.way.combine(begin + start, count, self.present)
        self.summed[bucket].add(1)
        with self.flow:
            self.out.discard(bucket)
            self.back.add(bucket)
        self.moved.add(1)

    def _bring(self, bucket: int) -> None:
        self.sync.way.bring(*self.spans[bucket])
        with self.flow:
            self.back.discard(bucket)
            self.left -= 1
            self.flow.notify_all()

    def _check(self) -> None:
        if self.ended:
            raise UsageError("the rule is closed - allowed: before that - do: train first")
        self.sync.check()

    def close(self) -> None:
        """End both threads."""
        with self.flow:
            self.ended = True
            self.flow.notify_all()
        while self.joined:
            self.joined.pop()()

    def hidden(self) -> float:
        """Return which share of the exchanges since the last call backward has hidden."""
        share = 1.0 - self.waited_s / self.busy_s if self.busy_s else 0.0
        self.busy_s = self.waited_s = 0.0
        return max(0.0, share)
