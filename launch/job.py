"""What all launchers share: the files of a job's folder, and the end of its processes."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from dlplatform.cli import REPORT
from dlplatform.errors import PlatformError, Preempted
from dlplatform.job import DOOR
from dlplatform.world import processors

# How a worker that a launcher started ends with an error (see dlplatform.cli.guard).
MARK = re.compile(r"dlp: rank (\d+) exit (\d+): (.*)")
STOP_S = 5.0
# A worker that was asked to make room first finishes its minibatch and its checkpoint.
CHECKPOINT_S = 30.0
PREEMPTED = Preempted.exit_code
ERROR = "dlp: error: "
"""How the line begins with which a process of the platform ends (see dlplatform.cli.guard)."""
CONFIG = "config.json"
RESULT = "result.json"
CHECKPOINT = "checkpoints/latest/state.json"
"""What a run's folder holds as soon as it can be gone on from, or used."""


def folder(config: dict[str, Any]) -> Path:
    """Return the absolute folder of a run, making it."""
    path = Path(config["run"]["dir"]).absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path


def write_config(config: dict[str, Any]) -> Path:
    """Write the configuration that the workers read; a result of an earlier run goes."""
    path = folder(config) / CONFIG
    path.with_name(RESULT).unlink(missing_ok=True)
    close_door(config)
    path.write_text(json.dumps(config, indent=1) + "\n")
    return path


def close_door(config: dict[str, Any]) -> None:
    """Remove what a job that was killed has left for those who wanted to join it."""
    (folder(config) / DOOR).unlink(missing_ok=True)


def result(config: dict[str, Any]) -> float:
    """Return the primary score that the chief worker wrote.

    Raises:
        PlatformError: all workers ended well, yet none wrote a result.
    """
    path = folder(config) / RESULT
    try:
        return float(json.loads(path.read_text())["score"])
    except (OSError, ValueError, KeyError, TypeError):
        raise PlatformError(
            f"no result in {path} - a finished run writes one - do: look into {path.parent}/*.log"
        ) from None


def threads(config: dict[str, Any]) -> int:
    """Return the compute threads of one worker on this host."""
    return int(config["run"]["threads"]) or max(1, processors() // int(config["workers"]))


def progress(config: dict[str, Any]) -> str:
    """Return how rank 0 shows progress: behind a launcher it cannot ask the terminal itself."""
    wanted = str(config["run"]["progress"])
    if wanted != "auto":
        return wanted
    return "live" if sys.stdout.isatty() else "plain"


def variables(config: dict[str, Any]) -> dict[str, str]:
    """Return what every worker learns from its launcher: threads, terminal, how to end."""
    size = shutil.get_terminal_size()
    return {
        "OMP_NUM_THREADS": str(threads(config)),
        "DLP_PROGRESS": progress(config),
        REPORT: "code",
        "COLUMNS": str(size.columns),
        "LINES": str(size.lines),
    }


class Process(Protocol):
    """A child of this process: a Popen, or one that a nursery started."""

    pid: int
    returncode: int | Any

    def poll(self) -> int | None:
        """Return the exit code once it has ended (negative: the signal)."""

    def send_signal(self, number: int, /) -> None:
        """Send a signal unless it has ended."""


@dataclass(frozen=True)
class Last:
    """The error line with which a worker ended."""

    rank: int
    code: int
    text: str

    @staticmethod
    def read(line: str) -> Last | None:
        """Return what a line says, or None for any other line."""
        found = MARK.match(line)
        return Last(int(found[1]), int(found[2]), found[3].strip()) if found else None


def failure(code: int, text: str) -> PlatformError:
    """Return an error that ends this process with a worker's own exit code."""
    if code == PREEMPTED:
        return Preempted(text)
    error = PlatformError(text)
    error.exit_code = code
    return error


class Lines:
    """Pass on what a process writes to stderr, except its error lines, which are kept.

    Several processes fail for one reason; the launcher then shows one line, not one for each.
    """

    def __init__(self, stream: IO[str], drop: Sequence[str] = ()) -> None:
        """Read ``stream`` to its end in a thread, without lines that contain a word to drop."""
        self.errors: list[Last] = []
        self.last = ""
        self._stream, self._drop = stream, drop
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._stream:
            if last := Last.read(line):
                self.errors.append(last)
            elif not any(word in line for word in self._drop):
                self.last = line.strip() or self.last
                sys.stderr.write(line)
                sys.stderr.flush()

    def join(self) -> Lines:
        """Wait a moment for the last words of a process that has ended."""
        self._thread.join(1.0)
        return self


def wait(processes: Sequence[Process], seconds: float) -> bool:
    """Wait until all processes have ended or the time is over; tell whether all have."""
    end = time.monotonic() + seconds
    while any(process.poll() is None for process in processes):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def stop(processes: Sequence[Process], first: int, seconds: float = STOP_S) -> None:
    """Signal the processes that still run, then kill those that stay."""
    send(processes, first)
    if not wait(processes, seconds):
        send(processes, signal.SIGKILL)
        wait(processes, 1.0)


def send(processes: Sequence[Process], number: int) -> None:
    """Send a signal to the processes that still run."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


@contextmanager
def on_signals(act: Callable[[int], None]) -> Iterator[None]:
    """Call ``act`` when SIGTERM or SIGUSR1 asks this launcher to make room."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, lambda number, _: act(number))
        for number in (signal.SIGTERM, signal.SIGUSR1)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
