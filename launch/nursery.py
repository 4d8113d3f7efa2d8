"""``python -m launch.nursery PROGRAM CONFIG COUNT FD``: start workers that share one import.

Importing torch takes a second and a half of a processor. The nursery does it once and forks the
workers of a host, which so share the memory of its code, too. It writes their process ids to FD
and ends; the launcher, who made itself their next of kin, has them as its own children then.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dlplatform.cli import guard
from dlplatform.worker import log_of, work
from dlplatform.world import die_with_parent

WORKER = "dlplatform.worker"
SET_CHILD_SUBREAPER = 36
"""Of prctl(2): orphaned descendants become children of the caller instead of init's."""


class Adopted:
    """A process that a nursery started for this one: as much of Popen as launchers use."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code once it has ended (negative: the signal)."""
        if self.returncode is None and (done := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.returncode = os.waitstatus_to_exitcode(done[1])
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


@contextmanager
def next_of_kin() -> Iterator[None]:
    """Let processes whose parents end become children of this one, for a while."""
    prctl = ctypes.CDLL(None).prctl
    prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def command(program: str, config: Path, count: int, told: int) -> list[str]:
    """Return the command of a nursery."""
    return [sys.executable, "-m", "launch.nursery", program, str(config), str(count), str(told)]


def start(program: str, config: Path, count: int, told: int) -> None:
    """Fork the workers and tell who they are."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its launcher hears Ctrl-C, too
    if program == WORKER:
        import dlplatform.trainer  # noqa: F401
    launcher, nursery, children = os.getppid(), os.getpid(), []
    known, tell = os.pipe()
    for rank in range(count):
        child = os.fork()
        if not child:
            os.close(told)
            os.close(tell)
            if not os.read(known, 1):  # killed before it told of them: nobody would end this one
                os.kill(os.getpid(), signal.SIGKILL)
            while os.getppid() == nursery:
                time.sleep(0.001)
            if os.getppid() != launcher:  # it is gone, and somebody else has the orphans
                os.kill(os.getpid(), signal.SIGKILL)
            _be(program, config, rank)
        children.append(child)
    os.write(told, json.dumps(children).encode())
    os.write(tell, bytes(count))


def _be(program: str, config: Path, rank: int) -> None:
    """Be a worker; rank 0 speaks where the nursery does, the others to files."""
    os.environ["DLP_RANK"] = os.environ["DLP_LOCAL_RANK"] = str(rank)
    Path("/proc/self/comm").write_text(f"dlp-rank-{rank}")
    if rank:
        with log_of(config, rank).open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [program, str(config)]
    if program == WORKER:  # not as a module to run: it is imported already, and Python warns of it
        code = guard(lambda: work(str(config)))
    else:
        code = guard(lambda: runpy.run_module(program, alter_sys=True) and None)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    name, path, number, fd = sys.argv[1:]
    sys.exit(guard(lambda: start(name, Path(path), int(number), int(fd))))
