"""Run a job on several machines: boxes and workers are started over ssh, or what stands in for it.

The agent is called as ``AGENT HOST COMMAND``. Its standard input carries the job's secret first,
then (to a worker) the configuration and signals; its end ends the process over there. So nothing
secret is on a command line, and no shared file system is needed.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlplatform.errors import EnvironmentMissing, UsageError
from dlplatform.memorybox import wire
from dlplatform.memorybox.process import Boxes
from dlplatform.worker import log_of
from launch import job, local

LOST = 255
"""What ssh exits with when the connection broke."""


@dataclass(frozen=True)
class Hosts:
    """The machines of a job, as many of its workers on each, and how to start something there."""

    names: list[str]
    slots: list[int]
    agent: list[str]

    @staticmethod
    def of(config: dict[str, Any]) -> Hosts:
        """Read ``cluster.hosts``: NAME, or NAME:WORKERS; without numbers all get as many.

        Raises:
            UsageError: none are given, or their numbers are not those of the workers.
        """
        given = [str(host) for host in config["cluster"]["hosts"]]
        workers = int(config["workers"])
        if not given:
            raise UsageError(
                "launcher=ssh with cluster.hosts=[] - allowed: host names - do: "
                "cluster.hosts=[first,second], or cluster.hosts=[first:4,second:2]"
            )
        pairs = [host.partition(":") for host in given]
        names = [name for name, _, _ in pairs]
        counts = [count for _, _, count in pairs if count]
        if not counts:
            each, more = divmod(workers, len(names))
            slots = [each + (n < more) for n in range(len(names))]
        elif len(counts) == len(names) and all(count.isdecimal() for count in counts):
            slots = [int(count) for count in counts]
        else:
            slots = []
        if sum(slots) != workers or len(set(names)) < len(names):
            raise UsageError(
                f"cluster.hosts=[{','.join(given)}] for workers={workers} - allowed: each host "
                "once, numbers for all or none, together the workers - do: "
                f"cluster.hosts=[{','.join(dict.fromkeys(names))}]"
            )
        return Hosts(names, slots, shlex.split(config["cluster"]["agent"]))

    def line(self, host: str, words: list[str], variables: dict[str, str]) -> list[str]:
        """Return the command line that starts something on a host, which reads the secret first."""
        own = [f"{name}={value}" for name, value in variables.items()]
        here = shlex.quote(os.getcwd())
        return [
            *self.agent, host,
            f"cd {here} && read -r {wire.SECRET} && export {wire.SECRET} && "
            f"exec env {shlex.join([*own, *words])}",
        ]  # fmt: skip

    def places(self) -> Iterator[tuple[str, int, int]]:
        """Yield for every rank its host, its place there, and how many are there."""
        for name, count in zip(self.names, self.slots, strict=True):
            for place in range(count):
                yield name, place, count


class FarBoxes(Boxes):
    """Boxes on the first hosts, one each as long as there are hosts."""

    def __init__(self, hosts: Hosts, count: int, memory: str) -> None:
        self.hosts = hosts
        super().__init__(count, "tcp", memory)

    def place(self, number: int) -> tuple[list[str], str]:
        """Return what starts a box's command line on its host, and the host."""
        host = self.hosts.names[number % len(self.hosts.names)]
        return self.hosts.line(host, [], {}), host

    def _start(self, line: list[str]) -> subprocess.Popen[str]:
        with agent_of(self.hosts):
            process = super()._start(line)
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.write(self.secret + "\n")
            process.stdin.flush()
        return process


class Far(subprocess.Popen[str]):
    """A worker on another host: signals go down its standard input, for ssh passes none on."""

    def send_signal(self, sig: int) -> None:
        """Ask the worker for what a signal asks; SIGKILL ends the connection, and so the worker."""
        with suppress(OSError, ValueError):
            assert self.stdin is not None
            if sig != signal.SIGKILL:
                self.stdin.write(f"{signal.Signals(sig).name}\n")
                self.stdin.flush()
                return
            self.stdin.close()
        super().send_signal(signal.SIGKILL)


def run(config: dict[str, Any]) -> float:
    """Run a job over several hosts to its end and return its primary score.

    Raises:
        PlatformError: with the exit code of the worker that failed; 4 if all were killed.
    """
    hosts = Hosts.of(config)
    return local.drive(
        config,
        lambda config, stack: _with_boxes(config, hosts, stack),
        lambda config, workers: _start(config, hosts, workers),
        lambda config: _result(config, hosts),
    )


def plan(config: dict[str, Any]) -> list[str]:
    """Return the command lines that ``run`` would start."""
    hosts, lines = Hosts.of(config), []
    if not config["cluster"]["boxes"]:
        for number in range(int(config["boxes"])):
            host = hosts.names[number % len(hosts.names)]
            words = [sys.executable, "-m", "dlplatform.memorybox", "--bind", f"tcp://{host}:0"]
            words += ["--memory", str(config["cluster"]["memory"]), "--lifeline"]
            lines.append(shlex.join(hosts.line(host, words, {})))
    return lines + [shlex.join(line) for line in _lines(config, hosts)]


def _with_boxes(config: dict[str, Any], hosts: Hosts, stack: ExitStack) -> dict[str, Any]:
    """Start the job's boxes, if it has none yet, until the stack is closed."""
    cluster = dict(config["cluster"])
    if cluster["transport"] not in ("auto", "tcp"):
        raise UsageError(
            f"cluster.transport={cluster['transport']} with launcher=ssh - allowed: tcp - do: "
            "leave it out"
        )
    if not cluster["boxes"]:
        boxes = stack.enter_context(FarBoxes(hosts, int(config["boxes"]), cluster["memory"]))
        cluster["boxes"] = boxes.addresses
        os.environ[wire.SECRET] = boxes.secret
    else:
        os.environ[wire.SECRET] = wire.load_secret(cluster["secret_file"]).decode()
    return {**config, "cluster": {**cluster, "secret_file": ""}}


def _result(config: dict[str, Any], hosts: Hosts) -> float:
    """Return the primary score, from the chief's host where the run folder is there only."""
    here = job.folder(config) / job.RESULT
    if not here.exists():
        there = shlex.quote(str(here))
        line = [*hosts.agent, hosts.names[0], f"cat {there}"]
        here.write_text(subprocess.run(line, capture_output=True, text=True, timeout=60).stdout)
    return job.result(config)


def _lines(config: dict[str, Any], hosts: Hosts) -> Iterator[list[str]]:
    """Yield the command line of every worker."""
    words = [sys.executable, "-m", "dlplatform.worker", "-"]
    for rank, (host, place, count) in enumerate(hosts.places()):
        own = {"RANK": rank, "SIZE": config["workers"], "LOCAL_RANK": place, "LOCAL_SIZE": count}
        shared = job.variables({**config, "workers": count})
        yield hosts.line(
            host, words, {f"DLP_{name}": str(value) for name, value in own.items()} | shared
        )


def _start(config: dict[str, Any], hosts: Hosts, workers: list[local.Worker]) -> None:
    path = job.write_config(config)
    told = f"{os.environ[wire.SECRET]}\n{json.dumps(config)}\n"
    for rank, line in enumerate(_lines(config, hosts)):
        with agent_of(hosts):
            workers.append(_worker(rank, line, told, path))


@contextmanager
def agent_of(hosts: Hosts) -> Iterator[None]:
    """Say in one line that the agent is not there."""
    try:
        yield
    except FileNotFoundError as error:
        raise EnvironmentMissing(
            f"cluster.agent={' '.join(hosts.agent)} does not start: {error.strerror} - allowed: "
            "ssh, or a program that runs AGENT HOST COMMAND - do: install it, or another one"
        ) from None


def _worker(rank: int, line: list[str], told: str, config: Path) -> local.Worker:
    """Start a worker; rank 0 speaks here, the others to a file."""
    log = log_of(config, rank)
    with log.open("w") as out:
        process = Far(
            line, stdin=subprocess.PIPE, stdout=None if rank == 0 else out, text=True,
            stderr=subprocess.PIPE if rank == 0 else out, start_new_session=True,
        )  # fmt: skip
    assert process.stdin is not None
    with suppress(OSError):
        process.stdin.write(told)
        process.stdin.flush()
    lines = job.Lines(process.stderr) if process.stderr else None
    return local.Worker(rank, process, log, lines)
