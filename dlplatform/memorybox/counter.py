"""Counter: a 64-bit number in a box to add to, compare-and-swap and wait for.

Counters number minibatches, form barriers and carry events and versions: an event is a
counter that grows, whoever waits for it names the value to reach (P-HET 40, P-PS 58).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from dlplatform.errors import PeerLost
from dlplatform.memorybox.timing import CLOCK, Clock
from kernels import cpu

SLICE_MS = 100


def nothing() -> None:
    """Check nothing while waiting."""


class Counter(ABC):
    """One named number of a job; every operation is atomic."""

    name: str
    guard: Callable[[], None] = staticmethod(nothing)
    """Runs while waiting; its cluster sets it to raise when a box is gone."""
    clock: Clock = CLOCK

    @property
    @abstractmethod
    def value(self) -> int:
        """Return the number."""

    @abstractmethod
    def set(self, value: int) -> None:
        """Replace the number."""

    @abstractmethod
    def add(self, n: int = 1) -> int:
        """Add n and return what it was before."""

    @abstractmethod
    def swap(self, expected: int, desired: int) -> int:
        """Replace it if it equals expected; return what it was before."""

    @abstractmethod
    def reached(self, at_least: int, ms: int) -> bool:
        """Wait at most ms for the number to reach at_least."""

    def wait(
        self, at_least: int, timeout_s: float = 60.0, check: Callable[[], None] = nothing
    ) -> None:
        """Wait for the number; run check every 100 ms, so that it may raise what it sees.

        Raises:
            PeerLost: when the timeout has passed.
        """
        since = self.clock.now()
        end = since + timeout_s
        while not self.stay(at_least, since, end):
            try:
                self.guard()
                check()
            except PeerLost:
                if self.reached(at_least, 0):  # who is gone now had done its part before
                    return
                raise
            if self.clock.now() > end:
                raise PeerLost(
                    f"{self.name} is {self.value}, waited {timeout_s:g} s for {at_least} - "
                    "allowed: cluster.timeout_s - do: look for a stuck worker, or raise it"
                )

    def stay(self, at_least: int, since: float, end: float) -> bool:
        """Wait for a slice of a long wait, from ``since`` to at most ``end``."""
        return self.reached(at_least, SLICE_MS)


class MappedCounter(Counter):
    """A counter in memory that this process maps."""

    def __init__(self, name: str, address: int) -> None:
        self.name, self._address = name, address

    @property
    def value(self) -> int:
        """Return the number."""
        return int(cpu.counter_get(self._address))

    def set(self, value: int) -> None:
        """Replace the number."""
        cpu.counter_set(self._address, value)

    def add(self, n: int = 1) -> int:
        """Add n and return what it was before."""
        return int(cpu.counter_add(self._address, n))

    def swap(self, expected: int, desired: int) -> int:
        """Replace it if it equals expected; return what it was before."""
        return int(cpu.counter_swap(self._address, expected, desired))

    def reached(self, at_least: int, ms: int) -> bool:
        """Wait at most ms for the number to reach at_least."""
        return bool(cpu.counter_wait(self._address, at_least, ms))


class RemoteCounter(Counter):
    """A counter that the box operates on request."""

    def __init__(self, name: str, call: Callable[..., dict[str, Any]]) -> None:
        self.name, self._call = name, call

    @property
    def value(self) -> int:
        """Return the number."""
        return int(self._call("get", name=self.name)["value"])

    def set(self, value: int) -> None:
        """Replace the number."""
        self._call("set", name=self.name, value=value)

    def add(self, n: int = 1) -> int:
        """Add n and return what it was before."""
        return int(self._call("add", name=self.name, n=n)["value"])

    def swap(self, expected: int, desired: int) -> int:
        """Replace it if it equals expected; return what it was before."""
        answer = self._call("swap", name=self.name, expected=expected, desired=desired)
        return int(answer["value"])

    def reached(self, at_least: int, ms: int) -> bool:
        """Wait at most ms for the number to reach at_least."""
        return bool(self._call("wait", name=self.name, at_least=at_least, ms=ms)["reached"])
