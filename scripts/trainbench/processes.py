"""Workers as plain processes, joined to their boxes by ``dlplatform.init``."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from subprocess import DEVNULL, STDOUT, Popen
from typing import Any

from boxbench.ranks import end, last_line
from boxbench.rows import Missing, environment

import dlplatform
from dlplatform.memorybox import wire

LIMIT_S = 240.0
Result = dict[str, Any]
Line = Callable[[int, list[str]], list[str]]


@dataclass(frozen=True)
class Plan:
    """What every worker is told: where the boxes are, how many workers, what to do."""

    addresses: list[str]
    secret: str
    size: int
    more: dict[str, Any] = field(default_factory=dict)
    job: str = "job"


class Seat:
    """One worker's place: its job, made by the first of the two lines, and a barrier."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.job = plan, dlplatform.init()
        self.rank = self.job.rank
        self._counter = self.job.cluster.counter("bench/meet")
        self._met = 0

    def meet(self) -> None:
        """Wait until every worker has come here."""
        self._met += self.plan.size
        self._counter.add(1)
        self._counter.wait(self._met)

    def agree(self, name: str, yes: bool) -> bool:
        """Let rank 0 say yes or no to all; everybody calls it, with a name used once."""
        answer = self.job.cluster.counter(f"bench/{name}")
        if self.rank == 0 and yes:
            answer.set(1)
        self.meet()
        return bool(answer.value)


def main(work: Callable[[Seat], Result], argv: Sequence[str]) -> None:
    """Run one worker: ``PROGRAM FOLDER RANK``; leave its result in the folder."""
    folder, rank = Path(argv[0]), argv[1]
    seat = Seat(Plan(**json.loads((folder / "plan.json").read_text())))
    (folder / f"{rank}.json").write_text(json.dumps(work(seat)))
    seat.meet()


def play(
    plan: Plan, module: str, *, python: str | Path = sys.executable,
    place: Line = lambda rank, line: line, limit_s: float = LIMIT_S,
) -> list[Result]:  # fmt: skip
    """Run a module of this package as the workers of a plan; return the result of each.

    Args:
        plan: what they are told.
        module: the module they run.
        python: the interpreter.
        place: puts a rank's command line where it is to run.
        limit_s: after that they are ended.

    Raises:
        Missing: when one fails or takes too long, with the last line it said.
    """
    with tempfile.TemporaryDirectory(prefix="trainbench-") as name:
        folder, processes = Path(name), []
        (folder / "plan.json").touch(0o600)
        (folder / "plan.json").write_text(json.dumps(asdict(plan)))
        try:
            for rank in range(plan.size):
                line = [str(python), "-m", f"trainbench.{module}", name, str(rank)]
                with (folder / f"{rank}.log").open("wb") as log:
                    processes.append(Popen(
                        place(rank, line), env=_told(plan, rank), cwd=name, stdin=DEVNULL,
                        stdout=log, stderr=STDOUT, start_new_session=True,
                    ))  # fmt: skip
            _wait(processes, folder, time.monotonic() + limit_s)
        finally:
            for process in processes:
                end(process)
        return [json.loads((folder / f"{r}.json").read_text()) for r in range(plan.size)]


def _told(plan: Plan, rank: int) -> dict[str, str]:
    return environment(
        DLP_RANK=str(rank), DLP_SIZE=str(plan.size), DLP_BOXES=" ".join(plan.addresses),
        DLP_JOB=plan.job, GLOO_SOCKET_IFNAME="lo", **{wire.SECRET: plan.secret},
    )  # fmt: skip


def _wait(processes: Sequence[Popen[bytes]], folder: Path, until: float) -> None:
    codes = [process.poll() for process in processes]
    while None in codes and not any(codes) and time.monotonic() < until:
        time.sleep(0.02)
        codes = [process.poll() for process in processes]
    for rank, code in enumerate(codes):
        if code:
            raise Missing(f"worker {rank} ended with {code}: {last_line(folder / f'{rank}.log')}")
    if None in codes:
        late = folder / f"{codes.index(None)}.log"
        raise Missing(f"did not end within its time: {last_line(late)}")
