"""Send a box a million frames that are wrong in every way; it must live, answer, and stay small.

python scripts/fuzz_box.py --frames 1000000 --seed 1            # a few minutes
python scripts/fuzz_box.py --frames 30000 --journal             # and comes back from its journal

Some know the secret and send hostile requests, some do not know it, some pretend to be a box
that is mirrored. A witness in a job of its own must see nothing of it.
"""

from __future__ import annotations

import argparse
import json
import secrets
import select
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from chaosparts.boxes import Box  # noqa: E402
from chaosparts.hostile import Mutator  # noqa: E402

from dlplatform.memorybox import wire  # noqa: E402
from dlplatform.memorybox.cluster import Cluster  # noqa: E402
from dlplatform.memorybox.replica import RETURN_S  # noqa: E402

BATCH, SENDERS, MIRROR_BATCH = 100, 4, 10
DEADLINE_S, A_WAIT_S = 20.0, 7.0
MOST_GROWTH, MOST_THREADS = 96 << 20, 4
"""Bytes of anonymous memory and threads that a box may have more of afterwards."""
QUIET_S = 4.0
IMPATIENT = (
    "import sys; from kernels import cpu; cpu.patience(200); "
    "from dlplatform.memorybox.server import main; sys.exit(main(sys.argv[1:]))"
)
OPTIONS = ("--quota", "64M", "--jobs", "400", "--grace", "0.2")
HOSTILE, WITNESS = "hostile", "witness"
SIZES = {"a": 5000, "b": 5000, "c": 70_000}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--frames", type=int, default=1_000_000)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--journal", action="store_true", help="of the box; it is killed at the end")
    return p.parse_args(argv)


class Witness:
    """A normal client in a job of its own, and what it must find unchanged."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.cluster = Cluster([box.address], WITNESS, box.secret.encode(), DEADLINE_S)
        self.buffer = self.cluster.buffer("w", 5000, True)
        self.data = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
        self.buffer.write(self.data.ctypes.data)
        self.cluster.counter("n").set(41)
        self.before = self.status()

    def status(self) -> dict[str, Any]:
        """Return what the box has, without what changes by itself."""
        jobs = self.box.order("status")["jobs"]
        names = ("segments", "bytes", "workers", "changes", "in")
        return {job: {name: had[name] for name in names} for job, had in sorted(jobs.items())}

    def wrong(self, restarted: bool = False) -> list[str]:
        """Return what is not as it was; a box that was started again counts anew."""
        seen = np.zeros(5000, np.float32)
        self.buffer.read(seen.ctypes.data)
        lines = [] if np.array_equal(seen, self.data) else ["the witness's buffer has changed"]
        if self.cluster.counter("n").value != 41:
            lines.append("the witness's counter has changed")
        if not restarted and self.status()[WITNESS] != self.before[WITNESS]:
            lines.append(f"the witness's job: {self.before[WITNESS]} -> {self.status()[WITNESS]}")
        return lines


class Fuzz:
    """Senders against one box."""

    def __init__(self, box: Box, seed: int, keys: list[str]) -> None:
        self.box, self.seed, self.keys = box, seed, keys
        self.sent: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._lock = threading.Lock()

    def run(self, frames: int, what: str, size: int) -> None:
        """Send so many frames, in connections of ``size`` frames each."""
        send = getattr(self, what)

        def one(number: int) -> None:
            mutator = Mutator(f"{self.seed} {what} {number}", self.keys)
            try:
                send(mutator, number)
            except TimeoutError as error:
                with self._lock:
                    self.wrong.append(f"{what} {number}: {error or 'a connection hung'}")
            except OSError:
                pass  # hung up on, as it should be
            with self._lock:
                self.sent[what] += size

        with ThreadPoolExecutor(SENDERS) as pool:
            for _ in pool.map(one, range(max(1, frames // size))):
                continue

    def strangers(self, mutator: Mutator, number: int) -> None:
        """One who does not know the secret, and asks all the same."""
        with wire.connect(self.box.address, DEADLINE_S) as link:
            nonce = wire.receive(link)["nonce"]
            self.exchange(link, mutator.stranger(nonce), DEADLINE_S)

    def _enter(self, link: socket.socket) -> None:
        wire.introduce(link, self.box.secret.encode(), self.box.address)

    def requests(self, mutator: Mutator, number: int) -> None:
        """One who knows it, and asks for what it likes."""
        with wire.connect(self.box.address, DEADLINE_S) as link:
            self._enter(link)
            wire.send(link, mutator.opening(HOSTILE, f"token{number}"))
            wire.receive(link)
            data, waits = mutator.batch(BATCH, slowly=number % 20 == 0)
            self.exchange(link, data, DEADLINE_S + waits * A_WAIT_S)

    def mirrors(self, mutator: Mutator, number: int) -> None:
        """One who pretends to be a box that is mirrored."""
        with wire.connect(self.box.address, DEADLINE_S) as link:
            self._enter(link)
            wire.send(link, {"do": "mirror", "job": f"m{number % 8}", "origin": f"o{number}"})
            wire.receive(link)
            self.exchange(link, mutator.records(MIRROR_BATCH), DEADLINE_S)

    def exchange(self, link: socket.socket, data: bytes, seconds: float) -> None:
        """Send everything and read until the box hangs up; it must do so in time."""
        end, view = time.monotonic() + seconds, memoryview(data)
        link.setblocking(False)
        while True:
            left = end - time.monotonic()
            ready = select.select([link], [link] if view else [], [], max(left, 0))
            if not any(ready):
                raise TimeoutError(f"no end after {seconds:g} s")
            if ready[0] and not link.recv(1 << 16):
                return
            if ready[1] and view:
                view = view[link.send(view[: 1 << 16]) :]
                if not view:
                    link.shutdown(socket.SHUT_WR)


def quiet(box: Box, threads: int) -> None:
    """Wait until timers and connections have ended."""
    end = time.monotonic() + QUIET_S
    while time.monotonic() < end and box.threads() > threads:
        time.sleep(0.2)


def works(box: Box) -> list[str]:
    """Return what a new worker finds wrong."""
    cluster = Cluster([box.address], "afterwards", box.secret.encode(), DEADLINE_S)
    buffer, one = cluster.buffer("w", 300_000, True), np.ones(300_000, np.float32)
    for _ in range(3):
        buffer.axpy(1.0, one.ctypes.data)
    out = np.zeros(300_000, np.float32)
    with cluster.snapshot(buffer) as view:
        view.read(buffer, out.ctypes.data)
    right = (out == 3).all() and cluster.counter("n").add(2) == 0
    cluster.close()
    return [] if right else ["a normal worker gets wrong results"]


def perform(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Fuzz a box; return figures, with a list ``wrong`` that should be empty."""
    lasting = ("--snapshot", str(folder / "box"), "--journal", "--every", "5")
    with ExitStack() as stack:
        complaints = stack.enter_context(open(folder / "complaints", "w+"))
        box = Box("tcp://127.0.0.1:0", secrets.token_hex(16),
                  (*OPTIONS, *(lasting if options.journal else ())), ("-c", IMPATIENT),
                  stderr=complaints)  # fmt: skip
        stack.callback(box.close)
        keeper = Cluster([box.address], HOSTILE, box.secret.encode(), DEADLINE_S)
        stack.callback(keeper.close)
        keys = [keeper.buffer(name, n, True).key for name, n in SIZES.items()]
        witness = Witness(box)
        stack.callback(witness.cluster.close)
        works(box)
        fuzz, frames = Fuzz(box, options.seed, keys), options.frames
        fuzz.run(min(frames // 100, 500), "requests", BATCH)  # what every box needs once
        quiet(box, 0)
        memory, threads, begin = box.memory(), box.threads(), time.monotonic()
        before = witness.status()
        fuzz.run(frames // 20, "strangers", 2)
        if witness.status() != before:
            fuzz.wrong.append("strangers had an effect")
        fuzz.run(frames // 100, "mirrors", MIRROR_BATCH)
        mirrored = time.monotonic()
        fuzz.run(frames - frames // 20 - frames // 100, "requests", BATCH)
        seconds, tally = time.monotonic() - begin, box.order("status")["total"]
        fuzz.wrong += witness.wrong() + works(box)
        quiet(box, threads)
        grown, more = box.memory() - memory, box.threads() - threads
        recent = time.monotonic() - mirrored < RETURN_S + 1
        waiting = fuzz.sent["mirrors"] // MIRROR_BATCH if recent else 0
        if grown > MOST_GROWTH or more > MOST_THREADS + waiting:
            fuzz.wrong.append(f"{grown} bytes and {more} threads more than before")
        if options.journal:
            box.restart()
            fuzz.wrong += witness.wrong(restarted=True) + works(box)
        complaints.seek(0)
        said = complaints.read()
        fuzz.wrong += [f"it complained: {said[-2000:]}"] if said else []
    total = sum(fuzz.sent.values())
    return {
        "frames": total, **fuzz.sent, "seconds": round(seconds, 1),
        "a_second": round(total / seconds), "memory_grown": grown, "threads_more": more,
        "requests_seen": tally["requests"], "refused": tally["refused"], "wrong": fuzz.wrong,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzz one box; exit code 1 when it did anything it must not do."""
    options = parse(argv)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, suppress(KeyboardInterrupt):
        found = perform(options, Path(folder))
        print(json.dumps(found, indent=1))
        return int(bool(found["wrong"]))
    return 130


if __name__ == "__main__":
    sys.exit(main())
