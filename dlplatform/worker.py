"""``python -m dlplatform.worker CONFIG.json``: one worker process of a job.

With ``-`` for the file it reads the configuration from its standard input, then the names of
signals to act on; it ends when its standard input does. So it can be started on another host.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from dlplatform.cli import guard
from dlplatform.errors import EnvironmentMissing, PlatformError
from dlplatform.world import ROOM, World, die_with_parent, mpi

OBEYED = ("SIGTERM", "SIGUSR1", "SIGINT")
LOGS = "DLP_LOGS"
"""Set by launchers that all workers talk to at once: only rank 0 does, the others to a file."""


def log_of(config: Path, rank: int) -> Path:
    """Return the file for what a worker says that does not speak to everybody."""
    return config.with_name(f"rank-{rank}.log")


def train_as_rank(lent: Any, settings: dict[str, Any], end_mpi: Callable[[], None]) -> float:
    """Train this rank's share, or be a box; MPI ends before it is needed no more."""
    if settings["cluster"]["transport"] == "mpi":
        from dlplatform.transports.mpi.job import take_part

        return take_part(lent, settings, train_here)
    end_mpi()
    return train_here(settings)


def train_here(settings: dict[str, Any]) -> float:
    """Train this process's share of a job."""
    from dlplatform.trainer import train

    return train(settings)


def work(path: str) -> None:
    """Train the share of this process of the job configured in a file."""
    die_with_parent()
    # Until the trainer knows what to save; it lets them through.
    signal.pthread_sigmask(signal.SIG_BLOCK, ROOM)
    if path == "-":
        train_here(_from_afar())
        return
    world, file = World.detect(), Path(path)
    try:
        settings = json.loads(file.read_text())
    except FileNotFoundError:
        raise EnvironmentMissing(
            f"run.dir={file.parent} is not on {world.node} - allowed: a folder that all nodes "
            "share - do: run.dir=FOLDER on a shared file system"
        ) from None
    if not os.environ.get(LOGS) or not world.rank:
        _train(settings)
        return
    with _own_log(log_of(file, world.rank)):
        _train(settings)


def _train(settings: dict[str, Any]) -> None:
    if settings["cluster"]["transport"] != "mpi":
        train_here(settings)
        return
    with mpi() as lent:
        train_as_rank(lent, settings, lambda: None)


def _from_afar() -> dict[str, Any]:
    """Read the configuration, and obey whoever sent it from then on."""
    settings: dict[str, Any] = json.loads(sys.stdin.readline())
    threading.Thread(target=_obey, daemon=True).start()
    return settings


def _obey() -> None:
    """Pass on the signals that come by name; end when whoever sends them has ended."""
    for line in sys.stdin:
        if line.strip() in OBEYED:
            os.kill(os.getpid(), signal.Signals[line.strip()])
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def _own_log(path: Path) -> Iterator[None]:
    """Write what this worker says to a file; the error it ends with goes there, too."""
    with path.open("a", 1) as log, redirect_stdout(log), redirect_stderr(log):
        try:
            yield
        except PlatformError as error:
            print(f"dlp: error: {error}", file=log)
            raise


if __name__ == "__main__":
    code = guard(lambda: work(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # all is written and closed; tearing torch down only takes time
