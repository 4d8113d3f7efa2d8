"""mpirun as people type it: with ``dlp train``, and as a launcher of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from liverun import DLP, MPIRUN, ROOT, live, shared_memory

needs_mpirun = pytest.mark.skipif(not Path(MPIRUN).exists(), reason="no mpirun beside python")
RANKS = (MPIRUN, "-n", "4", "--oversubscribe")
ENV = {**os.environ, **ROOT, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@needs_mpirun
@pytest.mark.timeout(400)
def test_dlp_train_under_mpirun(tmp_path: Path) -> None:
    before = shared_memory(mpi=True)
    words = ("rule=asgd", "boxes=2", "run.minibatches=160", "run.eval_every=80")
    with live(tmp_path / "run", *words, before=RANKS) as run:
        assert run.wait(200) == 0, run.out + run.err
        assert run.out.count("minibatches, seed 0") == 1
        assert "4 worker(s), 2 box(es): shm://" in run.out
        assert run.result()["workers"] == 4
        assert run.result()["score"] > 0.15, "more than no training gives"
        assert "Traceback" not in run.err
        assert not run.left()
    assert shared_memory(mpi=True) <= before


@pytest.mark.slow
@needs_mpirun
@pytest.mark.timeout(400)
def test_the_launcher_mpirun(tmp_path: Path) -> None:
    words = ("rule=hybrid", "launcher=mpirun", "workers=4", "boxes=2", "run.minibatches=120")
    with live(tmp_path / "run", *words, "run.eval_every=120") as run:
        assert run.wait(200) == 0, run.out + run.err
        assert run.result()["workers"] == 4
        assert run.err == ""


@pytest.mark.slow
@needs_mpirun
def test_a_mistake_under_mpirun_is_one_line(tmp_path: Path) -> None:
    line = [*RANKS, *DLP, "train", "task=zoo/digit", f"run.dir={tmp_path / 'run'}"]
    ended = subprocess.run(line, env=ENV, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    ours = [one for one in ended.stderr.splitlines() if "dlp:" in one]
    assert len(ours) == 1
    assert "closest: zoo/digits" in ours[0]
    assert not (tmp_path / "run").exists()


def test_launchers_that_disagree_are_one_line(tmp_path: Path) -> None:
    two = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "RANK": "1", "WORLD_SIZE": "2"}
    line = [*DLP, "train", "task=zoo/digits", f"run.dir={tmp_path / 'run'}"]
    ended = subprocess.run(line, env={**ENV, **two}, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "Open MPI says rank 0 of 2; torchrun says rank 1 of 2" in ended.stderr


@pytest.mark.slow
@needs_mpirun
def test_the_ranks_own_tests() -> None:
    """Runs tests/mpi, whose tests live inside mpirun."""
    folder = Path(__file__).parents[1] / "mpi"
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--with-mpi", "-m", "mpi", str(folder)]
    ended = subprocess.run(
        [*RANKS, sys.executable, *words], env=ENV, capture_output=True, text=True, timeout=250,
        cwd=folder.parents[1],
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count(" passed") == 4, ended.stdout
