"""One emulated worker: it sleeps as long as an accelerator would compute; its vectors are real.

The loop is the one of ``dlplatform/trainer.py:Trainer.fit``, without torch, so that eight
workers fit into two cores: claim, compute, gradients, step, weights.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from dlplatform.memorybox.memory import Memory
from dlplatform.rules.rule import find_rule
from dlplatform.rules.vectors import OnHost
from kernels import cpu
from trainbench import processes
from trainbench.processes import Result, Seat

RATE, BEFORE = -0.01, 3


class Vectors(OnHost):
    """The weights and gradients of an emulated network, as a rule sees a ``FlatGroup``."""

    def __init__(self, name: str, length: int) -> None:
        self.name, self.length = name, length
        self._weight, self._owner = Memory(length), object()
        self._grad = Memory(length)
        self.grad_address = self._grad.address

    @property
    def weight_address(self) -> int:
        """Return where the weights are."""
        return self._weight.address

    def place_grad(self, address: int, owner: object) -> None:
        """Keep the gradients in other memory from now on."""
        self.grad_address, self._owner = address, owner

    def step(self) -> None:
        """Move the weights against the gradients."""
        cpu.run("axpy", self.weight_address, self.grad_address, self.length, RATE)


class Stopwatch:
    """Adds up the seconds of calls by name."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    def __call__(self, name: str, call: Callable[[], Any]) -> Any:
        """Return what a call returns."""
        begin = time.monotonic()
        try:
            return call()
        finally:
            self.spent[name] = self.spent.get(name, 0.0) + time.monotonic() - begin


def alone(compute: float, vectors: Vectors, steps: int) -> float:
    """Return the seconds of the fastest of some steps without communication.

    The fastest, since a bound that other processes have slowed down would flatter the rule.
    """
    seconds = []
    for _ in range(steps):
        begin = time.monotonic()
        time.sleep(compute)
        vectors.step()
        seconds.append(time.monotonic() - begin)
    return min(seconds)


def busy_ticks() -> tuple[int, int]:
    """Return the busy and all clock ticks of this machine's cores since it started."""
    with open("/proc/stat") as stat:
        ticks = [int(word) for word in stat.readline().split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def work(seat: Seat) -> Result:
    """Run this worker's share of the plan; return when its steps ended."""
    more, job = seat.plan.more, seat.job
    compute = more["compute"][seat.rank]
    vectors = Vectors("net", more["floats"])
    rule = find_rule(more["rule"])(**more["settings"])
    job.work.total = more["minibatches"]
    rule.start(job, vectors)  # type: ignore[arg-type]
    bare = alone(compute, vectors, BEFORE)
    seat.meet()
    busy, ends, watch = busy_ticks(), [], Stopwatch()
    while watch("claim", lambda: rule.claim(job)) is not None:
        time.sleep(compute)
        watch("gradients", rule.gradients)
        vectors.step()
        watch("weights", rule.weights)
        job.work.done()
        ends.append(time.monotonic())
    seat.meet()
    after = busy_ticks()
    rule.finish()
    job.cluster.finished()
    share = (after[0] - busy[0]) / max(1, after[1] - busy[1])
    return {
        "alone": bare, "ends": ends, "cpu": share, "spent": watch.spent
    }  # fmt: skip


if __name__ == "__main__":
    processes.main(work, sys.argv[1:])
