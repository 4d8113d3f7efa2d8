"""Run a job under Slurm: in the job this process is in, else in one that is submitted and followed.

``dlp submit`` always submits, and does not wait.
"""

from __future__ import annotations

import os
from typing import Any


def run(config: dict[str, Any]) -> float:
    """Run a job to its end and return its primary score.

    Raises:
        PlatformError: with the exit code of the worker that failed.
    """
    from launch.slurm import allocation, submission

    return allocation.run(config) if allocation.inside() else submission.run(config)


def plan(config: dict[str, Any]) -> list[str]:
    """Return the steps that ``run`` would start in this job, or the script it would submit."""
    from launch.slurm import allocation, queue, submission

    if allocation.inside():
        nodes = queue.hostnames(os.environ["SLURM_JOB_NODELIST"])
        return allocation.plan(config, nodes)
    return submission.plan([config])
