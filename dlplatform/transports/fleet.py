"""Fleet: machines to simulate, and ``simulate``, which trains on them in one process.

The workers are the very code that trains in earnest - rules, work, counters, boxes - under a
virtual clock: 64 workers on one core, with speeds, links and failures as described, and equal to
the last bit when repeated.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dlplatform.errors import UsageError
from dlplatform.memorybox.cluster import Cluster
from dlplatform.transports.simulated import Network, Port, SimulatedTransport
from dlplatform.transports.virtual import VirtualClock

if TYPE_CHECKING:
    from dlplatform.job import Job

T = TypeVar("T")
Pace = float | Callable[[Random], float]
"""Seconds of one step, or what draws them anew for every step."""
_names = itertools.count()


@dataclass(frozen=True)
class Fleet:
    """Simulated machines; whatever is given for each is a value for all, or a sequence."""

    workers: int = 1
    step_s: Pace | Sequence[Pace] = 1.0
    """Seconds that a worker computes in one step."""
    latency_s: float | Sequence[float] = 0.0
    """One way, between a worker and any box."""
    worker_rate: float | Sequence[float] = math.inf
    """Bytes a second of a worker's link, each way."""
    box_rate: float | Sequence[float] = math.inf
    """Bytes a second of a box's link, each way."""
    boxes: int = 1
    deaths: Mapping[int, float] = field(default_factory=dict)
    """Worker and the second in which it dies."""
    losses: Mapping[int, float] = field(default_factory=dict)
    """Box and the second in which it is lost."""
    joins: Sequence[float] = ()
    """Seconds in which one more worker joins: machines after the others, in this order."""
    seed: int = 0
    """Of the drawn speeds: each worker draws from its own row."""

    def __post_init__(self) -> None:
        for name in ("step_s", "latency_s", "worker_rate", "box_rate"):
            count = self.boxes if name == "box_rate" else self.machines
            given = getattr(self, name)
            if isinstance(given, Sequence) and len(given) != count:
                raise UsageError(
                    f"fleet.{name} has {len(given)} values - allowed: one, or {count} - do: give "
                    "one for each"
                )
        if self.workers < 1 or self.boxes < 1:
            raise UsageError(
                f"a fleet of {self.workers} workers and {self.boxes} boxes - allowed: 1 or more - "
                "do: correct it"
            )

    @property
    def machines(self) -> int:
        """Return how many workers there are, those who come later included."""
        return self.workers + len(self.joins)

    def ports(self) -> tuple[list[Port], list[Port]]:
        """Return the links of the workers and of the boxes."""
        rates, lags = each(self.worker_rate, self.machines), each(self.latency_s, self.machines)
        workers = [Port(rate, lag) for rate, lag in zip(rates, lags, strict=True)]
        return workers, [Port(rate) for rate in each(self.box_rate, self.boxes)]

    def paces(self) -> list[Callable[[], float]]:
        """Return for every worker what gives the seconds of its next step."""
        return [
            drawn(pace, Random(f"{self.seed}/{rank}"))
            for rank, pace in enumerate(each(self.step_s, self.machines))
        ]


def each(given: Any, count: int) -> list[Any]:
    """Return a value for each of ``count``."""
    return list(given) if isinstance(given, Sequence) else [given] * count


def drawn(pace: Pace, random: Random) -> Callable[[], float]:
    """Return what gives the next step's seconds."""
    return (lambda: pace(random)) if callable(pace) else (lambda: float(pace))


def lognormal(median_s: float, sigma: float) -> Callable[[Random], float]:
    """Return a pace with stragglers: the logarithm of a step's seconds is normal."""
    return lambda random: random.lognormvariate(math.log(median_s), sigma)


@dataclass
class Outcome(Generic[T]):
    """What a simulation came to; lists are by machine, which is the rank of who began the job."""

    results: list[T | None]
    """What the workers returned; None for those who died, or came too late."""
    finished: list[float]
    """Virtual seconds when each worker ended, or died."""
    steps: list[int]
    sent: list[int]
    """Bytes from each worker to the boxes, as they are on the wire; requests are not counted."""
    received: list[int]
    events: int = 0
    """How often the clock passed from one strand to the next."""

    @property
    def seconds(self) -> float:
        """Return virtual seconds until the last worker ended."""
        return max(self.finished)


class Simulation(Network):
    """A fleet's network, and how fast its workers compute."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(f"simulation-{next(_names)}", VirtualClock(), *fleet.ports())
        self.fleet, self.paces, self.steps = fleet, fleet.paces(), [0] * fleet.machines

    def enter(self, machine: int) -> int:
        """Wait until a machine's worker comes; return its rank, or -1 if the job is over."""
        if machine < self.fleet.workers:
            return machine
        self.clock.until(self.fleet.joins[machine - self.fleet.workers])
        if not self.transports:
            return -1
        cluster = Cluster(list(self.sites), self.name)
        rank = cluster.enrol(1)
        cluster.close()
        return rank

    def fates(self) -> list[Callable[[], None]]:
        """Return what happens to workers and boxes, each as a strand of its own."""
        deaths = [(self.kill, rank, at) for rank, at in self.fleet.deaths.items()]
        losses = [(self.lose, box, at) for box, at in self.fleet.losses.items()]
        return [fate(self.clock, *blow) for blow in (*deaths, *losses)]


def fate(
    clock: VirtualClock, strike: Callable[[int], None], whom: int, at: float
) -> Callable[[], None]:
    """Return what waits for a moment and strikes."""

    def run() -> None:
        clock.until(at)
        strike(whom)

    return run


def compute(job: Job) -> float:
    """Let the time of this worker's next step pass; return its seconds."""
    way = job.cluster.transports[0]
    assert isinstance(way, SimulatedTransport) and isinstance(way.network, Simulation)
    seconds = way.network.paces[way.machine]()
    way.network.steps[way.machine] += 1
    way.clock.sleep(seconds)
    return seconds


def simulate(
    fleet: Fleet, body: Callable[[Job], T], *, timeout_s: float = 3600.0, **job: Any
) -> Outcome[T]:
    """Run ``body(job)`` as every worker of a fleet; the first error of a worker is raised.

    Args:
        fleet: the machines.
        body: what a worker does; ``compute(job)`` or ``job.cluster.clock.sleep`` is its computing.
        timeout_s: the job's patience, in virtual seconds.
        job: further arguments of ``Job.open`` (first, total).
    """
    from dlplatform.job import Job, Place
    from dlplatform.world import World

    size, machines = fleet.workers, range(fleet.machines)
    results: list[T | None] = [None for _ in machines]
    finished = [0.0 for _ in machines]
    with Simulation(fleet) as stage:
        place = Place(list(stage.sites), name=stage.name)

        def worker(machine: int) -> None:
            try:
                if (rank := stage.enter(machine)) < 0:
                    return
                world = World(rank, size, rank, size)
                opened = Job.open(world, place, timeout_s=timeout_s, **job)
                result = body(opened)
                opened.finish()
                opened.close()
                results[machine] = result
            finally:
                finished[machine] = stage.clock.now()

        stage.clock.run([partial(worker, machine) for machine in machines], stage.fates())
        sent, received = zip(*((port.sent, port.received) for port in stage.workers), strict=True)
        events = stage.clock.events
    return Outcome(results, finished, stage.steps, list(sent), list(received), events)
