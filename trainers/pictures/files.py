"""Picture files of a user: opened upright, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dlplatform.errors import UsageError


def open_picture(path: Path, mode: str = "") -> Image.Image:
    """Return the picture in a file, turned as its camera was held, in a mode of pillow if given.

    Raises UsageError for a file that is no picture.
    """
    try:
        with Image.open(path) as file:
            upright = ImageOps.exif_transpose(file)
            return upright.convert(mode) if mode else upright.copy()
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(
            f"{path} cannot be read as an image ({error}) - allowed: PNG, JPEG, BMP, TIFF and "
            "other files that pillow reads - convert it first"
        ) from error


def read_fitted(path: Path, channels: int, height: int, width: int) -> NDArray[np.uint8]:
    """Return a picture as (channels, height, width): scaled to cover that, the middle cut out."""
    picture = open_picture(path, "L" if channels == 1 else "RGB")
    fitted = np.asarray(ImageOps.fit(picture, (width, height), Image.Resampling.BOX))
    return np.ascontiguousarray(fitted.reshape(height, width, channels).transpose(2, 0, 1))
