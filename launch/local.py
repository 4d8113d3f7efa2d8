"""Run a job on this machine: boxes and workers as plain processes, or one worker right here."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlplatform.errors import PeerLost, Preempted
from dlplatform.memorybox import wire
from dlplatform.rules.rule import find_rule
from dlplatform.worker import log_of
from launch import job, nursery

FORK = "DLP_FORK"
"""Set to 0 where torch does not bear to be forked: every worker imports it by itself."""
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL)
"""What a worker dies of whose libraries do not bear to be forked."""
PROGRAM = nursery.WORKER
"""What the workers run."""


@dataclass
class Worker:
    """One worker process, and where its words go: rank 0 speaks here, the others to a file."""

    rank: int
    process: job.Process
    log: Path
    lines: job.Lines | None = None
    reported: bool = False

    def error(self) -> str:
        """Return the error line it ended with, or nothing."""
        if self.lines:
            found = self.lines.join().errors
        else:
            found = [last for line in self._log() if (last := job.Last.read(line))]
        return found[-1].text if found else ""

    def remedy(self) -> str:
        """Return what to start a job anew with after this worker was killed."""
        forked = isinstance(self.process, nursery.Adopted)
        if forked and -(self.process.returncode or 0) in CRASHES:
            return f"{FORK}=0 in the environment: libraries here may not bear to be forked"
        return ""

    def last_line(self) -> str:
        """Return the last thing it said."""
        if self.lines:
            return self.lines.join().last
        return (self._log() or ["no message"])[-1]

    def _log(self) -> list[str]:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return [line.strip() for line in text.splitlines() if line.strip()]


def in_process(config: dict[str, Any]) -> bool:
    """Tell whether a job needs no other process: one worker, and a box inside it."""
    cluster = config["cluster"]
    return (
        config["workers"] == 1
        and not cluster["boxes"]
        and cluster["transport"] in ("auto", "inproc")
        and not cluster.get("replicas")
    )


def transport(config: dict[str, Any]) -> str:
    """Return the transport to the boxes that this launcher starts."""
    wanted = str(config["cluster"]["transport"])
    return "shm" if wanted == "auto" else wanted


def run(config: dict[str, Any]) -> float:
    """Run a job to its end and return its primary score.

    Raises:
        PlatformError: with the exit code of the worker that failed; 4 if all were killed.
    """
    if in_process(config):
        from dlplatform.trainer import train

        job.write_config(config)
        return train(config)
    return drive(config, _with_boxes, _start)


def drive(
    config: dict[str, Any],
    with_boxes: Callable[[dict[str, Any], ExitStack], dict[str, Any]],
    start: Callable[[dict[str, Any], list[Worker]], None],
    result: Callable[[dict[str, Any]], float] = job.result,
) -> float:
    """Start boxes and workers, see the job through, and return its primary score.

    Args:
        config: the job.
        with_boxes: starts its boxes until the stack is closed; returns where they are.
        start: starts the workers, into the list.
        result: reads the score that the chief has written.
    """
    workers: list[Worker] = []
    with ExitStack() as stack:
        stack.enter_context(job.on_signals(lambda n: _forward(workers, config["workers"], n)))
        config = with_boxes(config, stack)
        try:
            start(config, workers)
            _watch(workers, find_rule(config["rule"]["name"]).survives)
        except KeyboardInterrupt:
            _interrupted(workers)
            raise
        finally:
            job.stop([w.process for w in workers], signal.SIGTERM)
            job.close_door(config)
    _speak_for_rank_0(workers)
    return result(config)


def plan(config: dict[str, Any]) -> list[str]:
    """Return the command lines that do by hand what ``run`` does."""
    if in_process(config):
        return ["# one worker and its box inside this process"]
    lines = []
    if not config["cluster"]["boxes"]:
        kind = transport(config)
        where = "shm://NAME" if kind == "shm" else f"{kind}://127.0.0.1:0"
        box = [sys.executable, "-m", "dlplatform.memorybox", "--bind", where]
        box += ["--memory", config["cluster"]["memory"], "--lifeline"]
        lines += [shlex.join(box)] * int(config["boxes"])
    path = Path(config["run"]["dir"]).absolute() / job.CONFIG
    for rank in range(config["workers"]):
        own = " ".join(f"{key}={value}" for key, value in _variables(config, rank).items())
        lines.append(f"{own} {shlex.join(_command(path))}")
    return lines


def _with_boxes(config: dict[str, Any], stack: ExitStack) -> dict[str, Any]:
    """Start the job's boxes, if it has none yet, until the stack is closed."""
    cluster = dict(config["cluster"])
    if not cluster["boxes"]:
        from dlplatform.memorybox.process import Boxes

        boxes = stack.enter_context(Boxes(config["boxes"], transport(config), cluster["memory"]))
        cluster["boxes"] = boxes.addresses
        os.environ[wire.SECRET] = boxes.secret
    return {**config, "cluster": cluster}


def _command(path: Path) -> list[str]:
    return [sys.executable, "-m", PROGRAM, str(path)]


def _variables(config: dict[str, Any], rank: int) -> dict[str, str]:
    rank_text, size = str(rank), str(config["workers"])
    return {
        "DLP_RANK": rank_text,
        "DLP_SIZE": size,
        "DLP_LOCAL_RANK": rank_text,
        "DLP_LOCAL_SIZE": size,
        **job.variables(config),
    }


def _start(config: dict[str, Any], workers: list[Worker]) -> None:
    """Have a nursery start the workers; should it fail, it is the one that is looked at."""
    path, count = job.write_config(config), config["workers"]
    if os.environ.get(FORK) == "0":
        workers += [_start_worker(config, path, rank) for rank in range(count)]
        return
    told, tell = os.pipe()
    with nursery.next_of_kin(), os.fdopen(told, "rb") as children:
        line, env = nursery.command(PROGRAM, path, count, tell), _variables(config, 0)
        process, lines = _speaking(line, env, tell)
        try:
            os.close(tell)
            process.wait()
        finally:  # also when asked to end meanwhile: whom it has told of is ended with the others
            process.kill()
            process.wait()
            pids = json.loads(children.read() or "[]")
            found: list[job.Process] = [nursery.Adopted(pid) for pid in pids]
            for rank, one in enumerate(found or [process]):
                workers.append(Worker(rank, one, log_of(path, rank), None if rank else lines))


def _start_worker(config: dict[str, Any], path: Path, rank: int) -> Worker:
    """Start one worker that imports everything by itself."""
    env, log = _variables(config, rank), log_of(path, rank)
    if rank:
        return Worker(rank, logged(path, {**os.environ, **env}, log), log)
    process, lines = _speaking(_command(path), env)
    return Worker(rank, process, log, lines)


def _speaking(
    line: list[str], more: dict[str, str], *files: int
) -> tuple[subprocess.Popen[Any], job.Lines]:
    """Start a process that speaks here, but for the errors that it ends with."""
    process = subprocess.Popen(
        line, env={**os.environ, **more}, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, pass_fds=files,
    )  # fmt: skip
    assert process.stderr is not None
    return process, job.Lines(process.stderr)


def logged(path: Path, env: dict[str, str], log: Path) -> subprocess.Popen[Any]:
    """Start a worker whose words go to a file."""
    with log.open("w") as out:
        return subprocess.Popen(
            _command(path), env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )


def _watch(workers: list[Worker], survives: bool) -> None:
    """Wait for all workers; say who was killed; raise when one fails or none is left."""
    while True:
        running = 0
        for worker in workers:
            code = worker.process.poll()
            if code is None:
                running += 1
            elif code > 0:
                _fail(worker, workers)
            elif code < 0 and not worker.reported:
                worker.reported = True
                _say_killed(worker, workers, survives)
        if not running:
            break
        time.sleep(0.05)
    if all(worker.reported for worker in workers):
        remedy = next(filter(None, (worker.remedy() for worker in workers)), "resume=auto")
        raise PeerLost(
            f"all {len(workers)} workers were killed - one must stay - do: start again with "
            f"{remedy}"
        )


def _speak_for_rank_0(workers: list[Worker]) -> None:
    """Show what the worker said that took over from a killed rank 0."""
    if workers[0].reported:
        heir = next(worker for worker in workers if not worker.reported)
        print(heir.log.read_text(errors="replace"), end="", flush=True)


def _say_killed(worker: Worker, workers: list[Worker], survives: bool) -> None:
    name = signal.Signals(-worker.process.returncode).name
    others = survives and any(other.process.poll() is None for other in workers)
    rest = "; the others go on" if others else ""
    if remedy := worker.remedy():
        rest += f" - do: {remedy}"
    print(f"dlp: worker {worker.rank} was killed ({name}){rest}", file=sys.stderr, flush=True)


def _fail(worker: Worker, workers: list[Worker]) -> None:
    """Stop the others and raise the failed worker's error, in its words, with its exit code."""
    code = worker.process.returncode
    others = [other.process for other in workers]
    # Workers often fail together, for one reason; rank 0 then speaks for all of them.
    if not job.wait(others, 1.0):
        job.stop(others, signal.SIGTERM, job.CHECKPOINT_S if code == job.PREEMPTED else job.STOP_S)
    chief = workers[0]
    speaker = chief if chief.process.returncode == code and chief.error() else worker
    text = speaker.error() or f"worker {speaker.rank} failed: {speaker.last_line()}"
    if speaker is not chief:
        text = f"{text} [worker {speaker.rank}, {speaker.log}]"
    raise job.failure(code, text)


def _forward(workers: list[Worker], size: int, number: int) -> None:
    """Pass a request to make room on to the workers; before all are there, end at once."""
    if len(workers) < size:
        raise Preempted(f"{signal.Signals(number).name} came before the training had begun")
    job.send([worker.process for worker in workers], number)


def _interrupted(workers: list[Worker]) -> None:
    """End after Ctrl-C: a terminal has told the workers already, ``kill -INT`` has not."""
    processes = [worker.process for worker in workers]
    if not job.wait(processes, 1.0):
        job.stop(processes, signal.SIGINT, 2.0)
