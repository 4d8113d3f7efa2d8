"""The local launcher's promises, with real small processes in place of workers and boxes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dlplatform.cli import guard
from dlplatform.errors import PlatformError
from launch import job, local, nursery

WORKER = """
import json, os, signal, sys, time
from pathlib import Path
rank, folder = int(os.environ["DLP_RANK"]), Path(sys.argv[1]).parent
config = json.loads(Path(sys.argv[1]).read_text())
def end(code, text):
    print(f"dlp: rank {rank} exit {code}: {text}", file=sys.stderr, flush=True)
    sys.exit(code)
def result():
    (folder / "result.json").write_text(json.dumps({"score": 0.5, "primary": "accuracy"}))
(folder / f"up-{rank}").touch()
"""


def settings(folder: Path, workers: int = 3) -> dict[str, Any]:
    cluster = {"transport": "shm", "boxes": ["shm://x"], "secret_file": "", "memory": "/dev/shm"}
    run = {"dir": str(folder), "threads": 0, "progress": "auto"}
    rule = {"name": "easgd"}
    return {"workers": workers, "boxes": 1, "cluster": cluster, "run": run, "rule": rule}


def until_there_are(number: int, folder: Path, pattern: str) -> None:
    """Wait until so many files have appeared; give up in time, so that the test fails itself."""
    end = time.monotonic() + 60
    while len(list(folder.glob(pattern))) < number and time.monotonic() < end:
        time.sleep(0.05)


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Replace the worker process by a script given as text; fail on survivors."""
    script = tmp_path / "worker_script.py"

    def use(body: str) -> None:
        script.write_text(WORKER + textwrap.dedent(body))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
        monkeypatch.setattr(local, "PROGRAM", script.stem)

    yield use
    assert not alive(script.stem)


def alive(word: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and word in (entry / "cmdline").read_text():
                found.append(int(entry.name))
    return [pid for pid in found if pid != os.getpid()]


def fails(folder: Path, workers: int = 3) -> PlatformError:
    with pytest.raises(PlatformError) as caught:
        local.run(settings(folder, workers))
    return caught.value


def test_returns_the_score_and_sets_the_environment(worker: Any, tmp_path: Path) -> None:
    worker(
        """
        names = ("DLP_RANK", "DLP_SIZE", "DLP_LOCAL_RANK", "DLP_LOCAL_SIZE", "OMP_NUM_THREADS")
        (folder / f"env-{rank}").write_text(json.dumps([int(os.environ[n]) for n in names]))
        print("words of", rank)
        if rank == 0:
            result()
        """
    )
    assert local.run(settings(tmp_path / "run")) == 0.5
    threads = max(1, len(os.sched_getaffinity(0)) // 3)
    assert json.loads((tmp_path / "run/env-2").read_text()) == [2, 3, 2, 3, threads]
    assert (tmp_path / "run/rank-2.log").read_text() == "words of 2\n"
    assert not (tmp_path / "run/rank-0.log").exists()


def test_a_killed_worker_is_reported_and_the_others_finish(
    worker: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    worker(
        """
        if rank == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.4)
        if rank == 0:
            result()
        """
    )
    assert local.run(settings(tmp_path / "run")) == 0.5
    assert capfd.readouterr().err == "dlp: worker 2 was killed (SIGKILL); the others go on\n"


def test_a_rule_that_needs_all_workers_is_not_said_to_go_on(
    worker: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    worker(
        """
        if rank == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.4)
        end(4, "worker 2 died and this rule needs all 3")
        """
    )
    config = settings(tmp_path / "run") | {"rule": {"name": "ssgd"}}
    assert guard(lambda: local.run(config)) == 4
    assert capfd.readouterr().err.splitlines() == [
        "dlp: worker 2 was killed (SIGKILL)",
        "dlp: error: worker 2 died and this rule needs all 3",
    ]


def test_all_workers_killed_is_exit_4(
    worker: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    worker("os.kill(os.getpid(), signal.SIGKILL)")
    error = fails(tmp_path / "run")
    assert error.exit_code == 4
    assert "all 3 workers were killed" in str(error)
    assert capfd.readouterr().err.count("was killed (SIGKILL)") == 3


@pytest.mark.parametrize("forked", [True, False])
def test_a_crash_after_a_fork_names_the_remedy(
    worker: Any,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    forked: bool,
) -> None:
    worker("import ctypes; ctypes.string_at(0)")
    if not forked:
        monkeypatch.setenv("DLP_FORK", "0")
    assert guard(lambda: local.run(settings(tmp_path / "run", 2))) == 4
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 3 and all("SIGSEGV" in line for line in lines[:2])
    assert ["DLP_FORK=0" in line for line in lines] == [forked] * 3


def test_a_failing_worker_ends_the_others_with_its_code_and_last_line(
    worker: Any, tmp_path: Path
) -> None:
    worker(
        """
        if rank == 1:
            print("something first", flush=True)
            end(5, "loss is nan at minibatch 7")
        time.sleep(60)
        """
    )
    begin = time.monotonic()
    error = fails(tmp_path / "run")
    assert error.exit_code == 5
    assert str(error).startswith("loss is nan at minibatch 7 [worker 1, ")
    assert time.monotonic() - begin < 6


def test_a_crash_shows_the_last_line_of_the_log(worker: Any, tmp_path: Path) -> None:
    worker(
        """
        if rank == 2:
            print("Fatal: shape mismatch", flush=True)
            os._exit(1)
        time.sleep(60)
        """
    )
    error = fails(tmp_path / "run")
    assert error.exit_code == 1
    assert "worker 2 failed: Fatal: shape mismatch" in str(error)


def test_workers_that_fail_for_one_reason_give_one_line(
    worker: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    worker("time.sleep(0.3 * (rank == 0)); end(4, 'worker 7 is gone')")
    assert guard(lambda: local.run(settings(tmp_path / "run"))) == 4
    assert capfd.readouterr().err == "dlp: error: worker 7 is gone\n"


def test_a_worker_that_ignores_sigterm_is_killed_after_five_seconds(
    worker: Any, tmp_path: Path
) -> None:
    worker(
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while not (folder / "up-0").exists():
            time.sleep(0.05)
        if rank == 1:
            time.sleep(0.3)
            end(3, "no memory")
        time.sleep(60)
        """
    )
    begin = time.monotonic()
    assert fails(tmp_path / "run").exit_code == 3
    assert time.monotonic() - begin < 9


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_request_to_make_room_reaches_the_workers(
    worker: Any, tmp_path: Path, number: signal.Signals
) -> None:
    worker(
        """
        def stop(number, frame):
            (folder / f"saved-{rank}").touch()
            end(75, f"stopped at minibatch 9 by {signal.Signals(number).name}")
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGUSR1, stop)
        (folder / f"ready-{rank}").touch()
        time.sleep(60)
        """
    )
    run = tmp_path / "run"

    def ask() -> None:
        until_there_are(3, run, "ready-*")
        os.kill(os.getpid(), number)

    threading.Thread(target=ask, daemon=True).start()
    error = fails(run)
    assert error.exit_code == 75
    assert str(error) == f"stopped at minibatch 9 by {number.name}"
    assert len(list(run.glob("saved-*"))) == 3


def test_a_request_while_workers_are_told_of_leaves_none(
    worker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker('(folder / f"ready-{rank}").touch(); time.sleep(60)')
    run, start, asked = tmp_path / "run", local._speaking, list[int]()

    def started(*given: Any) -> Any:
        process, lines = start(*given)
        usual = process.wait

        def wait(timeout: float | None = None) -> int:
            code = usual(timeout)
            if not asked:
                asked.append(code)
                until_there_are(3, run, "ready-*")
                os.kill(os.getpid(), signal.SIGTERM)
            return code

        process.wait = wait  # type: ignore[method-assign]
        return process, lines

    monkeypatch.setattr(local, "_speaking", started)
    assert str(fails(run)) == "SIGTERM came before the training had begun"


def test_children_of_a_nursery_that_told_nobody_end(worker: Any, tmp_path: Path) -> None:
    worker("time.sleep(60)")
    read, told = os.pipe()
    os.close(read)
    line = nursery.command(local.PROGRAM, tmp_path / "config.json", 2, told)
    with nursery.next_of_kin():
        subprocess.run(line, pass_fds=[told], check=False)
        os.close(told)
        ends = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(2)]
    assert ends == [-signal.SIGKILL] * 2


LAUNCHER = """
import json, sys
from dlplatform.cli import guard
from launch import local
local.PROGRAM = "worker_script"
sys.exit(guard(lambda: local.run(json.loads(sys.argv[1]))))
"""


@pytest.mark.parametrize("whole_group", [True, False], ids=["terminal", "launcher only"])
@pytest.mark.parametrize("stubborn", [False, True], ids=["polite", "stubborn"])
def test_ctrl_c_ends_everything_within_five_seconds(
    worker: Any, tmp_path: Path, whole_group: bool, stubborn: bool
) -> None:
    worker(
        f"""
        if {stubborn}:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (folder / f"ready-{{rank}}").touch()
        time.sleep(60)
        """
    )
    run = tmp_path / "run"
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, json.dumps(settings(run))],
        start_new_session=True,
    )
    until_there_are(3, run, "ready-*")
    begin = time.monotonic()
    if whole_group:
        os.killpg(launcher.pid, signal.SIGINT)
    else:
        launcher.send_signal(signal.SIGINT)
    assert launcher.wait(10) == 130
    assert time.monotonic() - begin < 5


def test_a_run_without_a_result_says_so(worker: Any, tmp_path: Path) -> None:
    worker("pass")
    error = fails(tmp_path / "run")
    assert error.exit_code == 1
    assert "no result in" in str(error)


def test_a_stale_result_is_not_taken_for_a_new_one(worker: Any, tmp_path: Path) -> None:
    worker("pass")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / job.RESULT).write_text('{"score": 1.0}')
    assert "no result in" in str(fails(tmp_path / "run"))


@pytest.mark.slow
def test_workers_need_not_be_forked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLP_FORK", "0")
    words = ["task=zoo/digits", "rule=easgd", "workers=2", "run.minibatches=8", "run.extras=false"]
    line = [sys.executable, "-m", "dlplatform.cli", "train", *words, f"run.dir={tmp_path / 'run'}"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "2 worker(s)" in done.stdout, done.stderr


def test_plan_names_every_process(tmp_path: Path) -> None:
    config = settings(tmp_path, workers=2)
    config["cluster"]["boxes"], config["boxes"] = [], 3
    lines = local.plan(config)
    assert sum("dlplatform.memorybox" in line for line in lines) == 3
    assert sum("dlplatform.worker" in line for line in lines) == 2
    assert not (tmp_path / job.CONFIG).exists()


def test_one_worker_without_addresses_stays_in_this_process(tmp_path: Path) -> None:
    config = settings(tmp_path, workers=1)
    config["cluster"] |= {"boxes": [], "transport": "auto"}
    assert local.in_process(config)
    config["cluster"]["transport"] = "shm"
    assert not local.in_process(config)
