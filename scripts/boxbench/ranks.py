"""Several processes that measure the same calls in turns, at the same time.

The slowest rank's time counts: an exchange is over when everybody has the result.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from boxbench.rows import Call, Missing, Times, environment
from dlplatform.memorybox.cluster import Cluster

LIMIT_S = 300


@dataclass(frozen=True)
class Plan:
    """What every rank is told: where the box is, how many ranks, how large, how often."""

    addresses: list[str]
    secret: str
    size: int
    floats: int
    repeat: int
    more: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def load(path: str) -> Plan:
        """Read a plan that the driver has written."""
        return Plan(**json.loads(Path(path).read_text()))


class Seat:
    """One rank's place: its cluster, and a barrier of all ranks."""

    def __init__(self, plan: Plan, rank: int) -> None:
        self.plan, self.rank = plan, rank
        self.cluster = Cluster(plan.addresses, "bench", plan.secret.encode())
        self._counter = self.cluster.counter("meet")
        self._met = 0

    def meet(self) -> None:
        """Wait until every rank has come here."""
        self._met += self.plan.size
        self._counter.add(1)
        self._counter.wait(self._met)

    def turns(self, calls: Mapping[str, Call]) -> Times:
        """Time the calls in turns, every one begun by all ranks together."""
        times: Times = {name: [] for name in calls}
        for turn in range(self.plan.repeat + 1):
            for name, call in calls.items():
                self.meet()
                begin = time.perf_counter()
                call()
                if turn:  # the first one warms up
                    times[name].append(time.perf_counter() - begin)
        self.meet()
        return times

    def alone(self, call: Call) -> Call:
        """Return a call that only rank 0 makes."""
        return call if self.rank == 0 else lambda: None


def write_times(folder: str, rank: int, times: Times) -> None:
    """Leave this rank's times for the driver."""
    Path(folder, f"{rank}.json").write_text(json.dumps(times))


def main(work: Callable[[Seat], Times], argv: Sequence[str]) -> None:
    """Run one rank: ``PROGRAM FOLDER RANK``."""
    folder, rank = argv[0], int(argv[1])
    seat = Seat(Plan.load(f"{folder}/plan.json"), rank)
    write_times(folder, rank, work(seat))
    seat.cluster.close()


def slowest(results: Sequence[Times]) -> Times:
    """Merge the ranks' times: of every turn the slowest rank's."""
    return {name: [max(turn) for turn in zip(*(r[name] for r in results), strict=True)]
            for name in results[0]}  # fmt: skip


def play(plan: Plan, module: str) -> Times:
    """Run a module of this package as the ranks of a plan, plain processes."""

    def commands(folder: str) -> list[list[str]]:
        return [[sys.executable, "-m", module, folder, str(r)] for r in range(plan.size)]

    return run(plan, commands, environment())


def run(
    plan: Plan, commands: Callable[[str], list[list[str]]], env: dict[str, str],
    limit_s: float = LIMIT_S,
) -> Times:  # fmt: skip
    """Run commands that leave one file of times a rank; return the slowest rank's times.

    Raises:
        Missing: when one fails or takes too long, with the last line it said.
    """
    with tempfile.TemporaryDirectory(prefix="boxbench-") as folder:
        path = Path(folder, "plan.json")
        path.touch(0o600)
        path.write_text(json.dumps(asdict(plan)))
        logs = [Path(folder, f"{n}.log") for n in range(plan.size)]
        processes = []
        try:
            for line, log in zip(commands(folder), logs, strict=False):
                with log.open("wb") as out:
                    processes.append(subprocess.Popen(
                        line, env=env, cwd=folder, stdin=subprocess.DEVNULL, stdout=out,
                        stderr=subprocess.STDOUT, start_new_session=True,
                    ))  # fmt: skip
            _finish(processes, logs, time.monotonic() + limit_s)
        finally:
            for process in processes:
                end(process)
        times = [json.loads(Path(folder, f"{r}.json").read_text()) for r in range(plan.size)]
    return slowest(times)


def _finish(processes: Sequence[subprocess.Popen[bytes]], logs: Sequence[Path], end: float) -> None:
    while any(process.poll() is None for process in processes):
        codes = [process.poll() for process in processes]
        if any(codes) or time.monotonic() > end:
            break
        time.sleep(0.02)
    for process, log in zip(processes, logs, strict=False):
        if process.poll():
            raise Missing(f"ended with {process.returncode}: {last_line(log)}")
    if any(process.poll() is None for process in processes):
        raise Missing(f"did not end in time: {last_line(logs[0])}")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it has started, and wait for it."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_line(log: Path) -> str:
    """Return the last line of a log that says something."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    errors = [line for line in lines if "Error" in line or "error" in line]
    return (errors or [line for line in lines if line] or ["it said nothing"])[-1][:200]
