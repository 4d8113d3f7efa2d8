"""Inside a host: a box of shared memory for a group whose members are all on one host.

The job's boxes may be far away, and what a group exchanges in every step need not leave the host.
The first member starts the box; it ends with its last user, as every job's boxes do.
"""

from __future__ import annotations

import hmac
import os
from pathlib import Path
from typing import TYPE_CHECKING

from dlplatform.errors import UsageError
from dlplatform.memorybox.cluster import Cluster
from dlplatform.memorybox.process import Boxes
from dlplatform.memorybox.timing import CLOCK

if TYPE_CHECKING:
    from dlplatform.job import Job
    from dlplatform.world import World

BOOT = Path("/proc/sys/kernel/random/boot_id")


class Inside:
    """The boxes that a group's own exchange goes over: the job's, or one on the members' host.

    Args:
        job: this worker's job.
        company: the members of the group.
        label: names what is the group's.
        inner: host; or auto: host where that is nearer than the job's boxes; else the job's.
    """

    def __init__(self, job: Job, company: World, label: str, inner: str) -> None:
        self.cluster = self._jobs = job.cluster
        self.box: Boxes | None = None
        real, must = job.cluster.clock is CLOCK, inner == "host"
        useful = inner == "auto" and real and not job.cluster.mapped
        if company.size == 1 or not (must or useful):
            return
        if not real:
            raise UsageError(
                "rule.inner=host in simulated time - allowed: boxes - do: rule.inner=boxes"
            )
        if (hosts := len(self._hosts(company, label))) == 1:
            self._open(company, label)
        elif must:
            raise UsageError(
                f"rule.inner=host with a group on {hosts} hosts - allowed: groups of one host - "
                "do: leave rule.group_size out, or rule.inner=auto"
            )

    def _hosts(self, company: World, label: str) -> set[str]:
        """Return where the members are; every one of them tells."""
        self._jobs.publish(f"{label}/place/{company.rank}", place())
        return {self._jobs.lookup(f"{label}/place/{rank}") for rank in range(company.size)}

    def _open(self, company: World, label: str) -> None:
        """Let the first member start the box, and all join it."""
        job = self._jobs.entrance
        secret = hmac.digest(job.secret, f"{job.job}/{label}".encode(), "sha256").hex()
        if company.rank == 0:
            self.box = Boxes(1, "shm", secret=secret)
            self._jobs.publish(f"{label}/box", self.box.addresses)
        addresses = self._jobs.lookup(f"{label}/box")
        self.cluster = Cluster(addresses, job.job, secret.encode(), self._jobs.timeout_s)
        self.cluster.join(company.rank, company.size)

    def close(self) -> None:
        """Leave the group's own box; the first member stays until all have."""
        if self.cluster is not self._jobs:
            self.cluster.close()
        if self.box is not None:
            self.box.stop(self._jobs.timeout_s)
            self.box = None


def place() -> str:
    """Return what processes have in common that can map the memory of one box."""
    return f"{BOOT.read_text().strip()} {os.readlink('/proc/self/ns/net')}"
