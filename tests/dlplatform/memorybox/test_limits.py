"""Many jobs on one box: quotas, numbers, what the dead leave, and a box that is to end."""

from __future__ import annotations

import subprocess
import time

import numpy as np
import pytest
from places import at, connect, made, wait_for
from watched import Start, box, hold, kill, order

from dlplatform.errors import BoxError

__all__ = ["box"]


def test_quota_and_number_of_jobs_are_kept(box: Start) -> None:
    _, place = box("--quota", "4M", "--jobs", "2")
    a, b = connect(place, "a"), connect(place, "b")
    a.create("w", 1 << 20)
    with pytest.raises(BoxError, match=r"that job a has - allowed: its quota of 4\.0 MiB - do: "):
        a.create("v", 1)
    b.create("w", 1 << 20)
    with pytest.raises(BoxError, match="job c: this box serves 2 jobs - allowed: 2 - do: "):
        connect(place, "c")
    b.close()
    wait_for(lambda: "b" not in order(place)["jobs"])
    connect(place, "c").close()
    a.close()


@pytest.mark.parametrize("bind", ["tcp://127.0.0.1:0", "shm://test-watching-killed"])
def test_a_job_whose_workers_were_all_killed_leaves_nothing(box: Start, bind: str) -> None:
    _, place = box(bind=bind)
    workers = hold(place, "job", 2)
    now = order(place)
    assert (now["total"]["bytes"], now["jobs"]["job"]["workers"]) == (4 << 20, 2)
    kill(workers)
    wait_for(lambda: order(place)["jobs"] == {}, 5)
    assert order(place)["total"]["bytes"] == 0
    wait_for(lambda: order(place)["memory"] < now["memory"] - (3 << 20), 5)


def test_what_a_killed_job_leaves_can_be_kept(box: Start) -> None:
    _, place = box("--keep", "2", "--grace", "0.1")
    first = connect(place, "job")
    first.join(0, 1)
    data = np.arange(5000, dtype=np.float32)
    buffer = first.buffer("w", len(data), True)
    buffer.write(at(data))
    first.close()
    kill(hold(place, "killed", 2))
    wait_for(lambda: order(place)["total"]["workers"] == 0)
    again = connect(place, "job")
    found = np.empty_like(data)
    again.buffer("w", len(data), False).read(at(found))
    assert np.array_equal(found, data)
    assert set(order(place)["jobs"]) == {"job", "killed"}
    begin = time.monotonic()
    again.close()
    wait_for(lambda: order(place)["jobs"] == {}, 8)
    assert time.monotonic() - begin > 1.5


def test_a_plain_box_says_so(box: Start) -> None:
    _, place = box("--plain")
    cluster = connect(place, "job")
    assert cluster.plain
    buffer, x = made(cluster, "w", np.ones(3000, np.float32)), np.ones(3000, np.float32)
    buffer.axpy(2.0, at(x))
    buffer.read(at(x))
    assert set(x.tolist()) == {3.0}
    cluster.close()


# -- drain ---------------------------------------------------------------------------------------


def test_a_drained_box_ends_with_its_last_job(box: Start) -> None:
    process, place = box()
    worker = connect(place, "job")
    assert order(place, "drain") == {"jobs": 1}
    assert order(place, "drain") == {"jobs": 1}  # once more does no harm
    with pytest.raises(BoxError, match="job new: this box is draining - allowed: "):
        connect(place, "new")
    second = connect(place, "job")
    worker.close()
    assert order(place)["draining"] is True
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    second.close()
    assert process.wait(5) == 0


def test_a_drained_box_without_jobs_ends_at_once(box: Start) -> None:
    process, place = box(bind="shm://test-watching-drain")
    assert order(place, "drain") == {"jobs": 0}
    assert process.wait(5) == 0


def test_sigterm_does_not_wait_for_what_is_kept(box: Start) -> None:
    process, place = box("--keep", "3600")
    connect(place, "job").close()
    wait_for(lambda: order(place)["total"]["workers"] == 0)
    process.terminate()
    assert process.wait(5) == 0
