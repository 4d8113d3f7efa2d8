"""The contact sheet of a search: queries with what is found before and after adaptation.

Shape legend: C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn

from trainers.blocks.maml import Inner, Weights, adapted
from trainers.pictures.sheet import INK, RIGHT, WRONG, Heading, Row, Tile, draw_sheet
from trainers.retrieval.domains import Draw
from trainers.retrieval.index import Hit, Index

SIDE, FRAME = 80, 5
QUERIES = 5


@dataclass(frozen=True)
class Search:
    """A query, its class, and what was found without and with adaptation."""

    query_CHW: Tensor
    label: str
    before: Sequence[Hit]
    after: Sequence[Hit]


def searches(
    net: nn.Module,
    draw: Draw,
    names: Sequence[str],
    inner: Inner,
    sizes: Weights | None,
    count: int,
) -> list[Search]:
    """Search for the first picture of each of the first classes among all others of a draw."""
    x_NCHW, labels = draw.rest
    truth = [names[k] for k in labels.tolist()]
    nets = (net, adapted(net, draw.support, inner, sizes))
    indices = [Index.build(one, x_NCHW, truth, truth) for one in nets]
    asked = [int((labels == k).nonzero()[0]) for k in sorted(set(labels.tolist()))[:QUERIES]]

    def hits(index: Index, place: int) -> list[Hit]:
        found = index.search(index.z_ND[place], count + 1)
        return [hit for hit in found if hit.place != place][:count]

    return [
        Search(x_NCHW[place], truth[place], *(hits(index, place) for index in indices))
        for place in asked
    ]


def draw_searches(found: Sequence[Search], database_NCHW: Tensor, shots: int) -> Image.Image:
    """Draw two rows for each query: its results before and after, green if right, red if wrong."""
    rows, right = [], [0, 0]
    for search in found:
        for way, hits in enumerate((search.before, search.after)):
            tiles = [Tile(_framed(search.query_CHW, INK), [f"query: {search.label}"], INK)]
            for hit in hits:
                good = hit.label == search.label
                right[way] += good
                colour = RIGHT if good else WRONG
                picture = _framed(database_NCHW[hit.place], colour)
                tiles.append(Tile(picture, [f"{hit.label}   {hit.distance:.2f}"], colour))
            rows.append(Row(tiles, ("unadapted", "adapted")[way]))
    shown = sum(len(search.after) for search in found)
    heading = Heading(
        "Few-shot retrieval",
        f"Nearest test pictures before and after adapting to {shots} of each class",
        f"{right[1]} of {shown} right",
        f"{right[0]} unadapted",
    )
    return draw_sheet(heading, rows, height=SIDE + 2 * FRAME)


def _framed(x_CHW: Tensor, colour: str) -> Image.Image:
    pixels: NDArray[np.uint8] = (x_CHW * 255).byte().movedim(0, -1).numpy()
    picture = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    large = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST)
    return ImageOps.expand(large, FRAME, colour)
