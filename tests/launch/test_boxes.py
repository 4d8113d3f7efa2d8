"""``dlp box VERB``: status, top, drain and snapshot of real boxes, as a user types them."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dlplatform.errors import UsageError
from dlplatform.memorybox import wire
from dlplatform.memorybox.cluster import Cluster
from dlplatform.memorybox.process import Boxes
from launch import boxes as verbs

DLP = [sys.executable, "-m", "dlplatform.cli", "box"]


@pytest.fixture(scope="module")
def boxes() -> Iterator[Boxes]:
    with Boxes(2, "tcp", options=("--quota", "64M", "--jobs", "5")) as started:
        yield started


def dlp(*words: str, secret: str = "", **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DLP, *words], capture_output=True, text=True, timeout=30,
        env={**os.environ, wire.SECRET: secret, "COLUMNS": "200", **settings},
    )  # fmt: skip


def worker(boxes: Boxes, job: str) -> Cluster:
    cluster = Cluster(boxes.addresses, job, boxes.secret.encode(), 10)
    cluster.join(0, 1)
    return cluster


# -- status and top ------------------------------------------------------------------------------


def test_status_shows_jobs_and_their_figures(boxes: Boxes) -> None:
    cluster = worker(boxes, "shown")
    cluster.create("w", 1 << 20)
    done = dlp("status", boxes.addresses[0], secret=boxes.secret)
    assert done.returncode == 0, done.stderr
    head, whole, job = done.stdout.splitlines()
    assert head.split()[:3] == ["box,", "job", "workers"]
    assert whole.startswith(boxes.addresses[0])
    assert "1 of 5 jobs" in whole
    assert job.split()[:7] == ["shown", "1", "1", "2.0", "MiB", "64.0", "MiB"]
    cluster.close()


def test_status_as_json_has_every_figure_and_rate(boxes: Boxes) -> None:
    cluster = worker(boxes, "json")
    done = dlp("status", "--json", boxes.addresses[1], secret=boxes.secret)
    told = json.loads(done.stdout)
    assert told["address"] == boxes.addresses[1]
    assert told["jobs"]["json"]["workers"] == told["total"]["workers"] == 1
    for part in (told["total"], told["jobs"]["json"]):
        assert {"requests_per_s", "in_per_s", "out_per_s", "changes_per_s"} <= set(part)
    cluster.close()


def test_top_shows_several_boxes_once(boxes: Boxes) -> None:
    cluster = worker(boxes, "both")
    done = dlp("top", "--once", *boxes.addresses, secret=boxes.secret)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(",")[0] for line in lines[1::2]] == boxes.addresses
    assert [line.split()[0] for line in lines[2::2]] == ["both", "both"]
    cluster.close()


def until(screen: int, text: str, seconds: float = 15.0) -> str:
    """Read a terminal until a text has appeared on it."""
    seen, end = "", time.monotonic() + seconds
    while not re.search(text, seen):
        assert time.monotonic() < end, seen
        if select.select([screen], [], [], 0.2)[0]:
            seen += os.read(screen, 1 << 16).decode(errors="replace")
    return seen


@pytest.mark.parametrize("key", ["q", "\x03"])
def test_top_is_live_in_a_terminal_until_q_or_ctrl_c(key: str) -> None:
    with Boxes(2, "tcp") as boxes:
        child, screen = pty.fork()
        if not child:
            os.environ.update({wire.SECRET: boxes.secret, "COLUMNS": "200", "TERM": "xterm"})
            os.execv(DLP[0], [*DLP, "top", *boxes.addresses])
        until(screen, boxes.addresses[0])
        cluster = worker(boxes, "newcomer")
        until(screen, "newcomer")
        cluster.close()
        boxes.processes[1].kill()
        until(screen, f"{boxes.addresses[1]}: (Connection refused|no answer)")
        os.write(screen, key.encode())
        end = time.monotonic() + 10
        while (found := os.waitpid(child, os.WNOHANG)) == (0, 0):
            assert time.monotonic() < end
            with suppress(OSError):  # the terminal ends with the program
                if select.select([screen], [], [], 0.1)[0]:
                    os.read(screen, 1 << 16)
        os.close(screen)
    assert os.waitstatus_to_exitcode(found[1]) == 0


def test_top_ends_with_its_terminal() -> None:
    """Also where nobody hears of SIGHUP, as under nohup."""
    with Boxes(1, "tcp") as boxes:
        child, screen = pty.fork()
        if not child:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            os.environ.update({wire.SECRET: boxes.secret, "COLUMNS": "200", "TERM": "xterm"})
            os.execv(DLP[0], [*DLP, "top", *boxes.addresses])
        until(screen, boxes.addresses[0])
        os.close(screen)
        end = time.monotonic() + 10
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            assert time.monotonic() < end
            time.sleep(0.05)


def test_rates_are_differences_of_one_box() -> None:
    def answer(at: float, requests: int, instance: str = "a") -> dict[str, Any]:
        figures = dict.fromkeys(verbs.RATES, 0) | {"requests": requests}
        return {"at": at, "instance": instance, "total": dict(figures), "jobs": {"j": figures}}

    now = answer(12.0, 130)
    verbs.rates(answer(10.0, 100), now)
    assert now["total"]["requests_per_s"] == now["jobs"]["j"]["requests_per_s"] == 15
    for before in (answer(10.0, 100, "another"), answer(12.0, 0), answer(11.0, 500), {}):
        verbs.rates(before, now)
        assert now["total"]["requests_per_s"] == 0


# -- drain and snapshot --------------------------------------------------------------------------


def test_drain_ends_a_box_with_its_last_job() -> None:
    with Boxes(1, "shm") as boxes:
        cluster = worker(boxes, "last")
        for _ in range(2):
            done = dlp("drain", *boxes.addresses, secret=boxes.secret)
            assert (done.returncode, done.stderr) == (0, "")
            assert "takes no new jobs; it ends with the last of its 1 jobs" in done.stdout
        assert "draining" in dlp("status", *boxes.addresses, secret=boxes.secret).stdout
        cluster.close()
        assert boxes.processes[0].wait(5) == 0


def test_snapshot_says_where_it_is(tmp_path: Path) -> None:
    with Boxes(1, "tcp", options=("--snapshot", str(tmp_path / "box"))) as boxes:
        cluster = worker(boxes, "saved")
        cluster.create("w", 1000)
        done = dlp("snapshot", *boxes.addresses, secret=boxes.secret)
        assert done.returncode == 0, done.stderr
        (place,) = done.stdout.splitlines()
        assert Path(place).is_dir()
        assert Path(place).is_relative_to(tmp_path / "box" / "saved")
        shown = dlp("status", *boxes.addresses, secret=boxes.secret).stdout
        assert re.search(r"0:0\d ago", shown)
        cluster.close()


def test_snapshot_without_a_folder_is_refused(boxes: Boxes) -> None:
    done = dlp("snapshot", boxes.addresses[0], secret=boxes.secret)
    assert done.returncode == 2
    assert done.stderr.startswith("dlp: error: this box writes no snapshots - allowed: ")


# -- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ("status tcp://127.0.0.1:1", 4, "no memory box answers at tcp://127.0.0.1:1: Connection"),
        ("drain shm://nobody", 4, "no memory box answers at shm://nobody: "),
        ("top --once tcp://127.0.0.1:1", 4, "no memory box answers"),
        ("status tcp//127.0.0.1", 2, "'tcp//127.0.0.1' is not an address of a box - allowed: "),
        ("status inproc://0", 2, "is not an address of a box"),
        ("status tcp://127.0.0.1:99999", 2, "is not an address of a box"),
        ("stauts tcp://127.0.0.1:1", 2, "stauts is not a command; closest: status - allowed: "),
        ("status", 2, "dlp box status: the following arguments are required: URI - allowed: "),
        ("status --jsno shm://x", 2, "unrecognized arguments: --jsno"),
        ("--bind shm://x --quota many", 2, "--quota: 'many' is not a size such as 512M or 2G"),
        ("--bind shm://x --quota 0", 2, "is not a size"),
        ("--bind shm://x --jobs 0", 2, "--jobs: '0' is not a number, 1 or more"),
        ("--bind shm://x --keep -1", 2, "--keep"),
        ("--bind shm://x --grace soon", 2, "--grace: 'soon' is not a number of seconds"),
        ("--bind shm://x --journal", 2, "--journal without --snapshot - allowed: "),
        ("--bind shm://x --every 5", 2, "--every 5.0 without --snapshot"),
        ("--quota 5M", 2, "required: --bind"),
    ],
)
def test_a_mistake_is_one_line_with_its_code(words: str, code: int, text: str) -> None:
    done = dlp(*words.split(), secret="secret")
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (code, "")
    assert line.startswith("dlp: error: ")
    assert text in line
    assert " - do: " in line


def test_a_wrong_secret_is_one_line(boxes: Boxes, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("wrong")
    file.chmod(0o600)
    done = dlp("status", boxes.addresses[0], "--secret-file", str(file))
    assert done.returncode == 2
    assert "refused this job's secret" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_sizes_are_bytes_with_a_unit() -> None:
    read = verbs.understand(["--bind", "shm://x", "--quota", "512M"])
    assert read.quota == 512 << 20
    assert verbs.understand(["--bind", "shm://x", "--quota", "2G"]).quota == 2 << 30
    assert verbs.understand(["--bind", "shm://x", "--quota", "4096"]).quota == 4096
    with pytest.raises(UsageError):
        verbs.understand(["--bind", "shm://x", "--quota", "1.5"])


# -- help ----------------------------------------------------------------------------------------


def test_help_names_every_option_and_every_verb() -> None:
    page = dlp("--help")
    assert page.returncode == 0
    for word in ("--bind", "--quota", "--keep", "--tls-cert", "--journal", "--metrics", "--log"):
        assert word in page.stdout
    for verb in verbs.VERBS:
        assert f"dlp box {verb} URI" in page.stdout
        own = dlp(verb, "--help")
        assert own.returncode == 0
        assert "--secret-file" in own.stdout
        assert f"usage: dlp box {verb} " in own.stdout
