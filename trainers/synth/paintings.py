"""Swirling paintings of short brush strokes, in the blues and yellows of a starry night.

A painting is a pure function of its seed. Shape legend: H height, W width, C colours (RGB).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

PALETTE = (
    *((18, 32, 84), (28, 62, 138), (52, 104, 178), (96, 152, 204), (30, 78, 96)),
    *((240, 206, 92), (226, 168, 48), (248, 232, 166)),
)
DARK = 5
"""Colours of the palette that are blue; the others are for the light at the whirls."""
STROKES, STEPS = 700, 6


def painting(seed: int, side: int = 64) -> NDArray[np.uint8]:
    """Return a painting (H, W, C): strokes that follow a flow around a few whirls."""
    random = np.random.RandomState(seed % 2**32)
    canvas = 2 * side
    sheet = Image.new("RGB", (canvas, canvas), PALETTE[0])
    draw = ImageDraw.Draw(sheet)
    whirls = random.uniform(0.1, 0.9, (4, 2))
    turns = random.choice([-1.0, 1.0], 4)
    starts, luck = random.uniform(0, 1, (STROKES, 2)), random.uniform(0, 1, (STROKES, 2))
    paths = [starts]
    for _ in range(STEPS):
        paths.append(paths[-1] + 0.025 * _flow(paths[-1], whirls, turns))
    near = np.sqrt(((starts[:, None] - whirls) ** 2).sum(2)).min(1)
    for path, distance, (shade, width) in zip(np.stack(paths, 1), near, luck, strict=True):
        light = shade > 0.1 + 4 * distance
        pick = (
            DARK + int(shade * 7919) % (len(PALETTE) - DARK) if light else int(shade * 7919) % DARK
        )
        points = [(float(x) * canvas, float(y) * canvas) for x, y in path]
        draw.line(points, PALETTE[pick], width=max(2, round(canvas * (0.026 + 0.03 * width))))
    return np.asarray(sheet.resize((side, side), Image.Resampling.BOX))


def _flow(
    at: NDArray[np.float64], whirls: NDArray[np.float64], turns: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the direction of the flow at some points: around the whirls, along a slow wave."""
    away = at[:, None] - whirls
    strength = turns / (0.02 + (away**2).sum(2))
    around = (np.stack([-away[..., 1], away[..., 0]], 2) * strength[..., None]).sum(1)
    around += np.stack([np.ones(len(at)), np.sin(2 * math.pi * at[:, 0])], 1)
    direction: NDArray[np.float64] = around / (np.sqrt((around**2).sum(1, keepdims=True)) + 1e-6)
    return direction
