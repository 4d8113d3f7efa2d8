"""The tormentor: kills, cuts, slows down, stops and restarts at random, and looks meanwhile."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from relay import TO_BOX, TO_WORKER, Relay

from chaosparts.boxes import Box
from chaosparts.ledger import WATCHED
from dlplatform.errors import PlatformError
from dlplatform.memorybox.cluster import Cluster

LONGEST_STOP_S, SLOWEST = 2.0, 100_000.0
OFTEN = {
    "kill": 6, "cut": 4, "cut_midway": 10, "slow": 3, "delay": 2, "swallow": 2, "stop": 4,
    "stop_box": 2, "restart": 4, "snapshot": 3, "view": 8,
}  # fmt: skip
ALONE = ("kill", "stop", "stop_box", "view")
"""What mapped memory without a journal must survive."""


@dataclass
class Scene:
    """Who is there: boxes, the relays in front of them, workers; and the observer's handle."""

    boxes: list[Box]
    relays: list[Relay]
    workers: dict[int, subprocess.Popen[str]]
    spawn: Callable[[int], None]
    observer: Cluster


@dataclass
class Torment:
    """Events at random, a few a second; ``counts`` says what happened."""

    scene: Scene
    rng: random.Random
    lasting: bool = True
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    _running: dict[str, threading.Thread] = field(default_factory=dict)

    def __post_init__(self) -> None:
        observer = self.scene.observer
        self.watched = [observer.buffer(name, n, False) for name, n in WATCHED.items()]

    def run(self, seconds: float, pause_s: float = 0.2) -> Iterator[None]:
        """Torment until the time is over; yield after every event."""
        names = [name for name in OFTEN if self.lasting or name in ALONE]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            name = self.rng.choices(names, [OFTEN[name] for name in names])[0]
            getattr(self, name)()
            yield
            time.sleep(self.rng.uniform(0, 2 * pause_s))

    def settle(self) -> None:
        """Let everybody go on."""
        for thread in list(self._running.values()):
            thread.join(60)
        for relay in self.scene.relays:
            relay.swallow(False)
            relay.delay_s = relay.rate = 0.0

    def _beside(self, what: str, work: Callable[[], Any]) -> None:
        """Do something in a thread of its own, unless the last such thing still goes on."""
        old = self._running.get(what)
        if old is None or not old.is_alive():
            self._running[what] = threading.Thread(target=work, daemon=True)
            self._running[what].start()

    # -- workers ---------------------------------------------------------------------------

    def kill(self) -> None:
        """Kill a worker; another one comes in its place."""
        slot = self.rng.choice([slot for slot in self.scene.workers if slot])
        worker = self.scene.workers[slot]
        if worker.poll() is None:
            worker.kill()
            worker.wait()
            self.counts["worker kills"] += 1
        self.scene.spawn(slot)

    def stop(self) -> None:
        """Stop a worker for a while."""
        worker = self.scene.workers[self.rng.choice(list(self.scene.workers))]
        seconds = self.rng.uniform(0.1, LONGEST_STOP_S)

        def work() -> None:
            with suppress(OSError):
                worker.send_signal(signal.SIGSTOP)
                time.sleep(seconds)
                worker.send_signal(signal.SIGCONT)
                self.counts["worker stops"] += 1

        self._beside("stop", work)

    # -- connections -----------------------------------------------------------------------

    def _relay(self) -> Relay:
        return self.rng.choice(self.scene.relays)

    def cut(self) -> None:
        """Cut all connections of a box."""
        self.counts["cuts of all"] += 1
        self._relay().cut()

    def cut_midway(self) -> None:
        """Cut whatever connection carries a byte that is still to come."""
        way = self.rng.choice((TO_BOX, TO_WORKER))
        self._relay().cut_after(int(10 ** self.rng.uniform(0, 6.5)), way)

    def _for_a_while(self, what: str, set_to: Callable[[Relay, bool], None]) -> None:
        relay, seconds = self._relay(), self.rng.uniform(0.1, 1.0)

        def work() -> None:
            set_to(relay, True)
            time.sleep(seconds)
            set_to(relay, False)
            self.counts[what] += 1

        self._beside(what, work)

    def slow(self) -> None:
        """Let few bytes a second through."""
        rate = SLOWEST * 10 ** self.rng.uniform(0, 2)
        self._for_a_while("slowed", lambda relay, on: setattr(relay, "rate", rate if on else 0.0))

    def delay(self) -> None:
        """Let every part wait."""
        wait = self.rng.uniform(0.001, 0.05)
        self._for_a_while("delayed", lambda relay, on: setattr(relay, "delay_s", wait * on))

    def swallow(self) -> None:
        """Let nothing through."""
        self._for_a_while("swallowed", lambda relay, on: relay.swallow(on))

    # -- boxes -----------------------------------------------------------------------------

    def stop_box(self) -> None:
        """Stop a box for a while."""
        box, seconds = self.rng.choice(self.scene.boxes), self.rng.uniform(0.1, LONGEST_STOP_S)
        self.counts["box stops"] += 1
        self._beside("box", lambda: box.pause(seconds))

    def restart(self) -> None:
        """Kill a box and start it again on the same folder and address."""
        box, seconds = self.rng.choice(self.scene.boxes), self.rng.uniform(0, 0.5)
        self._beside("box", lambda: box.restart(seconds))

    def snapshot(self) -> None:
        """Ask a box for a snapshot now."""
        box = self.rng.choice(self.scene.boxes)

        def work() -> None:
            try:
                box.order("snapshot")
                self.counts["snapshots asked for"] += 1
            except (PlatformError, OSError):
                self.counts["snapshots refused"] += 1

        self._beside("snapshot", work)

    def view(self) -> None:
        """Look at both buffers of the witness at one moment."""
        self._beside("view", self._look)

    def _look(self) -> None:
        seen = [np.zeros(buffer.length, np.float32) for buffer in self.watched]
        try:
            with self.scene.observer.snapshot(*self.watched) as view:
                for buffer, into in zip(self.watched, seen, strict=True):
                    view.read(buffer, into.ctypes.data)
        except PlatformError as error:
            self.counts["views interrupted"] += 1
            self.counts[f"  {str(error)[:60]}"] += 1
            return
        self.counts["views"] += 1
        first, second = ((float(x.min()), float(x.max())) for x in seen)
        if first[0] != first[1] or second[0] != second[1] or first[0] - second[0] not in (0, 1):
            self.wrong.append(f"a view is torn: first buffer {first}, second {second}")
