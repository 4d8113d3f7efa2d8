"""Board: scalars and pictures for TensorBoard, and the same scalars in metrics.jsonl.

x is always the number of minibatches the whole job has trained.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image


class Board:
    """The record of one run, written by its chief."""

    def __init__(self, folder: Path, tensorboard: bool = True) -> None:
        self.folder = folder
        self._writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / "tensorboard"))
        self._lines = (folder / "metrics.jsonl").open("a", buffering=1)

    def scalars(self, position: int, values: dict[str, float]) -> None:
        """Record named values."""
        for name, value in values.items() if self._writer else ():
            self._writer.add_scalar(name, value, position)
        self._lines.write(json.dumps({"minibatch": position, **values}) + "\n")

    def image(self, name: str, image: Image.Image, position: int) -> None:
        """Record a picture."""
        import numpy as np

        pixels = np.asarray(image.convert("RGB"))
        self._writer.add_image(name, pixels, position, dataformats="HWC")

    def hparams(self, settings: dict[str, Any], scores: dict[str, float]) -> None:
        """Record the settings and final scores for comparison between runs."""
        flat = {k: v for k, v in flatten(settings) if isinstance(v, int | float | str | bool)}
        self._writer.add_hparams(flat, {f"final/{k}": v for k, v in scores.items()}, run_name=".")

    def close(self) -> None:
        """Write everything out."""
        if self._writer:
            self._writer.close()
        self._lines.close()


def flatten(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return nested settings as (dotted name, value)."""
    rows: list[tuple[str, Any]] = []
    for key, value in settings.items():
        rows += (
            flatten(value, f"{prefix}{key}.")
            if isinstance(value, dict)
            else [(prefix + key, value)]
        )
    return rows
