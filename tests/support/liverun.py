"""A real ``dlp train`` beside the test: start it, find its processes, kill, look for remains."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

DLP = [sys.executable, "-m", "dlplatform.cli"]
MPIRUN = str(Path(sys.executable).with_name("mpirun"))
ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
START_S = 120.0
QUICK = ("task.blocks=2", "task.dropout=0.2", "task.lr=0.004", "task.augment=false")
"""By these four workers reach 0.98 of zoo/digits in 500 minibatches, each of half the work."""


def until(true: Any, seconds: float = START_S, what: str = "it") -> Any:
    """Wait until something becomes true and return it."""
    end = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < end, f"{what} did not happen within {seconds} s"
        time.sleep(0.05)
    return value


def processes(word: str) -> list[int]:
    """Return the processes whose command line or environment contains a word."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if word.encode() in (entry / "cmdline").read_bytes() + environ(entry):
                    found.append(int(entry.name))
    return found


def environ(entry: Path) -> bytes:
    """Return the environment a process was started with; nothing when it may not be read."""
    with contextlib.suppress(OSError):
        return (entry / "environ").read_bytes()
    return b""


def called(entry: Path) -> str:
    """Return the short name that a process has given itself."""
    with contextlib.suppress(OSError):
        return (entry / "comm").read_text().strip()
    return ""


class LiveRun:
    """One ``dlp train`` in a session of its own, its words in files.

    Args:
        folder: of the run.
        words: settings.
        before: what stands before ``dlp`` (mpirun and its options).
        words_in: folder for what it prints.
        dlp: the command ``dlp``.
    """

    def __init__(
        self, folder: Path, *words: str, before: tuple[str, ...] = (), words_in: Path | None = None,
        dlp: Sequence[str] = DLP,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.tag = f"TEST_RUN={folder}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        home = words_in or folder.parent
        self._out, self._err = home / f"{folder.name}.out", home / f"{folder.name}.err"
        name, value = self.tag.split("=", 1)
        task = [] if any(word.startswith("task=") for word in words) else ["task=zoo/digits"]
        line = [*before, *dlp, "train", *task, f"run.dir={folder}", "run.extras=false", *words]
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                line, stdout=out, stderr=err, stdin=subprocess.DEVNULL, start_new_session=True,
                env={**os.environ, **ROOT, name: value, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    @property
    def out(self) -> str:
        """Return what it printed."""
        return self._out.read_text()

    @property
    def err(self) -> str:
        """Return what it printed to stderr."""
        return self._err.read_text()

    def trains(self) -> LiveRun:
        """Wait until it trains."""
        until(lambda: self._scores() or self.process.poll() is not None, what="training")
        assert self.process.poll() is None, self.out + self.err
        return self

    def _scores(self) -> bool:
        path = self.folder / "metrics.jsonl"
        return path.exists() and "train/loss" in path.read_text()

    def saved(self) -> LiveRun:
        """Wait until it has a checkpoint after the first minibatch."""
        latest = self.folder / "checkpoints" / "latest" / "state.json"
        until(lambda: latest.exists() or self.process.poll() is not None, what="a checkpoint")
        assert self.process.poll() is None, self.out + self.err
        return self

    def left(self) -> list[int]:
        """Return the processes of this run that still live: launcher, workers, boxes."""
        return [pid for pid in processes(self.tag) if alive(pid)]

    def worker(self, rank: int) -> int:
        """Return the process of a worker."""
        names = (f"DLP_RANK={rank}", f"OMPI_COMM_WORLD_RANK={rank}", f"PMI_RANK={rank}")
        for pid in self.left():
            entry = Path(f"/proc/{pid}")
            words = environ(entry).split(b"\0")
            if any(name.encode() in words for name in names) or called(entry) == f"dlp-rank-{rank}":
                return pid
        raise AssertionError(f"no worker {rank} among {self.left()}")

    def boxes(self) -> list[int]:
        """Return the processes of the memory boxes it started."""
        return [pid for pid in self.left() if "dlplatform.memorybox" in command(pid)]

    def wait(self, seconds: float = START_S) -> int:
        """Wait for its end and return the exit code."""
        return self.process.wait(seconds)

    def result(self) -> dict[str, Any]:
        """Return what it wrote as its result."""
        loaded: dict[str, Any] = json.loads((self.folder / "result.json").read_text())
        return loaded

    def end(self) -> None:
        """Kill whatever is left of it."""
        for pid in self.left():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()


def command(pid: int) -> str:
    """Return a process's command line."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that nobody has waited for yet does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@contextlib.contextmanager
def live(folder: Path, *words: str, **more: Any) -> Iterator[LiveRun]:
    """Start a run; whatever is left of it is killed at the end."""
    run = LiveRun(folder, *words, **more)
    try:
        yield run
    finally:
        run.end()


def shared_memory(mpi: bool = False) -> set[str]:
    """Return the names in /dev/shm that no living process uses: what somebody has left behind.

    Files of MPIs are left out unless asked for: jobs of tests beside this one make them, too.
    """
    names = set(os.listdir("/dev/shm"))
    names -= {name for name in names if name.startswith(("mpich_shm_", "sm_segment.")) and not mpi}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            used = (entry / "maps").read_text()
            used += "".join(os.readlink(file) for file in (entry / "fd").iterdir())
            names -= {name for name in names if f"/dev/shm/{name}" in used}
    return names


@contextlib.contextmanager
def standing_box(folder: Path) -> Iterator[tuple[str, Path]]:
    """Run ``dlp box`` by hand; give its address and the file of its secret."""
    secret = folder / "secret"
    line = [*DLP, "box", "--bind", "tcp://127.0.0.1:0", "--secret-file", str(secret)]
    box = subprocess.Popen(line, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    assert box.stdout is not None
    try:
        yield json.loads(box.stdout.readline())["address"], secret
    finally:
        box.terminate()
        box.wait(20)
        box.stdout.close()
