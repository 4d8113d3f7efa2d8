"""Where frames go: lines of JSON, and drawn pictures or films.

Shape legend: N objects, H height, W width, 3 RGB.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from dlplatform.errors import UsageError
from trainers.blocks.blur import Blur, audit, blurred
from trainers.data.instances import Found, Kinds
from trainers.data.scenes import Bytes
from trainers.pictures.files import USUAL, write_film, writing
from trainers.pictures.found import told
from trainers.pictures.instances import COLOURS, draw_objects
from trainers.pipeline.events import Alert, Polygon
from trainers.pipeline.frame import UNTRACKED, Frame, Speed
from trainers.pipeline.sources import video_library

STRIP = 22
"""Pixels of the line below a frame."""
PAPER, INK, WARNING = (24, 26, 32), (230, 232, 238), (239, 71, 111)
LINGER = 1.0
"""Seconds for which an alert is shown."""
TICKS = 1000
"""Units of time in a film's second."""


def record(frame: Frame, kinds: Kinds) -> dict[str, Any]:
    """Return what is known of a frame ready for JSON.

    Its objects have kind, score and box, and where known mask, joints, state, the track's number
    and what heads say.
    """
    objects = told(frame.found, kinds)
    for number, one in enumerate(objects):
        if frame.ids:
            one["track"] = None if frame.ids[number] == UNTRACKED else frame.ids[number]
        one |= {name: _plain(answers[number]) for name, answers in frame.said.items()}
    facts = {"source": frame.source, "frame": frame.number, "time": round(frame.time, 4)}
    alerts = [alert.record() for alert in frame.alerts]
    return {**facts, "objects": objects, **({"alerts": alerts} if alerts else {})}


def _plain(value: Any) -> Any:
    """Return what a head said, tensors and arrays as lists."""
    return value.tolist() if hasattr(value, "tolist") else value


class _Lines:
    """A file of JSON, a line as it comes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None

    def add(self, told: Mapping[str, Any]) -> None:
        """Write a line, at once."""
        if self._file is None:
            with writing(self.path.parent):
                self._file = self.path.open("w")
        print(json.dumps(told), file=self._file, flush=True)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class JsonLines(_Lines):
    """The stage that writes a line of JSON for every frame, at once."""

    def __init__(self, path: Path, kinds: Kinds) -> None:
        super().__init__(path)
        self.kinds = kinds

    def __call__(self, frame: Frame) -> Frame:
        """Write a frame down."""
        self.add(record(frame, self.kinds))
        return frame


def draw_frame(
    frame: Frame,
    kinds: Kinds,
    speed: Speed | None = None,
    zones: Mapping[str, Polygon] | None = None,
) -> Image.Image:
    """Draw a frame's objects with the numbers of their tracks, zones, alerts, and the speed."""
    names, found = _named(frame, kinds)
    # the words and colours of an object are those of a kind of its own
    drawn = draw_objects(frame.image_HW3, found, names, 0.0)
    scale, pen = drawn.width / frame.image_HW3.shape[1], ImageDraw.Draw(drawn)
    font = ImageFont.load_default(size=14)
    for name, corners in (zones or {}).items():
        places = [(x * scale, y * scale) for x, y in corners]
        pen.line([*places, places[0]], fill=INK, width=2)
        pen.text((places[0][0] + 4, places[0][1] + 2), name, fill=INK, font=font)
    for alert in frame.alerts:
        x0, y0, x1, y1 = (value * scale for value in alert.box)
        pen.rectangle((x0 - 4, y0 - 4, x1 + 3, y1 + 3), outline=WARNING, width=4)
    sheet = Image.new("RGB", (drawn.width, drawn.height + STRIP), PAPER)
    sheet.paste(drawn)
    words = f"{frame.time:.2f} s" + (f"   {speed}" if speed and speed.frames else "")
    pen = ImageDraw.Draw(sheet)
    pen.text((6, drawn.height + 3), words, fill=INK, font=font)
    if frame.alerts:
        called = ", ".join(f"{one.rule} #{one.track} {one.zone}".strip() for one in frame.alerts)
        pen.text((sheet.width - 6, drawn.height + 3), called, fill=WARNING, font=font, anchor="ra")
    return sheet


def _named(frame: Frame, kinds: Kinds) -> tuple[Kinds, Found]:
    """Return kinds and answers in which every object is of a kind of its own."""
    found, words, colours = frame.found, [], []
    for number, label in enumerate(found.labels_N.tolist()):
        track, word = frame.track(number), kinds.names[label]
        if found.states_NS is not None and kinds.states:
            word = kinds.states[int(found.states_NS[number].argmax())]
        names = [said[number] for said in frame.said.values() if isinstance(said[number], str)]
        word = " ".join(filter(None, (word, *names)))
        words.append(f"#{track} {word}" if track > 0 else word)
        colours.append(COLOURS[(track if track > 0 else label) % len(COLOURS)])
    every = replace(kinds, names=tuple(words), colours=tuple(colours), states=())
    return every, found._replace(labels_N=torch.arange(len(words)), states_NS=None)


class Reel:
    """Pictures on their way into a folder of PNG, a GIF or a film, by the path's ending.

    A film is written as it comes (PyAV); a GIF is kept until it is closed. Raises UsageError for
    another ending.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix.lower() not in ("", ".gif", *FILMS):
            raise UsageError(
                f"{path} cannot be drawn - allowed: a folder, .gif, {', '.join(FILMS)} - do: "
                "choose an ending"
            )
        self.path = path
        self._kept: list[tuple[float, Bytes]] = []
        self._film: Film | None = None

    def add(self, picture: Image.Image, frame: Frame) -> None:
        """Write a picture of a frame."""
        if not self.path.suffix:
            with writing(self.path):
                stem = Path(frame.source).stem or "frame"
                picture.save(self.path / f"{stem}_{frame.number:06d}.png")
        elif self.path.suffix.lower() == ".gif":
            self._kept.append((frame.time, np.array(picture)))
        else:
            if self._film is None:
                self._film = Film(self.path, picture.size)
            self._film.add(picture, frame.time)

    def close(self) -> None:
        """Finish the file."""
        if self._film is not None:
            self._film.close()
        if self._kept:
            times, drawn = zip(*self._kept, strict=True)
            each = [1000 * (late - soon) for soon, late in pairwise(times)]
            write_film(self.path, drawn, [*each, each[-1] if each else USUAL])


class Drawing:
    """The stage that draws frames into a folder, a GIF or a film (``Reel``).

    An alert is shown for a second.
    """

    def __init__(
        self,
        path: Path,
        kinds: Kinds,
        speed: Speed | None = None,
        zones: Mapping[str, Polygon] | None = None,
    ) -> None:
        self.kinds, self.speed, self.zones = kinds, speed, zones
        self._reel, self._alerts = Reel(path), tuple[Alert, ...]()

    def __call__(self, frame: Frame) -> Frame:
        """Draw a frame."""
        recent = [alert for alert in self._alerts if 0 <= frame.time - alert.time < LINGER]
        self._alerts = (*recent, *frame.alerts)
        shown = replace(frame, alerts=self._alerts)
        self._reel.add(draw_frame(shown, self.kinds, self.speed, self.zones), frame)
        return frame

    def close(self) -> None:
        """Finish the file."""
        self._reel.close()


class Blurring:
    """The stage that blurs what is found, and writes the pictures and a line for each.

    A line names the regions; pixels outside of them stay, as far as a GIF or a film keeps pixels.
    """

    def __init__(self, path: Path, lines: Path, kinds: Kinds, how: Blur) -> None:
        self.kinds, self.how, self.regions = kinds, how, 0
        self._reel, self._lines = Reel(path), _Lines(lines)

    def __call__(self, frame: Frame) -> Frame:
        """Blur a frame; those after it see the blurred one."""
        size = (frame.image_HW3.shape[0], frame.image_HW3.shape[1])
        regions = audit(frame.found, self.kinds, size, self.how)
        facts = {"source": frame.source, "frame": frame.number, "time": round(frame.time, 4)}
        self._lines.add({**facts, "regions": regions})
        self.regions += len(regions)
        image_HW3 = blurred(frame.image_HW3, frame.found, self.how)
        self._reel.add(Image.fromarray(image_HW3), frame)
        return replace(frame, image_HW3=image_HW3)

    def close(self) -> None:
        """Finish the files."""
        self._lines.close()
        self._reel.close()


FILMS = (".mp4", ".mkv", ".avi", ".mov")


class Film:
    """A film of RGB pictures of one size that is written frame by frame (PyAV).

    Its sides are even: of an odd one the last row or column is cut off.
    """

    def __init__(self, path: Path, size: tuple[int, int]) -> None:
        av = video_library()
        # colours are stored for two by two pixels
        self.size = (size[0] - size[0] % 2, size[1] - size[1] % 2)
        with writing(path.parent):
            self._container: Any = av.open(str(path), "w")
        coders = av.codec.codecs_available
        self._stream = self._container.add_stream("libx264" if "libx264" in coders else "mpeg4")
        self._stream.width, self._stream.height = self.size
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, TICKS)
        self._picture, self._last = av.VideoFrame, -1

    def add(self, drawn: Image.Image, time: float) -> None:
        """Add a picture that is shown from a time in seconds on."""
        drawn = drawn.convert("RGB")
        if drawn.size != self.size:
            drawn = drawn.crop((0, 0, *self.size))
        picture = self._picture.from_image(drawn)
        # times must rise, whatever a camera says
        self._last = max(self._last + 1, round(time * TICKS))
        picture.pts, picture.time_base = self._last, Fraction(1, TICKS)
        self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        """Finish the file."""
        self._container.mux(self._stream.encode())
        self._container.close()
