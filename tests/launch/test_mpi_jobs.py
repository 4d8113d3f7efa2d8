"""Jobs whose boxes are MPI ranks, as people start them: what they learn, and how they end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import seldom
from liverun import QUICK, LiveRun, live, shared_memory
from mpis import ENV, MPICH, OPEN_MPI, TOP, needs
from spaces import spaces

from dlplatform.memorybox.memory import available

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SHORT = ("boxes=2", "transport=mpi", "run.minibatches=60", "run.eval_every=60", "run.extras=false")
LONG = ("boxes=2", "transport=mpi", "run.minibatches=100000", "run.eval_every=20")
LAUNCHED = ("launcher=mpirun", "workers=3")


def ours(run: LiveRun) -> list[str]:
    return [line for line in run.err.splitlines() if "dlp: " in line]


@needs(OPEN_MPI)
def test_two_ranks_are_boxes_and_four_learn_the_digits(tmp_path: Path) -> None:
    before = shared_memory(mpi=True)
    words = ("boxes=2", "transport=mpi", *QUICK, "run.minibatches=600")
    with live(tmp_path / "run", *words, before=OPEN_MPI.ranks(6)) as run:
        assert run.wait(400) == 0, run.out + run.err
        assert "4 worker(s), 2 box(es): mpi://4 mpi://5" in run.out
        result = run.result()
        assert (result["workers"], result["minibatches"]) == (4, 600)
        assert result["score"] >= 0.97
        assert "Traceback" not in run.err
        assert not run.left()
    assert shared_memory(mpi=True) <= before


@needs(MPICH)
def test_the_command_of_the_manual_with_mpich(tmp_path: Path) -> None:
    dlp = (str(MPICH.folder / "dlp"),)
    ranks = (str(MPICH.folder / "mpirun"), "-n", "6")
    longer = (*QUICK, "run.minibatches=200", "run.eval_every=200")
    with live(tmp_path / "run", *SHORT, *longer, "rule=asgd", before=ranks, dlp=dlp) as run:
        assert run.wait(300) == 0, run.out + run.err
        assert run.result()["workers"] == 4
        assert run.result()["score"] > 0.25, "twice what no training gives"
        assert run.err == ""


@needs(OPEN_MPI)
def test_the_launcher_starts_workers_and_boxes(tmp_path: Path) -> None:
    with live(tmp_path / "run", *SHORT, *LAUNCHED, "rule=ssgd") as run:
        assert run.wait(300) == 0, run.out + run.err
        assert "3 worker(s), 2 box(es): mpi://3 mpi://4" in run.out
        assert run.err == ""


# -- deaths ----------------------------------------------------------------------------------------


@needs(OPEN_MPI)
@pytest.mark.parametrize(
    ("victim", "rule", "words"),
    [(1, "asgd", "MPI rank 1 (worker 1 on"), (4, "ssgd", "MPI rank 4 (box 1 on")],
)
def test_a_dead_rank_ends_the_job(victim: int, rule: str, words: str, tmp_path: Path) -> None:
    with live(tmp_path / "run", *LONG, *LAUNCHED, f"rule={rule}") as run:
        pid, begin = run.trains().worker(victim), time.monotonic()
        os.kill(pid, signal.SIGKILL)
        assert run.wait(120) == 4, run.err
        assert time.monotonic() - begin < 60
        (line,) = ours(run)
        assert words in line and "resume=auto" in line
        assert "Traceback" not in run.err
        assert not run.left()


@needs(MPICH)
def test_a_dead_rank_ends_the_job_with_mpich_too(tmp_path: Path) -> None:
    dlp = (MPICH.python, "-m", "dlplatform.cli")
    with live(tmp_path / "run", *LONG, *LAUNCHED, "rule=asgd", dlp=dlp) as run:
        victim, other = run.trains().worker(1), run.worker(0)
        os.kill(victim, signal.SIGKILL)
        os.kill(other, signal.SIGUSR1)  # as MPICH does itself, a little later
        assert run.wait(120) == 4, run.err
        (line,) = ours(run)
        assert "MPI rank" in line and "resume=auto" in line
        assert not run.left()


@needs(OPEN_MPI)
def test_a_box_that_dies_on_another_host_is_noticed_by_its_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLP_MPI_APART", "1")
    with live(tmp_path / "run", *LONG, *LAUNCHED, "rule=asgd") as run:
        os.kill(run.trains().worker(2), signal.SIGKILL)  # the boxes are ranks 1 and 2 of 5 hosts
        assert run.wait(120) == 4, run.err
        (line,) = ours(run)
        assert "MPI rank 2 (box 1 on" in line


@needs(OPEN_MPI)
def test_a_signal_makes_a_checkpoint_before_the_end(tmp_path: Path) -> None:
    with live(tmp_path / "run", *LONG, *LAUNCHED, "rule=asgd") as run:
        run.trains().process.send_signal(signal.SIGTERM)
        assert run.wait(120) == 75, run.err
        assert (tmp_path / "run" / "checkpoints" / "latest" / "state.json").exists()


# -- refusals --------------------------------------------------------------------------------------


def refused(line: tuple[str, ...], folder: Path, *words: str, **env: str) -> tuple[int, str]:
    """Run a command that is refused; return its code and the one line of ours."""
    ended = subprocess.run(
        [*line, "train", "task=zoo/digits", f"run.dir={folder / 'run'}", *SHORT, *words],
        env={**ENV, **env}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    found = [one for one in (ended.stdout + ended.stderr).splitlines() if "dlp: error: " in one]
    assert "Traceback" not in ended.stderr
    assert len(set(found)) == 1, ended.stdout + ended.stderr
    assert not (folder / "run" / "checkpoints").exists()
    return ended.returncode, found[0]


DLP = ("-m", "dlplatform.cli")


@needs(MPICH)
def test_refusals_are_one_line(tmp_path: Path) -> None:
    mpich = (*MPICH.ranks(3), MPICH.python, *DLP)
    code, line = refused(mpich, tmp_path, "boxes=3")
    assert code == 2 and "boxes=3 of 3 MPI rank(s) leave no worker - allowed: 1 to 2" in line
    code, line = refused(mpich, tmp_path, MPI4PY_RC_THREAD_LEVEL="serialized", DLP_MPI_APART="1")
    assert code == 3 and "at thread level 2 - allowed: MPI_THREAD_MULTIPLE (3)" in line
    code, line = refused(mpich, tmp_path, "cluster.pool_gib=100000")
    assert code == 3 and "twice the pools of its boxes - do: a smaller cluster.pool_gib" in line


@needs(MPICH)
def test_an_mpirun_of_another_mpi_is_shown_with_what_python_loads(tmp_path: Path) -> None:
    strange = (*MPICH.ranks(1), sys.executable, *DLP)
    code, line = refused(strange, tmp_path)
    assert code == 2
    assert re.search(r"MPICH says rank 0 of 1; Python loads Open MPI", line) or "leave no" in line


# -- large -----------------------------------------------------------------------------------------

BIG = """
import numpy as np
from dlplatform.memorybox.cluster import Cluster
from dlplatform.transports.mpi.job import meet, serve, work
from dlplatform.world import mpi
FLOATS = (1 << 31) // 4 + 12345
with mpi() as lent:
    ranks = meet(lent, 1, 3.0)
    def train():
        cluster = Cluster([f"mpi://{ranks.boxes[0]}"], "job", b"s", 100.0)
        buffer = cluster.buffer("w", FLOATS, True)
        x, out = np.arange(FLOATS, dtype=np.float32), np.zeros(FLOATS, np.float32)
        buffer.write(x.ctypes.data)
        buffer.read(out.ctypes.data)
        print("equal" if np.array_equal(x, out) else "different", sorted(cluster.transports[0].can))
        cluster.close()
        return 1.0
    serve(ranks, b"s") if ranks.is_box else work(ranks, train)
"""


@seldom.LONG  # reads and writes in pieces are in tests/conformance/test_mpi.py, with smaller ones
@needs(OPEN_MPI)
@pytest.mark.skipif(available() < 12 << 30, reason="needs 12 GiB")
def test_a_buffer_of_more_than_2_gib_crosses_hosts() -> None:
    line = [*OPEN_MPI.ranks(2), sys.executable, "-c", BIG]
    env = {**ENV, "DLP_MPI_APART": "1", "DLP_MPI_ONE_SIDED": "1"}
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=400, cwd=TOP)
    assert done.stdout.split() == ["equal", "['accumulate',", "'one_sided']"], done.stderr


# -- many hosts ------------------------------------------------------------------------------------


@needs(MPICH)
def test_three_hosts_train_over_tcp(tmp_path: Path) -> None:
    with spaces(3, tmp_path) as hosts:
        where = ("-launcher", "ssh", "-launcher-exec", str(hosts.agent), "-iface", "e1")
        many = ("-hosts", ",".join(hosts.names), "-n", "6", "-genv", "UCX_TLS", "tcp,self")
        before = hosts.line("env", "UCX_TLS=tcp,self", str(MPICH.folder / "mpirun"), *where, *many)
        dlp = (str(MPICH.folder / "dlp"),)
        longer = (*QUICK, "run.minibatches=200", "run.eval_every=200")
        with live(tmp_path / "run", *SHORT, *longer, "rule=asgd", before=before, dlp=dlp) as run:
            assert run.wait(400) == 0, run.out + run.err
            assert "4 worker(s), 2 box(es): mpi://4 mpi://5" in run.out
            result: dict[str, Any] = run.result()
            assert result["score"] > 0.15, "more than no training gives"
