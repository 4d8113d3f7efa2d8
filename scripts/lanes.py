"""Run all tests in two lanes at once: many wait for other processes, or for Slurm, not for a core.

python scripts/lanes.py [WORDS FOR PYTEST]

One lane prints as it goes, what the other has said comes at the end. The exit status is 0 when all
have passed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[1]
MAIN = ["tests", "--ignore=tests/launch", "-m", "not rdma"]
BESIDE = [["tests/launch"], ["-m", "rdma"]]


class Lane(threading.Thread):
    """Runs pytest several times, one after the other, and keeps what it says."""

    def __init__(self, runs: list[list[str]], log: Path) -> None:
        super().__init__(daemon=True)
        self.runs, self.log, self.codes = runs, log, list[int]()
        self.process: subprocess.Popen[bytes] | None = None
        self.over = False

    def run(self) -> None:
        """Run them all, unless the lane is closed before."""
        with self.log.open("w") as out:
            for words in self.runs:
                if not self.over:
                    self.process = subprocess.Popen(
                        pytest(words), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                        start_new_session=True,
                    )  # fmt: skip
                    self.codes.append(self.process.wait())

    def close(self) -> None:
        """End what runs."""
        self.over = True
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGINT)
        self.join(30)


def pytest(words: list[str]) -> list[str]:
    """Return the command of one run."""
    return [sys.executable, "-m", "pytest", *words, *sys.argv[1:]]


def stopped(number: int, frame: FrameType | None) -> None:
    """Treat SIGTERM as Ctrl-C, so that nothing is left behind."""
    raise KeyboardInterrupt


def main() -> int:
    """Run both lanes; return 1 when a run did not pass, 130 when stopped."""
    signal.signal(signal.SIGTERM, stopped)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests press Ctrl-C, too
    (ROOT / "build").mkdir(exist_ok=True)
    begin = time.monotonic()
    lane = Lane(BESIDE, ROOT / "build" / "tests-beside.log")
    lane.start()
    try:
        code = subprocess.run(pytest(MAIN), cwd=ROOT, check=False).returncode
        print(f"lanes: the first after {time.monotonic() - begin:.0f} s", flush=True)
        while lane.is_alive():
            lane.join(1)
    except KeyboardInterrupt:
        lane.close()
        return 130
    print(lane.log.read_text(), flush=True)
    print(f"lanes: both after {time.monotonic() - begin:.0f} s, exit codes {[code, *lane.codes]}")
    return int(any([code, *lane.codes]))


if __name__ == "__main__":
    sys.exit(main())
