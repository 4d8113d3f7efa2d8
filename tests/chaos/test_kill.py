"""Something dies in the middle of a real training: the promises about the others hold."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from liverun import LiveRun, live, shared_memory, until
from seldom import LONG

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

WORKERS = 3
SIZE = f"workers={WORKERS}"
COMMON = ("boxes=2", "run.minibatches=160", "run.eval_every=40", "run.threads=1", SIZE)
UNTRAINED = 0.14


def one_line(run: LiveRun, *words: str) -> None:
    """Check that the reason is one line on stderr that has all the words."""
    lines = [line for line in run.err.splitlines() if line.startswith("dlp: error:")]
    assert len(lines) == 1, run.err
    assert all(word in lines[0] for word in words), run.err
    assert "Traceback" not in run.err


def nothing_left(run: LiveRun, before: set[str], seconds: float = 10.0) -> None:
    until(lambda: not run.left(), seconds, f"the end of {run.left()}")
    assert shared_memory() <= before


@pytest.mark.parametrize(("rule", "rank"), [pytest.param("asgd", 1, marks=LONG), ("easgd", 0)])
def test_the_others_finish_without_a_killed_worker(rule: str, rank: int, tmp_path: Path) -> None:
    before = shared_memory()
    with live(tmp_path / "run", f"rule={rule}", *COMMON) as run:
        os.kill(run.trains().worker(rank), signal.SIGKILL)
        assert run.wait() == 0, run.err
        reasons = [line for line in run.err.splitlines() if f"worker {rank} was killed" in line]
        assert len(reasons) == 1 and "SIGKILL" in reasons[0], run.err
        assert "Traceback" not in run.err
        assert run.result()["lost_workers"] == [rank]
        assert run.result()["score"] > UNTRAINED
        nothing_left(run, before)


@pytest.mark.parametrize("rule", ["ssgd", pytest.param("hybrid", marks=LONG)])
def test_a_killed_worker_ends_a_synchronous_job(rule: str, tmp_path: Path) -> None:
    before = shared_memory()
    with live(tmp_path / "run", f"rule={rule}", *COMMON) as run:
        victim, begin = run.trains().worker(1), time.monotonic()
        os.kill(victim, signal.SIGKILL)
        assert run.wait(30) == 4
        assert time.monotonic() - begin < 10
        one_line(run, "worker 1 died", "resume=auto")
        assert "go on" not in run.err
        nothing_left(run, before)


@pytest.mark.parametrize(("rule", "transport"), [("easgd", "tcp"), ("ssgd", "shm")])
def test_a_killed_box_ends_the_job(rule: str, transport: str, tmp_path: Path) -> None:
    before = shared_memory()
    with live(tmp_path / "run", f"rule={rule}", f"cluster={transport}", *COMMON) as run:
        boxes, begin = run.trains().boxes(), time.monotonic()
        assert len(boxes) == 2
        os.kill(boxes[1], signal.SIGKILL)
        assert run.wait(30) == 4
        assert time.monotonic() - begin < 10
        one_line(run, "memory box", "is gone", "resume=auto")
        nothing_left(run, before)


def whole_group(run: LiveRun) -> None:
    os.killpg(run.process.pid, signal.SIGINT)


def launcher_only(run: LiveRun) -> None:
    os.kill(run.process.pid, signal.SIGINT)


@pytest.mark.parametrize(
    ("rule", "press"),
    [("easgd", whole_group), pytest.param("ssgd", launcher_only, marks=LONG)],
    ids=["terminal", "kill"],
)
def test_ctrl_c_leaves_nothing_and_resume_continues(
    rule: str, press: Callable[[LiveRun], None], tmp_path: Path
) -> None:
    before = shared_memory()
    with live(tmp_path / "run", f"rule={rule}", *COMMON) as run:
        run.saved().trains()
        begin = time.monotonic()
        press(run)
        assert run.wait(30) == 130, run.err
        assert time.monotonic() - begin < 10
        assert "Traceback" not in run.err, run.err
        nothing_left(run, before)
    with live(tmp_path / "run", f"rule={rule}", "resume=auto", *COMMON) as again:
        assert again.wait() == 0, again.err
        banner = again.out.splitlines()[0]
        position = int(banner.partition("minibatches from ")[2].partition(",")[0])
        assert 0 < position < 160
        history = [row["minibatch"] for row in again.result()["validation"]]
        assert history == sorted(history)
        # What others still held when the checkpoint was taken is trained again.
        assert history[0] - WORKERS <= position < history[-1] == 160
        assert again.result()["score"] > UNTRAINED


def test_sigterm_saves_and_is_exit_75(tmp_path: Path) -> None:
    with live(tmp_path / "run", "rule=hybrid", *COMMON) as run:
        run.trains().process.send_signal(signal.SIGTERM)
        assert run.wait(60) == 75, run.err
        one_line(run, "checkpoint in", "resume=auto")
        nothing_left(run, shared_memory())
        assert (run.folder / "checkpoints/latest/state.json").exists()


def test_workers_and_boxes_vanish_with_their_launcher(tmp_path: Path) -> None:
    before = shared_memory()
    with live(tmp_path / "run", "rule=easgd", *COMMON) as run:
        run.trains().process.kill()
        run.process.wait()
        nothing_left(run, before)


@pytest.mark.parametrize("rank", [0])
def test_a_killed_rank_under_mpirun(rank: int, tmp_path: Path) -> None:
    before = shared_memory()
    words = ("launcher=mpirun", "rule=easgd", *COMMON)
    with live(tmp_path / "run", *words) as run:
        os.kill(run.trains().worker(rank), signal.SIGKILL)
        assert run.wait() == 0, run.out + run.err
        reasons = [line for line in run.out.splitlines() if f"worker {rank} died" in line]
        assert len(reasons) <= 1 and (reasons or rank == 0), run.out
        assert run.result()["lost_workers"] == [rank]
        assert run.result()["score"] > UNTRAINED
        assert "Traceback" not in run.err
        nothing_left(run, before)
