"""Pictures without labels: a folder of files as CelebA and LSUN have them, read when needed.

Shape legend: N pictures, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dlplatform.errors import UsageError
from trainers.data.readers import read_all
from trainers.pictures.files import read_fitted

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
HELD_OUT = 12
"""One in so many pictures is for validation, and one for testing."""
FEWEST = 3 * HELD_OUT


@dataclass(frozen=True)
class Kept:
    """Pictures in memory."""

    x_NCHW: Tensor
    """In [0, 1]."""

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.x_NCHW)

    def take(self, index: Tensor) -> Tensor:
        """Return the pictures at some indices."""
        return self.x_NCHW[index]


@dataclass(frozen=True)
class Filed:
    """Pictures in files, shown square and all of a size."""

    files: Sequence[Path]
    size: int
    channels: int = 3

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.files)

    def take(self, index: Tensor) -> Tensor:
        """Read the pictures at some indices as x_NCHW in [0, 1], the middle cut out."""
        size = self.channels, self.size, self.size
        read = read_all(lambda n: read_fitted(self.files[n], *size), index.tolist())
        return torch.from_numpy(np.stack(read)) / 255


Pictures = Kept | Filed


@cache
def load_pictures(folder: str, size: int, channels: int = 3) -> dict[str, Pictures]:
    """Return the parts ``train``, ``val`` and ``test`` of all pictures below a folder, by name.

    Raises UsageError for a folder that is missing or has too few.
    """
    home = Path(folder)
    found = sorted(p for p in home.rglob("*") if p.suffix.lower() in ENDINGS)
    if len(found) < FEWEST:
        what = f"has {len(found)} pictures below it" if home.is_dir() else "is not a folder"
        raise UsageError(
            f"task.data={folder} {what} - allowed: a folder with at least {FEWEST} files "
            f"({', '.join(ENDINGS)}) - do: name the folder of pictures"
        )
    parts = {
        "val": found[::HELD_OUT],
        "test": found[1::HELD_OUT],
        "train": [p for n, p in enumerate(found) if n % HELD_OUT > 1],
    }
    return {name: Filed(files, size, channels) for name, files in parts.items()}
