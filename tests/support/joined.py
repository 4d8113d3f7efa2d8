"""Runs of ``test/points`` that write down what they train, and ``dlp join`` beside them."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from liverun import DLP, LiveRun, live, until
from tinytask import recorded

SUPPORT = Path(__file__).parent


def install(into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every ``dlp`` that this test starts know the tasks of ``tinytask``."""
    info = into / "tinytask-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tinytask\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[dlplatform.tasks]\ntinytask = tinytask\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(into), str(SUPPORT)]))


@contextmanager
def points(folder: Path, minibatches: int, *words: str, slow_s: float = 0.05) -> Iterator[LiveRun]:
    """Run a job that can be joined and writes down its minibatches."""
    record = folder.parent / f"{folder.name}-record"
    record.mkdir()
    fixed = ("task=test/points", "run.threads=1", f"run.minibatches={minibatches}",
             f"task.slow_s={slow_s}", f"task.record={record}")  # fmt: skip
    where = () if any(word.startswith("cluster") for word in words) else ("cluster=shm",)
    with live(folder, *fixed, *where, *words) as run:
        yield run


def done(run: LiveRun) -> Counter[int]:
    """Return how often each minibatch was trained."""
    return Counter(recorded(run.folder.parent / f"{run.folder.name}-record"))


def shares(run: LiveRun) -> list[int]:
    """Return how many minibatches each process has trained, in ascending order."""
    files = (run.folder.parent / f"{run.folder.name}-record").glob("trained-*")
    return sorted(len(file.read_text().splitlines()) for file in files)


def begun(run: LiveRun, workers: int) -> None:
    """Wait until so many processes have trained at least one minibatch."""
    until(lambda: len(shares(run)) >= workers or run.process.poll() is not None, what="a share")
    assert run.process.poll() is None, run.out + run.err


class Join(subprocess.Popen[str]):
    """One ``dlp join``; its words are read when it has ended."""

    def __init__(self, *words: object) -> None:
        super().__init__(
            [*DLP, "join", *map(str, words)], stdin=subprocess.DEVNULL, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def end(self, seconds: float = 120.0) -> tuple[int, str, str]:
        """Wait for its end; return the exit code and what it said."""
        try:
            out, err = self.communicate(timeout=seconds)
        finally:
            self.kill()
        return self.returncode, out, err


def refused(code: int, *words: str, join: Join) -> None:
    """Check that it was refused in one line that has all the words."""
    ended, _, err = join.end(90)
    assert ended == code, err
    lines = err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("dlp: error: "), err
    assert all(word in lines[0] for word in words), err
