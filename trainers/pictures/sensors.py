"""Draw what body sensors recorded, what was done, what was decided, and who was mistaken for what.

Shape legend: S samples, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainers.data.sensors import STEP, WINDOW
from trainers.pictures.sheet import FAINT, PAPER, Heading, Row, Tile, draw_sheet, write
from trainers.pictures.signals import curves, stacked, strip, table
from trainers.synth.imu import ACTIVITIES, RATE, Recording

WIDE, TALL, BAND = 1000, 78, 26

PANELS = (
    ("acceleration, g", slice(0, 3)),
    ("turn rate, rad/s", slice(3, 6)),
    ("magnetic field", slice(6, 9)),
    ("height, m", slice(9, 10)),
)


def draw_sensors(
    recording: Recording,
    decided: Sequence[tuple[int, int]],
    counts_KK: NDArray[np.integer],
    scores: dict[str, float],
) -> Image.Image:
    """Draw a recording with its decisions, each (alone, after the vote), and the confusion."""
    parts = [_panel(recording.samples_SC[:, channels], name) for name, channels in PANELS]
    alone, voted = ([pair[n] for pair in decided] for n in (0, 1))
    parts.append(_band("truth", recording.activity_S.tolist()))
    parts.append(_band("each window", _over_time(alone, len(recording.samples_SC))))
    parts.append(
        _band(
            "vote of the last five (late by up to three windows)",
            _over_time(voted, len(recording.samples_SC)),
        )
    )
    left = stacked(parts)
    heading = Heading(
        "Posture and activity from eleven sensors",
        f"a test subject for {len(recording.samples_SC) / RATE:.0f} s (x blue, y orange, "
        "z green), and all windows of all test subjects",
        f"macro-F1 {scores['macro_f1']:.3f}",
        f"stairs {scores['stairs_f1']:.2f}, without the altimeter "
        f"{scores['stairs_without_alt']:.2f}",
    )
    square = table(counts_KK, ACTIVITIES, left.height)
    return draw_sheet(heading, [Row([Tile(left), Tile(square)])], left.height, smooth=True)


def _panel(samples_SC: NDArray[np.floating], name: str) -> Image.Image:
    missing = bool(np.isnan(samples_SC).all())
    image = curves(np.nan_to_num(samples_SC.T), (WIDE, TALL))
    return _captioned(f"{name}: not measured" if missing else name, image)


def _band(name: str, labels: Sequence[int]) -> Image.Image:
    return _captioned(name, strip(labels, ACTIVITIES, (WIDE, BAND)))


def _captioned(name: str, image: Image.Image) -> Image.Image:
    caption = Image.new("RGB", (WIDE, 16), PAPER)
    write(caption, (8, 8), name, 13, FAINT)
    return stacked([caption, image], gap=0)


def _over_time(decisions: Sequence[int], samples: int) -> list[int]:
    """Return the decision that stands at each sample: that of the window whose middle is next."""
    middles = np.arange(len(decisions)) * STEP + WINDOW // 2
    nearest = np.abs(np.arange(samples)[:, None] - middles).argmin(1)
    return [decisions[n] for n in nearest]
