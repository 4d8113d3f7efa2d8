"""Films told by what is in them when, found again by it, and likened by it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlplatform.errors import UsageError
from trainers.data.instances import Kinds
from trainers.pipeline.frame import Frame

Tag = tuple[int, str]
"""A stretch of a film by its number, and a kind that is seen in it."""


@dataclass(frozen=True)
class Hit:
    """Where a film shows what was asked for."""

    source: str
    begin: float
    end: float


class Tagger:
    """The stage that notes which kinds are seen in which stretch of each source: an index.

    A kind is seen in a stretch if it is surely found in at least ``share`` of its frames.
    """

    def __init__(
        self, kinds: Kinds, sure: float = 0.5, stretch: float = 1.0, share: float = 0.25
    ) -> None:
        self.kinds, self.sure, self.stretch, self.share = kinds, sure, stretch, share
        self.frames: dict[str, Counter[int]] = {}
        """Frames in each stretch, by source."""
        self.seen: dict[str, Counter[Tag]] = {}
        """Frames of each stretch in which a kind is seen, by source."""

    def __call__(self, frame: Frame) -> Frame:
        """Take note of a frame."""
        place = math.floor(frame.time / self.stretch + 1e-9)
        self.frames.setdefault(frame.source, Counter())[place] += 1
        surely = frame.found.labels_N[frame.found.scores_N >= self.sure]
        names = {self.kinds.names[int(label)] for label in surely}
        self.seen.setdefault(frame.source, Counter()).update((place, name) for name in names)
        return frame

    def tags(self, source: str) -> set[Tag]:
        """Return the stretches of a source with the kinds seen in them."""
        frames = self.frames.get(source, Counter())
        seen = self.seen.get(source, Counter())
        return {tag for tag, count in seen.items() if count >= self.share * frames[tag[0]]}

    def histogram(self, source: str) -> dict[str, float]:
        """Return in which share of a source's stretches each kind is seen."""
        counts = Counter(name for _, name in self.tags(source))
        total = max(1, len(self.frames.get(source, ())))
        return {name: counts[name] / total for name in self.kinds.names if counts[name]}

    def search(self, name: str) -> list[Hit]:
        """Return where a kind is seen; stretches one after the other are one hit."""
        hits: list[Hit] = []
        for source in self.frames:
            for place in sorted(place for place, tag in self.tags(source) if tag == name):
                begin, end = place * self.stretch, (place + 1) * self.stretch
                if hits and hits[-1].source == source and math.isclose(hits[-1].end, begin):
                    hits[-1] = Hit(source, hits[-1].begin, end)
                else:
                    hits.append(Hit(source, begin, end))
        return hits

    def alike(self, source: str, most: int = 5) -> list[tuple[str, float]]:
        """Return the other sources most like one, by the cosine between their histograms."""
        own = self.histogram(source)
        others = {other: cosine(own, self.histogram(other)) for other in self.frames}
        others.pop(source, None)
        return sorted(others.items(), key=lambda pair: (-pair[1], pair[0]))[:most]

    def record(self) -> dict[str, Any]:
        """Return the index ready for JSON: when each kind is seen, and what is alike."""
        return {
            source: {
                "seen": {
                    name: [
                        [hit.begin, hit.end] for hit in self.search(name) if hit.source == source
                    ]
                    for name in self.histogram(source)
                },
                "histogram": {n: round(v, 4) for n, v in self.histogram(source).items()},
                "alike": [[other, round(value, 4)] for other, value in self.alike(source)],
            }
            for source in self.frames
        }

    def save(self, path: Path) -> None:
        """Write the index to a file, from which ``load`` goes on."""
        rows = {
            source: [[p, frames[p], {n: c for (q, n), c in self.seen[source].items() if q == p}]
                     for p in sorted(frames)]
            for source, frames in self.frames.items()
        }  # fmt: skip
        path.write_text(json.dumps({"stretch": self.stretch, "sources": rows}))

    def load(self, path: Path) -> None:
        """Add the index in a file; raises UsageError for one that is none."""
        try:
            told = json.loads(path.read_text())
            for source, rows in told["sources"].items():
                self.frames[source] = Counter({int(p): int(count) for p, count, _ in rows})
                self.seen[source] = Counter(
                    {(int(p), str(n)): int(c) for p, _, seen in rows for n, c in seen.items()}
                )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{path} is no index of films ({error}) - allowed: a file that was saved as one - "
                "do: index the films again"
            ) from error


def cosine(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Return the cosine of the angle between two histograms, 0 if one is empty."""
    both = sum(value * other.get(name, 0.0) for name, value in one.items())
    lengths = [math.sqrt(sum(value**2 for value in each.values())) for each in (one, other)]
    return both / math.prod(lengths) if all(lengths) else 0.0


def tag_f1(said: Iterable[Hashable], true: Iterable[Hashable]) -> float:
    """Return the harmonic mean of precision and recall of tags."""
    said, true = set(said), set(true)
    return 2 * len(said & true) / max(1, len(said) + len(true))
