"""Kill, cut, stop and restart boxes and workers at random; then count every element.

python scripts/chaos.py --minutes 10                       # two boxes with journals, over tcp
python scripts/chaos.py --minutes 1 --transport shm --seed 7
python scripts/chaos.py --minutes 1 --transport mapped     # shared memory; boxes are not killed

Workers apply whole numbers and write down each operation before they begin it. At the end every
element must hold all that was acknowledged, and at most what killed workers were just doing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "tests" / "support")]

from chaosparts.boxes import GRACE_S, Box  # noqa: E402
from chaosparts.ledger import BUFFERS, COUNTERS, Account, Vector  # noqa: E402
from chaosparts.torment import Scene, Torment  # noqa: E402
from relay import Relay  # noqa: E402

from dlplatform.memorybox.cluster import Cluster  # noqa: E402

TRANSPORTS = ("tcp", "shm", "mapped")
JOB, PATIENCE_S, EVERY_S = "chaos", 30.0, "1"
WITNESS = 0
LOG_S = 30.0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--minutes", type=float, default=10.0, help="for all transports together")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--transport", default="tcp", help=f"some of {','.join(TRANSPORTS)}")
    p.add_argument("--boxes", type=int, default=2)
    p.add_argument("--workers", type=int, default=3, help="that are killed; one more is not")
    p.add_argument("--folder", type=Path, help="keep journals and ledgers here (default: nowhere)")
    return p.parse_args(argv)


class Stage:
    """Boxes, relays and workers of one run over one transport."""

    def __init__(self, transport: str, options: argparse.Namespace, folder: Path) -> None:
        self.transport, self.options, self.folder = transport, options, folder
        self.lasting = transport != "mapped"
        self.secret, self.came = secrets.token_hex(32), 0
        self.boxes: list[Box] = []
        self.relays: list[Relay] = []
        self.workers: dict[int, subprocess.Popen[str]] = {}
        self.complaints: list[str] = []

    def start(self) -> None:
        """Start the boxes, and a relay in front of each."""
        token = secrets.token_hex(3)
        for number in range(self.options.boxes):
            tcp = self.transport == "tcp"
            bind = "tcp://127.0.0.1:0" if tcp else f"shm://chaos-{token}-{number}"
            place = ("--snapshot", str(self.folder / f"box{number}"), "--journal")
            lasting = (*place, "--every", EVERY_S) if self.lasting else ()
            self.boxes.append(Box(bind, self.secret, ("--grace", str(GRACE_S), *lasting)))
            if self.lasting:
                self.relays.append(Relay(self.boxes[-1].address))

    @property
    def addresses(self) -> list[str]:
        """Return where workers connect."""
        return [each.address for each in self.relays or self.boxes]

    def spawn(self, slot: int) -> None:
        """Start a worker in a place; slot 0 is the witness, who is never killed."""
        self.came += 1
        spec = {
            "boxes": self.addresses, "job": JOB, "patience_s": PATIENCE_S,
            "seed": self.options.seed * 1000 + self.came, "witness": slot == WITNESS,
            "ledger": str(self.folder / f"ledger-{self.came}"),
        }  # fmt: skip
        self.workers[slot] = subprocess.Popen(
            [sys.executable, str(ROOT / "scripts" / "chaosparts" / "worker.py"), json.dumps(spec)],
            env={**os.environ, "DLP_SECRET": self.secret, "OMP_NUM_THREADS": "1"},
            stderr=open(self.folder / f"complaint-{self.came}", "w"), text=True,  # noqa: SIM115
        )  # fmt: skip

    def begun(self, within_s: float = 60.0) -> None:
        """Wait until every worker has written something down: what starts is not yet at work."""
        end = time.monotonic() + within_s
        ledgers = [self.folder / f"ledger-{number + 1}" for number in range(self.came)]
        while not all(ledger.exists() and ledger.stat().st_size for ledger in ledgers):
            if time.monotonic() > end:
                raise SystemExit(f"not all workers were at work after {within_s:.0f} s")
            time.sleep(0.02)

    def finish(self) -> None:
        """Let the workers end after what they are doing."""
        for worker in self.workers.values():
            worker.terminate()
        for worker in self.workers.values():
            worker.wait(2 * PATIENCE_S)
        for path in sorted(self.folder.glob("complaint-*")):
            self.complaints += path.read_text().splitlines()

    def close(self) -> None:
        """End whatever is left."""
        for worker in self.workers.values():
            worker.kill()
            worker.wait()
        for relay in self.relays:
            relay.close()
        for box in self.boxes:
            box.close()

    def connect(self, direct: bool = False) -> Cluster:
        """Open the boxes in this process."""
        addresses = [box.address for box in self.boxes] if direct else self.addresses
        return Cluster(addresses, JOB, self.secret.encode(), PATIENCE_S)


@contextmanager
def staged(transport: str, options: argparse.Namespace, folder: Path) -> Iterator[Stage]:
    """Give a stage with its boxes, and clear it at the end."""
    stage = Stage(transport, options, folder)
    try:
        stage.start()
        yield stage
    finally:
        stage.close()


def contents(cluster: Cluster) -> tuple[dict[str, Vector], dict[str, int]]:
    """Read every buffer and counter."""
    seen = {}
    for name, n in BUFFERS.items():
        seen[name] = np.zeros(n, np.float32)
        buffer = cluster.buffer(name, n, False)
        buffer.read(seen[name].ctypes.data)
        buffer.release()
    return seen, {name: cluster.counter(name).value for name in COUNTERS}


def perform(transport: str, options: argparse.Namespace, seconds: float, folder: Path) -> Any:
    """Run one transport; return the figures, with a list ``wrong`` that should be empty."""
    rng = random.Random(options.seed)
    with staged(transport, options, folder) as stage, ExitStack() as stack:
        holder = stage.connect(direct=True)  # so that the job stays while nobody else is there
        stack.callback(holder.close)
        for name, n in BUFFERS.items():
            holder.buffer(name, n, True)
        for slot in range(options.workers + 1):
            stage.spawn(slot)
        observer = stage.connect()
        stack.callback(observer.close)
        stage.begun()
        scene = Scene(stage.boxes, stage.relays, stage.workers, stage.spawn, observer)
        torment = Torment(scene, rng, stage.lasting)
        told = begin = time.monotonic()
        for _ in torment.run(seconds):
            if time.monotonic() - told > LOG_S:
                told = time.monotonic()
                print(f"{told - begin:5.0f} s {dict(torment.counts)}", flush=True)
        torment.settle()
        stage.finish()
        return verdict(stage, torment, time.monotonic() - begin)


def verdict(stage: Stage, torment: Torment, seconds: float) -> dict[str, Any]:
    """Compare what the boxes hold with what the workers have written down."""
    account = Account().take(sorted(stage.folder.glob("ledger-*")))
    cluster = stage.connect()
    seen, counters = contents(cluster)
    wrong = [*torment.wrong, *account.wrong(seen, counters), *stage.complaints]
    if stage.lasting:
        for box in stage.boxes:
            box.restart()
        again, more = contents(cluster)
        same = all(np.array_equal(seen[name], again[name]) for name in seen)
        if not same or counters != more:
            wrong.append("after a last restart of all boxes something is different")
    cluster.close()
    counts = {
        **torment.counts, "box restarts": sum(box.restarts for box in stage.boxes),
        "cuts": sum(relay.cuts for relay in stage.relays),
    }  # fmt: skip
    return {
        "transport": stage.transport, "seconds": round(seconds, 1),
        "acknowledged": account.operations, "a_minute": round(60 * account.operations / seconds),
        "unknown": account.last, "counts": counts, "wrong": wrong,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Torment each transport in turn; exit code 1 when anything was lost or done twice."""
    options = parse(argv)
    transports = options.transport.split(",")
    if set(transports) - set(TRANSPORTS):
        print(f"--transport {options.transport} - allowed: {','.join(TRANSPORTS)}", file=sys.stderr)
        return 2
    bad = 0
    for transport in transports:
        with tempfile.TemporaryDirectory(prefix="chaos-") as scratch:
            folder = (options.folder or Path(scratch)) / transport
            folder.mkdir(parents=True)
            seconds = 60 * options.minutes / len(transports)
            found = perform(transport, options, seconds, folder)
        bad += bool(found["wrong"])
        print(json.dumps(found, indent=1), flush=True)
        lost = f"FAILED: {len(found['wrong'])} violations" if found["wrong"] else "nothing lost"
        print(f"{transport}, seed {options.seed}: {found['acknowledged']} operations - {lost}")
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
