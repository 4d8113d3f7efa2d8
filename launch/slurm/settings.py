"""What a job asks of Slurm: the settings ``slurm.*``, and which of them cannot work."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
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
    boxes_on: Any = "workers"
    """Where boxes are: workers (on their nodes in turn), first, own (further nodes), or [n1,n2]."""
    address: str = ""
    """What a node's boxes listen at, such as {node}-ib; empty: the address Slurm knows."""
    start: str = "srun"
    """Who starts the workers inside the job: srun or mpirun."""
    mpi: str = ""
    """srun's --mpi, such as pmix or pmi2; empty: the cluster's default."""
    srun: str = ""
    """Further options of srun for the workers, such as --cpu-bind=cores."""
    options: str = ""
    """Further options of sbatch, such as --gres=gpu:4 --constraint=ib."""
    setup: str = ""
    """What the job's script does before Python starts, such as module load python."""
    signal_s: int = 120
    """Seconds before the time limit at which the job saves; Slurm may be 60 s early."""
    restarts: int = 10
    """How often a job out of time, or that lost a node, box or worker, queues again; 0: never."""
    at_once: int = 0
    """Jobs of a sweep that may run at the same time; 0: as many as Slurm lets."""
    template: str = ""
    """The job's script with {{places}} to fill; empty: the one that comes with the platform."""

    @property
    def box_nodes(self) -> list[str]:
        """Return the nodes that were named for boxes."""
        named = [self.boxes_on] if isinstance(self.boxes_on, str) else list(self.boxes_on)
        return [] if named in [[place] for place in PLACES] else named


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
    for key, (good, allowed, instead) in _checks(asked, int(config["workers"])).items():
        if not good:
            raise UsageError(
                f"slurm.{key}={getattr(asked, key)} cannot work - allowed: {allowed} - do: "
                f"slurm.{key}={instead}"
            )
    if config["cluster"]["transport"] == "shm" and spread(asked, int(config["boxes"])) > 1:
        raise UsageError(
            "cluster.transport=shm over several nodes - allowed: auto, tcp - do: "
            "cluster.transport=auto, or slurm.nodes=1 slurm.boxes_on=workers"
        )


def _checks(asked: SlurmConfig, workers: int) -> dict[str, tuple[bool, str, str]]:
    """Return for each setting whether it can work, what is allowed, and what to write instead."""
    limit, place = seconds(asked.time), asked.boxes_on
    longer = f"longer than slurm.signal_s={asked.signal_s}, which is when the job saves"
    forms, known = "minutes, H:M:S, D-H, D-H:M or D-H:M:S", ", ".join(PLACES)
    nodes = bool(place) and all(re.fullmatch(r"[\w.-]+", str(node)) for node in asked.box_nodes)
    return {
        "nodes": (1 <= asked.nodes <= workers, f"1 to workers={workers}", "1"),
        "cpus": (asked.cpus >= 1, "1 or more", "1"),
        "signal_s": (asked.signal_s >= 1, "1 or more", "120"),
        "restarts": (asked.restarts >= 0, "0 or more", "10"),
        "at_once": (asked.at_once >= 0, "0 or more", "0"),
        "start": (asked.start in STARTERS, ", ".join(STARTERS), "srun"),
        "time": (not asked.time or (limit or 0) > asked.signal_s,
                 forms if limit is None else longer, "1:00:00"),
        "boxes_on": (nodes and (place != "own" or asked.start == "srun"),
                     f"{known} (own: with slurm.start=srun), or nodes [n1,n2]", "workers"),
        "srun": (_splits(asked.srun), "options as in a shell, quotes closed", "--cpu-bind=cores"),
        "template": (not asked.template or Path(asked.template).is_file(), "an existing file",
                     "slurm.sh"),
    }  # fmt: skip


def _splits(text: str) -> bool:
    try:
        return bool(shlex.split(text)) or not text
    except ValueError:
        return False


def spread(asked: SlurmConfig, boxes: int) -> int:
    """Return how many nodes a job takes, boxes on nodes of their own included."""
    return asked.nodes + (boxes if asked.boxes_on == "own" else 0)
