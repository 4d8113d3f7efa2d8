"""The picture of a sweep: scores of all seeds with mean and spread, and how they came about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.sweep.summary import PICTURE, Group, Row, groups

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy import float64
    from numpy.typing import NDArray

    Numbers = NDArray[float64]

MOST_CURVES = 10
"""More settings than that get dots, but no curves: colours would repeat."""


def draw(root: Path, rows: Sequence[Row]) -> Path | None:
    """Draw ``sweep.png``, a row of panels for each task; None when no job has a score."""
    by_task: dict[str, list[Group]] = {}
    for group in groups(rows):
        if group.scores:
            result = next(row.result for row in group.rows if row.result)
            by_task.setdefault(str(result["task"]), []).append(group)
    if not by_task:
        return None
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    heights = [1.6 + 0.32 * max(len(found), 6) for found in by_task.values()]
    figure, axes = plt.subplots(
        len(by_task), 2, figsize=(13, sum(heights)), squeeze=False, height_ratios=heights
    )
    for (task, found), (left, right) in zip(by_task.items(), axes, strict=True):
        colours = [f"C{n % 10}" for n in range(len(found))]
        _dots(left, task, found, colours)
        _curves(right, found[:MOST_CURVES], colours)
    figure.tight_layout()
    path = root / PICTURE
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _dots(axes: Axes, task: str, found: Sequence[Group], colours: Sequence[str]) -> None:
    for place, (group, colour) in enumerate(zip(found, colours, strict=True)):
        axes.plot(group.scores, [place] * len(group.scores), "o", color=colour, alpha=0.5, ms=6)
        spread = 0.0 if math.isnan(group.spread) else group.spread
        axes.errorbar(
            group.mean, place, xerr=spread, fmt="|", color=colour, ms=16, mew=2.5, capsize=4
        )
    seeds = max(len(group.rows) for group in found)
    names = [_short(group.words) for group in found]
    axes.set_yticks(range(len(found)), names, fontsize=9)
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xlabel(f"test {found[0].primary}: each of {seeds} seed(s), mean, standard deviation")
    axes.set_title(task, loc="left", fontsize=11)
    axes.grid(alpha=0.25, axis="x")


def _short(words: str) -> str:
    shown = " ".join(word for word in words.split() if not word.startswith("task="))
    return shown or words


def _curves(axes: Axes, found: Sequence[Group], colours: Sequence[str]) -> None:
    """Draw validation scores over minibatches: the mean over seeds, from worst to best shaded."""
    for group, colour in zip(found, colours, strict=False):
        at, values = _aligned([row.result["validation"] for row in group.rows if row.result])
        mean = values.mean(axis=0)
        axes.plot(at, mean, "o-", color=colour, ms=3, lw=1.3, label=_short(group.words))
        axes.fill_between(
            at, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, lw=0
        )
    axes.set(xlabel="minibatches of the whole job", ylabel=f"validation {found[0].primary}")
    axes.grid(alpha=0.25)
    if len(found) > 1:
        axes.legend(frameon=False, fontsize=8, loc="lower right")


def _aligned(curves: Sequence[list[dict[str, Any]]]) -> tuple[Numbers, Numbers]:
    """Return where any seed was scored and, for each seed, its score there, between its own."""
    import numpy as np

    at = np.unique([one["minibatch"] for curve in curves for one in curve])
    lines = [([one["minibatch"] for one in curve], [one["score"] for one in curve])
             for curve in curves]  # fmt: skip
    return at, np.array([np.interp(at, *line) for line in lines])
