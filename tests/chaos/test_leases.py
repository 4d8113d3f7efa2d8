"""Workers that are killed and workers that hang: every number is trained, by somebody, in time."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from joined import begun, done, install, points
from liverun import until
from seldom import LONG

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TOTAL, LEASE_S = 300, 2.0


@pytest.fixture(autouse=True)
def _tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site", monkeypatch)


def current(folder: Path, pid: int) -> tuple[int, int]:
    """Return how many minibatches a process has begun and trained."""
    files = [folder / f"{what}-{pid}" for what in ("begun", "trained")]
    begun, trained = (len(f.read_text().splitlines()) if f.exists() else 0 for f in files)
    return begun, trained


@pytest.mark.parametrize("rule", [pytest.param("asgd", marks=LONG), "easgd"])
def test_kills_and_hangs_leave_nothing_undone(rule: str, tmp_path: Path) -> None:
    """One is killed, one hangs in a minibatch for longer than a lease, one does the rest."""
    words = (f"rule={rule}", "workers=3", "cluster=tcp", f"run.lease_s={LEASE_S}")
    with points(tmp_path / "run", TOTAL, *words) as run:
        run.trains()
        begun(run, 3)
        record, hung = tmp_path / "run-record", run.worker(2)
        os.kill(hung, signal.SIGSTOP)
        counts = current(record, hung)
        time.sleep(0.5)
        os.kill(run.worker(1), signal.SIGKILL)
        # What the hung worker holds is done by the other one, although nobody had to wait for it.
        held = last(record, hung, "begun")
        if counts[0] > counts[1]:
            until(lambda: done(run)[held] > 0, 60, f"minibatch {held}")
        else:
            time.sleep(2 * LEASE_S)
        os.kill(hung, signal.SIGCONT)
        assert run.wait() == 0, run.err
    trained = done(run)
    assert set(trained) == set(range(TOTAL))
    twice = Counter(trained) - Counter(range(TOTAL))
    assert sum(twice.values()) <= 2, twice
    assert run.result()["lost_workers"] == [1]


def test_the_end_does_not_wait_for_one_that_hangs(tmp_path: Path) -> None:
    """The rest takes less than a lease: the other one has nothing to do but wait for it."""
    total, lease_s = 80, 6.0
    words = ("rule=asgd", "workers=2", "cluster=tcp", f"run.lease_s={lease_s}")
    with points(tmp_path / "run", total, *words) as run:
        run.trains()
        begun(run, 2)
        hung = run.worker(1)
        os.kill(hung, signal.SIGSTOP)
        until(lambda: len(done(run)) >= total - 1, 60, "the rest")
        begin = time.monotonic()
        until(lambda: len(done(run)) == total, 60, "the last number")
        assert time.monotonic() - begin < 2 * lease_s
        os.kill(hung, signal.SIGCONT)
        assert run.wait() == 0, run.err
    assert sum(done(run).values()) <= total + 1


def last(folder: Path, pid: int, what: str) -> int:
    """Return the last minibatch that a process wrote down."""
    return int((folder / f"{what}-{pid}").read_text().split()[-1])
