"""Quorum: merge weighted contributions as soon as enough workers have brought theirs.

Every worker adds weight * x to the round's accumulator in the boxes. When ``needed`` have
arrived and the grace window has passed (or all have arrived), one of them folds the weighted
mean into the target and opens the next round. Who comes later is in the next round's mean, so
nothing is lost (after Decoupled DiLoCo, DeepMind 2026).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlplatform.errors import PeerLost, UsageError

if TYPE_CHECKING:
    from dlplatform.memorybox.buffer import SharedBuffer
    from dlplatform.memorybox.counter import Counter
    from dlplatform.memorybox.payload import Payload

UNIT = 1 << 20
"""Weights are counted in units of 2^-20."""
SLICE_MS = 20


class Quorum:
    """One merge after another into a target: every worker makes one with the same arguments.

    Args:
        target: what the mean goes into.
        accumulators: two buffers cut like the target, zero: rounds take turns.
        needed: contributions that make a round complete.
        everyone: contributions after which nobody is waited for.
        grace_s: how long to wait for more than needed, once the quorum is there.
        span: (start, count) of the part of the buffers that is merged; every part is a quorum of
            its own.
    """

    def __init__(
        self, target: SharedBuffer, accumulators: tuple[SharedBuffer, SharedBuffer], needed: int,
        everyone: int, grace_s: float = 0.0, span: tuple[int, int | None] = (0, None),
    ) -> None:  # fmt: skip
        if not 1 <= needed <= everyone:
            raise UsageError(
                f"a quorum of {needed} of {everyone} - allowed: 1 to {everyone} - do: correct it"
            )
        if target.cluster.rank < 0:
            raise UsageError(
                f"a quorum of {target.name} without a rank - allowed: members of the job - do: "
                "cluster.join(rank, size) first"
            )
        self.target, self.accumulators = target, accumulators
        self.needed, self.everyone, self.grace_s = needed, everyone, grace_s
        self.cluster, self.span = target.cluster, span
        self.merged = self._counter("merged")
        self._closed = self._counter("closed")

    def _counter(self, name: str) -> Counter:
        return self.cluster.counter(f"quorum/{self.target.name}/{self.span[0]}/{name}")

    def contribute(self, x: int | Payload, weight: float = 1.0) -> int:
        """Add weight * x to the open round; return that round's number, from 0."""
        mine = self._counter(f"busy/{self.cluster.rank}")
        while True:
            number = self._closed.value
            mine.set(number + 1)
            if self._closed.value == number:
                break
            mine.set(0)  # the round was closed just now
        turn = number % 2
        # The accumulator of two rounds ago must have been folded before it gathers again.
        self.merged.wait(number - 1, self.cluster.timeout_s, self._take_over)
        start, count = self.span
        self.accumulators[turn].apply("axpy", x, a=weight, start=start, count=count)
        self._counter(f"weight/{turn}").add(round(weight * UNIT))
        self._counter(f"arrived/{turn}").add(1)
        mine.set(0)
        return number

    def wait(self, number: int, timeout_s: float | None = None) -> None:
        """Wait until a round is merged; whoever sees it complete merges it.

        Raises:
            PeerLost: when too few contributed in time, or a box is gone.
        """
        clock, timeout_s = self.cluster.clock, timeout_s or self.cluster.timeout_s
        end, arrived, since = clock.now() + timeout_s, self._counter(f"arrived/{number % 2}"), -1.0
        while True:
            count = arrived.value if self._closed.value == number else 0
            since = clock.now() if since < 0 and count >= self.needed else since
            if count and self.complete(number, count, clock.now() - since if since >= 0 else -1.0):
                self._close(number)
            if self.merged.reached(number + 1, SLICE_MS):
                return
            self._take_over()
            self.cluster.check()
            if clock.now() > end:
                raise PeerLost(
                    f"round {number} of {self.target.name}: {count} of {self.needed} needed "
                    "contributions came - allowed: cluster.timeout_s - do: see the other workers"
                )

    def complete(self, number: int, count: int, waited_s: float) -> bool:
        """Tell whether an open round may be merged.

        Args:
            number: of the round.
            count: contributions so far.
            waited_s: since there were as many as needed; negative: there are not.
        """
        return count >= self.everyone or 0 <= self.grace_s <= waited_s

    def fold(self, number: int, scale: float, gathered: SharedBuffer) -> None:
        """Move the target by scale times what a round gathered, and zero that; may run again."""
        start, count = self.span
        self.target.apply("settle", k=(scale,), states=[gathered], start=start, count=count)

    def _close(self, number: int) -> None:
        """Close a round and merge it, unless somebody does so already."""
        closer = self._counter("closer")
        before = closer.value
        if before >> 16 <= number and closer.swap(before, self._me(number)) == before:
            self._finish(number)

    def _take_over(self) -> None:
        """Finish the merge of a worker that died during it."""
        number, closer = self.merged.value, self._counter("closer")
        before = closer.value
        if before >> 16 != number + 1 or (before & 0xFFFF) not in self.cluster.dead():
            return
        if closer.swap(before, self._me(number)) == before:
            self._finish(number)

    def _me(self, number: int) -> int:
        return (number + 1) << 16 | self.cluster.rank

    def _finish(self, number: int) -> None:
        self._closed.swap(number, number + 1)
        self._merge(number)

    def _merge(self, number: int) -> None:
        """Wait for those who are still adding, then fold the mean into the target."""
        busy = [self._counter(f"busy/{rank}") for rank in self.cluster.ranks()]
        for rank, counter in enumerate(busy):
            while counter.value == number + 1 and rank not in self.cluster.dead():
                self.cluster.clock.sleep(0.001)
                self.cluster.check()
        turn = number % 2
        weight = self._counter(f"weight/{turn}")
        if weight.value:
            self.fold(number, UNIT / weight.value, self.accumulators[turn])
        weight.set(0)
        self._counter(f"arrived/{turn}").set(0)
        self.merged.set(number + 1)
