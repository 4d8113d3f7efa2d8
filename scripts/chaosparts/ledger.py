"""What a worker writes down of its operations, and the sums that follow from it.

A record is written before its operation begins; it also says that the one before was
acknowledged. So the last record of a killed worker is its one operation that nobody knows of.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

Vector = np.ndarray
KINDS = ("axpy", "bf16", "fetch", "merge", "elastic", "add", "end")
RECORD = struct.Struct("<BBhIII")  # kind, place, value, start, count, number
LENGTHS = {"one": 1, "small": 1000, "page": 5000, "middle": 70_000, "large": 700_000}
WATCHED = {"first": 600_000, "second": 9_000}
"""Buffers of the witness: it adds 1 to all of the first, then to all of the second."""
BUFFERS = {**LENGTHS, **WATCHED}
COUNTERS = ("red", "green", "blue")


@dataclass(frozen=True)
class Done:
    """One operation: kind, the name of its buffer or counter, scalar and span."""

    kind: str
    place: str
    value: int
    start: int = 0
    count: int = 0


def pattern(start: int, count: int) -> Vector:
    """Return what is added to elements: 1, 2 or 3, as their number says."""
    return (np.arange(start, start + count) % 3 + 1).astype(np.float32)


def places(kind: str) -> list[str]:
    """Return the names that operations of a kind may have."""
    return list(COUNTERS) if kind == "add" else list(BUFFERS)


class Ledger:
    """The file of one worker, only ever appended to."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.number = 0

    def write(self, kind: str, place: str = "", value: int = 0, start: int = 0, n: int = 0) -> None:
        """Write down what is about to be done; what came before was acknowledged."""
        where = places(kind).index(place) if place else 0
        os.write(
            self._descriptor,
            RECORD.pack(KINDS.index(kind), where, value, start, n, self.number),
        )
        self.number += 1


def read(path: Path) -> tuple[list[Done], Done | None]:
    """Return the operations acknowledged, and the last one if nobody knows how it ended."""
    raw = path.read_bytes()
    whole = raw[: len(raw) // RECORD.size * RECORD.size]
    done = []
    for number, (kind, where, value, start, count, check) in enumerate(RECORD.iter_unpack(whole)):
        assert number == check, f"{path} is out of order at {number}"
        name = KINDS[kind]
        if name == "end":
            return done, None
        done.append(Done(name, places(name)[where], value, start, count))
    return done[:-1], done[-1] if done else None


@dataclass
class Sums:
    """What the buffers and counters hold when so many operations were done once each."""

    steps: dict[str, Vector] = field(
        default_factory=lambda: {name: np.zeros(n + 1) for name, n in BUFFERS.items()}
    )
    counters: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))

    def add(self, one: Done) -> None:
        """Count one operation."""
        if one.kind == "add":
            self.counters[one.place] += one.value
        elif one.kind != "elastic":  # with rate 0 it changes nothing
            self.steps[one.place][one.start] += one.value
            self.steps[one.place][one.start + one.count] -= one.value

    def buffer(self, name: str) -> Vector:
        """Return the elements of a buffer."""
        n = BUFFERS[name]
        scale = np.cumsum(self.steps[name])[:n]
        return scale if name in WATCHED else scale * pattern(0, n)


@dataclass
class Account:
    """All that the workers have written down."""

    acknowledged: Sums = field(default_factory=Sums)
    unknown: Sums = field(default_factory=Sums)
    operations: int = 0
    last: int = 0

    def take(self, paths: Sequence[Path]) -> Account:
        """Add the files of workers that have ended."""
        for path in paths:
            done, last = read(path)
            self.operations += len(done)
            for one in done:
                self.acknowledged.add(one)
            if last is not None:
                self.last += 1
                self.unknown.add(last)
        return self

    def wrong(self, buffers: dict[str, Vector], counters: dict[str, int]) -> list[str]:
        """Return what is lost, doubled, or not a whole number: a line each."""
        lines = []
        for name, seen in buffers.items():
            least = self.acknowledged.buffer(name)
            most = least + self.unknown.buffer(name)
            for what, where in (
                ("lost", seen < least), ("doubled", seen > most), ("broken", seen != seen.round()),
            ):  # fmt: skip
                if where.any():
                    at = int(where.argmax())
                    lines.append(
                        f"{what}: {int(where.sum())} of {len(seen)} elements of {name}, first "
                        f"{at}: {seen[at]:g}, allowed {least[at]:g} to {most[at]:g}"
                    )
        for name, value in counters.items():
            low = self.acknowledged.counters[name]
            high = low + self.unknown.counters[name]
            if not low <= value <= high:
                lines.append(f"counter {name}: {value}, allowed {low} to {high}")
        return lines
