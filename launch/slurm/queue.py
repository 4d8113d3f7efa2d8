"""What Slurm is asked from outside a job: submit, how is it, end it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence

from dlplatform.errors import EnvironmentMissing, UsageError, closest

PATIENCE_S = 90.0
"""Longer than Slurm's commands look for their own configuration."""
ABSENT = ("ontact slurm controller", "process configuration", "establish a configuration")
"""What Slurm's commands say where there is no Slurm behind them."""
PAIR = re.compile(r"(\w+)=(\S*)")
HELD = ("PENDING", "RUNNING", "SUSPENDED", "CONFIGURING", "COMPLETING", "REQUEUED", "STAGE_OUT",
        "REQUEUE_HOLD", "SPECIAL_EXIT", "RESIZING", "SIGNALING", "STOPPED")  # fmt: skip
"""States of a job that has not ended."""


def ask(
    *words: str, given: str = "", patience_s: float = PATIENCE_S
) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands.

    Raises:
        EnvironmentMissing: this machine has none, or no controller answers.
    """
    if not shutil.which(words[0]):
        raise EnvironmentMissing(
            f"launcher=slurm finds no {words[0]} - allowed: a machine of a Slurm cluster - do: log "
            "in to one, or launcher=local; to try Slurm here: bash scripts/slurm_here.sh"
        )
    try:
        done = subprocess.run(
            words, input=given, capture_output=True, text=True, timeout=patience_s
        )
    except (OSError, subprocess.SubprocessError):
        raise EnvironmentMissing(
            f"{words[0]} does not answer within {patience_s:g} s - allowed: a Slurm that runs - "
            "do: scontrol ping, or point SLURM_CONF to the cluster's slurm.conf"
        ) from None
    if any(word in done.stderr for word in ABSENT):
        raise EnvironmentMissing(
            f"{words[0]}: {reason(done.stderr)} - allowed: a Slurm that runs - do: scontrol ping, "
            "or point SLURM_CONF to the cluster's slurm.conf"
        )
    return done


def reason(text: str) -> str:
    """Return why one of Slurm's commands refused, in its words."""
    lines = [re.sub(r"^\w+: (error: )?", "", line) for line in text.strip().splitlines()]
    final = [line for line in lines if "failed: " in line]
    return (final or lines or ["no reason given"])[-1].rpartition("failed: ")[2].strip()


def submit(script: str, partition: str = "", where: str = "") -> str:
    """Submit a script and return the job's number.

    Args:
        script: its text.
        partition: the partition it asks for, to name others if there is none such.
        where: a copy of the script for whoever reads the error.

    Raises:
        UsageError: Slurm refuses the job; with its reason.
    """
    done = ask("sbatch", "--parsable", given=script)
    if done.returncode == 0:
        return done.stdout.strip().split(";")[0]
    why = reason(done.stderr)
    if "partition" in why.lower():
        known = sorted(set(ask("sinfo", "-h", "-o", "%R").stdout.split()))
        raise UsageError(
            f"slurm.partition={partition}: {why}{closest(partition, known)} - allowed: "
            f"{', '.join(known)} - do: slurm.partition={(known or ['NAME'])[0]}"
        )
    raise UsageError(
        f"sbatch refuses the job: {why} - allowed: what this cluster offers (sinfo) - do: change "
        f"slurm.*, or look into {where or 'the script (--dry-run)'}"
    )


def jobs(number: str) -> list[dict[str, str]]:
    """Return what Slurm knows of a job, of an array of each of its jobs; nothing once forgotten.

    Raises:
        EnvironmentMissing: Slurm does not answer now.
    """
    done = ask("scontrol", "show", "job", "--oneliner", number)
    found = [dict(PAIR.findall(line)) for line in done.stdout.splitlines() if "JobId=" in line]
    if not found and "nvalid job id" not in done.stderr:
        raise EnvironmentMissing(
            f"scontrol: {reason(done.stderr)} - allowed: a Slurm that runs - do: scontrol ping"
        )
    return found


def hostnames(nodes: str) -> list[str]:
    """Return the nodes that a list of Slurm's names: ``n[1-3]``."""
    return ask("scontrol", "show", "hostnames", nodes).stdout.split()


def cancel(number: str) -> None:
    """End a job."""
    ask("scancel", number)


def end(number: str) -> None:
    """Ask a job that runs to save and end, by its script; one that waits just ends."""
    ask("scancel", "--state=RUNNING", "--batch", "--signal=TERM", number)
    ask("scancel", "--state=PENDING", number)


def held(states: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Return the jobs that have not ended."""
    return [one for one in states if one.get("JobState") in HELD]
