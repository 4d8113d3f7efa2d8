"""Rows of the table: seconds of ours and of a bound or peer, taken in turns."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hostparts import Missing as Missing

Call = Callable[[], object]
Times = dict[str, list[float]]
PEERS = Path("~/.cache/dlplatform-peers").expanduser()
ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20


@dataclass(frozen=True)
class Settings:
    """What the user asked for.

    Args:
        repeat: turns of every row.
        quick: a smoke run: few turns, no variants of peers, short transfers.
        peers: folder with a virtual environment for each peer.
    """

    repeat: int = 30
    quick: bool = False
    peers: Path = PEERS


@dataclass
class Row:
    """One line of the table.

    The ratio is theirs / ours, so that more is better; for amounts that must equal what is
    expected (``within``) it is ours / theirs.

    Args:
        group: the name that ``--only`` takes.
        name: what is measured.
        peer: what it is held to.
        required: the ratio to be reached; None for a row that only informs.
        ours: seconds (or amounts) of ours, one a turn.
        theirs: the same of the bound, the peer, or the limit.
        unit: ``s`` or ``B``.
        within: how far the ratio may be from 1; then ``required`` is 1.
        note: what to know about the figures.
        missing: why there are none.
    """

    group: str
    name: str
    peer: str
    required: float | None = None
    ours: Sequence[float] = field(default_factory=list)
    theirs: Sequence[float] = field(default_factory=list)
    unit: str = "s"
    within: float | None = None
    note: str = ""
    missing: str = ""

    def figures(self) -> dict[str, Any]:
        """Return the row for JSON: minima, medians, ratios, and whether they reach what they must.

        ``reached`` judges the minima, ``reached_median`` the medians.
        """
        found: dict[str, Any] = {
            "group": self.group, "name": self.name, "peer": self.peer, "unit": self.unit,
            "required": self.required, "within": self.within, "note": self.note,
            "missing": self.missing, "turns": len(self.ours), "reached": None,
            "reached_median": None,
        }  # fmt: skip
        if self.missing or not self.ours or not self.theirs:
            return found
        for word, pick in (("min", min), ("median", statistics.median)):
            ours, theirs = float(pick(self.ours)), float(pick(self.theirs))
            found |= {f"ours_{word}": ours, f"theirs_{word}": theirs}
            found[f"ratio_{word}"] = self._ratio(ours, theirs)
            key = "reached" if word == "min" else "reached_median"
            found[key] = self._reached(ours, theirs)
        return found | {"ours": list(self.ours), "theirs": list(self.theirs)}

    def _ratio(self, ours: float, theirs: float) -> float | None:
        above, below = (theirs, ours) if self.within is None else (ours, theirs)
        return above / below if below else None

    def _reached(self, ours: float, theirs: float) -> bool | None:
        if self.within is not None:
            return abs(ours - theirs) <= self.within * theirs
        return None if self.required is None else ours * self.required <= theirs


def limit(row: Row, most: float, ours: Sequence[float]) -> Row:
    """Fill a row that is held to a fixed limit."""
    row.ours, row.theirs, row.required = ours, [most] * len(ours), 1.0
    return row


def seconds(call: Call, loops: int = 1) -> float:
    """Return how long one call takes, the mean of ``loops`` calls in a row."""
    begin = time.perf_counter()
    for _ in range(loops):
        call()
    return (time.perf_counter() - begin) / loops


def turns(calls: Mapping[str, Call], repeat: int, loops: int = 1) -> Times:
    """Time some calls in turns: a, b, a, b, ...; each runs once before, untimed."""
    for call in calls.values():
        call()
    times: Times = {name: [] for name in calls}
    for _ in range(repeat):
        for name, call in calls.items():
            times[name].append(seconds(call, loops))
    return times


def fastest(times: Mapping[str, Sequence[float]]) -> str:
    """Return the name of the fastest of several variants of a peer."""
    return min(times, key=lambda name: min(times[name]))


def missing(error: BaseException, rows: Sequence[Row]) -> Iterator[Row]:
    """Yield rows that could not be measured, with the reason."""
    reason = " ".join(str(error).split()) or type(error).__name__
    for row in rows:
        row.missing = reason
        yield row


def environment(**more: str) -> dict[str, str]:
    """Return the environment in which every part of the benchmark finds this tree."""
    path = [str(ROOT / "scripts"), str(ROOT)]
    old = os.environ.get("PYTHONPATH")
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    joined = os.pathsep.join([*path, old] if old else path)
    return {**os.environ, **threads, "PYTHONPATH": joined, **more}
