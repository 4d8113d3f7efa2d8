"""A frame on its way through the stages of a pipeline, and how fast it is there.

Shape legend: N objects, H height, W width, 3 RGB.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from trainers.blocks.boxes import grown
from trainers.data.instances import Found
from trainers.data.scenes import Bytes

if TYPE_CHECKING:
    from trainers.pipeline.events import Alert

UNTRACKED = -1
"""In place of a track's number."""
READING = "reading"
"""The share of the time that the source takes."""


def nothing() -> Found:
    """Return the answer that nothing was found."""
    return Found(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0))


@dataclass(frozen=True)
class Frame:
    """A picture of a source, and what the stages have said of it so far."""

    image_HW3: Bytes
    time: float = 0.0
    """Seconds since the source began."""
    source: str = ""
    number: int = 0
    """Of the frame in its source, those that were dropped counted."""
    found: Found = field(default_factory=nothing)
    ids: tuple[int, ...] = ()
    """The track of each object that was found, -1 without; empty where nobody follows."""
    crops: tuple[Bytes, ...] = ()
    """The picture of each object."""
    said: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """What heads say of each object, by the head's name."""
    alerts: tuple[Alert, ...] = ()

    def track(self, number: int) -> int:
        """Return the track of an object, -1 for none."""
        return self.ids[number] if self.ids else UNTRACKED


Stage = Callable[[Frame], Frame]
"""Takes a frame and returns it with more said of it."""


def detector(look: Callable[[Bytes], Found]) -> Stage:
    """Return the stage that finds objects."""
    return lambda frame: replace(frame, found=look(frame.image_HW3))


def cropper(side: int, factor: float = 1.2) -> Stage:
    """Return the stage that cuts out a square around each object, black beyond the picture.

    Its sides are ``factor`` times the longer one of the box, scaled to ``side`` pixels.
    """

    def cut(frame: Frame) -> Frame:
        boxes_N4 = frame.found.boxes_N4
        middles_N2 = (boxes_N4[:, :2] + boxes_N4[:, 2:]) / 2
        longer_N1 = (boxes_N4[:, 2:] - boxes_N4[:, :2]).amax(1, keepdim=True).clamp(min=1)
        squares_N4 = torch.cat([middles_N2 - longer_N1 / 2, middles_N2 + longer_N1 / 2], 1)
        image = Image.fromarray(np.ascontiguousarray(frame.image_HW3))
        crops = []
        for x0, y0, x1, y1 in grown(squares_N4, factor).tolist():
            # the sides of the square in the picture's pixels: PIL fills what is beyond with black
            kept = ((x1 - x0) / side, 0, x0, 0, (y1 - y0) / side, y0)
            shape, way = (side, side), Image.Transform.AFFINE
            crops.append(np.array(image.transform(shape, way, kept, Image.Resampling.BILINEAR)))
        return replace(frame, crops=tuple(crops))

    return cut


def head(name: str, answer: Callable[[Sequence[Bytes]], Sequence[Any]]) -> Stage:
    """Return the stage that asks a second network about the crops of all objects together."""

    def ask(frame: Frame) -> Frame:
        answers = answer(frame.crops) if frame.crops else ()
        return replace(frame, said={**frame.said, name: answers})

    return ask


class Speed:
    """Counts frames and the seconds that each stage takes."""

    def __init__(self) -> None:
        self.frames = 0
        self.seconds: dict[str, float] = {}

    def add(self, name: str, seconds: float) -> None:
        """Count some seconds of a stage."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    @property
    def rate(self) -> float:
        """Return frames per second so far."""
        return self.frames / max(sum(self.seconds.values()), 1e-9)

    def shares(self) -> dict[str, float]:
        """Return the share of the time of each stage."""
        total = max(sum(self.seconds.values()), 1e-9)
        return {name: seconds / total for name, seconds in self.seconds.items()}

    def record(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        shares = {name: round(share, 3) for name, share in self.shares().items()}
        return {"frames": self.frames, "frames_per_second": round(self.rate, 2), "shares": shares}

    def __str__(self) -> str:
        """Return the rate and what takes longest, as in ``14.2 frames/s, detector 91 %``."""
        words = f"{self.rate:.1f} frames/s"
        if not self.seconds:
            return words
        name, share = max(self.shares().items(), key=lambda pair: pair[1])
        return f"{words}, {name} {share:.0%}"


class Pipeline:
    """Stages by name, one after another; itself a stage.

    Left as a context, it closes the stages that can be closed: files of a sink, for one.
    """

    def __init__(self, stages: Mapping[str, Stage], speed: Speed | None = None) -> None:
        self.stages, self.speed = dict(stages), speed or Speed()

    def __call__(self, frame: Frame) -> Frame:
        """Send a frame through all stages."""
        for name, stage in self.stages.items():
            begin = time.perf_counter()
            frame = stage(frame)
            self.speed.add(name, time.perf_counter() - begin)
        self.speed.frames += 1
        return frame

    def run(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """Yield the frames of a source after all stages."""
        arriving = iter(frames)
        while True:
            begin = time.perf_counter()
            frame = next(arriving, None)
            if frame is None:
                return
            self.speed.add(READING, time.perf_counter() - begin)
            yield self(frame)

    def close(self) -> None:
        """Close what can be closed."""
        for stage in self.stages.values():
            close = getattr(stage, "close", None)
            if close is not None:
                close()

    def __enter__(self) -> Pipeline:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close what can be closed."""
        self.close()
