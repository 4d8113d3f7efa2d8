"""Jobs on several hosts, which are network namespaces: placed, cut off, dying, and refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import joined
import pytest
from hosts import AGENT, HOSTS, NAMES, hosts, on, some
from liverun import QUICK, LiveRun, until
from seldom import LONG

from dlplatform.errors import UsageError
from launch.ssh import Hosts, plan


def over(names: list[str], *words: str) -> tuple[str, ...]:
    """Return the settings of a job on some hosts."""
    return (
        "launcher=ssh", f"cluster.hosts=[{','.join(names)}]", f'cluster.agent="{AGENT}"', *words
    )  # fmt: skip


def settings(*given: str, workers: int = 4, agent: str = "ssh") -> dict[str, Any]:
    return {
        "cluster": {"hosts": list(given), "agent": agent, "boxes": [], "memory": "memfd",
                    "transport": "auto"},
        "workers": workers, "boxes": 2, "run": {"dir": "x", "threads": 1, "progress": "none"},
    }  # fmt: skip


# -- where they are -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "slots"),
    [(["a", "b"], [2, 2]), (["a", "b", "c"], [2, 1, 1]), (["a:1", "b:3"], [1, 3])],
)
def test_workers_are_divided(given: list[str], slots: list[int]) -> None:
    assert Hosts.of(settings(*given)).slots == slots


@pytest.mark.parametrize("given", [[], ["a:1", "b"], ["a:1", "b:1"], ["a", "a"], ["a:x", "b:3"]])
def test_hosts_that_cannot_be(given: list[str]) -> None:
    with pytest.raises(UsageError, match=r"cluster\.hosts=\["):
        Hosts.of(settings(*given))


def test_the_plan_names_every_process_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLP_SECRET", "hidden")
    lines = plan(settings("one", "two", agent="rsh -q"))
    assert [line.split()[:3] for line in lines[:2]] == [["rsh", "-q", h] for h in ("one", "two")]
    assert "--bind tcp://two:0" in lines[1]
    ranks = [line.partition("DLP_RANK=")[2].split()[0] for line in lines[2:]]
    assert ranks == ["0", "1", "2", "3"] and "hidden" not in "".join(lines)
    assert [line.split()[2] for line in lines[2:]] == ["one", "one", "two", "two"]


def test_placement_is_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    joined.install(tmp_path / "site", monkeypatch)
    with some(3) as (a, b, c):
        words = over([f"{a}:2", f"{b}:1", f"{c}:1"], "workers=4", "boxes=2")
        with joined.points(tmp_path / "run", 10**6, *words, "rule=easgd") as run:
            joined.begun(run, 4)
            found = {
                host: [sum(name in line for line in on(host)) for name in
                       ("dlplatform.worker", "dlplatform.memorybox")]
                for host in (a, b, c)
            }  # fmt: skip
            assert found == {a: [2, 1], b: [1, 1], c: [1, 0]}
            run.process.send_signal(signal.SIGTERM)
            assert run.wait() == 75, run.err
            assert "stopped on request at minibatch" in run.err
        assert [on(host) for host in (a, b, c)] == [[], [], []]


@pytest.mark.slow
def test_four_hosts_train_digits(tmp_path: Path) -> None:
    line = [sys.executable, HOSTS, "run", "4", "--name", next(NAMES), "--subnet", "10.79.1",
            "--rate", "200", "--"]  # fmt: skip
    words = ["rule=hybrid", "workers=8", "boxes=2", "run.minibatches=800", "run.threads=1",
             "run.extras=false", *QUICK]  # fmt: skip
    line += ["dlp", "train", "task=zoo/digits", f"run.dir={tmp_path / 'run'}", *words]
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=280)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["score"] >= 0.97
    assert "launcher=ssh" in done.stdout and f'cluster.agent="{AGENT}"' in done.stdout


# -- what happens to them -----------------------------------------------------------------------


def test_a_link_goes_down_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is lost in three seconds: every number is trained once, by both."""
    joined.install(tmp_path / "site", monkeypatch)
    with some(2) as (a, b):
        words = over([a, b], "workers=2", "rule=easgd")
        with joined.points(tmp_path / "run", 400, *words, slow_s=0.03) as run:
            joined.begun(run, 2)
            assert hosts("link", b, "down").returncode == 0
            time.sleep(3)
            before = joined.shares(run)
            assert hosts("link", b, "up").returncode == 0
            assert run.wait() == 0, run.err
            assert sorted(joined.done(run).elements()) == list(range(400))
            assert joined.shares(run)[0] > before[0], "the one that was cut off went on"


def test_a_host_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others finish, and do what it had not done; nobody is told that it is gone."""
    joined.install(tmp_path / "site", monkeypatch)
    with some(3) as (a, b, c):
        words = over([a, b, c], "workers=3", "rule=easgd")
        with joined.points(tmp_path / "run", 600, *words, slow_s=0.05) as run:
            joined.begun(run, 3)
            assert hosts("die", c).returncode == 0
            assert run.wait() == 0, run.err
            assert "worker 2 was killed (SIGKILL); the others go on" in run.err
            assert set(joined.done(run)) == set(range(600))


def test_the_host_of_a_box_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    joined.install(tmp_path / "site", monkeypatch)
    with some(2) as (a, b):
        words = over([f"{b}:1", f"{a}:1"], "workers=2", "cluster.timeout_s=5")  # b has the box
        with joined.points(tmp_path / "run", 10**6, *words, "rule=easgd") as run:
            joined.begun(run, 2)
            assert hosts("die", b).returncode == 0
            assert run.wait() == 4, run.err
            assert "is gone" in run.err.splitlines()[-1]


@pytest.mark.parametrize(
    "link", [pytest.param(("--delay", "5"), marks=LONG), ("--delay", "2", "--loss", "0.02")]
)
def test_slow_and_lossy_links(
    link: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined.install(tmp_path / "site", monkeypatch)
    with some(2, *link) as (a, b):
        words = over([a, b], "workers=2", "rule=easgd")
        with joined.points(tmp_path / "run", 60, *words, slow_s=0.0) as run:
            assert run.wait() == 0, run.err
            assert sorted(joined.done(run).elements()) == list(range(60))


# -- what cannot be -----------------------------------------------------------------------------


def refused(tmp_path: Path, *words: str) -> tuple[int, str]:
    with_task = LiveRun(tmp_path / "run", *words)
    try:
        code = with_task.wait()
        return code, with_task.err.strip()
    finally:
        with_task.end()


def test_an_agent_that_is_not_there(tmp_path: Path) -> None:
    words = ("launcher=ssh", "cluster.hosts=[a,b]", "cluster.agent=nothere", "workers=2")
    code, said = refused(tmp_path, *words)
    assert code == 3 and said.startswith("dlp: error: cluster.agent=nothere does not start: ")


def test_a_host_that_is_not_there(tmp_path: Path) -> None:
    with some(1) as (a,):
        code, said = refused(tmp_path, *over([a, "nowhere"], "workers=2", "boxes=2"))
        assert code == 3 and len(said.splitlines()) == 1, said
        assert "nowhere" in said


def test_hosts_says_what_it_lacks() -> None:
    assert (
        "there are no hosts nobody* - do: hosts.py up COUNT"
        in hosts("down", "--name", "nobody").stderr
    )
    assert hosts("up", "0").returncode == 3
    assert "--rate with --delay" in hosts("up", "2", "--rate", "1", "--delay", "1").stderr
    with some(1) as (a,):
        made = hosts("up", "1", "--name", a.rstrip("0123456789"))
        assert made.returncode == 3 and "are there already" in made.stderr
        assert hosts("enter", a, "hostname").stdout.strip() == a
        until(lambda: not on(a), 10)
