"""Inside a job: boxes and workers start with srun on its nodes."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dlplatform.cli import REPORT
from dlplatform.errors import EnvironmentMissing, Preempted, UsageError
from dlplatform.meeting import node_addresses, outward
from dlplatform.memorybox.process import Boxes
from dlplatform.worker import LOGS
from launch import job, mpirun
from launch.slurm import queue
from launch.slurm.settings import SlurmConfig

SUBMITTED, SECRET = "slurm.json", "boxes.secret"
OVER = ("--overlap", "--kill-on-bad-exit=0", "--quiet")
"""Options of steps beside the workers' own."""


class StepBoxes(Boxes):
    """Boxes on nodes of the job, each a step of its own.

    Args:
        nodes: for each box, its node.
        hosts: what it listens at there; none: shared memory, on the only node.
        memory: where it takes its memory.
        secret_file: a file with their secret that all nodes share.
    """

    def __init__(
        self, nodes: Sequence[str], hosts: Sequence[str], memory: str, secret_file: Path
    ) -> None:
        self.nodes, self.hosts = nodes, hosts or [""] * len(nodes)
        transport = "tcp" if hosts else "shm"
        super().__init__(len(nodes), transport, memory, ["--secret-file", str(secret_file)])

    def place(self, number: int) -> tuple[list[str], str]:
        """Return the srun that brings a box to its node, and where it listens there."""
        return box_step(self.nodes[number]), self.hosts[number]

    def environment(self) -> dict[str, str]:
        """Return the environment of the boxes: the secret is in a file, not in there."""
        return dict(os.environ)


def box_step(node: str) -> list[str]:
    """Return the srun of a box."""
    return ["srun", *OVER, "--nodes=1", "--ntasks=1", "--cpus-per-task=1", f"--nodelist={node}"]


def inside() -> bool:
    """Tell whether this process is in a job of Slurm."""
    return "SLURM_JOB_ID" in os.environ


def resumed(folder: Path) -> dict[str, Any]:
    """Return the settings that were submitted; one that comes again goes on where it saved."""
    path = folder / SUBMITTED
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise EnvironmentMissing(
            f"run.dir={folder} is not on this node - allowed: a folder that all nodes share - do: "
            "run.dir=FOLDER on a shared file system"
        ) from None
    saved = folder / job.CHECKPOINT
    if saved.exists() and saved.stat().st_mtime > path.stat().st_mtime:
        config["resume"] = "auto"
    return config


def run(config: dict[str, Any]) -> float:
    """Run a job on the nodes of the allocation that this process is in; return its score.

    Raises:
        PlatformError: with the exit code of the worker that failed.
    """
    asked, folder = SlurmConfig(**config["slurm"]), job.folder(config)
    os.environ.pop("SLURM_NTASKS_PER_NODE", None)  # srun would hold boxes to it, too
    nodes = queue.hostnames(os.environ["SLURM_JOB_NODELIST"])
    told = {"threads": config["run"]["threads"] or asked.cpus}
    if config["run"]["progress"] == "auto":
        told["progress"] = "plain"  # srun passes whole lines on
    config = {**config, "run": {**config["run"], **told}}
    with ExitStack() as stack:
        stack.enter_context(job.on_signals(_too_early))
        cluster = dict(config["cluster"])
        if not cluster["boxes"]:
            path = job.write_config(config)
            _check_shared(path, nodes)
            secret = _secret(folder / SECRET, stack)
            boxes = stack.enter_context(_boxes(config, asked, nodes, secret))
            cluster |= {"boxes": boxes.addresses, "secret_file": str(secret)}
        config["cluster"] = cluster
        if asked.start == "mpirun":
            return mpirun.run(config)
        own = {**job.variables(config), LOGS: "1", REPORT: "line"}
        return mpirun.follow(workers(config, asked, len(nodes)), config, own, signal.SIGTERM)


def plan(config: dict[str, Any], nodes: Sequence[str]) -> list[str]:
    """Return the command lines of the steps that ``run`` would start on some nodes."""
    asked, lines = SlurmConfig(**config["slurm"]), list[str]()
    if not config["cluster"]["boxes"]:
        far = config["cluster"]["transport"] == "tcp" or len(nodes) > 1
        for node in box_nodes(asked, nodes, int(config["boxes"])):
            bind = (
                f"tcp://{asked.address.replace('{node}', node) or node}:0" if far else "shm://NAME"
            )
            box = [sys.executable, "-m", "dlplatform.memorybox", "--bind", bind, "--secret-file"]
            box.append(str(Path(config["run"]["dir"]).absolute() / SECRET))
            lines.append(shlex.join([*box_step(node), *box]))
    if asked.start == "mpirun":
        return [*lines, *mpirun.plan(config)]
    return [*lines, shlex.join(workers(config, asked, len(nodes)))]


def workers(config: dict[str, Any], asked: SlurmConfig, nodes: int) -> list[str]:
    """Return the srun of the workers; those on nodes after the boxes' own."""
    first = int(config["boxes"]) if asked.boxes_on == "own" else 0
    if first and nodes <= first:
        raise UsageError(
            f"slurm.boxes_on=own with {first} box(es) on {nodes} node(s) - allowed: more nodes "
            "than boxes - do: slurm.boxes_on=workers"
        )
    return [
        *("srun", "--kill-on-bad-exit=0", "--wait=0", "--no-kill"),
        *(f"--nodes={nodes - first}", f"--ntasks={config['workers']}"),
        f"--cpus-per-task={asked.cpus}",
        *([f"--relative={first}"] if first else []),
        *([f"--mpi={asked.mpi}"] if asked.mpi else []),
        *shlex.split(asked.srun),
        *(sys.executable, "-m", "dlplatform.worker"),
        str(Path(config["run"]["dir"]).absolute() / job.CONFIG),
    ]


def _too_early(number: int) -> None:
    raise Preempted(f"{signal.Signals(number).name} came before the training had begun")


def _check_shared(path: Path, nodes: Sequence[str]) -> None:
    """Refuse a run folder that some nodes do not have."""
    if len(nodes) == 1:
        return
    line = ["srun", *OVER[:2], f"--nodes={len(nodes)}", f"--ntasks={len(nodes)}"]
    line += ["--ntasks-per-node=1", "--cpus-per-task=1", "test", "-r", str(path)]
    done = subprocess.run(line, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        lacking = re.findall(r"^srun: error: ([\w.-]+): tasks? ", done.stderr, re.M)
        if not lacking:
            raise EnvironmentMissing(
                f"srun: {queue.reason(done.stderr)} - allowed: steps on {', '.join(nodes)} - do: "
                "sinfo -R"
            )
        raise EnvironmentMissing(
            f"run.dir={path.parent} is not on {', '.join(lacking)} - allowed: a folder that all "
            "nodes share - do: run.dir=FOLDER on a shared file system"
        )


def _secret(path: Path, stack: ExitStack) -> Path:
    """Write a secret that only its owner can read; it goes when the job does."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32) + "\n")
    stack.callback(path.unlink, missing_ok=True)
    return path


def _boxes(
    config: dict[str, Any], asked: SlurmConfig, nodes: Sequence[str], secret: Path
) -> StepBoxes:
    """Start the boxes where they were asked for."""
    places = box_nodes(asked, nodes, int(config["boxes"]))
    wanted, hosts = config["cluster"]["transport"], list[str]()
    if wanted == "tcp" or len(nodes) > 1:
        if asked.address:
            known = [asked.address.replace("{node}", node) for node in places]
        else:
            known = node_addresses(places)
        hosts = [outward(name) for name in known]
    return StepBoxes(places, hosts, config["cluster"]["memory"], secret)


def box_nodes(asked: SlurmConfig, nodes: Sequence[str], boxes: int) -> list[str]:
    """Return the node of each box.

    Raises:
        UsageError: a node that was named is not in the job.
    """
    named = asked.box_nodes
    if missing := [name for name in named if name not in nodes]:
        raise UsageError(
            f"slurm.boxes_on=[{','.join(named)}]: {missing[0]} is not a node of this job - "
            f"allowed: {', '.join(nodes)} - do: slurm.boxes_on=workers"
        )
    among = named or {"first": nodes[:1], "own": nodes[:boxes]}.get(asked.boxes_on, nodes)
    return [among[number % len(among)] for number in range(boxes)]
