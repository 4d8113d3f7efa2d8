"""How good alarms are, and from which score on to raise them.

Shape legend: D answers, G true objects.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from trainers.blocks.boxes import iou
from trainers.data.instances import Found, Instances
from trainers.pipeline.events import Alert, Box
from trainers.scores.overlap import box_overlaps, ignored, match

SAME = 0.3
"""Overlap of an alert's box with the true one from which it is about the same person."""
OVERLAP = 0.5
"""Overlap from which an object counts as found."""


@dataclass(frozen=True)
class Happened:
    """Something that truly happened in a film."""

    source: str
    begin: float
    end: float
    """Seconds; an alert between counts."""
    boxes: Mapping[int, Box]
    """Where, by the number of the frame."""


def judge_alerts(
    alerts: Sequence[Alert], happened: Sequence[Happened], seconds: float
) -> dict[str, float]:
    """Return recall, precision, false alarms per hour of film, and the median latency in seconds.

    An alert is right when it comes while something happens, where that is; a second one of the
    same is false. The latency is left out where nothing was told.
    """
    told: dict[int, float] = {}
    wrong = 0
    for alert in sorted(alerts, key=lambda one: one.time):
        about = [n for n, event in enumerate(happened) if n not in told and _about(alert, event)]
        if about:
            told[about[0]] = alert.time - happened[about[0]].begin
        else:
            wrong += 1
    scores = {
        "recall": len(told) / max(1, len(happened)),
        "precision": len(told) / max(1, len(alerts)),
        "false_alarms_per_hour": wrong / seconds * 3600,
    }
    return scores | ({"median_latency": statistics.median(told.values())} if told else {})


def _about(alert: Alert, event: Happened) -> bool:
    box = event.boxes.get(alert.frame)
    if box is None or alert.source != event.source or not event.begin <= alert.time <= event.end:
        return False
    return float(iou(torch.tensor([alert.box]), torch.tensor([box]))) >= SAME


@dataclass(frozen=True)
class Threshold:
    """A score from which on answers count, and what comes of it."""

    score: float
    recall: float
    precision: float
    false_per_picture: float


def threshold_at(
    answers: Iterable[tuple[Found, Instances]],
    false_per_picture: float = 0.1,
    labels: Sequence[int] = (),
) -> Threshold:
    """Return the lowest score that keeps false answers at so many in a picture, and the recall.

    ``answers`` are what was found in validation pictures and what is in them; of some labels only,
    if given. What is ignored in the truth is neither right nor wrong to find. Choose the score on
    validation pictures, and report recall and false answers of it on others
    (``trainers/pipeline/judged.py:counted``).
    """
    held = _held(answers, labels)
    ranked, right = _ranked(held)
    allowed = int(np.floor(false_per_picture * max(1, held.pictures) + 1e-9))
    kept = int(np.searchsorted(np.cumsum(~right), allowed, side="right"))
    # answers of the same score come together or not at all
    while 0 < kept < len(ranked) and ranked[kept - 1] == ranked[kept]:
        kept -= 1
    return _threshold(held, float(ranked[kept - 1]) if kept else 1.0)


def threshold_for(
    answers: Iterable[tuple[Found, Instances]], recall: float = 0.95, labels: Sequence[int] = ()
) -> Threshold:
    """Return the highest score from which on so large a share of the objects is found.

    Where not so many are found at all, it is the lowest score. See ``threshold_at``.
    """
    held = _held(answers, labels)
    ranked, right = _ranked(held)
    wanted = int(np.ceil(recall * held.true - 1e-9))
    place = min(int(np.searchsorted(np.cumsum(right), wanted)), len(ranked) - 1)
    return _threshold(held, float(ranked[place]) if len(ranked) else 1.0)


def counted(
    answers: Iterable[tuple[Found, Instances]], score: float, labels: Sequence[int] = ()
) -> Threshold:
    """Return recall, precision and false answers in a picture of those from a score on."""
    return _threshold(_held(answers, labels), score)


@dataclass(frozen=True)
class _Held:
    """Answers that count, held against what is true."""

    scores_D: np.ndarray
    right_D: np.ndarray
    true: int
    """Objects."""
    pictures: int


def _ranked(held: _Held) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-held.scores_D, kind="stable")
    return held.scores_D[order], held.right_D[order]


def _threshold(held: _Held, score: float) -> Threshold:
    right_D = held.right_D[held.scores_D >= score]
    hits, count = int(right_D.sum()), len(right_D)
    false_per_picture = (count - hits) / max(1, held.pictures)
    return Threshold(score, hits / max(1, held.true), hits / max(1, count), false_per_picture)


def _held(answers: Iterable[tuple[Found, Instances]], labels: Sequence[int]) -> _Held:
    parts = [(np.zeros(0), np.zeros(0, bool))]
    true = pictures = 0
    for found, truth in answers:
        pictures += 1
        names = set(labels) or {*found.labels_N.tolist(), *truth.labels_N.tolist()}
        for label in sorted(names):
            mine = found.take(found.labels_N == label)
            mine = mine.take(mine.scores_N.argsort(descending=True, stable=True))
            wanted = truth.take(truth.labels_N == label)
            void_G = ignored(wanted)
            true += int((~void_G).sum())
            overlap_DG, _ = box_overlaps(mine.boxes_N4, wanted.boxes_N4)
            whose_D = match(overlap_DG, void_G[None], void_G, np.array([OVERLAP]))[0, 0]
            hit_D = whose_D >= 0
            counts_D = ~(hit_D & void_G[whose_D]) if len(void_G) else np.ones(len(hit_D), bool)
            parts.append((mine.scores_N.double().numpy()[counts_D], hit_D[counts_D]))
    scores_D, right_D = (np.concatenate(part) for part in zip(*parts, strict=True))
    return _Held(scores_D, right_D, true, pictures)
