"""Picture files of a user: opened upright, or refused in one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, ImageSequence

from dlplatform.errors import UsageError

ENDINGS = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
)
"""Of files that are taken for pictures where a folder is given."""
MOVING = ("GIF", "WEBP", "PNG")
"""Formats of moving pictures; the pages of a TIFF file are not one."""
USUAL = 100.0
"""Milliseconds of a frame that does not say, as browsers show it."""
UNREADABLE = (OSError, ValueError, Image.DecompressionBombError)


def open_picture(path: Path, mode: str = "") -> Image.Image:
    """Return the picture in a file, turned as its camera was held, in a mode of pillow if given.

    Raises UsageError for a file that is no picture.
    """
    try:
        with Image.open(path) as file:
            upright = ImageOps.exif_transpose(file)  # always a copy
            return upright if mode in ("", upright.mode) else upright.convert(mode)
    except UNREADABLE as error:
        raise _no_picture(path, error) from error


def frames(path: Path) -> Iterator[tuple[Image.Image, float]]:
    """Yield the RGB pictures of a moving one with the milliseconds each is shown; else nothing.

    Raises UsageError for a file that is no picture, or whose frames break off.
    """
    try:
        with Image.open(path) as file:
            if not getattr(file, "is_animated", False) or file.format not in MOVING:
                return
            for frame in ImageSequence.Iterator(file):
                yield frame.convert("RGB"), float(frame.info.get("duration", 0)) or USUAL
    except UNREADABLE as error:
        raise _no_picture(path, error) from error


def pictures_of(folder: Path) -> list[Path]:
    """Return the picture files directly in a folder, by name; raises UsageError for none."""
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in ENDINGS and p.is_file())
    if not found:
        raise UsageError(
            f"{folder} holds no pictures - allowed: {' '.join(sorted(ENDINGS))}, directly in the "
            "folder - do: name a folder of pictures, or files"
        )
    return found


def read_fitted(path: Path, channels: int, height: int, width: int) -> NDArray[np.uint8]:
    """Return a picture as (channels, height, width): scaled to cover that, the middle cut out."""
    picture = open_picture(path, "L" if channels == 1 else "RGB")
    fitted = np.asarray(ImageOps.fit(picture, (width, height), Image.Resampling.BOX))
    return np.ascontiguousarray(fitted.reshape(height, width, channels).transpose(2, 0, 1))


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Make a folder for what is written inside; raises UsageError where that cannot be done."""
    try:
        folder.mkdir(exist_ok=True)
        yield
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be written ({error}) - allowed: pictures in a folder that you may "
            "write to - copy the picture to one"
        ) from error


def write_film(
    path: Path, shown: Sequence[NDArray[np.uint8]], milliseconds: Sequence[float]
) -> None:
    """Write RGB pictures (H, W, 3) as a GIF, each shown for its time; makes the folder."""
    first, *others = (Image.fromarray(one) for one in shown)
    with writing(path.parent):
        first.save(path, save_all=True, append_images=others, duration=list(milliseconds), loop=0)


def _no_picture(path: Path, error: Exception) -> UsageError:
    return UsageError(
        f"{path} cannot be read as an image ({error}) - allowed: PNG, JPEG, BMP, TIFF and "
        "other files that pillow reads - convert it first"
    )
