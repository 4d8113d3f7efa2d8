"""The box's commands and its mapping table, without a process or a socket."""

from __future__ import annotations

import itertools
import os
import threading
import time
from typing import Any

import pytest

from dlplatform.errors import BoxError, EnvironmentMissing
from dlplatform.memorybox import namespace
from dlplatform.memorybox.box import Limits, MemoryBox
from dlplatform.memorybox.session import DIED, LEFT, Lane, Session
from kernels import cpu

tokens = itertools.count()


def session(box: MemoryBox, job: str = "job") -> Session:
    return box.open(job, f"worker-{next(tokens)}")


@pytest.fixture
def box() -> MemoryBox:
    return MemoryBox(Limits(memory="memfd"))


@pytest.fixture
def worker(box: MemoryBox) -> Session:
    return session(box)


def create(box: MemoryBox, worker: Session, name: str = "w", floats: int = 1000) -> str:
    return str(box.obey(worker, "create", {"name": name, "floats": floats})["key"])


@pytest.mark.parametrize(
    ("command", "fields", "text"),
    [
        ("craete", {}, r"'craete' is unknown; closest: create - allowed: .*attach.* - do: "),
        ("create", {"name": "w"}, "create got wrong fields: .*floats"),
        ("create", {"name": "w", "floats": 5, "colour": 1}, "wrong fields: .*colour"),
        ("create", {"name": "w", "floats": 0}, r"0 elements - allowed: 1 to 2\^40"),
        ("create", {"name": "w", "floats": 1 << 41}, r"allowed: 1 to 2\^40"),
        ("add", {"name": "n", "n": "many"}, "add got wrong fields"),
        ("attach", {"key": ["no"], "floats": 5}, "opens nothing"),
        ("open", {"job": "again"}, "'open' is unknown"),
        ("total", {"key": "", "sources": [], "start": 0, "count": 1, "scale": 1.0}, "0 sources"),
        ("average", {"sources": [""] * 5000, "start": 0, "count": 1, "scale": 1.0}, "5000 sources"),
        ("publish", {"name": "n", "value": "x" * (1 << 19)}, "allowed: 262144"),
    ],
)
def test_a_wrong_request_is_refused(
    box: MemoryBox, worker: Session, command: str, fields: dict[str, object], text: str
) -> None:
    with pytest.raises(BoxError, match=text):
        box.obey(worker, command, fields)
    assert box.obey(worker, "status", {})["segments"] == 0


@pytest.mark.parametrize("job", ["", "a:b", "x" * 201, 7, None])
def test_a_wrong_job_name_is_refused(box: MemoryBox, job: object) -> None:
    with pytest.raises(BoxError, match="open job"):
        box.open(job, "token")  # type: ignore[arg-type]
    assert not box.spaces


@pytest.mark.parametrize("token", ["", "a/b", "x" * 65, 7, None])
def test_a_worker_without_a_token_is_refused(box: MemoryBox, token: object) -> None:
    with pytest.raises(BoxError, match="open with no token"):
        box.open("job", token)  # type: ignore[arg-type]
    assert not box.spaces


@pytest.mark.parametrize(("start", "count"), [(-1, 2), (0, 1001), (1000, 1), (5, -1)])
def test_spans_outside_a_segment_are_refused(
    box: MemoryBox, worker: Session, start: int, count: int
) -> None:
    key, source = create(box, worker), create(box, worker, "x")
    span = {"start": start, "count": count}
    for command, fields in (
        ("apply", {"op": "scal", "keys": [key], "k": [2.0]}),
        ("total", {"key": key, "sources": [source], "scale": 1.0}),
        ("average", {"sources": [key, source], "scale": 1.0}),
    ):
        with pytest.raises(BoxError, match="allowed: 0 to 1000"):
            box.obey(worker, command, {**fields, **span})


@pytest.mark.parametrize(
    "fields",
    [
        {"op": "elastic", "source": "x"},
        {"op": "axpy"},
        {"op": "scal", "source": "x"},
        {"op": 3},
        {"op": "delay", "source": "x"},
    ],
)
def test_only_some_operations_run_between_segments(
    box: MemoryBox, worker: Session, fields: dict[str, object]
) -> None:
    key = create(box, worker)
    with pytest.raises(BoxError, match="between segments"):
        box.obey(worker, "apply", {"keys": [key], "start": 0, "count": 1, "k": [1.0], **fields})


def test_attachments_are_counted_and_given_back_at_the_end(box: MemoryBox, worker: Session) -> None:
    key, other = create(box, worker), session(box)
    for who in (worker, worker, other):
        box.obey(who, "attach", {"key": key, "floats": 1000})
    assert worker.space.entry(key).shared_by == 3
    assert box.obey(worker, "release", {"key": key}) == {"shared_by": 2}
    box.end(other)
    assert worker.space.entry(key).shared_by == 1
    box.obey(worker, "release", {"key": key})
    assert box.obey(worker, "release", {"key": key}) == {"shared_by": 0}  # once too often
    box.obey(worker, "delete", {"key": key})
    with pytest.raises(BoxError, match="opens nothing"):
        box.obey(worker, "delete", {"key": key})


@pytest.mark.parametrize(("polite", "state"), [(True, LEFT), (False, DIED)])
def test_the_end_of_a_lease_tells_death_from_goodbye(
    box: MemoryBox, worker: Session, polite: bool, state: int
) -> None:
    leaving = session(box)
    box.obey(leaving, "join", {"rank": 3})
    assert box.obey(worker, "get", {"name": "members"}) == {"value": 1}
    if polite:
        box.obey(leaving, "leave", {})
    box.end(leaving)
    assert box.obey(worker, "get", {"name": "member/3"}) == {"value": state}
    assert box.obey(worker, "get", {"name": "departures"}) == {"value": 1}


def test_the_last_of_a_job_takes_everything_along(box: MemoryBox, worker: Session) -> None:
    witness = session(box, "other")
    kept = create(box, witness)
    create(box, worker)
    box.obey(worker, "set", {"name": "n", "value": 5})
    box.obey(worker, "publish", {"name": "n", "value": 1})
    second = session(box)
    box.end(worker)
    assert box.obey(second, "status", {}) == {
        "jobs": 2, "sessions": 2, "segments": 2, "bytes": 8000
    }  # fmt: skip
    files = len(os.listdir("/proc/self/fd"))
    box.end(second)
    assert list(box.spaces) == ["other"]
    assert list(witness.space.entries) == [kept]
    assert second.space.entries == {}
    del second, worker  # their counters' file goes with the last that knows it
    assert len(os.listdir("/proc/self/fd")) <= files - 1
    assert box.obey(session(box), "get", {"name": "n"}) == {"value": 0}


def test_memory_in_use_outlives_its_deletion(box: MemoryBox, worker: Session) -> None:
    key = create(box, worker)
    entry = worker.space.entry(key)
    with worker.space.using(entry):
        box.obey(worker, "delete", {"key": key})
        assert key not in worker.space.entries
        cpu.counter_set(entry.mapping.data, 7)  # mapped still
        assert entry.ground is not None
        file = entry.ground.descriptor
        os.fstat(file)
    assert entry.ground is None
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(file)
    with pytest.raises(BoxError), worker.space.using(entry):
        pass


def test_counters_and_notices_are_bounded(
    box: MemoryBox, worker: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(namespace, "NOTICES", 2)
    for name in "ab":
        box.obey(worker, "publish", {"name": name, "value": 1})
    with pytest.raises(BoxError, match="notice board is full - allowed: 2"):
        box.obey(worker, "publish", {"name": "c", "value": 1})
    box.obey(worker, "publish", {"name": "a", "value": 2})
    assert box.obey(worker, "lookup", {"name": "a"}) == {"value": 2}
    with pytest.raises(BoxError, match="no slot left - allowed: 4096"):
        for number in range(namespace.COUNTERS + 1):
            box.obey(worker, "slot", {"name": str(number)})
    assert box.obey(worker, "add", {"name": "17", "n": 1}) == {"value": 0}


def test_one_creation_among_racing_threads_succeeds(box: MemoryBox) -> None:
    outcomes: list[str] = []

    def race() -> None:
        try:
            outcomes.append(create(box, session(box)))
        except BoxError:
            outcomes.append("")

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([key for key in outcomes if key]) == 1


@pytest.mark.parametrize("folder", ["/proc", "/nowhere/at/all"])
def test_a_folder_that_holds_no_memory_is_environment(folder: str) -> None:
    with pytest.raises(EnvironmentMissing, match=rf"memory={folder} cannot hold .* - do: use"):
        MemoryBox(Limits(memory=folder)).open("job", "token")


def test_more_than_the_machine_has_is_refused_before_it_is_touched(
    box: MemoryBox, worker: Session
) -> None:
    with pytest.raises(EnvironmentMissing, match=r"memfd is too small: a memory box needs .* MiB"):
        create(box, worker, "huge", 1 << 38)
    create(box, worker, "huge", 10)  # the name is still free


# -- limits --------------------------------------------------------------------------------------


def test_a_job_has_its_quota_and_no_more(box: MemoryBox) -> None:
    box.limits.quota = 8000
    one, other = session(box, "one"), session(box, "other")
    key = create(box, one, "a", 1500)
    with pytest.raises(BoxError, match=r"that job one has - allowed: its quota of 0\.0 MiB - do: "):
        create(box, one, "b", 501)
    create(box, one, "b", 500)
    create(box, other, "a", 2000)  # what one job has does not count for another
    box.obey(one, "delete", {"key": key})
    create(box, one, "c", 1500)


def test_as_many_jobs_as_allowed_and_no_more(box: MemoryBox) -> None:
    box.limits.jobs = 2
    first = session(box, "a")
    session(box, "b")
    with pytest.raises(BoxError, match="job c: this box serves 2 jobs - allowed: 2 - do: wait"):
        session(box, "c")
    session(box, "a")  # a further worker of a job that is there
    for worker in list(first.space.sessions.values()):
        box.end(worker)
    session(box, "c")


def test_a_draining_box_takes_workers_but_no_jobs(box: MemoryBox, worker: Session) -> None:
    box.draining = True
    session(box)
    with pytest.raises(BoxError, match="job new: this box is draining - allowed: jobs it serves"):
        session(box, "new")


def test_what_is_kept_is_kept_until_nobody_came_for_so_long(box: MemoryBox) -> None:
    box.limits.keep_s = 0.4
    begin = time.monotonic()
    worker = session(box)
    key = create(box, worker)
    box.end(worker)
    time.sleep(0.25)
    again = session(box)  # in time
    assert box.obey(again, "attach", {"key": key, "floats": 1000}) == {}
    box.end(again)
    time.sleep(0.25)  # the first wait is over, the second one is not
    assert time.monotonic() - begin > 0.4
    assert list(box.spaces) == ["job"]
    end = time.monotonic() + 3
    while box.spaces:
        assert time.monotonic() < end
        time.sleep(0.01)


# -- requests sent again ---------------------------------------------------------------------------


def test_a_request_sent_again_is_answered_again_and_done_once(
    box: MemoryBox, worker: Session
) -> None:
    lane = Lane(worker.token, "lane")
    ask: dict[str, Any] = {"name": "n", "n": 5}
    for _ in range(3):
        assert box.request(worker, lane, "add", {**ask, "seq": 1}) == {"ok": {"value": 0}}
    assert box.request(worker, lane, "add", {**ask, "seq": 2}) == {"ok": {"value": 5}}
    with pytest.raises(BoxError, match="request 1 in lane lane - allowed: 2 again, or a later"):
        box.request(worker, lane, "add", {**ask, "seq": 1})
    assert box.request(worker, lane, "add", {**ask, "seq": 4}) == {"ok": {"value": 10}}
    refused = box.request(worker, lane, "attach", {"key": "no", "floats": 1, "seq": 5})
    assert box.request(worker, lane, "attach", {"key": "no", "floats": 1, "seq": 5}) == refused
    assert box.tally["refused"] == 1
