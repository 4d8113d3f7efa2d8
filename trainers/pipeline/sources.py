"""Where frames come from: a picture, a folder of pictures, a moving picture, a film, a camera.

Films and cameras are read by PyAV, an extra (``pip install 'dlplatform[video]'``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dlplatform.errors import EnvironmentMissing, UsageError
from trainers.pictures.files import ENDINGS, MOVING, frames, open_picture, pictures_of
from trainers.pipeline.frame import Frame

CAMERA = "camera"
NETWORK = ("rtsp://", "rtsps://", "http://", "https://", "udp://", "tcp://")


@dataclass(frozen=True)
class Source:
    """Frames, and whether one follows from another, so that objects can be tracked."""

    name: str
    moving: bool
    frames: Iterator[Frame]


def open_source(name: str | Path, rate: float = 0.0) -> Source:
    """Return the frames of a file, of a folder, of a camera or of an address.

    ``camera`` or ``camera:1`` is a camera of this machine; an address begins with ``rtsp://`` or
    ``http://``. A folder's pictures are separate, or with a rate a film of so many pictures a
    second. Frames are read when they are asked for, and so is most that is wrong with a file.
    Raises UsageError for what is no picture and no film, EnvironmentMissing where films cannot be
    read.
    """
    text, path = str(name), Path(name)
    if text.partition(":")[0] == CAMERA or text.startswith(NETWORK):
        return Source(text, True, _film(text))
    if path.is_dir():
        return Source(text, rate > 0, _pictures(path, rate))
    if not path.is_file():
        raise UsageError(
            f"{path} is not there - allowed: a picture, a folder of pictures, a film, "
            f"{CAMERA}:NUMBER, rtsp://ADDRESS - do: check the path"
        )
    if path.suffix.lower() not in ENDINGS:
        return Source(text, True, _film(text))
    if _moves(path):
        return Source(text, True, _moving(path))
    return Source(text, False, _pictures(path, 0.0))


def video_library() -> ModuleType:
    """Return PyAV; raises EnvironmentMissing where it is not installed."""
    try:
        import av
    except ImportError as error:
        raise EnvironmentMissing(
            f"films need PyAV, which is not here ({error}) - allowed without: pictures, folders of "
            "pictures, GIFs - do: pip install 'dlplatform[video]'"
        ) from error
    return av


def _moves(path: Path) -> bool:
    """Tell whether a picture moves; raises UsageError for a file that is no picture."""
    from PIL import Image

    open_picture(path)  # refuses what is none in one line
    with Image.open(path) as file:
        return bool(getattr(file, "is_animated", False)) and file.format in MOVING


def _pictures(path: Path, rate: float) -> Iterator[Frame]:
    for number, file in enumerate(pictures_of(path) if path.is_dir() else [path]):
        image_HW3 = np.array(open_picture(file, "RGB"))
        if rate:
            yield Frame(image_HW3, number / rate, str(path), number)
        else:
            yield Frame(image_HW3, 0.0, str(file), number)


def _moving(path: Path) -> Iterator[Frame]:
    begin = 0.0
    for number, (picture, milliseconds) in enumerate(frames(path)):
        yield Frame(np.array(picture), begin / 1000, str(path), number)
        begin += milliseconds


def _film(name: str) -> Iterator[Frame]:
    av = video_library()
    number = 0
    try:
        with _opened(av, name) as container:
            if not container.streams.video:
                raise UsageError(
                    f"{name} holds no pictures - allowed: films - do: name another file"
                )
            stream, first = container.streams.video[0], None
            stream.thread_type = "AUTO"
            for picture in container.decode(stream):
                # cameras count from when they were switched on
                when = float(picture.time) if picture.time is not None else number / _rate(stream)
                first = when if first is None else first
                yield Frame(_upright(picture), when - first, name, number)
                number += 1
    except (av.FFmpegError, OSError) as error:
        where = f"after {number} frames " if number else ""
        raise UsageError(
            f"{name} cannot be read as a film {where}({_short(error)}) - allowed: MP4, AVI, MKV, "
            "WebM and other films that FFmpeg reads, cameras - do: check it with another player"
        ) from error
    if not number:
        raise UsageError(f"{name} holds no frame - allowed: films - do: name another file")


def _opened(av: ModuleType, name: str) -> Any:
    """Open a film, or a camera of this machine by its number."""
    word, _, number = name.partition(":")
    if word != CAMERA:
        return av.open(name)
    if not (number or "0").isdigit():
        raise UsageError(
            f"{name} is not a camera - allowed: {CAMERA}, {CAMERA}:0, {CAMERA}:1 - do: choose"
        )
    return av.open(f"/dev/video{number or 0}", format="v4l2")


def _upright(picture: Any) -> Any:
    """Return the RGB bytes of a frame, turned as its camera was held."""
    turned = np.rot90(picture.to_ndarray(format="rgb24"), round(picture.rotation / 90))
    return np.ascontiguousarray(turned)


def _rate(stream: Any) -> float:
    return float(stream.average_rate or 25)


def _short(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
