"""Goodput under failures: the share of all machines' time that becomes trained minibatches.

Machines fail after exponential times. Restart-all data parallelism loses what was trained since the
last checkpoint, and everybody waits for the restart. Workers around memory boxes lose the step of
the one that failed, and only that one is away; a box that fails stops all until its mirror answers.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from random import Random
from typing import Any

from rulestudy.plan import LINKS, trial
from rulestudy.problems import run

HOUR = 3600.0
FIELD = 1.8 * HOUR * 16384
"""Seconds between failures of one machine: 1.8 h of a job of 16,384 (PEERS.md E4)."""


@dataclass(frozen=True)
class Site:
    """Machines and what a failure costs."""

    workers: int
    mttf_s: float = FIELD
    """Mean time to failure of one machine."""
    restart_s: float = 600.0
    """Until a failed machine, or its stand-in, trains again."""
    restart_all_s: float = 600.0
    """Until a whole job that was stopped trains again."""
    checkpoint_s: float = 30.0
    """What a checkpoint costs a job that has to stop for it."""
    boxes: int = 0
    """Memory boxes, each with a mirror; 0: one for eight workers."""
    failover_s: float = 2.0
    """Until the mirror of a lost box is used."""
    step_s: float = 5.0
    """Work lost with a failed worker: half of its step."""


def restart_all(site: Site, hours: float, seed: int = 0) -> float:
    """Return the goodput of a job that any failure stops, with the best checkpoint interval."""
    random, end = Random(seed), hours * HOUR
    rate = site.workers / site.mttf_s
    interval = math.sqrt(2 * site.checkpoint_s / rate)  # Young 1974
    now = useful = 0.0
    while now < end:
        left = random.expovariate(rate)
        rounds = int(left // (interval + site.checkpoint_s))
        useful += rounds * interval
        now += left + site.restart_all_s
    return useful / now


def boxes(site: Site, hours: float, seed: int = 0) -> float:
    """Return the goodput of workers who wait for nobody, around boxes with mirrors."""
    random, end = Random(seed), hours * HOUR
    count = site.boxes or max(1, site.workers // 8)
    events = [(random.expovariate(site.workers / site.mttf_s), "worker")]
    events.append((random.expovariate(count / site.mttf_s), "box"))
    heapq.heapify(events)
    lost = 0.0
    while events[0][0] < end:
        now, kind = heapq.heappop(events)
        if kind == "worker":
            lost += min(site.restart_s, end - now) + site.step_s / 2
            again = random.expovariate(site.workers / site.mttf_s)
        else:
            lost += site.failover_s * site.workers
            again = random.expovariate(count / site.mttf_s)
        heapq.heappush(events, (now + again, kind))
    return max(0.0, 1.0 - lost / (end * site.workers))


def closed_form(site: Site) -> tuple[float, float]:
    """Return what both goodputs are in the mean: (restart all, boxes)."""
    rate = site.workers / site.mttf_s
    interval = math.sqrt(2 * site.checkpoint_s / rate)
    cycle = interval + site.checkpoint_s
    rounds = 1 / math.expm1(rate * cycle)  # whole rounds before an exponential failure
    alone = rounds * interval / (1 / rate + site.restart_all_s)
    count = site.boxes or max(1, site.workers // 8)
    away = (site.restart_s + site.step_s / 2) / site.mttf_s
    return alone, 1 - away - site.failover_s * count / site.mttf_s


def lived(rule: str, fields: dict[str, Any], seed: int, mttf_s: float = 3.0) -> dict[str, float]:
    """Return what a rule's own code does while 8 of 16 workers may die, in simulated time."""
    random = Random(seed)
    deaths = {worker: random.expovariate(1 / mttf_s) for worker in range(1, 9)}
    settings = {"fleet": {**LINKS, "deaths": deaths}, "fields": fields, "minibatches": 4000}
    result = run(trial(rule, "digits", 16, 4.0, seed, **settings))
    alive = sum(min(deaths.get(worker, math.inf), result.seconds) for worker in range(16))
    return {
        "deaths": sum(at < result.seconds for at in deaths.values()),
        "goodput": sum(result.steps) * LINKS["step_s"] / alive,  # type: ignore[operator]
        "accuracy": result.accuracy,
    }


def table() -> dict[str, Any]:
    """Return goodput by size of the job, simulated and in closed form, and of the rules' code."""
    rows = []
    for workers in (64, 256, 1024, 4096, 16384, 65536, 262144):
        site = Site(workers)
        seeds = range(20)
        hours = max(200.0, 200 * FIELD / workers / HOUR)
        rows.append({
            "workers": workers, "failures_per_day": workers / FIELD * 86400,
            "restart_all": sum(restart_all(site, hours, s) for s in seeds) / len(seeds),
            "boxes": sum(boxes(site, min(hours, 400), s) for s in seeds) / len(seeds),
            "closed_form": closed_form(site),
        })  # fmt: skip
    late = {"interval": 4, "momentum": 0.5}
    rules: dict[str, dict[str, Any]] = {
        "easgd": {}, "diloco": late, "quorum": late, "adiloco": late,
        "halos": {"interval": 2, "updates": 4, "momentum": 0.5, "group_size": 4},
    }  # fmt: skip
    code = {name: lived(name, fields, 0) for name, fields in rules.items()}
    return {"sizes": rows, "rules": code}
