"""The doctor: what it finds on one machine and on several, and what it exits with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hosts import AGENT, hosts, some
from liverun import DLP

from launch import doctor
from launch.doctor import finding, machine, mpi
from launch.doctor import hosts as several
from launch.ssh import Hosts

FIRST = ("Python", "torch", "kernels", "mpirun", "MPI threads", "MPI windows", "/dev/shm", "RDMA",
         "Slurm", "NUMA nodes", "ports", "locked memory")  # fmt: skip


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*DLP, "doctor", *words], capture_output=True, text=True, timeout=200)


def test_it_reports_and_names_remedies() -> None:
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "this machine can train" in done.stdout
    assert not [word for word in FIRST if word not in done.stdout]


def test_every_finding_that_is_not_good_has_a_remedy() -> None:
    found = [finding.Finding(**one) for one in json.loads(run("--json").stdout)]
    assert {one.what for one in found} >= set(FIRST)
    assert not [one for one in found if not one.good and not one.remedy]
    (level,) = [one for one in found if one.what == "MPI threads"]
    assert level.value == "multiple" and level.good


def test_it_exits_3_when_something_required_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "REQUIRED", ("torch", "no-such-package"))
    assert doctor.main() == 3
    out = capsys.readouterr().out
    assert "pip install no-such-package" in out
    assert "missing: no-such-package" in out


def test_an_mpi_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpi.mpirun.Mpirun, "options", lambda self: ["--no-such-option"])
    found = {one.what: one for one in mpi.report()}
    assert not found["MPI"].good and "two ranks do not start" in found["MPI"].value


# -- several hosts --------------------------------------------------------------------------------


def asked(*names: str) -> tuple[int, dict[str, Any]]:
    done = run("--hosts", ",".join(names), "--agent", AGENT, "--json")
    return done.returncode, json.loads(done.stdout)


def test_several_hosts_their_clocks_and_links() -> None:
    with some(3, "--rate", "100") as names:
        code, found = asked(*names)
        assert code == 0 and list(found["hosts"]) == names
        for host, lines in found["hosts"].items():
            by = {one["what"]: one for one in lines}
            assert by["host"]["value"] == host and by["clock"]["good"]
            assert by["host name"]["good"], "others know it by this name"
        assert len(found["links"]) == 6
        for one in found["links"]:
            assert one["good"] and "ms there and back" in one["value"]
            assert 0 < float(one["value"].split()[-2]) < 0.12, "of 0.1 Gbit/s"
        shown = run("--hosts", ",".join(names), "--agent", AGENT).stdout
        assert "3 host(s) can train together" in shown
        (line,) = [text for text in shown.splitlines() if " torch " in text]
        assert " all " in line, "what is the same everywhere is said once"


def test_a_host_that_is_cut_off() -> None:
    with some(2) as (a, b):
        assert hosts("link", b, "down").returncode == 0
        code, found = asked(a, b)
        assert code == 3
        wrong = [one for one in found["links"] if not one["good"]]
        assert [one["what"] for one in wrong] == [f"{a} to {b}", f"{b} to {a}"]
        assert all("let " in one["remedy"] for one in wrong)
        code, found = asked(a, "nowhere")
        assert code == 3 and not found["hosts"]["nowhere"][0]["good"]


def test_hosts_that_differ() -> None:
    def lines(version: str) -> list[finding.Finding]:
        return [finding.Finding("torch", version), finding.Finding("cores", version)]

    found = {"a": lines("2.1"), "b": lines("2.2")}
    several._compare(found)
    assert [one.good for one in found["a"]] == [False, True]
    assert found["a"][0].required and "install the same torch" in found["a"][0].remedy


def test_clocks_that_differ(tmp_path: Path) -> None:
    ahead = tmp_path / "ahead"
    ahead.write_text(
        f"#!{sys.executable}\nimport os, sys\n"
        "os.environ['PYTHONPATH'] = sys.path[0]\n"
        "os.execvp('sh', ['sh', '-c', sys.argv[2]])\n"
    )
    ahead.chmod(0o755)
    (tmp_path / "sitecustomize.py").write_text(
        "import time\nnow = time.time\ntime.time = lambda: now() + 2\n"
    )
    (clock,) = [
        one for one in several.examine(Hosts(["x"], [1], [str(ahead)])).findings["x"]
        if one.what == "clock"
    ]  # fmt: skip
    assert not clock.good and 1900 < float(clock.value.split()[0]) < 2100
