"""Run all tests in three lanes at once: many wait for processes, or for Slurm, not for a core.

python scripts/lanes.py [WORDS FOR PYTEST]

One lane prints as it goes, what the others have said comes at the end. Lanes on few cores take time
from one another, so tests that failed run again, alone, before they count; each is named. The exit
status is 0 when all have passed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "lanes"
LAUNCH, TRAINERS, CONFORMANCE = "tests/launch", "tests/trainers", "tests/conformance"
HERE = ["-m", "not rdma"]
MAIN = ["tests", *(f"--ignore={folder}" for folder in (LAUNCH, TRAINERS, CONFORMANCE)), *HERE]
BESIDE = [[[LAUNCH], [TRAINERS]], [["-m", "rdma"], [CONFORMANCE, *HERE]]]
"""For each lane beside the main one what it runs, one after the other."""
PASSED, FAILED = 0, 1
"""Exit codes of pytest; with any other one it has not run its tests."""
AGAIN = 20
"""More failures than that are no matter of time."""


class Lane(threading.Thread):
    """Runs pytest several times, one after the other, and keeps what it says."""

    def __init__(self, number: int, runs: list[list[str]]) -> None:
        super().__init__(daemon=True, name=f"lane{number}")
        self.runs, self.log, self.codes = runs, BUILD / f"{self.name}.log", list[int]()
        self.process: subprocess.Popen[bytes] | None = None
        self.over, self.seconds = False, 0.0

    def run(self) -> None:
        """Run them all, unless the lane is closed before."""
        begin = time.monotonic()
        with self.log.open("w") as out:
            for number, words in enumerate(self.runs):
                if not self.over:
                    self.process = subprocess.Popen(
                        pytest(f"{self.name}.{number}", words), cwd=ROOT, stdin=subprocess.DEVNULL,
                        stdout=out, stderr=out, start_new_session=True,
                    )  # fmt: skip
                    self.codes.append(self.process.wait())
        self.seconds = time.monotonic() - begin

    def close(self) -> None:
        """End what runs."""
        self.over = True
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGINT)
        self.join(30)


def pytest(name: str, words: list[str]) -> list[str]:
    """Return the command of one run, which writes down what became of each test."""
    outcomes = BUILD / f"{name}.outcomes"
    outcomes.unlink(missing_ok=True)
    return [sys.executable, "-m", "pytest", *words, "--outcomes", str(outcomes), *sys.argv[1:]]


def failures() -> list[str]:
    """Return the tests that have failed, of all runs."""
    lines = [line for file in BUILD.glob("*.outcomes") for line in file.read_text().splitlines()]
    return [one["test"] for one in map(json.loads, lines) if one["outcome"] == "failed"]


def again(failed: list[str]) -> int:
    """Run tests once more, with nothing beside them; return pytest's exit code."""
    print(f"lanes: once more, alone: {' '.join(failed)}", flush=True)
    (BUILD / "again").write_text("\n".join(failed))
    command = [sys.executable, "-m", "pytest", f"@{BUILD / 'again'}", *sys.argv[1:]]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def stopped(number: int, frame: FrameType | None) -> None:
    """Treat SIGTERM as Ctrl-C, so that nothing is left behind."""
    raise KeyboardInterrupt


def main() -> int:
    """Run all lanes; return 1 when a test did not pass, 130 when stopped."""
    signal.signal(signal.SIGTERM, stopped)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests press Ctrl-C, too
    BUILD.mkdir(parents=True, exist_ok=True)
    for old in BUILD.glob("*.outcomes"):
        old.unlink()
    begin = time.monotonic()
    lanes = [Lane(number, runs) for number, runs in enumerate(BESIDE, 2)]
    for lane in lanes:
        lane.start()
    try:
        codes = {subprocess.run(pytest("main", MAIN), cwd=ROOT, check=False).returncode}
        print(f"lanes: the first after {time.monotonic() - begin:.0f} s", flush=True)
        for lane in lanes:
            while lane.is_alive():
                lane.join(1)
            print(lane.log.read_text(), flush=True)
            print(f"lanes: {lane.name} after {lane.seconds:.0f} s", flush=True)
            codes |= {*lane.codes}
        failed = failures()
        if FAILED in codes <= {PASSED, FAILED} and 0 < len(failed) <= AGAIN:
            codes = {again(failed)}
    except KeyboardInterrupt:
        for lane in lanes:
            lane.close()
        return 130
    print(f"lanes: all after {time.monotonic() - begin:.0f} s; failed at first: {len(failed)}")
    return int(codes != {PASSED})


if __name__ == "__main__":
    sys.exit(main())
