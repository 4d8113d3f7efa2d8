"""Tests marked rdma, where this machine has no device: run in a guest, reported here one by one.

``scripts/rdma_vm/run.sh`` boots a kernel with Soft-RoCE. In it a few processes of pytest run the
same tests of the same files, and write down what became of each.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SHARDS = 2
"""The guest has two processors."""
LIMIT_S, LAST_WORDS = 1500, 30
FIRST = -10
"""The guest's niceness."""
BRIEF = "/test_transports.py", "/test_transport_jobs.py", "/transports/", "/test_numa.py"
"""Transports and nodes; operations, functions and views over verbs run with --long, too."""
OPERATIONS = "scal", "axpy", "elastic", "merge", "fetch", "copy", "sgd", "adam"
"""One of each kind: by what is sent, what comes back and what is kept; all run with --long."""
PYTEST = "python -m pytest --slow --tb=short -q -p no:cacheprovider"


def has_device() -> bool:
    """Tell whether this machine has an RDMA device."""
    devices = Path("/sys/class/infiniband")
    return devices.is_dir() and any(devices.iterdir())


def processor_s() -> float:
    """Return the processor time of this process and of those it has waited for, in seconds."""
    return sum(os.times()[:4])


def first(pid: int) -> None:
    """Let a process and what it starts go before everything else, where that is allowed.

    An emulated processor that has to wait leaves those who wait for it spinning: beside other tests
    the guest takes twice the work, and four times as long.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PGRP, pid, FIRST)
        # Linux may treat a session as one, whose own niceness alone counts.
        Path(f"/proc/{pid}/autogroup").write_text(str(FIRST))


class Outcomes:
    """Writes a line of JSON for every test: in the guest."""

    def __init__(self, file: Path) -> None:
        self.file = file.open("a", buffering=1)
        self.worst: pytest.TestReport | None = None
        self.seconds = self.before = 0.0

    def pytest_runtest_logstart(self) -> None:
        self.before = processor_s()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        worst = self.worst
        self.seconds = report.duration + (0.0 if report.when == "setup" else self.seconds)
        if worst is None or (worst.outcome == "passed" != report.outcome):
            worst = report
        self.worst = None if report.when == "teardown" else worst
        if self.worst is None:
            text = worst.longrepr[2] if worst.outcome == "skipped" else worst.longreprtext
            found = {"test": worst.nodeid, "outcome": worst.outcome, "text": text}
            found["seconds"] = round(self.seconds, 2)
            found["processor_s"] = round(processor_s() - self.before, 2)
            self.file.write(json.dumps(found) + "\n")


class Guest:
    """One session of the guest for all the tests."""

    def __init__(self, tests: list[str]) -> None:
        self.share = ROOT / "build" / "rdma_vm" / "tests"
        shutil.rmtree(self.share, ignore_errors=True)
        self.share.mkdir(parents=True)
        self.outcomes: dict[str, dict[str, Any]] = {}
        lines, share = [], -(-len(tests) // SHARDS)
        for shard in range(SHARDS):
            mine = tests[shard * share :][:share]
            (self.share / f"tests.{shard}").write_text("\n".join(mine))
            words = f"--outcomes /run/share/outcomes.{shard} @/run/share/tests.{shard}"
            lines.append(f"{PYTEST} {words} &" if mine else "")
        (self.share / "run.sh").write_text("\n".join([*lines, "wait"]))
        self.log = (self.share / "log").open("w+")
        run = ["bash", "scripts/rdma_vm/run.sh", "--share", self.share, "bash", "/run/share/run.sh"]
        env = {"RDMA_VM_LIMIT": str(LIMIT_S), **os.environ}
        self.process = subprocess.Popen(
            run, cwd=ROOT, env=env, stdout=self.log, stderr=self.log, start_new_session=True
        )
        first(self.process.pid)

    def stop(self) -> None:
        """End it, if it has not ended by itself."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
        self.log.close()

    def wait_for(self, test: str) -> dict[str, Any]:
        """Return what became of a test, as soon as it is known."""
        while test not in self.outcomes:
            ended = self.process.poll() is not None
            for file in self.share.glob("outcomes.*"):
                for line in file.read_text().splitlines():
                    found = json.loads(line)
                    self.outcomes[found["test"]] = found
            if ended and test not in self.outcomes:
                self.log.seek(0)
                words = "\n".join(self.log.read().splitlines()[-LAST_WORDS:])
                pytest.fail(f"the guest ended without this test; it said:\n{words}", pytrace=False)
            time.sleep(0.2)
        return self.outcomes[test]


class InGuest(pytest.Item):
    """A test that runs in the guest and reports here."""

    def runtest(self) -> None:
        found = guest(self.session).wait_for(self.nodeid)
        if found["outcome"] == "skipped":
            pytest.skip(found["text"])
        if found["outcome"] != "passed":
            pytest.fail(f"in the guest: {found['text']}", pytrace=False)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, 0, f"[guest] {self.name}"


@cache
def guest(session: pytest.Session) -> Guest:
    """Start the guest with the first test that needs it."""
    started = Guest([item.nodeid for item in session.items if isinstance(item, InGuest)])
    session.config.add_cleanup(started.stop)
    return started


def moved(items: list[pytest.Item], everything: bool) -> list[pytest.Item]:
    """Return the tests with those marked rdma replaced by reports of the guest."""
    chosen = [
        item for item in items
        if everything or not item.get_closest_marker("rdma") or _brief(item)
    ]  # fmt: skip
    return [_moved(item) if item.get_closest_marker("rdma") else item for item in chosen]


def _brief(item: pytest.Item) -> bool:
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    kept = parameters.get("op") in (None, *OPERATIONS)
    return kept and any(b in item.nodeid for b in BRIEF)


def _moved(item: pytest.Item) -> pytest.Item:
    found: pytest.Item = InGuest.from_parent(item.parent, name=item.name, nodeid=item.nodeid)
    found.add_marker(pytest.mark.rdma)
    found.add_marker(pytest.mark.timeout(LIMIT_S))  # the first one waits for the guest, too
    return found
