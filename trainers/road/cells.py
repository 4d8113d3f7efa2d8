"""Do features know where in the picture they are? Cells of a grid, in a plane by t-SNE.

Source: KR 10-2023-0017679, paragraphs 73 to 75 and figure 1: features of front-camera pictures part
into top, middle and bottom, left and right are alike, the centre is not. Zero padding at the edges
alone tells cells apart, in an untrained network, too: look at both before concluding anything.

Shape legend: B batch, C channels, H height, W width, N cells of all pictures.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from trainers.pictures.sheet import INK, PAPER, Heading, Row, Tile, draw_sheet, write

ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
COLOURS = (
    ("#8fc1ff", "#2f7fe0", "#123f80"), ("#9be3a8", "#2fa04a", "#10542a"),
    ("#ffb9a0", "#e0552f", "#7a2410"),
)  # fmt: skip
SIDE = 480


class Cells(NamedTuple):
    """Features of all cells of some pictures, and where each cell is."""

    features_NC: NDArray[np.float32]
    row_N: NDArray[np.int64]
    column_N: NDArray[np.int64]


def cells(maps_BCHW: Tensor, grid: tuple[int, int] = (3, 3)) -> Cells:
    """Return the mean features of each cell of a grid over feature maps."""
    pooled_BCHW = functional.adaptive_avg_pool2d(maps_BCHW.detach().float(), grid)
    features_NC = pooled_BCHW.movedim(1, -1).flatten(0, 2).cpu().numpy()
    place_N = np.tile(np.arange(grid[0] * grid[1]), len(maps_BCHW))
    return Cells(features_NC, place_N // grid[1], place_N % grid[1])


def embed(features_NC: NDArray[np.float32], seed: int = 0) -> NDArray[np.float32]:
    """Return the features in a plane (N, 2) by t-SNE, after each was brought to unit variance."""
    from sklearn.manifold import TSNE

    scaled_NC = (features_NC - features_NC.mean(0)) / (features_NC.std(0) + 1e-6)
    perplexity = min(30.0, (len(scaled_NC) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed, n_jobs=1)
    plane_N2: NDArray[np.float32] = tsne.fit_transform(scaled_NC)
    return plane_N2


def separation(plane_N2: NDArray[np.float32], label_N: NDArray[np.int64]) -> tuple[float, float]:
    """Return the silhouette of labelled points, and that of the same labels shuffled."""
    from sklearn.metrics import silhouette_score

    shuffled_N = np.random.RandomState(0).permutation(label_N)
    true, chance = (float(silhouette_score(plane_N2, n)) for n in (label_N, shuffled_N))
    return true, chance


@torch.no_grad()
def coarse_maps(net: torch.nn.Module, x_B3HW: Tensor) -> Tensor:
    """Return what a host's context module makes of pictures."""
    found: list[Tensor] = []
    context = net.context
    assert isinstance(context, torch.nn.Module), "a host of trainers.road.hosts"
    hook = context.register_forward_hook(lambda _, __, y_BCHW: found.append(y_BCHW))
    try:
        net.eval()(x_B3HW)
    finally:
        hook.remove()
    return found[0]


def draw_cells(found: Cells, plane_N2: NDArray[np.float32], detail: str) -> Image.Image:
    """Draw the cells as points: colours for rows, shades for columns, with their silhouettes."""
    low, high = plane_N2.min(0), plane_N2.max(0)
    at_N2 = (plane_N2 - low) / (high - low) * (SIDE - 40) + 20
    plot = Image.new("RGB", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(plot)
    for (x, y), row, column in zip(at_N2, found.row_N, found.column_N, strict=True):
        pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=COLOURS[row][column])
    rows, columns = (separation(plane_N2, labels) for labels in (found.row_N, found.column_N))
    lines = [
        f"silhouette of rows {rows[0]:.2f} (shuffled {rows[1]:.2f})",
        f"of columns {columns[0]:.2f} (shuffled {columns[1]:.2f})",
    ]
    heading = Heading("Where features come from", detail=detail)
    key = Tile(_key(), ["colours of the cells, where they are in a picture"])
    return draw_sheet(heading, [Row([Tile(plot, lines), key])], SIDE, smooth=True)


def _key() -> Image.Image:
    step = SIDE // 3
    key = Image.new("RGB", (SIDE, SIDE), "white")
    for row, colours in enumerate(COLOURS):
        for column, colour in enumerate(colours):
            key.paste(colour, (column * step, row * step, (column + 1) * step, (row + 1) * step))
            at = (column * step + step // 2, row * step + step // 2)
            write(
                key, at, f"{ROWS[row]}, {COLUMNS[column]}", 18, INK if column == 0 else PAPER, "mm"
            )
    return key
