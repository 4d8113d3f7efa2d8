"""From outside: put a job, or a sweep as one array, into Slurm's queue, and follow it."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dlplatform.errors import EnvironmentMissing, PeerLost, PlatformError, Preempted
from launch import job
from launch.slurm import allocation, queue, script

PAUSES_S = (0.5, 10.0)
"""Between two looks at the queue: at first, and once a job has been there for long."""
AGAIN = "do: go on with resume=auto run.dir="


def plan(configs: Sequence[dict[str, Any]], root: Path | None = None) -> list[str]:
    """Return the script that would be submitted: of a job, or of a sweep in a folder."""
    folder = root or Path(configs[0]["run"]["dir"]).absolute()
    return [script.write(configs, folder, root is not None).rstrip("\n")]


def enqueue(configs: Sequence[dict[str, Any]], root: Path | None = None) -> Submission:
    """Submit a job, or a sweep as one array whose jobs have numbered folders in one of theirs."""
    folder = root or job.folder(configs[0])
    text = script.write(configs, folder, root is not None)
    for place, config in enumerate(configs):
        _lay(config, root / str(place) if root else folder)
    path = folder / script.SCRIPT
    path.write_text(text)
    number = queue.submit(text, configs[0]["slurm"]["partition"], str(path))
    return Submission(number, folder, f"*/{script.LOG}" if root else script.LOG)


def _lay(config: dict[str, Any], folder: Path) -> None:
    """Write what a job's script reads; a result of an earlier run goes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / job.RESULT).unlink(missing_ok=True)
    settings = {**config, "run": {**config["run"], "dir": str(folder)}}
    (folder / allocation.SUBMITTED).write_text(json.dumps(settings, indent=1) + "\n")


class Submission:
    """A job in the queue, or an array of jobs.

    Args:
        number: what Slurm calls it.
        folder: where it runs; of an array, where the folders of its jobs are.
        logs: the name of its log there, or of all.
    """

    def __init__(self, number: str, folder: Path, logs: str = script.LOG) -> None:
        self.number, self.folder, self.logs = number, folder, logs
        self.said: dict[str, str] = {}
        self.error = ""
        log = folder / script.LOG
        self._read = log.stat().st_size if log.exists() else 0
        self._rest = ""

    def announce(self) -> None:
        """Say how to look after it."""
        print(f"dlp: job {self.number} submitted")
        print(f"folder   {self.folder}")
        print(f"follow   tail -F {self.folder / self.logs}")
        print(f"cancel   scancel {self.number}", flush=True)

    def follow(self, look: Callable[[list[dict[str, str]]], None]) -> dict[str, dict[str, str]]:
        """Look at it until it has ended, and return what Slurm last said of it, or of each job.

        Ctrl-C cancels it; SIGTERM and SIGUSR1 let it save and end.
        """
        began, last = time.monotonic(), dict[str, dict[str, str]]()
        with job.on_signals(lambda _: queue.end(self.number)):
            try:
                while told := self._ask():
                    last |= {one.get("ArrayTaskId", ""): one for one in told}
                    look(told)
                    if not queue.held(told):
                        break
                    age = time.monotonic() - began
                    time.sleep(min(max(age / 100, PAUSES_S[0]), PAUSES_S[1]))
            except KeyboardInterrupt:
                queue.cancel(self.number)
                raise
        return last

    def _ask(self) -> list[dict[str, str]]:
        """Return what Slurm says of it, once it answers: its daemon may be busy, or down."""
        while True:
            try:
                return queue.jobs(self.number)
            except EnvironmentMissing as error:
                self._news("Slurm", str(error).partition(" - ")[0])
                time.sleep(PAUSES_S[1])

    def watch(self, told: list[dict[str, str]]) -> None:
        """Say what has become of a single job, and what it says itself."""
        self._say(self.number, told[0])
        self.pour()

    def count(self, told: list[dict[str, str]]) -> None:
        """Say what has become of each job of an array."""
        for one in told:
            if (number := one.get("ArrayTaskId", "")).isdigit():  # those that wait are one entry
                self._say(f"{self.number}_{number}", one)

    def _say(self, name: str, told: dict[str, str]) -> None:
        state = told.get("JobState", "")
        news = {
            "PENDING": "waits" if (why := told.get("Reason")) == "None" else f"waits ({why})",
            "RUNNING": f"runs on {told.get('NodeList', '')}",
        }.get(state, "" if state in queue.HELD else f"is {state}")
        if news:
            self._news(f"job {name}", news)

    def _news(self, name: str, news: str) -> None:
        if self.said.get(name) != news:
            self.said[name] = news
            print(f"dlp: {name} {news}", flush=True)

    def pour(self) -> None:
        """Print what the job has written to its log since, except the error it may end with."""
        try:
            with (self.folder / script.LOG).open("rb") as log:
                log.seek(self._read)
                new = log.read()
        except OSError:
            return
        self._read += len(new)
        *lines, self._rest = (self._rest + new.decode(errors="replace")).split("\n")
        for line in lines:
            if self.error and line:
                print(f"dlp: {self.error}")
            self.error = line.removeprefix(job.ERROR) if line.startswith(job.ERROR) else ""
            if line and not self.error:
                print(line)
        sys.stdout.flush()

    def verdict(self, ended: dict[str, dict[str, str]]) -> float:
        """Return the score of a job that has ended, or raise what it ended with."""
        self.pour()
        if (self.folder / job.RESULT).exists():
            return job.result({"run": {"dir": str(self.folder)}})
        told = next(iter(ended.values()), {})
        raise failure(f"job {self.number}", self.folder, told, self.error)


def failure(name: str, folder: Path, told: dict[str, str], error: str) -> PlatformError:
    """Return the error of a job that has ended without a result."""
    state, log = told.get("JobState", "unknown"), folder / script.LOG
    code = int(told.get("ExitCode", "0:0").partition(":")[0])
    saved = f"{AGAIN}{folder}"
    if state == "CANCELLED":
        return Preempted(f"{name} was cancelled - allowed: to run to its end - {saved}")
    if state == "TIMEOUT":
        return Preempted(
            f"{name} ran out of time after {told.get('RunTime', '')} - allowed: slurm.time - "
            f"{saved} and a longer slurm.time, or a larger slurm.signal_s for it to save"
        )
    if state in ("NODE_FAIL", "BOOT_FAIL"):
        return PeerLost(f"{name} lost a node of {told.get('NodeList', '')} ({state}) - {saved}")
    if state == "OUT_OF_MEMORY":
        return EnvironmentMissing(
            f"{name} ran out of memory - allowed: what slurm.options asks for - do: "
            "slurm.options=[--mem=16G], or more slurm.nodes"
        )
    if not log.exists() or told.get("Reason") == "JobLaunchFailure":
        return EnvironmentMissing(
            f"{name} is {state} and wrote no {log} - allowed: a run.dir that this machine and the "
            "nodes share - do: run.dir=FOLDER on a shared file system"
        )
    if error:
        return job.failure(code or 1, f"{error} [{name}, {log}]")
    return PlatformError(f"{name} is {state} ({told.get('Reason')}) - do: look into {log}")


def run(config: dict[str, Any]) -> float:
    """Submit a job and follow it to its end; return its primary score."""
    submitted = enqueue([config])
    print(f"dlp: job {submitted.number} submitted, log {submitted.folder / script.LOG}")
    return submitted.verdict(submitted.follow(submitted.watch))


def leave(config: dict[str, Any]) -> float:
    """Submit a job, say how to look after it, and leave it to Slurm."""
    enqueue([config]).announce()
    return math.nan
