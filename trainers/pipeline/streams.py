"""Many cameras at one detector: queues that drop, batches of whoever waits, in turn.

Each channel has a short queue; a frame that comes when it is full pushes out the oldest, so what
is answered is never old. The detector takes a batch of one frame from each channel that waits,
beginning behind the channel that was served last: none is passed over twice before another is
served again, so none starves however fast others send.

Shape legend: B batch, C channels, H height, W width, 3 RGB.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from trainers.data.instances import Found
from trainers.data.scenes import Bytes
from trainers.pipeline.frame import Frame, Stage

if TYPE_CHECKING:
    from dlplatform.task import Models
    from trainers.blocks.detector import Detector

STARVED = 0.1
"""A channel starves when it gets less than this share of what it sent, and of the median."""


@dataclass(frozen=True)
class Serving:
    """How channels are served."""

    batch: int = 16
    """Most frames that the detector gets together."""
    queue: int = 2
    """Frames that may wait in one channel."""
    patience: float = 0.02
    """Seconds that the first of a batch waits for others."""


@dataclass
class Channel:
    """The queue of one source, and what became of its frames."""

    name: str
    queue: deque[tuple[float, Frame]]
    offered: int = 0
    dropped: int = 0
    broken: str = ""
    """Why it ended, if it was not at its end."""
    latencies: list[float] = field(default_factory=list)
    """Seconds from arrival to answer of each frame that was served."""

    @property
    def served(self) -> int:
        """Return the number of frames that were answered."""
        return len(self.latencies)


Together = Callable[[Sequence[Bytes]], Sequence[Found]]
"""Finds the objects of several pictures at once."""


class Server:
    """Serves channels with one detector, and each with stages of its own behind it.

    ``after`` makes the stages of a channel: a tracker belongs to one source.
    """

    def __init__(
        self,
        look: Together,
        names: Sequence[str],
        serving: Serving | None = None,
        after: Callable[[str], Stage] | None = None,
    ) -> None:
        self.look, self.serving = look, serving or Serving()
        self.channels = {n: Channel(n, deque(maxlen=self.serving.queue)) for n in names}
        self.stages = {name: after(name) for name in names} if after else {}
        self.batches: list[int] = []
        """Sizes of the batches so far."""
        self.seconds = 0.0
        self._turn = 0
        self._arrived = threading.Condition()

    def offer(self, name: str, frame: Frame) -> None:
        """Take a frame of a channel in; the oldest that waits goes when there is no room."""
        channel = self.channels[name]
        with self._arrived:
            channel.offered += 1
            channel.dropped += len(channel.queue) == self.serving.queue
            channel.queue.append((time.monotonic(), frame))
            self._arrived.notify()

    def step(self) -> list[Frame]:
        """Serve one batch of those who wait: one frame of each channel, in turn."""
        with self._arrived:
            taken = self._take()
        if not taken:
            return []
        answers = self.look([frame.image_HW3 for _, _, frame in taken])
        self.batches.append(len(taken))
        served = []
        for (channel, arrived, frame), found in zip(taken, answers, strict=True):
            frame = replace(frame, found=found, source=channel.name)
            stage = self.stages.get(channel.name)
            served.append(stage(frame) if stage else frame)
            channel.latencies.append(time.monotonic() - arrived)
        return served

    def run(self, sources: Mapping[str, Iterable[Frame]], seconds: float) -> Iterator[Frame]:
        """Yield served frames until all sources are at their end, or the time is over.

        Every source is read by a thread; one that breaks ends alone, and the report says why.
        """
        stop, begin = threading.Event(), time.monotonic()
        readers = [
            threading.Thread(target=self._read, args=(name, frames, stop), daemon=True)
            for name, frames in sources.items()
        ]
        for reader in readers:
            reader.start()
        try:
            while time.monotonic() - begin < seconds:
                over = not any(reader.is_alive() for reader in readers)
                self._gather()
                served = self.step()
                yield from served
                if over and not served:
                    break
        finally:
            stop.set()
            self.seconds += time.monotonic() - begin
            end = time.monotonic() + 1  # one that waits for its camera is left behind
            for reader in readers:
                reader.join(timeout=max(0.0, end - time.monotonic()))

    def report(self) -> dict[str, Any]:
        """Return what every channel got, and all of them: rates, latencies, who starved."""
        rows = [self._row(channel) for channel in self.channels.values()]
        rates = [row["frames_per_second"] for row in rows]
        times = sorted(t for channel in self.channels.values() for t in channel.latencies)
        return {
            "channels": rows,
            "seconds": round(self.seconds, 2),
            "served": len(times),
            "frames_per_second": round(len(times) / max(self.seconds, 1e-9), 2),
            "least": min(rates),
            "mean": round(fmean(rates), 3),
            "most": max(rates),
            "latency_ms": {name: _share(times, part) for name, part in PARTS.items()},
            "mean_batch": round(fmean(self.batches), 2) if self.batches else 0.0,
            "starved": [row["channel"] for row in rows if row["starved"]],
        }

    def _take(self) -> list[tuple[Channel, float, Frame]]:
        channels = list(self.channels.values())
        taken = []
        for place in range(len(channels)):
            at = (self._turn + place) % len(channels)
            if channels[at].queue:
                taken.append((channels[at], *channels[at].queue.popleft()))
            if len(taken) == self.serving.batch:
                break
        if taken:
            self._turn = (at + 1) % len(channels)
        return taken

    def _gather(self) -> None:
        """Wait until a batch is full, or the first frame has waited long enough."""
        patience = self.serving.patience
        with self._arrived:
            self._arrived.wait_for(lambda: self._waiting() > 0, timeout=10 * patience)
            full = min(self.serving.batch, len(self.channels))
            self._arrived.wait_for(lambda: self._waiting() >= full, timeout=patience)

    def _waiting(self) -> int:
        return sum(bool(channel.queue) for channel in self.channels.values())

    def _read(self, name: str, frames: Iterable[Frame], stop: threading.Event) -> None:
        try:
            for frame in frames:
                self.offer(name, frame)
                if stop.is_set():
                    return
        except Exception as error:
            # one camera that fails, however, must not end the others
            self.channels[name].broken = str(error) or type(error).__name__

    def _row(self, channel: Channel) -> dict[str, Any]:
        middle = sorted(one.served for one in self.channels.values())[len(self.channels) // 2]
        starved = channel.served < STARVED * min(channel.offered, middle) or (
            channel.offered > 0 and channel.served == 0
        )
        rate = channel.served / max(self.seconds, 1e-9)
        times = sorted(channel.latencies)
        return {
            **{"channel": channel.name, "offered": channel.offered, "served": channel.served},
            **{"dropped": channel.dropped, "frames_per_second": round(rate, 3)},
            "latency_ms": {name: _share(times, part) for name, part in PARTS.items()},
            **{"starved": starved, "broken": channel.broken},
        }


PARTS = {"median": 0.5, "p95": 0.95, "most": 1.0}


def _share(times: Sequence[float], part: float) -> float:
    """Return the time below which a part of sorted times lies, in milliseconds."""
    return round(1000 * times[round(part * (len(times) - 1))], 2) if times else 0.0


def paced(frames: Iterable[Frame], rate: float) -> Iterator[Frame]:
    """Yield frames no faster than a camera of so many frames a second would send them."""
    begin = time.monotonic()
    for number, frame in enumerate(frames):
        time.sleep(max(0.0, begin + number / rate - time.monotonic()))
        yield frame


def panned(image_HW3: Bytes, name: str, count: int, side: int) -> Iterator[Frame]:
    """Yield squares of a picture as a camera sees it that turns: a stream without a film."""
    height, width = image_HW3.shape[:2]
    for number in range(count):
        rows = np.arange(number, number + side) % height
        columns = np.arange(2 * number, 2 * number + side) % width
        yield Frame(image_HW3[rows][:, columns], float(number), name, number)


def together(task: Detector, models: Models) -> Together:
    """Return what finds the objects of several pictures of any sizes at once with a detector."""
    return lambda images: task.look_at(models, images)
