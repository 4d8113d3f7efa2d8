"""``python -m launch.slurm FOLDER``: what a job's script runs in the first of its nodes."""

from __future__ import annotations

import sys
from pathlib import Path

from dlplatform.cli import guard
from launch.slurm import allocation

if __name__ == "__main__":
    sys.exit(guard(lambda: allocation.run(allocation.resumed(Path(sys.argv[1])))))
