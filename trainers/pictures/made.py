"""Draw what a generator made: samples, their nearest real neighbours, a walk through its noise.

Shape legend: N pictures, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from dlplatform.errors import UsageError
from trainers.blocks.classify import logits
from trainers.data.requests import read_request, refused
from trainers.pictures.files import read_fitted
from trainers.pictures.sheet import FAINT, INK, Heading, Row, Tile, draw_sheet
from trainers.scores.made import nearest

Said = tuple[Tensor, Tensor]
COLUMNS, ZOOM, MOST = 10, 4, 1024
ALLOWED = '{"seed": a whole number, "count": how many}, one of them or both'


def draw_made(
    made_NCHW: Tensor,
    known_NCHW: Tensor,
    walk_NCHW: Tensor,
    said: Said | None,
    scores: Mapping[str, float],
) -> Image.Image:
    """Draw rows of samples with an expert's answers, if there is one, and the other rows."""
    tiles = [Tile(image, _lines(n, said), _colour(n, said)) for n, image in _images(made_NCHW)]
    rows = [Row(tiles[n : n + COLUMNS]) for n in range(0, len(tiles), COLUMNS)]
    rows = [Row(row.tiles, "more" if n else "made") for n, row in enumerate(rows)]
    near_NCHW = known_NCHW[nearest(made_NCHW[:COLUMNS], known_NCHW)[1]]
    walk = [Tile(image) for _, image in _images(walk_NCHW)]
    rows[1:1] = [Row([Tile(image) for _, image in _images(near_NCHW)], "nearest real")]
    heading = Heading(
        "DCGAN: pictures that never were",
        detail="below the first row: the training picture nearest to each" + _named(said),
        score=f"{scores['f1']:.2f}",
        note="F1 of precision and recall among test pictures",
    )
    return draw_sheet(heading, [*rows, Row(walk, "from one to\nanother")], height=96)


def save_grid(x_NCHW: Tensor, path: Path) -> None:
    """Write pictures in [0, 1] into one file, in rows."""
    columns = min(len(x_NCHW), int(np.ceil(len(x_NCHW) ** 0.5)))
    rows = -(-len(x_NCHW) // columns)
    channels, height, width = x_NCHW.shape[1:]
    sheet = np.zeros((rows * height, columns * width, channels), np.uint8)
    for n, image in _images(x_NCHW):
        top, left = n // columns * height, n % columns * width
        sheet[top : top + height, left : left + width] = image
    whole = Image.fromarray(sheet.squeeze(-1) if channels == 1 else sheet)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole.resize((ZOOM * whole.width, ZOOM * whole.height), Image.Resampling.NEAREST).save(path)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror} - allowed: a file in a writable folder "
            "- do: name another"
        ) from None


def answer(
    raw: Path, make: Callable[[int, int], Tensor], judge: nn.Module, form: tuple[int, int, int]
) -> dict[str, Any]:
    """Return how real a picture in a file is judged, or make pictures as a JSON file asks for.

    ``make`` returns pictures of a seed and a count; ``form`` is (C, H, W) of what is judged.
    """
    if raw.suffix.lower() != ".json":
        x_1CHW = torch.tensor(read_fitted(raw, *form))[None] / 255
        return {"real": round(float(logits(judge, 2 * x_1CHW - 1).sigmoid()), 4)}
    asked = read_request(raw, ALLOWED, seed=int, count=int)
    count = asked.get("count", 16)
    if not 1 <= count <= MOST:
        raise refused(raw, f"a count of {count}", f"1 to {MOST}")
    save_grid(make(asked.get("seed", 0), count), path := raw.with_suffix(".png"))
    return {"made": count, "picture": str(path)}


def _images(x_NCHW: Tensor) -> list[tuple[int, NDArray[np.uint8]]]:
    whole = (x_NCHW * 255).round().byte().movedim(1, -1).numpy()
    return list(enumerate(whole))


def _named(said: Said | None) -> str:
    return "; under it the expert's answer and confidence" if said else ""


def _lines(n: int, said: Said | None) -> list[str]:
    return [f"{int(said[1][n])}  {float(said[0][n]):.0%}"] if said else []


def _colour(n: int, said: Said | None) -> str:
    return FAINT if said and float(said[0][n]) < 0.5 else INK
