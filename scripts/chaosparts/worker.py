"""One worker of ``scripts/chaos.py``: it applies whole numbers, and writes everything down."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

from chaosparts.ledger import COUNTERS, LENGTHS, WATCHED, Ledger, pattern  # noqa: E402
from dlplatform.errors import PeerLost, PlatformError  # noqa: E402
from dlplatform.memorybox.cluster import Cluster  # noqa: E402
from dlplatform.memorybox.payload import Payload  # noqa: E402
from dlplatform.world import die_with_parent  # noqa: E402

OFTEN = {"one": 30, "small": 40, "page": 14, "middle": 8, "large": 3}
HOW = {"axpy": 50, "add": 25, "fetch": 10, "bf16": 5, "merge": 5, "elastic": 5}
PAUSE_S, AGAIN_S = 0.0005, 0.1


class Worker:
    """The loop of one process until it is told, or made, to stop."""

    def __init__(self, spec: dict[str, Any]) -> None:
        secret = os.environ["DLP_SECRET"].encode()
        self.cluster = come(spec, secret)
        self.rng = random.Random(spec["seed"])
        self.witness = bool(spec["witness"])
        self.ledger = Ledger(Path(spec["ledger"]))
        names = WATCHED if self.witness else LENGTHS
        self.buffers = {name: self.cluster.buffer(name, n, False) for name, n in names.items()}
        self.counters = {name: self.cluster.counter(name) for name in COUNTERS}
        self.whole = {name: pattern(0, n) for name, n in LENGTHS.items()}
        self.ones = np.ones(max(WATCHED.values()), np.float32)
        self.stopped = False
        signal.signal(signal.SIGTERM, self.stop)

    def stop(self, *_: Any) -> None:
        """End after the operation under way."""
        self.stopped = True

    def run(self) -> None:
        """Work; then say that the last operation was acknowledged, too."""
        turn = self.watched if self.witness else self.anything
        while not self.stopped:
            turn()
        self.ledger.write("end")
        self.cluster.close()

    def watched(self) -> None:
        """Add 1 to all of the first buffer, then to all of the second."""
        for name, length in WATCHED.items():
            self.ledger.write("axpy", name, 1, 0, length)
            self.buffers[name].axpy(1.0, self.ones.ctypes.data)
        time.sleep(PAUSE_S)

    def anything(self) -> None:
        """Do one operation of any kind."""
        rng = self.rng
        kind = rng.choices(list(HOW), list(HOW.values()))[0]
        value = rng.randint(1, 3)
        if kind == "add":
            name = rng.choice(COUNTERS)
            self.ledger.write(kind, name, value)
            self.counters[name].add(value)
            return
        name = rng.choices(list(OFTEN), list(OFTEN.values()))[0]
        start, count = self.span(LENGTHS[name])
        value = 1 if kind == "merge" else value
        self.ledger.write(kind, name, value, start, count)
        self.update(kind, name, value, start, count)

    def span(self, length: int) -> tuple[int, int]:
        """Return all of a buffer, or a part of it."""
        if self.rng.random() < 0.5:
            return 0, length
        start = self.rng.randrange(length)
        return start, self.rng.randint(1, length - start)

    def update(self, kind: str, name: str, value: int, start: int, count: int) -> None:
        """Apply an operation to a span."""
        buffer, where = self.buffers[name], {"start": start, "count": count}
        x = self.whole[name][start : start + count].copy()
        if kind == "bf16":
            packed = Payload("bf16", count, feedback=False).pack(x.ctypes.data)
            buffer.apply("axpy", packed, a=float(value), **where)
        elif kind == "merge":
            base = np.zeros_like(x)
            buffer.apply(kind, x.ctypes.data, base.ctypes.data, **where)
            assert np.array_equal(x, base), "merge brings both to the same values"
        else:
            rate = 0.0 if kind == "elastic" else float(value)
            buffer.apply(kind, x.ctypes.data, a=rate, **where)
            if kind == "fetch":
                assert x.min() >= value, "fetch brings back at least what it added"


def come(spec: dict[str, Any], secret: bytes) -> Cluster:
    """Open the boxes; whoever comes while one is down has to come again."""
    end = time.monotonic() + spec["patience_s"]
    while True:
        try:
            return Cluster(spec["boxes"], spec["job"], secret, spec["patience_s"])
        except PeerLost:
            if time.monotonic() > end:
                raise
        time.sleep(AGAIN_S)


def main() -> int:
    """Work until SIGTERM; an error is one line on standard error and exit code 1."""
    die_with_parent()
    try:
        Worker(json.loads(sys.argv[1])).run()
    except PlatformError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
