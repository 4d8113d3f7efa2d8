"""``python -m dlplatform.worker CONFIG.json``: one worker process of a job."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from dlplatform.cli import guard
from dlplatform.world import die_with_parent


def work(path: str) -> None:
    """Train the share of this process of the job configured in a file."""
    die_with_parent()
    settings = json.loads(Path(path).read_text())
    from dlplatform.trainer import train

    train(settings)


if __name__ == "__main__":
    code = guard(lambda: work(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # all is written and closed; tearing torch down only takes time
