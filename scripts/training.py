"""Runs of ``dlp train`` for the scripts that write docs/results, and the machine they ran on."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from launch import bench


def train(words: Sequence[str], folder: Path) -> dict[str, Any]:
    """Train in a fresh folder on one thread a worker and return what result.json says.

    Raises:
        SystemExit: with the last line the run said, when it failed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    line = [sys.executable, "-m", "dlplatform.cli", "train", *words]
    line += [f"run.dir={folder.absolute()}", "run.threads=1", "run.progress=none"]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}: {said}")
    return result(folder)


def resumed(words: Sequence[str], folder: Path) -> dict[str, Any]:
    """Return the result of a run: of a study that was stopped, if it had these settings."""
    kept = folder / "words.json"
    same = kept.exists() and json.loads(kept.read_text()) == [*words]
    if same and (found := result(folder)):
        return found
    found = train(words, folder)
    kept.write_text(json.dumps([*words]))
    return found


def result(folder: Path) -> dict[str, Any]:
    """Return the result of a run that has finished; of another one nothing."""
    try:
        found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    except (OSError, ValueError):
        return {}
    return found


def machine() -> dict[str, Any]:
    """Return what runs were measured with, and when."""
    return {
        "date": date.today().isoformat(),
        **{key: value for key, value in bench.machine().items() if key in ("cpu", "cores")},
        "python": platform.python_version(),
        "torch": version("torch"),
    }
