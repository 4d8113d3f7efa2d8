"""Selective search: few boxes that are likely to hold an object, without learning.

Source: Uijlings, van de Sande, Gevers and Smeulders, Selective Search for Object Recognition
(IJCV 2013); the first regions are those of Felzenszwalb and Huttenlocher, Efficient Graph-Based
Image Segmentation (IJCV 2004), here on a graph of four neighbours.

Shape legend: H height, W width, C channels, 3 RGB, N boxes, E edges, R regions, D bins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.vision.native import segment

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
SIMILARITIES = ("colour", "texture", "size", "fill")
COLOUR_BINS, TEXTURE_BINS, TURNS = 25, 10, 8
STEEPEST = 0.25
"""Slope of a channel, of its full range in a pixel, at which texture's last bin begins."""


@dataclass(frozen=True)
class Search:
    """How to search: every colour space with every scale, grouped by every sum of similarities.

    Scales and the least region are those of pictures of 128 x 128 pixels and grow with the side
    and the area of others.
    """

    spaces: tuple[str, ...] = ("hsv",)
    """Of rgb, hsv, lab and rgi (red and green by their sum, and intensity)."""
    scales: tuple[float, ...] = (150.0,)
    """k of the first regions: the larger, the fewer."""
    sums: tuple[tuple[str, ...], ...] = (SIMILARITIES,)
    sigma: float = 0.8
    """Of the Gaussian that smooths the picture first."""
    least: int = 20
    """Pixels of the smallest first region."""


FAST = Search()
QUALITY = Search(("hsv", "lab"), (100.0, 250.0), (SIMILARITIES, ("texture", "size", "fill")))
MODES = {"fast": FAST, "quality": QUALITY}


def selective_search(
    image_HW3: NDArray[np.uint8], mode: str = "fast", most: int = 2000, seed: int = 0
) -> Floats:
    """Return boxes_N4 (x0, y0, x1, y1) of what may be an object, the likeliest first.

    Regions of every grouping are ranked by their level times a random number, as published, so
    that large ones come earlier, but not only they.

    Raises KeyError for a mode other than ``fast`` and ``quality``.
    """
    random = np.random.RandomState(seed % 2**32)
    boxes, ranks = [], []
    for regions in groupings(image_HW3, MODES[mode]):
        levels = np.arange(len(regions.boxes_R4), 0, -1)
        boxes.append(regions.boxes_R4)
        ranks.append(levels * random.uniform(size=len(levels)))
    order = np.argsort(np.concatenate(ranks), kind="stable")
    ranked_N4 = np.concatenate(boxes)[order]
    _, first = np.unique(ranked_N4, axis=0, return_index=True)
    return ranked_N4[np.sort(first)[:most]].astype(np.float32)


def groupings(image_HW3: NDArray[np.uint8], search: Search) -> Iterator[Regions]:
    """Yield the hierarchy of regions of every combination of a search."""
    height, width = image_HW3.shape[:2]
    side, area = (height * width) ** 0.5 / 128, height * width / 128**2
    for space in search.spaces:
        image_HWC = smoothed(in_space(image_HW3, space), search.sigma)
        texture_HWC = slopes(image_HWC)
        edges = _edges(image_HWC)
        for scale in search.scales:
            labels_HW = _segmented(edges, (height, width), scale * side, round(search.least * area))
            first = describe(image_HWC, texture_HWC, labels_HW)
            for names in search.sums:
                yield group(first, names)


def initial_regions(
    image_HW3: NDArray[np.uint8], scale: float = 150.0, sigma: float = 0.8, least: int = 20
) -> Ints:
    """Return labels_HW from 0 of the first regions of an RGB picture."""
    image_HWC = smoothed(in_space(image_HW3, "rgb"), sigma)
    return _segmented(_edges(image_HWC), image_HW3.shape[:2], scale, least)


# ---- colours, smoothing, slopes ----


def in_space(image_HW3: NDArray[np.uint8], space: str) -> Floats:
    """Return an RGB picture in another colour space, its channels from 0 to 1 (KeyError: none)."""
    rgb_HWC: Floats = np.float32(1 / 255) * image_HW3.astype(np.float32)
    return SPACES[space](rgb_HWC).astype(np.float32)


def _hsv(rgb_HWC: Floats) -> NDArray[Any]:
    top, low = rgb_HWC.max(2), rgb_HWC.min(2)
    spread = np.maximum(top - low, 1e-6)
    red, green, blue = np.moveaxis(rgb_HWC, 2, 0)
    sixth = np.select(
        [top == red, top == green],
        [(green - blue) / spread % 6, (blue - red) / spread + 2],
        (red - green) / spread + 4,
    )
    return np.stack([sixth / 6, (top - low) / np.maximum(top, 1e-6), top], 2)


def _lab(rgb_HWC: Floats) -> NDArray[Any]:
    """Return CIE L*a*b* of sRGB under D65."""
    linear_HWC = np.where(rgb_HWC > 0.04045, ((rgb_HWC + 0.055) / 1.055) ** 2.4, rgb_HWC / 12.92)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], np.float32
    )
    xyz_HWC = linear_HWC @ to_xyz.T / np.array([0.9505, 1.0, 1.089], np.float32)
    f_HWC = np.where(xyz_HWC > 0.008856, np.cbrt(xyz_HWC), 7.787 * xyz_HWC + 16 / 116)
    x, y, z = np.moveaxis(f_HWC, 2, 0)
    lab_HWC = np.stack([116 * y - 16, 500 * (x - y) + 128, 200 * (y - z) + 128], 2)
    shares_HWC: NDArray[Any] = np.clip(lab_HWC / np.array([100, 255, 255]), 0, 1)
    return shares_HWC


def _rgi(rgb_HWC: Floats) -> NDArray[Any]:
    share_HWC = rgb_HWC / np.maximum(rgb_HWC.sum(2, keepdims=True), 1e-6)
    return np.concatenate([share_HWC[..., :2], rgb_HWC.mean(2, keepdims=True)], 2)


SPACES: dict[str, Callable[[Floats], NDArray[Any]]] = {
    "rgb": lambda rgb_HWC: rgb_HWC,
    "hsv": _hsv,
    "lab": _lab,
    "rgi": _rgi,
}


def smoothed(image_HWC: Floats, sigma: float) -> Floats:
    """Return a picture under a Gaussian; its border pixels go on outside."""
    reach = int(4 * sigma + 0.5)
    if not reach:
        return image_HWC
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2).astype(np.float32)
    taps /= taps.sum()
    for axis in (0, 1):
        pad = [(reach, reach) if axis == one else (0, 0) for one in range(3)]
        wide, count = np.pad(image_HWC, pad, "edge"), image_HWC.shape[axis]
        image_HWC = sum(
            tap * (wide[at : at + count] if axis == 0 else wide[:, at : at + count])
            for at, tap in enumerate(taps)
        )
    return image_HWC


def slopes(image_HWC: Floats) -> Floats:
    """Return how steeply each channel rises in each of eight directions, at least 0."""
    down_HWC, right_HWC = np.gradient(image_HWC, axis=(0, 1))
    turns = np.arange(TURNS) * (2 * np.pi / TURNS)
    risen = [np.sin(turn) * down_HWC + np.cos(turn) * right_HWC for turn in turns]
    risen_HWC: Floats = np.concatenate(risen, 2).clip(min=0).astype(np.float32)
    return risen_HWC


# ---- the first regions ----


def _edges(image_HWC: Floats) -> tuple[Floats, Ints, Ints]:
    """Return (weights_E, from_E, to_E) of neighbouring pixels, the most alike first."""
    at_HW = np.arange(image_HWC.shape[0] * image_HWC.shape[1]).reshape(image_HWC.shape[:2])
    across = np.square(image_HWC[:, 1:] - image_HWC[:, :-1]).sum(2).ravel()
    along = np.square(image_HWC[1:] - image_HWC[:-1]).sum(2).ravel()
    weights_E = 255 * np.sqrt(np.concatenate([across, along]))
    from_E = np.concatenate([at_HW[:, :-1].ravel(), at_HW[:-1].ravel()])
    to_E = np.concatenate([at_HW[:, 1:].ravel(), at_HW[1:].ravel()])
    order = np.argsort(weights_E, kind="stable")
    return weights_E[order], from_E[order], to_E[order]


def _segmented(
    edges: tuple[Floats, Ints, Ints], size: tuple[int, int], scale: float, least: int
) -> Ints:
    """Return labels_HW of the first regions."""
    weights_E, from_E, to_E = (torch.from_numpy(one) for one in edges)
    regions_N = segment(weights_E, from_E, to_E, size[0] * size[1], scale, least)
    _, labels_N = np.unique(regions_N.numpy(), return_inverse=True)
    return labels_N.reshape(size).astype(np.int64)


# ---- grouping ----


@dataclass
class Regions:
    """Regions with what their likeness is judged by; the first ones, then those they make."""

    boxes_R4: Ints
    """x0, y0, x1, y1."""
    sizes_R: Floats
    """Pixels."""
    colour_RD: Floats
    """Histograms of colours, each of sum 1, and the same of slopes."""
    texture_RD: Floats
    near_RR: NDArray[np.bool_]
    """Which touch."""
    area: int
    """Pixels of the picture."""


def describe(image_HWC: Floats, texture_HWC: Floats, labels_HW: Ints) -> Regions:
    """Return the regions of a class map of a picture, and of its slopes."""
    count = int(labels_HW.max()) + 1
    near_RR = np.zeros((count, count), bool)
    for one, other in (
        (labels_HW[:, 1:], labels_HW[:, :-1]),
        (labels_HW[1:], labels_HW[:-1]),
    ):
        near_RR[one, other] = near_RR[other, one] = True
    np.fill_diagonal(near_RR, False)
    return Regions(
        _boxes(labels_HW, count),
        np.bincount(labels_HW.ravel(), minlength=count).astype(np.float32),
        _histograms(image_HWC, labels_HW, count, COLOUR_BINS),
        _histograms(texture_HWC / STEEPEST, labels_HW, count, TEXTURE_BINS),
        near_RR,
        labels_HW.size,
    )


def _boxes(labels_HW: Ints, count: int) -> Ints:
    rows, columns = np.indices(labels_HW.shape)
    boxes_R4 = np.empty((count, 4), np.int64)
    boxes_R4[:, :2], boxes_R4[:, 2:] = max(labels_HW.shape), 0
    for axis, values in ((0, columns), (1, rows)):
        np.minimum.at(boxes_R4[:, axis], labels_HW.ravel(), values.ravel())
        np.maximum.at(boxes_R4[:, axis + 2], labels_HW.ravel(), values.ravel() + 1)
    return boxes_R4


def _histograms(image_HWC: Floats, labels_HW: Ints, count: int, bins: int) -> Floats:
    channels = image_HWC.shape[2]
    bin_HWC = np.minimum((image_HWC * bins).astype(np.int32), bins - 1)
    slot_HWC = bin_HWC + bins * np.arange(channels, dtype=np.int32)
    slot_HWC += (bins * channels) * labels_HW[..., None].astype(np.int32)
    counts = np.bincount(slot_HWC.ravel(), minlength=count * channels * bins)
    counts_RD = counts.reshape(count, -1).astype(np.float32)
    counts_RD /= counts_RD.sum(1, keepdims=True)
    return counts_RD


def similarities(regions: Regions, one: int, others: Ints) -> dict[str, Floats]:
    """Return how alike a region is to others, from 0 to 1 in each of four ways."""
    boxes_R4, sizes_R, area = regions.boxes_R4, regions.sizes_R, regions.area
    together = sizes_R[one] + sizes_R[others]
    low = np.minimum(boxes_R4[one, :2], boxes_R4[others, :2])
    high = np.maximum(boxes_R4[one, 2:], boxes_R4[others, 2:])
    box = (high - low).prod(1)
    return {
        "colour": np.minimum(regions.colour_RD[one], regions.colour_RD[others]).sum(1),
        "texture": np.minimum(regions.texture_RD[one], regions.texture_RD[others]).sum(1),
        "size": 1 - together / area,
        "fill": 1 - (box - together) / area,
    }


def group(first: Regions, names: Sequence[str] = SIMILARITIES) -> Regions:
    """Join the two most alike neighbours until one region is left; return all there ever were."""
    count = len(first.sizes_R)
    every = Regions(
        _room(first.boxes_R4, count),
        _room(first.sizes_R, count),
        _room(first.colour_RD, count),
        _room(first.texture_RD, count),
        np.zeros((2 * count - 1, 2 * count - 1), bool),
        first.area,
    )
    every.near_RR[:count, :count] = first.near_RR
    alike_RR = np.full(every.near_RR.shape, -1, np.float32)
    for one in range(count):
        _compare(every, alike_RR, one, np.flatnonzero(first.near_RR[one, :one]), names)
    for new in range(count, 2 * count - 1):
        one, other = divmod(int(alike_RR[:new, :new].argmax()), new)
        _join(every, one, other, new)
        alike_RR[[one, other]] = alike_RR[:, [one, other]] = -1
        _compare(every, alike_RR, new, np.flatnonzero(every.near_RR[new]), names)
    return every


def _room(values: NDArray[Any], count: int) -> NDArray[Any]:
    """Return values with room for the regions that are still to come."""
    more = np.zeros((count - 1, *values.shape[1:]), values.dtype)
    return np.concatenate([values, more])


def _compare(
    regions: Regions, alike_RR: Floats, one: int, others: Ints, names: Sequence[str]
) -> None:
    """Write down how alike a region is to others."""
    alike = similarities(regions, one, others)
    alike_RR[others, one] = sum(alike[name] for name in names)


def _join(regions: Regions, one: int, other: int, new: int) -> None:
    """Describe the region that two make: histograms are weighed by the sizes."""
    boxes_R4, sizes_R, near_RR = regions.boxes_R4, regions.sizes_R, regions.near_RR
    boxes_R4[new, :2] = np.minimum(boxes_R4[one, :2], boxes_R4[other, :2])
    boxes_R4[new, 2:] = np.maximum(boxes_R4[one, 2:], boxes_R4[other, 2:])
    sizes_R[new] = sizes_R[one] + sizes_R[other]
    for table in (regions.colour_RD, regions.texture_RD):
        table[new] = (sizes_R[one] * table[one] + sizes_R[other] * table[other]) / sizes_R[new]
    near_RR[new] = near_RR[one] | near_RR[other]
    near_RR[:, new] = near_RR[new]
    near_RR[[one, other]] = near_RR[:, [one, other]] = False


# ---- for comparison ----


@lru_cache(maxsize=8)
def sliding_windows(
    size: tuple[int, int],
    sides: tuple[float, ...] = (12, 17, 24, 34, 48, 68, 96),
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
    step: float = 0.125,
) -> Floats:
    """Return boxes_N4 of windows of a pyramid of sides, moved by a share of theirs.

    What detectors looked at before there were proposals: all places, sides and ratios (height
    by width) of a picture of (height, width).
    """
    found = []
    for side in sides:
        for ratio in ratios:
            high, wide = side * ratio**0.5, side / ratio**0.5
            if high > size[0] or wide > size[1]:
                continue
            pace = max(1.0, step * side)
            y, x = np.meshgrid(
                np.arange(0, size[0] - high + 1e-6, pace),
                np.arange(0, size[1] - wide + 1e-6, pace),
                indexing="ij",
            )
            found.append(np.stack([x, y, x + wide, y + high], -1).reshape(-1, 4))
    return np.concatenate(found or [np.zeros((0, 4))]).astype(np.float32)
