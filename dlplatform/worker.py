"""``python -m dlplatform.worker CONFIG.json``: one worker process of a job."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dlplatform.cli import guard
from dlplatform.world import die_with_parent, mpi


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
    settings = json.loads(Path(path).read_text())
    if settings["cluster"]["transport"] != "mpi":
        train_here(settings)
        return
    with mpi() as lent:
        train_as_rank(lent, settings, lambda: None)


if __name__ == "__main__":
    code = guard(lambda: work(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # all is written and closed; tearing torch down only takes time
