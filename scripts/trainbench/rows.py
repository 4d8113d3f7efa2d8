"""Rows of the table: figures of ours and of a peer or bound, taken in turns."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boxbench.rows import PEERS

FALLING = frozenset({"s", "MiB", "products"})
"""Units of which less is better."""


@dataclass(frozen=True)
class Settings:
    """What the user asked for: a smoke run or all turns, and where the peers are."""

    quick: bool = False
    peers: Path = PEERS

    def pick(self, full: int, quick: int) -> int:
        """Return a count for a full or for a smoke run."""
        return quick if self.quick else full


@dataclass
class Row:
    """One line of the table; a ratio above 1 means that ours is better.

    Args:
        group: the name that ``--only`` takes.
        name: what is measured.
        peer: what it is held to.
        required: the ratio to be reached; None for a row that only informs.
        ours: one figure a turn.
        theirs: the same of the peer or bound.
        unit: ``samples/s`` or ``share`` (more is better), or one of FALLING.
        predicted: the ratio that ``trainbench/model.py`` expects.
        note: what to know about the figures.
        missing: why there are none.
    """

    group: str
    name: str
    peer: str
    required: float | None = None
    ours: Sequence[float] = field(default_factory=list)
    theirs: Sequence[float] = field(default_factory=list)
    unit: str = "samples/s"
    predicted: float | None = None
    note: str = ""
    missing: str = ""

    def figures(self) -> dict[str, Any]:
        """Return the row for JSON: best and median figures, ratios, what is reached.

        The best turn is the fastest one. ``reached`` judges it, ``reached_median`` the medians.
        """
        found: dict[str, Any] = {
            "group": self.group, "name": self.name, "peer": self.peer, "unit": self.unit,
            "required": self.required, "predicted": self.predicted, "note": self.note,
            "missing": self.missing, "turns": len(self.ours), "reached": None,
            "reached_median": None,
        }  # fmt: skip
        if self.missing or not self.ours or not self.theirs:
            return found | {"missing": self.missing or "no figures"}
        best = min if self.unit in FALLING else max
        for word, pick, key in (
            ("best", best, "reached"),
            ("median", statistics.median, "reached_median"),
        ):
            ours, theirs = float(pick(self.ours)), float(pick(self.theirs))
            ratio = theirs / ours if self.unit in FALLING else ours / theirs
            found |= {f"ours_{word}": ours, f"theirs_{word}": theirs, f"ratio_{word}": ratio}
            found[key] = None if self.required is None else ratio >= self.required
        return found | {"ours": list(self.ours), "theirs": list(self.theirs)}


def rates(seconds: Sequence[float], samples: float) -> list[float]:
    """Return samples per second of turns that took so long."""
    return [samples / one for one in seconds]
