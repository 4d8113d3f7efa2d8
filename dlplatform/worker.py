"""``python -m dlplatform.worker CONFIG.json``: one worker process of a job."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from dlplatform.cli import guard
from dlplatform.errors import EnvironmentMissing, PlatformError
from dlplatform.world import ROOM, World, die_with_parent

LOGS = "DLP_LOGS"
"""Set by launchers that all workers talk to at once: only rank 0 does, the others to a file."""


def work(path: str) -> None:
    """Train the share of this process of the job configured in a file."""
    die_with_parent()
    # Until the trainer knows what to save; it lets them through.
    signal.pthread_sigmask(signal.SIG_BLOCK, ROOM)
    world, file = World.detect(), Path(path)
    try:
        settings = json.loads(file.read_text())
    except FileNotFoundError:
        raise EnvironmentMissing(
            f"run.dir={file.parent} is not on {world.node} - allowed: a folder that all nodes "
            "share - do: run.dir=FOLDER on a shared file system"
        ) from None
    from dlplatform.trainer import train

    if not os.environ.get(LOGS) or not world.rank:
        train(settings)
        return
    with _own_log(file.with_name(f"rank-{world.rank}.log")):
        train(settings)


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
