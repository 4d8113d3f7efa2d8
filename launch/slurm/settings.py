"""What a job asks of Slurm: the settings ``slurm.*``, and which of them cannot work."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dlplatform.errors import UsageError

PLACES = ("workers", "first", "own")
STARTERS = ("srun", "mpirun")
LIMITS = (
    # days, hours, minutes, seconds: what sbatch --time understands
    re.compile(r"(?:(?P<d>\d+)-)?(?P<h>\d+):(?P<m>\d+):(?P<s>\d+)"),
    re.compile(r"(?P<d>\d+)-(?P<h>\d+)(?::(?P<m>\d+))?"),
    re.compile(r"(?P<m>\d+)(?::(?P<s>\d+))?"),
)
SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


@dataclass
class SlurmConfig:
    """What a job asks of Slurm, and how it starts there."""

    nodes: int = 1
    """Nodes that the workers are spread over."""
    partition: str = ""
    """Partition; empty: the cluster's default."""
    time: str = ""
    """Time limit: minutes, H:M:S or D-H:M:S; empty: the partition's."""
    account: str = ""
    """Account that pays; empty: the user's default."""
    cpus: int = 1
    """Processors, and compute threads, of one worker."""
    boxes_on: str = "workers"
    """Where boxes are: workers (their nodes in turn), first (node), own (more nodes), or n1,n2."""
    address: str = ""
    """What a node's boxes listen at, such as {node}-ib; empty: the address Slurm knows."""
    start: str = "srun"
    """Who starts the workers inside the job: srun or mpirun."""
    mpi: str = ""
    """srun's --mpi, such as pmix or pmi2; empty: the cluster's default."""
    srun: list[str] = field(default_factory=list)
    """Further options of srun for the workers: [--cpu-bind=cores]."""
    options: list[str] = field(default_factory=list)
    """Further options of sbatch: [--gres=gpu:4,--constraint=ib]."""
    setup: list[str] = field(default_factory=list)
    """Lines of the job's script before Python starts: [module load python]."""
    signal_s: int = 120
    """Seconds before the time limit at which the job saves; Slurm may be 60 s early."""
    restarts: int = 10
    """How often a job out of time, or that lost a node, box or worker, queues again; 0: never."""
    at_once: int = 0
    """Jobs of a sweep that may run at the same time; 0: as many as Slurm lets."""
    template: str = ""
    """The job's script with {{places}} to fill; empty: the one that comes with the platform."""


def seconds(limit: str) -> int | None:
    """Return a time limit in seconds, or None for what Slurm would not understand."""
    for form in LIMITS:
        if found := form.fullmatch(limit):
            return sum(SECONDS[unit] * int(n or 0) for unit, n in found.groupdict().items())
    return None


def check(config: dict[str, Any]) -> None:
    """Refuse what cannot work under Slurm.

    Raises:
        UsageError: one line with the value, what is allowed and what to do.
    """
    asked = SlurmConfig(**config["slurm"])
    workers, limit = int(config["workers"]), seconds(asked.time)
    names = asked.boxes_on.split(",")
    for wrong, key, allowed, instead in (
        (not 1 <= asked.nodes <= workers, "nodes", f"1 to workers={workers}", "1"),
        (asked.cpus < 1, "cpus", "1 or more", "1"),
        (asked.signal_s < 1, "signal_s", "1 or more", "120"),
        (asked.restarts < 0, "restarts", "0 or more", "10"),
        (asked.at_once < 0, "at_once", "0 or more", "0"),
        (asked.start not in STARTERS, "start", ", ".join(STARTERS), "srun"),
        (asked.time and limit is None, "time", "minutes, H:M:S, D-H, D-H:M or D-H:M:S", "1:00:00"),
        (asked.time and limit is not None and limit <= asked.signal_s, "time",
         f"longer than slurm.signal_s={asked.signal_s}, when the job saves", "1:00:00"),
        (not all(re.fullmatch(r"[\w.-]+", name) for name in names), "boxes_on",
         f"{', '.join(PLACES)}, or names of nodes", "workers"),
        (asked.boxes_on == "own" and asked.start == "mpirun", "boxes_on",
         "workers, first, or names of nodes with slurm.start=mpirun", "workers"),
        (asked.template and not Path(asked.template).is_file(), "template", "an existing file",
         "slurm.sh"),
    ):  # fmt: skip
        if wrong:
            raise UsageError(
                f"slurm.{key}={getattr(asked, key)} cannot work - allowed: {allowed} - do: "
                f"slurm.{key}={instead}"
            )
    if config["cluster"]["transport"] == "shm" and spread(asked, int(config["boxes"])) > 1:
        raise UsageError(
            "cluster.transport=shm over several nodes - allowed: auto, tcp - do: "
            "cluster.transport=auto, or slurm.nodes=1 slurm.boxes_on=workers"
        )


def spread(asked: SlurmConfig, boxes: int) -> int:
    """Return how many nodes a job takes, boxes on nodes of their own included."""
    return asked.nodes + (boxes if asked.boxes_on == "own" else 0)
