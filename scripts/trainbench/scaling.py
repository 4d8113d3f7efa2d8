"""Rows of scaling: 1 to 8 emulated accelerators, tcp boxes behind shaped links of namespaces.

Every host has a link of 200 Mbit/s each way; a box has a host of its own, and so has a worker,
or two. A step sleeps so long that (bytes / rate of a box's link) : (computation) is what was
published for ShmCaffe: Inception-v1 with batch 60 took 23 h for 15 epochs on one GPU, 258.6 ms a
step; its 53.5 MB pass the memory server's 6.7 GB/s in 8.0 ms. So one vector on the link takes
3.1 % of a step. VGG16: 389.8 ms, 553 MB, 82.5 ms, 21 %.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boxbench.links import started
from boxbench.rows import Missing
from hostparts.spaces import Hosts, command

from trainbench import model, published
from trainbench.processes import Plan, Result, play
from trainbench.rows import Row, Settings

MBIT, BURST = 200, 8 << 10
RATE = MBIT / 8 * 1e6
FLOATS = {"Inception-v1": 64 << 10, "VGG16": 256 << 10}
STEPS, SKIP = (14, 4), 2
SPEEDS = (1, 2, 4)
PEER = "n times one worker without communication"


@dataclass(frozen=True)
class Case:
    """One emulated training: a rule, its settings, how many workers and boxes, what published.

    ``per_host``: workers that share a host, and with it a link.
    """

    rule: str
    workers: int
    boxes: int = 1
    net: str = "Inception-v1"
    settings: dict[str, Any] = field(default_factory=dict)
    required: float | None = None
    per_host: int = 1

    @property
    def compute(self) -> float:
        """Return the seconds that a step sleeps."""
        return self.size / RATE / published.link_share(self.net)

    @property
    def size(self) -> int:
        """Return the bytes of the vector: small, so that two cores serve eight workers."""
        return 4 * FLOATS[self.net]

    @property
    def title(self) -> str:
        """Return what is measured."""
        words = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        text = f"{self.rule}{f' ({words})' if words else ''}"
        workers = f"{self.workers} worker{'s' * (self.workers > 1)}"
        if self.per_host > 1:
            workers += f" on {self.workers // self.per_host} hosts"
        boxes = f"{self.boxes} box{'es' * (self.boxes > 1)}"
        return f"{self.net}, {workers}, {boxes}: {text}"

    def predicted(self) -> float:
        """Return the efficiency that the model expects."""
        net = model.Net(self.workers, self.boxes, RATE, RATE)
        size, compute = self.size, self.compute
        if self.rule == "hybrid":
            group = min(self.settings["group_size"], self.workers)
            step = model.hybrid if group > self.per_host else model.hybrid_nodes
            return compute / step(net, compute, size, group)
        return compute / {"easgd": model.easgd, "ssgd": model.ssgd}[self.rule](net, compute, size)


CASES = (
    *(Case("easgd", n, required=0.97) for n in (1, 2, 4, 8)),
    *(Case("hybrid", n, settings={"group_size": 1}, required=0.97) for n in (2, 8)),
    Case("hybrid", 8, 4, settings={"group_size": 1}, required=0.97),
    *(Case("hybrid", 8, n, settings={"group_size": 2}, required=0.97, per_host=2) for n in (1, 4)),
    Case("hybrid", 8, 4, settings={"group_size": 2}),
    Case("ssgd", 8),
    Case("ssgd", 8, 4),
    Case("easgd", 8, 1, "VGG16"),
    Case("easgd", 8, 4, "VGG16", required=0.97),
)
QUICK = (CASES[1],)


def shape(hosts: Hosts, number: int) -> None:
    """Limit a host's link both ways; packets below 512 bytes do not queue behind long ones.

    InfiniBand takes its queue pairs in turns, and Linux its flows (fq_codel); this kernel has
    only token buckets with one queue a class, so that the length decides.
    """
    for space, device in hosts.ends(number):
        command("ip", "-n", space, "link", "set", "dev", device, "gso_max_size", str(BURST))
        tc = ("tc", "-n", space)
        on, burst = ("dev", device), ("burst", str(BURST), "cburst", str(BURST))
        command(*tc, "qdisc", "add", *on, "root", "handle", "1:", "htb", "default", "20")
        for parent, name, mbit, prio in (
            ("1:", "1:1", MBIT, 0), ("1:1", "1:10", MBIT // 10, 0), ("1:1", "1:20", MBIT // 2, 1)
        ):  # fmt: skip
            command(
                *tc, "class", "add", *on, "parent", parent, "classid", name, "htb",
                "rate", f"{mbit}mbit", "ceil", f"{MBIT}mbit", *burst, "prio", str(prio),
            )  # fmt: skip
        command(*tc, "filter", "add", *on, "parent", "1:", "protocol", "ip", "u32",
                "match", "u16", "0x0000", "0xfe00", "at", "2", "flowid", "1:10")  # fmt: skip


class Network:
    """Hosts for workers and boxes behind shaped links, and the boxes themselves."""

    def __init__(self, stack: ExitStack, workers: int, boxes: int) -> None:
        self.hosts, self.workers = Hosts(workers + boxes), workers
        stack.callback(self.hosts.close)
        for host in range(workers + boxes):
            shape(self.hosts, host)
        secret = Path(stack.enter_context(tempfile.TemporaryDirectory()), "secret")
        self.addresses = []
        for number in range(workers, workers + boxes):
            line = self.hosts.line(
                number, sys.executable, "-m", "dlplatform.memorybox", "--bind",
                f"tcp://{self.hosts.ip(number)}:0", "--secret-file", str(secret), "--lifeline",
            )  # fmt: skip
            ready = stack.enter_context(started(line))
            self.addresses.append(json.loads(ready)["address"])
        self.secret, self.jobs = secret.read_text().strip(), 0

    def run(self, case: Case, minibatches: int, computes: Sequence[float] = ()) -> list[Result]:
        """Run a case, its workers on the first hosts."""
        self.jobs += 1
        more = {
            "rule": case.rule, "settings": case.settings, "floats": FLOATS[case.net],
            "compute": list(computes) or [case.compute] * case.workers,
            "minibatches": minibatches,
        }  # fmt: skip
        plan = Plan(
            self.addresses[: case.boxes], self.secret, case.workers, more, f"case{self.jobs}"
        )
        return play(
            plan, "emulate", place=lambda rank, line: self.hosts.line(rank // case.per_host, *line)
        )


@contextmanager
def network(workers: int, boxes: int) -> Iterator[Network]:
    """Make a network for as long as it is needed.

    Raises:
        Missing: where namespaces or the token bucket are not to be had.
    """
    with ExitStack() as stack:
        yield Network(stack, workers, boxes)


def speed(result: Result) -> float:
    """Return the steps a second of one worker, its first ones left out."""
    ends = result["ends"]
    return (len(ends) - 1 - SKIP) / (ends[-1] - ends[SKIP])


def efficiency(results: Sequence[Result]) -> tuple[float, float]:
    """Return steps a second of all workers, and of as many without communication."""
    return sum(map(speed, results)), sum(1 / one["alone"] for one in results)


def cpu_note(results: Sequence[Result]) -> str:
    """Return where a step's time went besides the sleep, and how busy the cores were."""
    steps = sum(len(one["ends"]) for one in results)
    spent = {name: 1e3 * sum(one["spent"][name] for one in results) / steps
             for name in results[0]["spent"]}  # fmt: skip
    words = ", ".join(f"{name} {ms:.1f} ms" for name, ms in spent.items())
    return f"{words} a step; cores {max(one['cpu'] for one in results):.0%} busy"


def measure(net: Network, case: Case, steps: int) -> Row:
    """Measure one case."""
    row = Row("scaling", case.title, PEER, case.required, unit="steps/s")
    row.predicted = case.predicted()
    try:
        results = net.run(case, steps * case.workers)
    except Missing as error:
        row.missing = str(error)
        return row
    ours, bound = efficiency(results)
    row.ours, row.theirs = [ours], [bound]
    row.note = f"computation {case.compute * 1e3:.0f} ms; {cpu_note(results)}"
    return row


def uneven(net: Network, rule: str, steps: int) -> Iterator[Row]:
    """Measure workers of different speeds, which claim their minibatches from one counter."""
    case = Case(rule, len(SPEEDS))
    computes = [case.compute / factor for factor in SPEEDS]
    name = f"{case.net}, speeds {', '.join(f'{s}x' for s in SPEEDS)}, 1 box: {rule}"
    row = Row("uneven", name, "sum of all without communication", 0.97, unit="steps/s")
    spread = Row("uneven", f"{name}, finish", "slowest minibatch", 1.0, unit="s")
    row.predicted, spread.predicted = 1.0, None
    try:
        results = net.run(case, steps * sum(SPEEDS), computes)
    except Missing as error:
        row.missing = spread.missing = str(error)
        yield from (row, spread)
        return
    ours, bound = efficiency(results)
    row.ours, row.theirs = [ours], [bound]
    counts = [len(one["ends"]) for one in results]
    row.note = f"minibatches {', '.join(map(str, counts))}; {cpu_note(results)}"
    ends = [one["ends"][-1] for one in results]
    spread.ours, spread.theirs = [max(ends) - min(ends)], [max(one["alone"] for one in results)]
    spread.note = "from the first worker's last step to the last one's"
    yield from (row, spread)


def rows(settings: Settings) -> Iterator[Row]:
    """Measure efficiency from 1 to 8 workers."""
    cases, steps = (QUICK, STEPS[1]) if settings.quick else (CASES, STEPS[0])
    try:
        with network(max(c.workers for c in cases), max(c.boxes for c in cases)) as net:
            for case in cases:
                yield measure(net, case, steps)
    except Missing as error:
        yield Row("scaling", "emulated accelerators", PEER, missing=str(error))


def speeds(settings: Settings) -> Iterator[Row]:
    """Measure workers of 1x, 2x and 4x speed."""
    try:
        with network(len(SPEEDS), 1) as net:
            yield from uneven(net, "easgd", settings.pick(*STEPS))
    except Missing as error:
        yield Row("uneven", "workers of different speeds", PEER, missing=str(error))
