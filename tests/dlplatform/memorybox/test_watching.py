"""What a box says of itself: figures, Prometheus, events; and its limits, with real workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import Place, at, connect, made, wait_for
from prometheus_client.parser import text_string_to_metric_families
from watched import COMMAND, Start, box, hold, kill, order

from dlplatform.errors import BoxError, EnvironmentMissing
from dlplatform.memorybox import watching, wire
from dlplatform.memorybox.box import MemoryBox
from dlplatform.memorybox.process import Boxes
from dlplatform.memorybox.server import Server

__all__ = ["box"]
LOCK = """
import time
def main(cluster, rank):
    buffer = cluster.buffer("w", 1000, True)
    with buffer.locked():
        print("there", flush=True)
        time.sleep(60)
"""


# -- figures -------------------------------------------------------------------------------------


def test_every_byte_and_request_of_a_job_is_counted(box: Start) -> None:
    _, place = box("--quota", "1M")
    one, other = connect(place, "one"), connect(place, "other")
    one.join(0, 1)
    x = np.ones(10_000, np.float32)
    buffer = made(one, "w", x)
    before = order(place)["jobs"]["one"]
    buffer.axpy(1.0, at(x))  # in
    buffer.read(at(x))  # out
    buffer.elastic(0.5, at(x))  # both
    now = order(place)
    job = now["jobs"]["one"]
    assert {name: job[name] - before[name] for name in ("in", "out", "requests")} == {
        "in": 80_000, "out": 80_000, "requests": 3
    }  # fmt: skip
    assert job["changes"] - before["changes"] == 2
    assert (job["segments"], job["bytes"], job["quota"]) == (1, 40_000, 1 << 20)
    assert (job["workers"], job["away"], now["jobs"]["other"]["workers"]) == (1, 0, 1)
    assert now["jobs"]["other"]["in"] == 0
    assert now["total"]["bytes"] == 40_000
    assert now["total"]["in"] == 120_000
    assert now["memory"] > 1 << 20
    assert now["uptime_s"] > job["age_s"] > 0
    one.close()
    other.close()
    wait_for(lambda: order(place)["jobs"] == {})
    assert order(place)["total"]["in"] == 120_000  # what a job did is not forgotten with it


def test_views_and_recovered_locks_are_counted(box: Start) -> None:
    _, place = box(bind="shm://test-watching-locks")
    witness = connect(place, "job")
    kill(hold(place, "job", 1, LOCK))
    buffer = witness.buffer("w", 1000, False)
    with buffer.locked():
        pass
    with witness.snapshot(buffer):
        pass
    job = order(place)["jobs"]["job"]
    assert (job["recovered"], job["epoch"]) == (1, 1)
    witness.close()


def test_status_needs_the_secret_and_no_job(box: Start) -> None:
    _, place = box()
    assert order(place)["jobs"] == {}
    with pytest.raises(Exception, match="secret"):
        order(Place("", place.addresses, "wrong"))


def test_no_snapshot_without_a_folder(box: Start) -> None:
    _, place = box()
    with pytest.raises(BoxError, match=r"writes no snapshots - allowed: .* - do: start it again"):
        order(place, "snapshot")


# -- Prometheus ----------------------------------------------------------------------------------


def samples(url: str) -> dict[tuple[str, str], float]:
    with urllib.request.urlopen(url, timeout=5) as page:
        assert page.headers["Content-Type"].startswith("text/plain")
        text = page.read().decode()
    return {
        (sample.name, sample.labels.get("job", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_prometheus_reads_what_the_box_says(box: Start) -> None:
    _, place = box("--metrics", "127.0.0.1:0", "--quota", "2G")
    url = place.metrics
    job = 'a "quoted\\ job'
    cluster = connect(place, job)
    buffer = made(cluster, "w", np.ones(1000, np.float32))
    buffer.axpy(1.0, at(np.ones(1000, np.float32)))
    with pytest.raises(BoxError):
        cluster.create("w", 5)
    found = samples(url)
    assert found["dlp_box_jobs", ""] == 1
    assert found["dlp_job_bytes", job] == found["dlp_box_bytes", ""] == 4000
    assert found["dlp_job_quota_bytes", job] == 2 << 30
    assert found["dlp_job_received_bytes_total", job] == 8000
    assert found["dlp_job_requests_total", job] >= 3
    assert found["dlp_box_refused_total", ""] == 1
    assert found["dlp_box_memory_bytes", ""] > 1 << 20
    cluster.close()
    wait_for(lambda: samples(url)["dlp_box_jobs", ""] == 0)
    gone = samples(url)
    assert ("dlp_job_bytes", job) not in gone
    assert gone["dlp_box_received_bytes_total", ""] == 8000
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(url.replace("/metrics", "/"), timeout=5)


@pytest.mark.parametrize(
    "where", ["9400", "127.0.0.1", "127.0.0.1:99999", "192.0.2.1:0", "nowhere.invalid:1"]
)
def test_a_wrong_address_for_metrics_is_one_line(where: str) -> None:
    with pytest.raises(ValueError, match=f"--metrics {where}: .* - allowed: HOST:PORT"):
        watching.serve_metrics(Server(MemoryBox(), b""), where)


def test_metrics_without_their_package_are_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(EnvironmentMissing, match="do: pip install prometheus_client"):
        watching.serve_metrics(Server(MemoryBox(), b""), "127.0.0.1:0")


# -- events --------------------------------------------------------------------------------------


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_log_tells_who_came_and_how_they_went(box: Start, tmp_path: Path) -> None:
    log = tmp_path / "box.log"
    process, place = box("--log", str(log))
    kill(hold(place, "job\nname", 2))
    polite = connect(place, "polite")
    polite.join(0, 1)
    with pytest.raises(BoxError):
        polite.transports[0].call("create", name="w", floats=0)
    polite.close()
    with pytest.raises(ValueError, match="secret"):
        connect(Place("", place.addresses, "wrong"), "job")
    wait_for(lambda: order(place)["jobs"] == {})
    order(place, "drain")
    process.wait(5)
    told = events(log)
    names = [(e["event"], e.get("job", ""), e.get("rank", -1)) for e in told]
    assert names[0][0] == "start"
    assert names[-1][0] == "end"
    killed = [name[::2] for name in names if name[1] == "job\nname"]
    assert sorted(killed[:3], key=lambda e: e[1]) == [
        ("job opened", -1), ("worker joined", 0), ("worker joined", 1)
    ]  # fmt: skip
    assert {*killed[3:]} == {("worker died", 0), ("worker died", 1), ("job gone", -1)}
    assert [name[0] for name in names if name[1] == "polite"] == [
        "job opened", "worker joined", "refused", "worker left", "job gone"
    ]  # fmt: skip
    assert [e["event"] for e in told if e["event"] in ("stranger", "drain")] == [
        "stranger", "drain"
    ]  # fmt: skip
    refused = next(e for e in told if e["event"] == "refused")
    assert refused["level"] == "warning"
    assert "0 elements - allowed" in refused["reason"]
    assert "s3cret" not in log.read_text()
    assert all(e["time"].endswith("+00:00") and e["level"] for e in told)


def test_refusals_are_logged_ten_times_a_second_and_counted(box: Start, tmp_path: Path) -> None:
    log = tmp_path / "box.log"
    _, place = box("--log", str(log))
    cluster = connect(place, "job")
    begin = time.monotonic()
    for _ in range(500):
        with pytest.raises(BoxError):
            cluster.transports[0].call("delete", key="no")
    most = 10 * (int(time.monotonic() - begin) + 2)
    cluster.close()
    wait_for(lambda: "job gone" in log.read_text())
    told = events(log)
    logged = sum(e["event"] == "refused" for e in told)
    assert 10 <= logged <= most
    assert logged + sum(e.get("not_logged", 0) for e in told) == 500
    assert order(place)["total"]["refused"] == 500


def test_a_log_that_nobody_reads_stops_nobody(box: Start) -> None:
    process, place = box("--log", "-")  # its pipe is full after 64 KiB
    begin = time.monotonic()
    for _ in range(6):
        for number in range(60):
            job = f"{'x' * 180}{number}"
            with wire.connect(place.addresses[0], 5) as link:
                wire.introduce(link, b"s3cret", "box")
                wire.send(link, {"do": "open", "job": job, "token": "t", "lane": "0"})
                assert "ok" in wire.receive(link)
    assert order(place)["uptime_s"] > 0
    assert time.monotonic() - begin < 20
    process.terminate()
    assert process.wait(5) == 0


def test_a_log_that_cannot_be_written_is_one_line() -> None:
    done = subprocess.run(
        [*COMMAND, "--bind", "shm://t", "--log", "/nowhere/log"],
        env={**os.environ, wire.SECRET: "s3cret"}, capture_output=True, text=True, timeout=10,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--log /nowhere/log: No such file" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_boxes_started_by_a_job_take_options_too() -> None:
    with Boxes(1, "shm", options=("--jobs", "1")) as boxes:
        assert order(Place("", boxes.addresses, boxes.secret))["most_jobs"] == 1
