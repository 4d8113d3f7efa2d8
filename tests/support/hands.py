"""The conformance suite inside one MPI job: rank 0 runs pytest, some ranks are boxes, others hands.

mpirun -n 16 python tests/support/hands.py 4 tests/conformance/test_transports.py

A hand is a rank that runs the code of another worker when a test asks for one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dlplatform.errors import PeerLost
from dlplatform.memorybox.cluster import Cluster
from dlplatform.transports.mpi import window
from dlplatform.transports.mpi.job import meet, serve
from dlplatform.transports.mpi.ranks import Ranks
from dlplatform.transports.mpi.transport import enter
from dlplatform.world import mpi

crew: Crew | None = None
SECRET = "hands"
POOL_GIB, SHARED_BOXES = 0.25, 3
LONGEST = 100_000
"""Bytes of one Get: the suite reads more at once, as others read more than 2 GB."""


class Rank:
    """A process of the job, with the methods of Popen that tests use."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def send_signal(self, number: int) -> None:
        assert crew is not None
        if number == signal.SIGKILL and crew.mortal:
            os.kill(self.pid, signal.SIGINT)  # the hand lets go of what it does
            pytest.skip(crew.mortal)
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def gone(self) -> bool:
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    def wait(self, timeout: float = 60.0) -> int:
        end = time.monotonic() + timeout
        while not self.gone():
            assert time.monotonic() < end, "the rank does not end"
            time.sleep(0.005)
        return -signal.SIGKILL


class Hand(Rank):
    """A rank that runs some code; ``stdout`` is what it prints."""

    def __init__(self, pid: int, path: Path, asked: dict[str, Any]) -> None:
        super().__init__(pid)
        self.returncode, self.done = 0, False
        self.link = socket.socket(socket.AF_UNIX)
        self.link.connect(str(path))
        self.link.sendall(json.dumps(asked).encode() + b"\n")
        self.stdout = self.link.makefile("r")

    def communicate(self, timeout: float = 60.0) -> tuple[str, None]:
        self.link.settimeout(timeout)
        text, self.done = self.stdout.read(), True
        self.returncode = 0 if text.strip() else 1
        return text, None


@dataclass
class Crew:
    """What rank 0 knows of the others."""

    ranks: Ranks
    pids: list[int]
    folder: Path
    spares: list[int] = field(default_factory=list)
    busy: dict[int, Hand] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.spares = self.ranks.boxes[SHARED_BOXES:]

    @property
    def mortal(self) -> str:
        """Say why nobody can be killed here; empty: the others go on."""
        if "Open MPI" not in self.ranks.mpi.Get_library_version():
            return "the mpirun of this MPI ends all ranks when one is killed"
        return "a death on another host is noticed late" if self.ranks.spread else ""

    def box(self, rank: int) -> Rank:
        return Rank(self.pids[rank])

    def addresses(self, count: int) -> list[int]:
        """Return boxes that many tests share; a lone one is for one test, which may kill it."""
        if count > 1:
            return self.ranks.boxes[:count]
        if self.mortal:
            pytest.skip(self.mortal)
        return [self.spares.pop()]

    def spawn(self, code: str, rank: int, job: str, addresses: list[str]) -> Hand:
        asked = {"code": code, "rank": rank, "job": job, "addresses": addresses}
        for hand in self.ranks.workers[1:]:
            before = self.busy.get(hand)
            if before is None or (before.done and not before.gone()):
                path = self.folder / f"{hand}.sock"
                self.busy[hand] = Hand(self.pids[hand], path, asked)
                return self.busy[hand]
        raise AssertionError("no free hand left: start more ranks")

    def dismiss(self) -> None:
        for hand in self.ranks.workers[1:]:
            if not Rank(self.pids[hand]).gone():
                Hand(self.pids[hand], self.folder / f"{hand}.sock", {})


def lend(path: Path) -> None:
    """Run what is asked for, until nothing is."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(8)
        while True:
            link, _ = listener.accept()
            with link, link.makefile("r") as asked, link.makefile("w") as out:
                words = json.loads(asked.readline())
                if not words:
                    return
                with redirect_stdout(out):
                    run(words)


def run(words: dict[str, Any]) -> None:
    names: dict[str, Any] = {}
    cluster = Cluster(words["addresses"], words["job"], SECRET.encode(), 20.0)
    try:
        exec(words["code"], names)
        result = names["main"](cluster, words["rank"])
        print(json.dumps(result), flush=True)
    except KeyboardInterrupt:
        pass  # it was to be killed
    except Exception:
        traceback.print_exc()
    finally:
        cluster.close()


@contextmanager
def together(boxes: int) -> Iterator[tuple[Ranks, list[int], Path]]:
    """Come together; end with all others, or alone where somebody was killed."""
    window.MOST = LONGEST
    with mpi() as lent:
        ranks = meet(lent, boxes, POOL_GIB)
        pids = ranks.comm.allgather(os.getpid())
        made = tempfile.mkdtemp(prefix="hands-") if ranks.rank == 0 else None
        folder = Path(ranks.comm.bcast(made, 0))
        yield ranks, pids, folder
        if ranks.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)


def main(boxes: int, words: list[str]) -> int:
    code = 0
    try:
        with together(boxes) as (ranks, pids, folder):
            if ranks.is_box:
                serve(ranks, SECRET.encode())
                return 0
            enter(ranks)
            if ranks.rank:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                lend(folder / f"{ranks.rank}.sock")
            else:
                import hands  # this file under the name that the suite imports

                hands.crew = hands.Crew(ranks, pids, folder)
                code = int(pytest.main(words))
                hands.crew.dismiss()
            ranks.finish()
    except PeerLost:
        sys.stdout.flush()
        os._exit(code)  # a test has killed somebody: MPI cannot end
    return code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
