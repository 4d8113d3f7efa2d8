"""Run all tests in a few lanes at once: many wait for processes, or for Slurm, not for a core.

python scripts/lanes.py [--types] [WORDS FOR PYTEST]

The tests come in pieces. A lane that is free takes the next piece; what it said is printed when it
ends. Lanes on few cores take time from one another, so tests that failed run again, alone, before
they count; each is named. Last comes what took how long. The exit status is 0 when all have passed.
With --types mypy is a piece, too.
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
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "lanes"
LANES = 4
"""Pieces at once."""
TYPES = "mypy"
"""The piece that checks types."""
GUEST = "rdma"
"""The piece of all tests with this mark, which run in one guest with --slow."""
PLACES = (
    "tests/conformance/test_tasks.py",
    "tests/trainers/zoo",
    "tests/launch",
    "tests/launch/slurm",
    "tests/dlplatform",
    "tests/chaos",
    "tests/conformance",
    "tests/trainers",
    "tests",
)
"""The other pieces: what is below each, but not below another one that is named.

Beside the guest, which comes first and goes before everything else, are those that nothing hurries;
then come the longest.

What must not meet itself is in one piece: jobs of one Slurm, hosts with addresses of one network.
"""
PASSED, FAILED = 0, 1
"""Exit codes of pytest; with any other one it has not run its tests."""
AGAIN = 20
"""More failures than that are no matter of time."""
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
"""Threads that spin until others are done would take the cores from the other lanes."""
SLOWEST = 15
"""Tests that are named at the end."""


class Piece:
    """Some of the tests: runs pytest, which says what became of each, and keeps what it says."""

    def __init__(self, name: str, words: list[str]) -> None:
        self.name = name
        self.log = BUILD / f"{name.replace('/', '.')}.log"
        self.outcomes = self.log.with_suffix(".outcomes")
        run = [sys.executable, "-m", TYPES]
        self.command = run if name == TYPES else pytest(*words, "--outcomes", str(self.outcomes))
        self.process: subprocess.Popen[bytes] | None = None
        self.code, self.seconds, self.found = -1, 0.0, list[dict[str, Any]]()

    def run(self) -> None:
        """Run it to its end."""
        begin = time.monotonic()
        self.outcomes.write_text("")
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=ONE_THREAD, stdin=subprocess.DEVNULL,
                stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
            self.code = self.process.wait()
        self.seconds = time.monotonic() - begin
        self.found = [json.loads(line) for line in self.outcomes.read_text().splitlines()]

    def end(self) -> None:
        """End it, if it runs."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGINT)


def lane(left: list[Piece], said: threading.Lock) -> None:
    """Take piece after piece, as long as there are any, and print what each has said."""
    while True:
        try:
            piece = left.pop(0)
        except IndexError:
            return
        piece.run()
        with said:
            print(piece.log.read_text(errors="replace"))
            print(f"lanes: {piece.name} after {piece.seconds:.0f} s", flush=True)


def pytest(*words: str) -> list[str]:
    """Return the command of one run."""
    return [sys.executable, "-m", "pytest", *words, *(w for w in sys.argv[1:] if w != "--types")]


def parts() -> list[Piece]:
    """Return all pieces, in the order in which lanes take them."""
    places = [place for place in PLACES if (ROOT / place).exists()]
    pieces = [Piece(TYPES, [])] if "--types" in sys.argv else []
    rest = list[str]()
    if "--slow" in sys.argv:  # else no guest is started
        pieces.append(Piece(GUEST, ["tests", "-m", GUEST]))
        rest = ["-m", f"not {GUEST}"]
    for place in places:
        others = [f"--ignore={one}" for one in places if one.startswith(f"{place}/")]
        pieces.append(Piece(place, [place, *others, *rest]))
    return pieces


def again(failed: list[str]) -> int:
    """Run tests once more, with nothing beside them; return pytest's exit code."""
    print(f"lanes: once more, alone: {' '.join(failed)}", flush=True)
    (BUILD / "again").write_text("\n".join(failed))
    return subprocess.run(pytest(f"@{BUILD / 'again'}"), cwd=ROOT, check=False).returncode


def times(pieces: list[Piece]) -> str:
    """Return how long the pieces took, and what work; then the tests with the most work.

    The guest's work is not told: it is that of a process nobody waits for.
    """
    found = [one for piece in pieces for one in piece.found]
    most = sorted(found, key=lambda one: one["processor_s"], reverse=True)[:SLOWEST]
    rows = [(p.seconds, sum(one["processor_s"] for one in p.found), p.name) for p in pieces]
    rows.sort(reverse=True)
    rows += [(one["seconds"], one["processor_s"], one["test"]) for one in most]
    lines = [f"lanes: {took:7.1f} {work:7.1f}  {name}" for took, work, name in rows]
    return "\n".join(["lanes: seconds, seconds of a processor, name", *lines])


def processors() -> tuple[int, int]:
    """Return for how long all processors have worked, and been there, since the machine started."""
    spent = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return sum(spent) - spent[3] - spent[4], sum(spent)


def stopped(number: int, frame: FrameType | None) -> None:
    """Treat SIGTERM as Ctrl-C, so that nothing is left behind."""
    raise KeyboardInterrupt


def main() -> int:
    """Run all pieces; return 1 when a test did not pass, 130 when stopped."""
    signal.signal(signal.SIGTERM, stopped)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests press Ctrl-C, too
    BUILD.mkdir(parents=True, exist_ok=True)
    begin, before = time.monotonic(), processors()
    pieces = parts()
    left, said = list(pieces), threading.Lock()
    lanes = [threading.Thread(target=lane, args=(left, said), daemon=True) for _ in range(LANES)]
    try:
        for one in lanes:
            one.start()
        while any(one.is_alive() for one in lanes):
            time.sleep(0.2)  # an interrupted join() would take a thread for ended (bpo-45274)
        worked, passed = (now - then for now, then in zip(processors(), before, strict=True))
        print(times(pieces))
        print(f"lanes: processors worked {worked / passed:.0%} of the time", flush=True)
        codes = {piece.code for piece in pieces if piece.name != TYPES}
        failed = [one["test"] for p in pieces for one in p.found if one["outcome"] == "failed"]
        here = [one for p in pieces if p.name != GUEST for one in p.found]  # a guest is one matter
        count = sum(one["outcome"] == "failed" for one in here)
        if FAILED in codes <= {PASSED, FAILED} and failed and count <= AGAIN:
            codes = {again(failed)}
    except KeyboardInterrupt:
        left.clear()
        for piece in pieces:
            piece.end()
        for one in lanes:
            one.join(30)
        return 130
    print(f"lanes: all after {time.monotonic() - begin:.0f} s; failed at first: {len(failed)}")
    wrong = any(piece.code for piece in pieces if piece.name == TYPES)
    return int(wrong or codes != {PASSED})


if __name__ == "__main__":
    sys.exit(main())
